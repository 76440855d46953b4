//! The rules for raising and clearing alarms from the members' reports (HEALTH-1 to HEALTH-3 of the
//! parent).

use std::collections::BTreeMap;

use crate::{checkpoint::IndexedDigest, types::MemberName};

/// The share of the quota below which there is room again.
const QUOTA_ROOM_PERCENT: u64 = 90;

/// The members whose digest after some entry shows that their state is not the ring's (HEALTH-1,
/// HEALTH-2).
#[must_use]
pub fn corrupt(taken: &BTreeMap<MemberName, Vec<IndexedDigest>>) -> Vec<MemberName> {
    let mut at: BTreeMap<u64, BTreeMap<[u8; 16], Vec<&MemberName>>> = BTreeMap::new();
    for (name, digests) in taken {
        for (index, digest) in digests {
            at.entry(*index).or_default().entry(*digest).or_default().push(name);
        }
    }
    // The newest entry that several members recorded counts: an older difference shows there too.
    let compared =
        at.values().rev().find(|groups| groups.values().map(Vec::len).sum::<usize>() > 1);
    let Some(groups) = compared.filter(|groups| groups.len() > 1) else { return Vec::new() };
    let members: usize = groups.values().map(Vec::len).sum();
    let right = groups.values().find(|group| group.len() * 2 > members);
    let wrong = groups.values().filter(|group| Some(*group) != right);
    wrong.flatten().map(|name| (*name).clone()).collect()
}

/// Whether an alarm is currently raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// The alarm is raised.
    Yes,
    /// The alarm is not raised.
    No,
}

/// A change of an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Raise the alarm.
    Raise,
    /// Clear the alarm.
    Clear,
}

/// The free space of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Whether the disk has more free space than the reserve.
    pub disk_takes_writes: bool,
    /// Bytes that the keyspace holds.
    pub held_bytes: u64,
    /// The quota of the keyspace, in bytes.
    pub quota_bytes_max: u64,
}

/// The change of the NOSPACE alarm of the member that has `space`, if any (HEALTH-3).
#[must_use]
pub fn no_space(raised: Raised, space: Space) -> Option<Change> {
    let quota_has_room = space.held_bytes < space.quota_bytes_max / 100 * QUOTA_ROOM_PERCENT;
    match (raised, space.disk_takes_writes) {
        (Raised::No, false) => Some(Change::Raise),
        (Raised::Yes, true) if quota_has_room => Some(Change::Clear),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rows: &[(u64, &[(u64, u8)])]) -> Vec<MemberName> {
        let member = |(name, digests): &(u64, &[(u64, u8)])| {
            let digests = digests.iter().map(|(index, byte)| (*index, [*byte; 16])).collect();
            (MemberName::from(*name), digests)
        };
        corrupt(&rows.iter().map(member).collect())
    }

    #[test]
    fn the_one_that_differs_from_a_majority_is_corrupt() {
        assert_eq!(taken(&[(1, &[(256, 7)]), (2, &[(256, 7)]), (3, &[(256, 7)])]), []);
        let odd = taken(&[(1, &[(256, 7)]), (2, &[(256, 8)]), (3, &[(256, 7)])]);
        assert_eq!(odd, [MemberName::from(2)]);
        let two = taken(&[(1, &[(256, 7)]), (2, &[(256, 8)])]);
        assert_eq!(two, [1, 2].map(MemberName::from), "there is no majority");
    }

    #[test]
    fn digests_of_different_entries_are_not_compared() {
        assert_eq!(taken(&[(1, &[(256, 7)]), (2, &[(512, 8)])]), []);
        let later = taken(&[(1, &[(256, 7), (512, 9)]), (2, &[(256, 7)]), (3, &[(512, 9)])]);
        assert_eq!(later, []);
    }

    #[test]
    fn no_space_is_raised_for_a_full_disk_and_cleared_once_disk_and_quota_have_room() {
        let look = |disk_takes_writes, held_bytes| Space {
            disk_takes_writes,
            held_bytes,
            quota_bytes_max: 1_000,
        };
        assert_eq!(no_space(Raised::No, look(false, 0)), Some(Change::Raise));
        assert_eq!(no_space(Raised::Yes, look(false, 0)), None, "raised once");
        assert_eq!(
            no_space(Raised::No, look(true, 999)),
            None,
            "the service that refuses raises it"
        );
        assert_eq!(no_space(Raised::Yes, look(true, 900)), None, "the quota has no room yet");
        assert_eq!(no_space(Raised::Yes, look(true, 899)), Some(Change::Clear));
    }
}
