//! The rules for who may join the ring and which voters may be removed (CHANGES-1, CHANGES-2 of the
//! parent).

use std::collections::BTreeSet;

use satrap_ring_api::backend::{Failure, Unavailable};
use satrap_ring_core::{Refusal, members::Invitation};
use satrap_ring_storage::InstanceId;
use serde::{Deserialize, Serialize};

use crate::{
    frames::ANY_INSTANCE,
    types::{MemberName, MemberNode},
};

/// The reason for refusing a change. The caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The ring has no such member.
    NotFound,
    /// The member is a voter already.
    NotLearner,
    /// The learner has not caught up, or never joined.
    NotReady,
    /// Another member has that address.
    UrlExists,
    /// The addresses are missing or invalid.
    BadUrls,
    /// CHANGES-2
    NotEnoughStarted,
    /// The new leader is not a voter, or does not respond.
    BadTransferee,
    /// No invitation names the member's address.
    NotInvited,
    /// The ring has the maximum number of members.
    TooMany,
    /// Another change is in progress.
    Busy,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Refused(match fault {
            Fault::NotFound | Fault::NotInvited => Refusal::MemberNotFound,
            Fault::NotLearner => Refusal::MemberNotLearner,
            Fault::NotReady => Refusal::LearnerNotReady,
            Fault::UrlExists => Refusal::PeerUrlExists,
            Fault::BadUrls => Refusal::MemberBadUrls,
            Fault::NotEnoughStarted => Refusal::MemberNotEnoughStarted,
            Fault::BadTransferee => Refusal::BadLeaderTransferee,
            Fault::TooMany => Refusal::TooManyLearners,
            Fault::Busy => return Self::Unavailable(Unavailable::TooManyRequests),
        })
    }
}

/// A member that asks to join.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer<'a> {
    /// The name in its certificate.
    pub name: &'a MemberName,
    /// The address where it listens for its peers.
    pub url: &'a str,
    /// The instance id of its disk.
    pub instance: &'a InstanceId,
}

/// The admission of a member that may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// It is a member already.
    IsMember,
    /// It was invited.
    Invited {
        /// The id of the invitation, which becomes the member's.
        id: u64,
        /// See [`Invitation::learner`].
        learner: bool,
    },
}

/// Whether `newcomer` may join the ring of `nodes` (CHANGES-1, CHANGES-4).
///
/// # Errors
///
/// [`Fault::NotInvited`], also for the name of a member with another disk.
pub fn join<'a>(
    nodes: &[(MemberName, MemberNode)],
    mut invited: impl Iterator<Item = (u64, &'a Invitation)>,
    newcomer: Newcomer<'_>,
) -> Result<Join, Fault> {
    if let Some((_, node)) = nodes.iter().find(|(known, _)| known == newcomer.name) {
        let expected = node.instance == *newcomer.instance || node.instance == ANY_INSTANCE;
        return if expected { Ok(Join::IsMember) } else { Err(Fault::NotInvited) };
    }
    let invitation =
        invited.find(|(_, invitation)| invitation.peer_urls.iter().any(|url| url == newcomer.url));
    let (id, Invitation { learner, .. }) = invitation.ok_or(Fault::NotInvited)?;
    Ok(Join::Invited { id, learner: *learner })
}

/// Whether `member` may be removed from `voters`; `living` responded lately (CHANGES-2).
///
/// # Errors
///
/// [`Fault::NotEnoughStarted`].
pub fn remove(
    voters: &BTreeSet<MemberName>,
    living: &BTreeSet<MemberName>,
    member: &MemberName,
) -> Result<(), Fault> {
    let stay = || voters.iter().filter(|name| *name != member);
    if stay().filter(|name| living.contains(*name)).count() * 2 > stay().count() {
        return Ok(());
    }
    Err(Fault::NotEnoughStarted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(
        nodes: &[(MemberName, MemberNode)],
        name: u64,
        url: &str,
        disk: u8,
    ) -> Result<Join, Fault> {
        let peer_urls = vec!["https://new:1".to_owned()];
        let invitation = Invitation { peer_urls, learner: true };
        let newcomer = Newcomer { name: &name.into(), url, instance: &[disk; 16] };
        join(nodes, [(7, &invitation)].into_iter(), newcomer)
    }

    #[test]
    fn only_an_invited_address_joins() {
        assert_eq!(asks(&[], 4, "https://new:1", 9), Ok(Join::Invited { id: 7, learner: true }));
        assert_eq!(asks(&[], 4, "https://other:1", 9), Err(Fault::NotInvited));
    }

    #[test]
    fn a_member_is_known_by_its_disk_whatever_its_address() {
        let node = |instance| [(4.into(), MemberNode { instance, ..MemberNode::default() })];
        assert_eq!(asks(&node([9; 16]), 4, "https://moved:1", 9), Ok(Join::IsMember));
        assert_eq!(asks(&node(ANY_INSTANCE), 4, "https://moved:1", 9), Ok(Join::IsMember));
        assert_eq!(asks(&node([8; 16]), 4, "https://new:1", 9), Err(Fault::NotInvited));
    }

    #[test]
    fn a_majority_of_those_that_stay_must_live() {
        let names = |numbers: &[u64]| numbers.iter().map(|n| MemberName::from(*n)).collect();
        let may =
            |living: &[u64], gone: u64| remove(&names(&[1, 2, 3]), &names(living), &gone.into());
        assert_eq!(may(&[1, 2], 3), Ok(()), "the dead one goes");
        assert_eq!(may(&[1, 2], 2), Err(Fault::NotEnoughStarted), "one of two would live");
        assert_eq!(may(&[1, 2, 3], 1), Ok(()));
    }
}
