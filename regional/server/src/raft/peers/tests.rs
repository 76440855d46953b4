//! Who is let in, and who counts, as the membership changes.

use openraft::vote::leader_id_std::CommittedLeaderId;

use super::{super::types::LogId, *};

const OLD: InstanceId = [1; 16];
const NEW: InstanceId = [2; 16];
const LOST: InstanceId = [3; 16];

fn name(number: u64) -> MemberName {
    number.into()
}

/// By an entry at `index`: numbers of members, their instances, and since when they belong.
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

fn applied(index: u64, members: &[(u64, InstanceId, u64)]) -> Roll {
    let mut roll = Roll::new([1, 2, 3].map(name).into());
    roll.follow(&membership(index, members));
    roll.agree(&membership(index, members));
    roll
}

fn is_lost(judged: Result<(), Refusal>) -> bool {
    matches!(judged, Err(Refusal::LostDisk(_)))
}

fn is_stranger(judged: Result<(), Refusal>) -> bool {
    matches!(judged, Err(Refusal::Stranger(_)))
}

#[test]
fn before_there_is_a_ring_the_configured_may_speak() {
    let mut roll = Roll::new([1, 2, 3].map(name).into());
    assert!(roll.judge(&name(2), OLD, 0).is_ok());
    assert!(is_stranger(roll.judge(&name(4), OLD, 0)));
    // A member that came later leads, and takes this one in.
    assert!(roll.judge(&name(4), OLD, 7).is_ok());
    assert_eq!(roll.instance_of(&name(2)), ANY_INSTANCE);
}

/// P1, P2
#[test]
fn a_founder_that_lost_its_disk_is_refused_from_the_first_entry_on() {
    let mut roll = applied(0, &[(1, OLD, 0), (2, OLD, 0)]);
    assert!(roll.judge(&name(2), OLD, 0).is_ok());
    assert!(is_lost(roll.judge(&name(2), LOST, 0)));
    assert_eq!(roll.instance_of(&name(2)), OLD);
    // Also by whom only the log has reached.
    roll.agreed = None;
    assert!(is_lost(roll.judge(&name(2), LOST, 0)));
    assert!(is_stranger(roll.judge(&name(3), OLD, 0)), "configured, and not in the ring");
}

/// P2
#[test]
fn a_newcomer_is_believed_by_those_that_slept_and_refused_once_it_lost_its_disk() {
    // Taken in anew by the entry at 20; this member has slept since the one at 10.
    let mut asleep = applied(10, &[(1, OLD, 0), (2, OLD, 0)]);
    assert!(asleep.judge(&name(2), NEW, 20).is_ok());
    assert!(is_lost(asleep.judge(&name(2), LOST, 0)));
    let mut awake = applied(20, &[(1, OLD, 0), (2, NEW, 20)]);
    assert!(awake.judge(&name(2), NEW, 20).is_ok());
    // It has not read yet that it was taken in.
    assert!(awake.judge(&name(2), NEW, 0).is_ok());
    assert!(is_lost(awake.judge(&name(2), OLD, 0)), "its predecessor");
    assert!(is_lost(awake.judge(&name(2), LOST, 0)));
    assert_eq!(awake.instance_of(&name(2)), NEW);
    // Lost again, and taken in a third time.
    assert!(awake.judge(&name(2), LOST, 31).is_ok());
}

#[test]
fn what_is_only_in_the_log_lets_in_and_does_not_shut_out() {
    let mut roll = applied(10, &[(1, OLD, 0), (2, OLD, 0)]);
    // A leader that was cut off removed one member and took in two; nobody has agreed.
    roll.follow(&membership(30, &[(1, OLD, 0), (3, NEW, 12), (4, NEW, 25)]));
    assert!(roll.judge(&name(2), OLD, 0).is_ok());
    assert!(roll.judge(&name(3), NEW, 0).is_ok());
    // Meanwhile the others took in another one, with a smaller index.
    assert!(roll.judge(&name(4), LOST, 11).is_ok());
    assert_eq!(roll.instance_of(&name(4)), NEW, "the log says whose vote counts");
}

/// P3
#[test]
fn who_was_removed_is_a_stranger() {
    let mut roll = applied(30, &[(1, OLD, 0), (3, OLD, 0)]);
    assert!(is_stranger(roll.judge(&name(2), OLD, 0)));
    assert!(is_stranger(roll.judge(&name(2), NEW, 20)), "removed after it was taken in");
    assert!(roll.judge(&name(2), NEW, 31).is_ok());
}

#[test]
fn where_the_membership_names_nobody_the_first_to_come_is_meant() {
    let mut roll = applied(5, &[(1, ANY_INSTANCE, 0), (2, ANY_INSTANCE, 0)]);
    assert_eq!(roll.instance_of(&name(2)), ANY_INSTANCE);
    assert!(roll.judge(&name(2), OLD, 0).is_ok());
    assert!(is_lost(roll.judge(&name(2), LOST, 0)));
    assert_eq!(roll.instance_of(&name(2)), OLD);
    assert!(is_stranger(roll.judge(&name(3), OLD, 0)));
    // The leader has it recorded.
    roll.follow(&membership(6, &[(1, OLD, 0), (2, OLD, 0)]));
    roll.agree(&membership(6, &[(1, OLD, 0), (2, OLD, 0)]));
    assert!(is_lost(roll.judge(&name(1), LOST, 0)));
}

#[test]
fn a_member_says_since_when_it_belongs() {
    let mut roll = applied(10, &[(1, OLD, 0), (2, OLD, 0)]);
    assert_eq!((roll.since_of(&OLD), roll.since_of(&NEW)), (0, 0));
    roll.follow(&membership(20, &[(1, OLD, 0), (2, NEW, 15)]));
    assert_eq!(roll.since_of(&NEW), 15);
    assert_eq!(roll.since_of(&LOST), 0, "its namesake was taken in, it was not");
}
