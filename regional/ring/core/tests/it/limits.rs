//! Alarms, quotas, and the limits of the encoding.

use satrap_ring_core::{
    Batch, Command, Proposal, Refusal, Request,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
    kv::{self, RequestOp, TxnRequest},
    limits,
    quota::{PrefixLimits, QuotaRequest},
    refusal::QuotaLimit,
};

use crate::ring::{Ring, put, text};

fn alarm(ring: &mut Ring, raise: bool, kind: AlarmKind, member: u64) -> Vec<AlarmMember> {
    let alarm = AlarmMember { kind, member };
    let request =
        if raise { AlarmRequest::Activate(alarm) } else { AlarmRequest::Deactivate(alarm) };
    match ring.ask(Request::Alarm(request)).unwrap() {
        satrap_ring_core::Response::Alarms { alarms, .. } => alarms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn while_a_member_has_no_space_nothing_grows() {
    let mut ring = Ring::new();
    ring.grant(1, 100).unwrap();
    ring.put("k", "v").unwrap();
    alarm(&mut ring, true, AlarmKind::NoSpace, 7);
    assert_eq!(ring.put("k", ""), Err(Refusal::NoSpace));
    assert_eq!(ring.grant(2, 100), Err(Refusal::NoSpace));
    let txn = |op| Request::Txn(TxnRequest { success: vec![op], ..Default::default() });
    assert_eq!(ring.ask(txn(RequestOp::Put(put("k", "")))), Err(Refusal::NoSpace));
    // Writes that shrink the state, or do not grow it, still work.
    let delete = kv::DeleteRangeRequest { range: kv::KeyRange::key(text("k")), prev_kv: false };
    ring.ask(txn(RequestOp::DeleteRange(delete))).unwrap();
    assert_eq!(ring.renew(1), Ok(100));
    ring.ask(Request::Compact { revision: 2 }).unwrap();
    alarm(&mut ring, true, AlarmKind::NoSpace, 8);
    assert_eq!(alarm(&mut ring, false, AlarmKind::NoSpace, 7).len(), 1);
    assert_eq!(ring.put("k", ""), Err(Refusal::NoSpace), "another member still has none");
    assert_eq!(alarm(&mut ring, false, AlarmKind::NoSpace, 7), [], "it was cleared before");
    alarm(&mut ring, false, AlarmKind::NoSpace, 8);
    ring.put("k", "").unwrap();
}

#[test]
fn while_a_member_is_corrupt_nothing_is_written() {
    let mut ring = Ring::new();
    ring.put("k", "v").unwrap();
    alarm(&mut ring, true, AlarmKind::Corrupt, 7);
    assert_eq!(ring.put("k", ""), Err(Refusal::Corrupt));
    assert_eq!(ring.delete("k"), Err(Refusal::Corrupt));
    assert_eq!(ring.ask(Request::Compact { revision: 1 }), Err(Refusal::Corrupt));
    let all = kv::RangeRequest::of(kv::KeyRange::all());
    assert!(ring.keyspace.range(&ring.caller, &all).is_ok(), "as in etcd, reads are answered");
    assert_eq!(ring.keyspace.alarms().list(None).count(), 1);
    alarm(&mut ring, false, AlarmKind::Corrupt, 7);
    ring.put("k", "w").unwrap();
}

fn quota(ring: &mut Ring, prefix: &str, bytes_max: u64, keys_max: u64) {
    let limits = PrefixLimits { bytes_max, keys_max };
    ring.ask(Request::Quota(QuotaRequest::Prefix { prefix: text(prefix), limits })).unwrap();
}

#[test]
fn the_total_counts_what_the_ring_must_keep() {
    let mut ring = Ring::new();
    let version = kv::VERSION_OVERHEAD_BYTES + 11;
    ring.ask(Request::Quota(QuotaRequest::Total { bytes_max: 7 * version + 100 })).unwrap();
    for _ in 0..7 {
        ring.put("k", "0123456789").unwrap();
    }
    assert_eq!(ring.keyspace.store().sizes().held_bytes, 7 * version);
    assert_eq!(ring.put("k", ""), Err(Refusal::NoSpace));
    assert_eq!(ring.grant(1, 5), Ok(5), "a lease is smaller than a key");
    // Compaction makes room again.
    ring.ask(Request::Compact { revision: ring.keyspace.store().revision() }).unwrap();
    ring.put("k", "").unwrap();
    ring.ask(Request::Quota(QuotaRequest::Total { bytes_max: 1 })).unwrap();
    ring.delete("k").unwrap();
    assert_eq!(ring.grant(2, 5), Err(Refusal::NoSpace));
    assert_eq!(ring.role("db", "alice", 2), Err(Refusal::NoSpace));
    ring.ask(Request::Quota(QuotaRequest::Total { bytes_max: 0 })).unwrap();
    ring.put("k", "").unwrap();
}

#[test]
fn a_write_must_fit_every_quota_whose_prefix_it_has() {
    let mut ring = Ring::new();
    ring.put("team/a/0", "0123456789").unwrap();
    quota(&mut ring, "team/", 60, 0);
    quota(&mut ring, "team/a/", 1_000, 2);
    let used = |ring: &Ring| {
        ring.keyspace
            .quotas()
            .list()
            .map(|(_, _, used)| (used.bytes, used.keys))
            .collect::<Vec<_>>()
    };
    assert_eq!(used(&ring), [(18, 1), (18, 1)], "what was there counts");
    ring.put("team/a/1", "").unwrap();
    let refused = ring.put("team/a/2", "").unwrap_err();
    let keys = Refusal::PrefixQuota {
        prefix: text("team/a/"),
        limit: QuotaLimit::Keys,
        max: 2,
        would_be: 3,
    };
    assert_eq!(refused, keys);
    let bytes = Refusal::PrefixQuota {
        prefix: text("team/"),
        limit: QuotaLimit::Bytes,
        max: 60,
        would_be: 61,
    };
    let long = "x".repeat(26 + 1);
    assert_eq!(ring.put("team/b/0", &long), Err(bytes), "the larger quota does not help");
    ring.put("team/b/0", &long[1..]).unwrap();
    ring.put("elsewhere", &long).unwrap();
    assert_eq!(used(&ring), [(60, 3), (26, 2)]);
    // Overwriting, shrinking and deleting change the usage accordingly.
    ring.put("team/b/0", "").unwrap();
    ring.delete("team/a/1").unwrap();
    assert_eq!(used(&ring), [(26, 2), (18, 1)]);
    // Both branches must fit, and change nothing when they do not.
    let branch = |n| vec![RequestOp::Put(put("team/a/8", "")), RequestOp::Put(put(n, ""))];
    let txn = TxnRequest { failure: branch("team/a/9"), ..Default::default() };
    assert!(ring.ask(Request::Txn(txn)).is_err());
    assert_eq!(ring.keyspace.store().live_keys(), 3);
    quota(&mut ring, "team/a/", 0, 0);
    let limits = PrefixLimits::default();
    let again = Request::Quota(QuotaRequest::Prefix { prefix: text("team/a/"), limits });
    assert_eq!(ring.ask(again), Err(Refusal::QuotaNotFound));
    ring.put("team/a/2", "").unwrap();
    ring.put("team/a/3", "").unwrap();
    // A limit lowered below the usage refuses growth and nothing else.
    quota(&mut ring, "team/", 1, 0);
    ring.put("team/a/0", "012345678").unwrap();
    assert!(ring.put("team/a/0", "0123456789").is_err());
}

#[test]
fn an_expired_lease_gives_its_quota_back() {
    let mut ring = Ring::new();
    quota(&mut ring, "s/", 0, 1);
    ring.grant(1, 2).unwrap();
    ring.put_by("s/a", "", 1).unwrap();
    assert!(ring.put("s/b", "").is_err());
    ring.at(2_000).put("s/b", "").unwrap();
}

/// No quota counts leases, and who grants one needs no permission.
#[test]
fn leases_are_bounded() {
    const BATCH: usize = 10_000;
    let mut ring = Ring::new();
    let grant = |id: usize| Request::LeaseGrant { id: id as i64, ttl_s: 100 };
    for first in (1..=limits::LEASES_MAX).step_by(BATCH) {
        let proposal = |id| Proposal { caller: Default::default(), request: grant(id) };
        let last = limits::LEASES_MAX.min(first + BATCH - 1);
        let proposals = (first..=last).map(proposal).collect();
        let batch = Batch { time: Default::default(), proposals };
        assert!(ring.keyspace.apply(&batch).iter().all(Result::is_ok));
    }
    let more = i64::MAX;
    assert_eq!(ring.grant(more, 5), Err(Refusal::Full("leases")));
    assert_eq!(ring.role("db", "alice", more), Err(Refusal::Full("leases")));
    assert_eq!(ring.renew(1), Ok(100));
    ring.ask(Request::LeaseRevoke { id: 1 }).unwrap();
    assert_eq!(ring.grant(more, 5), Ok(5));
}

#[test]
fn a_batch_at_its_limits_decodes_and_beyond_does_not() {
    let batch = |n| {
        let proposal = Proposal { caller: Default::default(), request: Request::Tick };
        Batch { time: Default::default(), proposals: vec![proposal; n] }
    };
    let full = Command::Batch(batch(limits::BATCH_PROPOSALS_MAX));
    assert_eq!(Command::decode(&full.encode().into()).unwrap(), full);
    let over = Command::Batch(batch(limits::BATCH_PROPOSALS_MAX + 1));
    assert!(Command::decode(&over.encode().into()).is_err());
}
