//! LEASE-1, LEASE-2, LEASE-3: leases end at their deadline, once, and delete their keys.

use std::collections::BTreeMap;

use proptest::prelude::*;
use satrap_ring_core::{Batch, Caller, Proposal, Refusal, Request, RingTime, kv, limits};

use crate::ring::{Ring, put, text};

#[test]
fn a_grant_is_bounded_as_in_etcd() {
    let mut ring = Ring::new();
    assert_eq!(ring.grant(0, 10), Err(Refusal::LeaseNotFound));
    assert_eq!(ring.grant(1, 9_000_000_001), Err(Refusal::LeaseTtlTooLarge));
    assert_eq!(ring.grant(1, 9_000_000_000), Ok(9_000_000_000));
    assert_eq!(ring.grant(1, 10), Err(Refusal::LeaseExists));
    assert_eq!(ring.grant(2, 1), Ok(2), "etcd's minimum");
    assert_eq!(ring.grant(3, -7), Ok(2));
    assert_eq!(ring.keyspace.store().revision(), 1, "leases take no revisions");
}

#[test]
fn lease_1_a_lease_ends_at_its_deadline_and_not_a_millisecond_before() {
    let mut ring = Ring::new();
    ring.at(1_000).grant(7, 5).unwrap();
    ring.put_by("b", "1", 7).unwrap();
    ring.put_by("a", "1", 7).unwrap();
    assert_eq!(ring.keyspace.next_expiry(), Some(RingTime(6_000)));
    ring.at(5_999);
    assert_eq!(ring.keys_of(7), ["a", "b"]);
    let revision = ring.keyspace.store().revision();
    ring.at(6_000);
    assert_eq!((ring.value("a"), ring.value("b")), (None, None));
    assert_eq!(ring.keyspace.store().revision(), revision + 1, "one revision per lease (LEASE-3)");
    let order: Vec<_> = ring.keyspace.store().events(revision + 1, 1).flatten().collect();
    assert_eq!([order[0].key(), order[1].key()], [b"a", b"b"], "sorted as etcd sorts them");
    assert_eq!(ring.keyspace.next_expiry(), None);
}

#[test]
fn time_never_goes_back() {
    let mut ring = Ring::new();
    ring.at(10_000).grant(7, 5).unwrap();
    ring.at(2_000);
    assert_eq!(ring.keyspace.now(), RingTime(10_000));
    assert_eq!(ring.renew(7), Ok(5), "a leader with a slow clock does not shorten it");
    assert_eq!(ring.keyspace.next_expiry(), Some(RingTime(15_000)));
}

#[test]
fn lease_2_renewing_starts_the_time_again_and_a_due_lease_is_never_revived() {
    let mut ring = Ring::new();
    ring.grant(7, 5).unwrap();
    ring.at(4_999);
    assert_eq!(ring.renew(7), Ok(5));
    ring.at(9_998);
    assert_eq!(ring.renew(7), Ok(5));
    // The renewal and the deadline come in one batch: the deadline takes precedence.
    ring.now = 14_998;
    assert_eq!(ring.renew(7), Err(Refusal::LeaseNotFound));
    assert_eq!(ring.renew(8), Err(Refusal::LeaseNotFound));
    assert_eq!(ring.put_by("k", "v", 7), Err(Refusal::LeaseNotFound));
}

#[test]
fn lease_2_a_lease_that_waits_for_its_turn_is_dead_to_everyone() {
    let mut ring = Ring::new();
    let n = i64::try_from(limits::BATCH_EXPIRIES_MAX).unwrap() * 2 + 5;
    for id in 1..=n {
        ring.grant(id, 2).unwrap();
    }
    ring.put_by("k", "v", n).unwrap();
    ring.now = 2_000;
    // This batch ends the oldest leases; the last one is due and still there.
    assert_eq!(ring.renew(n), Err(Refusal::LeaseNotFound));
    assert_eq!(ring.put_by("l", "v", n), Err(Refusal::LeaseNotFound));
    assert_eq!(ring.keyspace.leases().list().count(), 0);
    assert_eq!(ring.keyspace.next_expiry(), Some(RingTime(2_000)), "the next tick goes on");
    assert!(ring.keyspace.leases().time_to_live(n, RingTime(2_000)).is_none());
    for _ in 0..2 {
        ring.ask(Request::Tick).unwrap();
    }
    assert!(ring.keyspace.leases().is_empty());
    assert_eq!(ring.value("k"), None);
    // The oldest leases end first, and after that the id is free, as in etcd.
    assert_eq!(ring.grant(n, 5), Ok(5));
}

#[test]
fn expiries_of_one_batch_are_bounded_in_leases_and_in_keys() {
    let mut ring = Ring::new();
    let per_lease = limits::BATCH_EXPIRED_KEYS_MAX;
    for id in 1..=3 {
        ring.grant(id, 2).unwrap();
    }
    let keyed = |id: i64, n: usize| {
        let put = kv::PutRequest { lease: id, ..put(&format!("{id}/{n:06}"), "") };
        Proposal { caller: Caller::default(), request: Request::Put(put) }
    };
    for id in 1..=3 {
        let proposals = (0..per_lease).map(|n| keyed(id, n)).collect();
        ring.keyspace.apply(&Batch { time: RingTime(0), proposals });
    }
    for left in [2, 1, 0] {
        ring.at(2_000);
        assert_eq!(ring.keyspace.leases().len(), left);
        assert_eq!(ring.keyspace.store().live_keys(), (left * per_lease) as u64);
    }
}

