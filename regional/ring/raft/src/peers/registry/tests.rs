//! Tests of which peers are accepted as the membership changes.

use openraft::vote::leader_id_std::CommittedLeaderId;

use super::*;
use crate::types::LogId;

const OLD: InstanceId = [1; 16];
const NEW: InstanceId = [2; 16];
const LOST: InstanceId = [3; 16];

fn name(number: u64) -> MemberName {
    number.into()
}

/// The membership of an entry at `index`: ids of members, their instances, and since when they
/// belong to the ring.
fn membership(index: u64, members: &[(u64, InstanceId, u64)]) -> Membership {
    let node = |(number, instance, since): &(u64, InstanceId, u64)| {
        let node = MemberNode { instance: *instance, since: *since, ..MemberNode::default() };
        (name(*number), node)
    };
    let nodes: BTreeMap<_, _> = members.iter().map(node).collect();
    let voters = nodes.keys().cloned().collect();
    let membership = openraft::Membership::new(vec![voters], nodes).unwrap();
    Membership::new(Some(LogId::new(CommittedLeaderId::new(1), index)), membership)
}

fn applied(index: u64, members: &[(u64, InstanceId, u64)]) -> MemberRegistry {
    let mut registry = MemberRegistry::new([1, 2, 3].map(name).into());
    registry.follow(&membership(index, members));
    registry.agree(&membership(index, members));
    registry
}

fn is_lost(judged: Result<(), Refusal>) -> bool {
    matches!(judged, Err(Refusal::LostDisk(_)))
}

fn is_stranger(judged: Result<(), Refusal>) -> bool {
    matches!(judged, Err(Refusal::Stranger(_)))
}

#[test]
fn before_there_is_a_ring_the_configured_may_speak() {
    let mut registry = MemberRegistry::new([1, 2, 3].map(name).into());
    assert!(registry.admit(&name(2), OLD, 0).is_ok());
    assert!(is_stranger(registry.admit(&name(4), OLD, 0)));
    // A member that joined later leads, and adds this one.
    assert!(registry.admit(&name(4), OLD, 7).is_ok());
    assert_eq!(registry.instance_of(&name(2)), ANY_INSTANCE);
}

/// LINK-1, LINK-2
#[test]
fn a_founder_that_lost_its_disk_is_refused_from_the_first_entry_on() {
    let mut registry = applied(0, &[(1, OLD, 0), (2, OLD, 0)]);
    assert!(registry.admit(&name(2), OLD, 0).is_ok());
    assert!(is_lost(registry.admit(&name(2), LOST, 0)));
    assert_eq!(registry.instance_of(&name(2)), OLD);
    // Members with the entry in the log only refuse it too.
    registry.agreed = None;
    assert!(is_lost(registry.admit(&name(2), LOST, 0)));
    assert!(is_stranger(registry.admit(&name(3), OLD, 0)), "configured, and not in the ring");
}

/// LINK-2
#[test]
fn a_new_member_is_accepted_by_members_that_were_down_and_refused_once_it_lost_its_disk() {
    // Added again by the entry at 20; this member was down since the one at 10.
    let mut asleep = applied(10, &[(1, OLD, 0), (2, OLD, 0)]);
    assert!(asleep.admit(&name(2), NEW, 20).is_ok());
    assert!(is_lost(asleep.admit(&name(2), LOST, 0)));
    let mut awake = applied(20, &[(1, OLD, 0), (2, NEW, 20)]);
    assert!(awake.admit(&name(2), NEW, 20).is_ok());
    // It has not yet applied the entry that added it.
    assert!(awake.admit(&name(2), NEW, 0).is_ok());
    assert!(is_lost(awake.admit(&name(2), OLD, 0)), "its predecessor");
    assert!(is_lost(awake.admit(&name(2), LOST, 0)));
    assert_eq!(awake.instance_of(&name(2)), NEW);
    // It lost its disk again, and was added a third time.
    assert!(awake.admit(&name(2), LOST, 31).is_ok());
}

#[test]
fn an_uncommitted_membership_adds_members_and_removes_none() {
    let mut registry = applied(10, &[(1, OLD, 0), (2, OLD, 0)]);
    // An isolated leader removed one member and added two; none of it is committed.
    registry.follow(&membership(30, &[(1, OLD, 0), (3, NEW, 12), (4, NEW, 25)]));
    assert!(registry.admit(&name(2), OLD, 0).is_ok());
    assert!(registry.admit(&name(3), NEW, 0).is_ok());
    // Meanwhile the others added another one, at a smaller index.
    assert!(registry.admit(&name(4), LOST, 11).is_ok());
    assert_eq!(registry.instance_of(&name(4)), NEW, "the log says whose vote counts");
}

/// LINK-3
#[test]
fn a_removed_member_is_refused() {
    let mut registry = applied(30, &[(1, OLD, 0), (3, OLD, 0)]);
    assert!(is_stranger(registry.admit(&name(2), OLD, 0)));
    assert!(is_stranger(registry.admit(&name(2), NEW, 20)), "removed after it was taken in");
    assert!(registry.admit(&name(2), NEW, 31).is_ok());
}

#[test]
fn the_first_instance_to_come_is_the_member_if_the_membership_names_none() {
    let mut registry = applied(5, &[(1, ANY_INSTANCE, 0), (2, ANY_INSTANCE, 0)]);
    assert_eq!(registry.instance_of(&name(2)), ANY_INSTANCE);
    assert!(registry.admit(&name(2), OLD, 0).is_ok());
    assert!(is_lost(registry.admit(&name(2), LOST, 0)));
    assert_eq!(registry.instance_of(&name(2)), OLD);
    assert!(is_stranger(registry.admit(&name(3), OLD, 0)));
    // The leader records it.
    registry.follow(&membership(6, &[(1, OLD, 0), (2, OLD, 0)]));
    registry.agree(&membership(6, &[(1, OLD, 0), (2, OLD, 0)]));
    assert!(is_lost(registry.admit(&name(1), LOST, 0)));
}

#[test]
fn a_member_says_since_when_it_belongs() {
    let mut registry = applied(10, &[(1, OLD, 0), (2, OLD, 0)]);
    assert_eq!((registry.since_of(&OLD), registry.since_of(&NEW)), (0, 0));
    registry.follow(&membership(20, &[(1, OLD, 0), (2, NEW, 15)]));
    assert_eq!(registry.since_of(&NEW), 15);
    assert_eq!(registry.since_of(&LOST), 0, "its namesake was taken in, it was not");
}
