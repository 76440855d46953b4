//! Watches over the members: whose disk is full, and whose state is not the others'.
//!
//! A full disk must be noticed while there is still room for what frees space, and a member whose
//! memory, disk or code failed must not go on answering as if nothing had happened. So every member
//! looks at its own disk, and the leader compares the digests that members took of their whole state
//! at the same entries. What is found becomes an alarm, which is state like any other: all members
//! refuse writes until an operator, or more room, clears it.
//!
//! # Invariants
//!
//! - **W1** Digests are compared only at equal indices.
//! - **W2** Whoever differs from a majority is corrupt. Without a majority nobody can say who is
//!   right, and all that differ are.
//! - **W3** NOSPACE of a member goes away by itself once it has room, on its disk and in the quota.
//!   That of one that is removed goes with it (M5 of `state_machine`). Here it is raised for a full
//!   disk; for a full quota, by the service that refuses a client.

use std::{collections::BTreeMap, time::Duration};

use satrap_regional_api::backend::Unavailable;
use satrap_regional_core::{
    Request,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{Ring, checkpoint::Taken, platform::Platform, types::MemberName};

/// How often disks and digests are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a member may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A quota counts as having room again below this share of it.
const QUOTA_ROOM_PERCENT: u64 = 90;

/// The members whose digest at some entry shows that their state is not the ring's (W1, W2).
#[must_use]
pub fn corrupt(taken: &BTreeMap<MemberName, Vec<Taken>>) -> Vec<MemberName> {
    let mut at: BTreeMap<u64, BTreeMap<[u8; 16], Vec<&MemberName>>> = BTreeMap::new();
    for (name, digests) in taken {
        for (index, digest) in digests {
            at.entry(*index).or_default().entry(*digest).or_default().push(name);
        }
    }
    // The newest entry that several took is what counts: an older difference shows there too.
    let compared =
        at.values().rev().find(|groups| groups.values().map(Vec::len).sum::<usize>() > 1);
    let Some(groups) = compared.filter(|groups| groups.len() > 1) else { return Vec::new() };
    let members: usize = groups.values().map(Vec::len).sum();
    let right = groups.values().find(|group| group.len() * 2 > members);
    let wrong = groups.values().filter(|group| Some(*group) != right);
    wrong.flatten().map(|name| (*name).clone()).collect()
}

impl<P: Platform> Ring<P> {
    /// Never ends.
    pub async fn watch_health(&self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                tracing::info!(%error, "an alarm could not be raised or cleared; trying again");
            }
        }
    }

    async fn look(&self) -> Result<(), Unavailable> {
        self.look_at_room().await?;
        if self.leads() { self.compare().await } else { Ok(()) }
    }

    /// W3
    async fn look_at_room(&self) -> Result<(), Unavailable> {
        let Some(member) = self.own_id() else { return Ok(()) };
        let alarm = AlarmMember { kind: AlarmKind::NoSpace, member };
        let disk_has_room = match self.reserve.space() {
            Ok(space) => space.takes_writes(),
            Err(error) => {
                tracing::error!(%error, "cannot tell how much room the disk has");
                return Ok(());
            }
        };
        let (raised, held, quota) = self.read(|keyspace| {
            let raised = keyspace.alarms().list(Some(alarm.kind)).any(|a| a == alarm);
            let quota = keyspace.quotas().total_bytes_max();
            (raised, keyspace.store().sizes().held_bytes, quota)
        });
        if !disk_has_room {
            if !raised {
                tracing::error!("the disk is full: the ring refuses writes until there is room");
                self.ask(Request::Alarm(AlarmRequest::Activate(alarm))).await?.ok();
            }
        } else if raised && held < quota / 100 * QUOTA_ROOM_PERCENT {
            tracing::info!("there is room again");
            self.ask(Request::Alarm(AlarmRequest::Deactivate(alarm))).await?.ok();
        }
        Ok(())
    }

    /// Asks every member for its digests, and raises CORRUPT for those that differ.
    async fn compare(&self) -> Result<(), Unavailable> {
        let nodes = self.nodes();
        let others = nodes.iter().filter(|(name, _)| *name != self.name);
        let ask = |(name, _): &(MemberName, _)| {
            let (name, sender) = (name.clone(), self.network.sender(name.clone()));
            async move { sender.digests(ASK_TIMEOUT).await.ok().map(|taken| (name, taken)) }
        };
        let asked = futures::future::join_all(others.map(ask)).await;
        let mut taken: BTreeMap<_, _> = asked.into_iter().flatten().collect();
        taken.insert(self.name.clone(), self.shared.digests());
        for name in corrupt(&taken) {
            let Some((_, node)) = nodes.iter().find(|(known, _)| *known == name) else { continue };
            let alarm = AlarmMember { kind: AlarmKind::Corrupt, member: node.id };
            if self.read(|keyspace| keyspace.alarms().list(Some(alarm.kind)).any(|a| a == alarm)) {
                continue;
            }
            tracing::error!(member = %name, "its state is not the ring's; replace this member");
            self.ask(Request::Alarm(AlarmRequest::Activate(alarm))).await?.ok();
        }
        Ok(())
    }

    fn own_id(&self) -> Option<u64> {
        self.nodes().into_iter().find(|(name, _)| *name == self.name).map(|(_, node)| node.id)
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
        assert_eq!(two, [1, 2].map(MemberName::from), "nobody can say who is right");
    }

    #[test]
    fn digests_of_different_entries_are_not_compared() {
        assert_eq!(taken(&[(1, &[(256, 7)]), (2, &[(512, 8)])]), []);
        let later = taken(&[(1, &[(256, 7), (512, 9)]), (2, &[(256, 7)]), (3, &[(512, 9)])]);
        assert_eq!(later, []);
    }
}