#[test]
fn revoking_takes_the_keys_and_says_so_once() {
    let mut ring = Ring::new();
    ring.grant(7, 100).unwrap();
    ring.put_by("a", "1", 7).unwrap();
    assert_eq!(ring.ask(Request::LeaseRevoke { id: 7 }).unwrap().revision(), 3);
    assert_eq!(ring.ask(Request::LeaseRevoke { id: 7 }), Err(Refusal::LeaseNotFound));
    assert_eq!(ring.value("a"), None);
    // A lease without keys costs no revision.
    ring.grant(8, 100).unwrap();
    assert_eq!(ring.ask(Request::LeaseRevoke { id: 8 }).unwrap().revision(), 3);
}

#[test]
fn a_key_lives_by_the_lease_of_its_last_write() {
    let mut ring = Ring::new();
    ring.grant(1, 100).unwrap();
    ring.grant(2, 200).unwrap();
    ring.put_by("k", "v", 1).unwrap();
    ring.put_by("k", "v", 2).unwrap();
    assert_eq!((ring.keys_of(1), ring.keys_of(2)), (vec![], vec!["k".to_owned()]));
    let keep = kv::PutRequest { ignore_lease: true, ..put("k", "w") };
    ring.ask(Request::Put(keep)).unwrap();
    assert_eq!(ring.keys_of(2), ["k"]);
    ring.ask(Request::LeaseRevoke { id: 1 }).unwrap();
    assert_eq!(ring.value("k").as_deref(), Some("w"), "the former lease has no say");
    ring.put("k", "x").unwrap();
    assert!(ring.keys_of(2).is_empty(), "a put without a lease detaches");
    ring.put_by("k", "y", 2).unwrap();
    ring.delete("k").unwrap();
    assert!(ring.keys_of(2).is_empty());
    // Within one transaction the last write counts.
    let by = |lease, value| kv::RequestOp::Put(kv::PutRequest { lease, ..put("t", value) });
    let delete = kv::RequestOp::DeleteRange(kv::DeleteRangeRequest {
        range: kv::KeyRange::key(text("t")),
        prev_kv: false,
    });
    let txn = kv::TxnRequest { success: vec![by(2, "1"), delete], ..Default::default() };
    ring.ask(Request::Txn(txn)).unwrap();
    assert!(ring.keys_of(2).is_empty());
}

#[test]
fn leases_are_listed_by_what_is_left_and_time_to_live_rounds_down() {
    let mut ring = Ring::new();
    ring.grant(1, 300).unwrap();
    ring.grant(2, 100).unwrap();
    ring.grant(3, 200).unwrap();
    let anonymous = Caller::default();
    assert_eq!(ring.keyspace.lease_list(&anonymous).unwrap(), [2, 3, 1]);
    ring.put_by("b", "", 2).unwrap();
    ring.put_by("a", "", 2).unwrap();
    let left = ring.keyspace.time_to_live_with_keys(&anonymous, 2, RingTime(500)).unwrap();
    assert_eq!((left.remaining_s, left.granted_s), (99, 100));
    let at_once = ring.keyspace.time_to_live(&anonymous, 2, RingTime(0)).unwrap();
    assert_eq!(at_once.remaining_s, 99, "as in etcd, which never answers 100");
    assert_eq!(left.keys, [text("a"), text("b")]);
    let gone = ring.keyspace.time_to_live(&anonymous, 9, RingTime(0));
    assert_eq!(gone, Err(Refusal::LeaseNotFound));
}

/// One step of a history of leases.
#[derive(Clone, Debug)]
enum Step {
    Grant(i64, i64),
    Renew(i64),
    Revoke(i64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..6_i64, 0..8_i64).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        (1..6_i64).prop_map(Step::Renew),
        (1..6_i64).prop_map(Step::Revoke),
        (0..5_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// LEASE-1 and LEASE-2 against a naive model: a map from lease to deadline.
    #[test]
    fn leases_do_what_a_map_of_deadlines_does(steps in prop::collection::vec(step(), 1..80)) {
        let mut ring = Ring::new();
        let mut model: BTreeMap<i64, (u64, i64)> = BTreeMap::new();
        for step in steps {
            if let Step::Wait(ms) = step {
                ring.now += ms;
            }
            model.retain(|_, (deadline, _)| *deadline > ring.now);
            match step {
                Step::Grant(id, ttl) => {
                    let free = !model.contains_key(&id);
                    prop_assert_eq!(ring.grant(id, ttl).is_ok(), free);
                    if free {
                        let ttl = ttl.max(2);
                        model.insert(id, (ring.now + ttl as u64 * 1_000, ttl));
                        ring.put_by(&format!("key of {id}"), "", id).unwrap();
                    }
                }
                Step::Renew(id) => {
                    let now = ring.now;
                    let known = model.get_mut(&id).map(|(deadline, ttl)| {
                        *deadline = now + *ttl as u64 * 1_000;
                        *ttl
                    });
                    prop_assert_eq!(ring.renew(id).ok(), known);
                }
                Step::Revoke(id) => {
                    let revoked = ring.ask(Request::LeaseRevoke { id }).is_ok();
                    prop_assert_eq!(revoked, model.remove(&id).is_some());
                }
                Step::Wait(_) => { ring.ask(Request::Tick).unwrap(); }
            }
            for id in 1..6 {
                let lives = model.contains_key(&id);
                prop_assert_eq!(ring.keyspace.leases().get(id).is_some(), lives);
                prop_assert_eq!(ring.value(&format!("key of {id}")).is_some(), lives);
            }
            let next = model.values().map(|(deadline, _)| RingTime(*deadline)).min();
            prop_assert_eq!(ring.keyspace.next_expiry(), next);
        }
    }
}
