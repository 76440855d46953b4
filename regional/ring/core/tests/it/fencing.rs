//! LEASE-4, LEASE-5: tokens only increase, and a role has one holder.

use proptest::prelude::*;
use satrap_ring_core::{
    Caller, Keyspace, Refusal, Request, RingTime,
    fencing::ReleaseRole,
    fencing_token::FencingToken,
    keyspace::Pages,
    recovery::{RecoveryKind, RecoveryRecord},
};

use crate::ring::Ring;

pub fn recovery(epoch: u32, leap: i64) -> RecoveryRecord {
    RecoveryRecord {
        kind: RecoveryKind::Restored,
        epoch,
        kept: 0,
        leap,
        time: RingTime(0),
        trusted: vec!["a".into()],
        lost: vec![],
        reason: "a test".into(),
        signature: vec![],
    }
}

#[test]
fn a_role_is_refused_while_it_is_held_and_the_refusal_says_by_whom() {
    let mut ring = Ring::new();
    let first = ring.role("db", "alice", 1).unwrap();
    ring.at(2_000);
    let held = Refusal::RoleHeld { holder: "alice".into(), lease: 1, remaining_ms: 3_000 };
    assert_eq!(ring.role("db", "bob", 2), Err(held));
    assert!(ring.keyspace.leases().get(2).is_none(), "a refusal changes nothing (STATE-3)");
    assert!(ring.role("other", "bob", 2).unwrap() == first, "roles count for themselves");
    // Renewed through its lease; lost with it.
    assert_eq!(ring.renew(1), Ok(5));
    ring.at(6_999);
    assert!(ring.role("db", "bob", 3).is_err());
    ring.now = 7_000;
    let second = ring.role("db", "bob", 3).unwrap();
    assert!(second > first);
}

#[test]
fn a_release_needs_the_token_that_holds() {
    let mut ring = Ring::new();
    let first = ring.role("db", "alice", 1).unwrap();
    let release = |token| Request::ReleaseRole(ReleaseRole { role: "db".into(), token });
    ring.put_by("by the role's lease", "", 1).unwrap();
    ring.ask(release(first)).unwrap();
    assert_eq!(ring.value("by the role's lease"), None);
    let second = ring.role("db", "bob", 2).unwrap();
    assert_eq!(ring.ask(release(first)), Err(Refusal::StaleToken { current: second }));
    let status = ring.keyspace.role_status(&Caller::default(), "db", RingTime(1_000)).unwrap();
    let holder = status.holder.unwrap();
    assert_eq!((status.token, &*holder.name, holder.remaining_ms), (second, "bob", 4_000));
    let unknown = ring.keyspace.role_status(&Caller::default(), "?", RingTime(0)).unwrap();
    assert_eq!(unknown.token, FencingToken::default());
}

#[test]
fn a_lease_id_that_is_used_again_does_not_hold_the_role_of_the_one_before() {
    let mut ring = Ring::new();
    ring.role("db", "alice", 1).unwrap();
    ring.ask(Request::LeaseRevoke { id: 1 }).unwrap();
    ring.grant(1, 100).unwrap();
    ring.role("db", "bob", 2).unwrap();
}

#[test]
fn a_recovery_begins_above_every_token_that_may_be_lost_000_32() {
    let mut ring = Ring::new();
    let kept = ring.role("db", "alice", 1).unwrap();
    let changes = ring.keyspace.take_changes();
    // The following changes are lost: the snapshot is from before.
    let mut lost = kept;
    for lease in 2..50 {
        ring.ask(Request::LeaseRevoke { id: lease - 1 }).unwrap();
        lost = ring.role("db", "bob", lease).unwrap();
    }
    let keyspace = Keyspace::restore(&changes.pages, changes.events.into_iter()).unwrap();
    let mut ring = Ring { keyspace, ..Ring::new() };
    assert_eq!(ring.ask(Request::Recovery(recovery(0, 0))), Err(Refusal::StaleRecovery));
    assert_eq!(ring.ask(Request::Recovery(recovery(1 << 24, 0))), Err(Refusal::StaleRecovery));
    ring.ask(Request::Recovery(recovery(5, 1_000))).unwrap();
    assert_eq!(ring.ask(Request::Recovery(recovery(5, 0))), Err(Refusal::StaleRecovery));
    assert_eq!(ring.keyspace.epoch(), 5);
    assert_eq!(ring.keyspace.recoveries().next(), Some(&recovery(5, 1_000)));
    ring.ask(Request::LeaseRevoke { id: 1 }).unwrap();
    assert!(ring.role("db", "carol", 99).unwrap() > lost);
    assert_eq!(ring.put("k", "v"), Ok(1_001), "revisions leap over what clients may have seen");
}

#[derive(Clone, Debug)]
enum Step {
    Grant(u8),
    Release,
    Revoke,
    Wait(u64),
    Restart,
    Recover,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8).prop_map(Step::Grant),
        2 => Just(Step::Release),
        2 => Just(Step::Revoke),
        3 => (0..6_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::Recover),
    ]
}

proptest! {
    /// LEASE-4 and LEASE-5 over lost leases, restarts and restores of old states.
    #[test]
    fn tokens_strictly_increase_per_role_000_32(steps in prop::collection::vec(step(), 1..80)) {
        let mut ring = Ring::new();
        let mut newest = [FencingToken::default(); 3];
        let mut lease = 0;
        let mut held: Option<(u8, FencingToken)> = None;
        let (mut pages, mut events) = (Pages::new(), Vec::new());
        for step in steps {
            match step {
                Step::Grant(role) => {
                    lease += 1;
                    if let Ok(token) = ring.role(&format!("role {role}"), "x", lease) {
                        prop_assert!(token > newest[usize::from(role)]);
                        prop_assert!(token.to_u64() > newest[usize::from(role)].to_u64());
                        newest[usize::from(role)] = token;
                        held = Some((role, token));
                    }
                }
                Step::Release => if let Some((role, token)) = held.take() {
                    let release = ReleaseRole { role: format!("role {role}"), token };
                    let _ = ring.ask(Request::ReleaseRole(release));
                }
                Step::Revoke => { let _ = ring.ask(Request::LeaseRevoke { id: lease }); }
                Step::Wait(ms) => { ring.at(ring.now + ms); }
                Step::Restart => {
                    let changes = ring.keyspace.take_changes();
                    pages.extend(changes.pages);
                    events.extend(changes.events);
                    let digest = ring.keyspace.digest();
                    ring.keyspace = Keyspace::restore(&pages, events.iter().cloned()).unwrap();
                    prop_assert_eq!(ring.keyspace.digest(), digest);
                }
                Step::Recover => {
                    // Back to the last checkpoint; all grants since then are lost.
                    let now = ring.now;
                    ring.keyspace = Keyspace::restore(&pages, events.iter().cloned()).unwrap();
                    let leap = ring.keyspace.store().revision() + 1_000;
                    let epoch = ring.keyspace.epoch() + 1;
                    ring.now = now;
                    ring.ask(Request::Recovery(recovery(epoch, leap))).unwrap();
                    let changes = ring.keyspace.take_changes();
                    pages.extend(changes.pages);
                    events.extend(changes.events);
                    lease += 1_000;
                }
            }
        }
    }
}
