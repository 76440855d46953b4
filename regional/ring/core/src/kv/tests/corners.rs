//! Tests of etcd 3.7's corner cases, one for each.

use super::*;
use crate::limits::{TXN_KEYS_MAX, TXN_READ_BYTES_MAX};

fn txn(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn put_op(key: &str, value: &str) -> RequestOp {
    RequestOp::Put(PutRequest::of(key.to_owned(), value.to_owned()))
}

fn delete_op(range: KeyRange) -> RequestOp {
    RequestOp::DeleteRange(DeleteRangeRequest { range, prev_kv: false })
}

fn abc() -> Store {
    let mut store = Store::new();
    for (key, value) in [("a", "3"), ("b", "2"), ("c", "1")] {
        put(&mut store, key, value);
    }
    store
}

fn only_if(target: CompareTarget, result: CompareResult, range: KeyRange) -> bool {
    let mut store = abc();
    let compare = vec![Compare { range, result, target }];
    store.txn(&TxnRequest { compare, ..TxnRequest::default() }, &mut ()).unwrap().succeeded
}

/// 000-05: the first write has revision 2; a request without writes takes no revision (KV-1, KV-2).
#[test]
fn revisions_start_at_two_and_only_writes_take_one() {
    let mut store = Store::new();
    assert_eq!(store.revision(), 1);
    assert_eq!(delete(&mut store, KeyRange::all()).revision, 1);
    assert_eq!(store.txn(&txn(vec![]), &mut ()).unwrap().revision, 1);
    assert_eq!(put(&mut store, "a", "1"), 2);
    assert_eq!(
        delete(&mut store, key("b")),
        DeleteRangeResponse { revision: 2, ..Default::default() }
    );
    assert_eq!(delete(&mut store, key("a")).revision, 3);
    assert_eq!(store.txn(&txn(vec![delete_op(key("a"))]), &mut ()).unwrap().revision, 3);
    assert_eq!(store.delete_keys(["a", "b"], &mut ()), 0);
    assert_eq!(store.revision(), 3);
}

/// 000-05: a transaction has one revision, and its writes are numbered within it (TXN-2).
#[test]
fn a_transaction_has_one_revision_and_counts_its_writes() {
    let mut store = abc();
    let inner = txn(vec![put_op("x", "1"), delete_op(key("a"))]);
    let request = txn(vec![put_op("d", "4"), RequestOp::Txn(inner), delete_op(between("b", "d"))]);
    let response = store.txn(&request, &mut ()).unwrap();
    assert_eq!(response.revision, 5);
    let events: Vec<String> = store.events_at(5).iter().map(|e| format!("{e:?}")).collect();
    assert_eq!(events[0], "d@5.0=4 (created 5, version 1, lease 0)");
    assert_eq!(events[1], "x@5.1=1 (created 5, version 1, lease 0)");
    assert_eq!(events[2..], ["a@5.2 deleted", "b@5.3 deleted", "c@5.4 deleted"]);
    // etcd leaves the header of a nested response empty, but not those of its operations.
    let ResponseOp::Txn(nested) = &response.responses[1] else { panic!("asked for") };
    assert_eq!(nested.revision, 0);
    let ResponseOp::Put(put) = &nested.responses[0] else { panic!("asked for") };
    assert_eq!(put.revision, 5);
}

/// Within a transaction an operation before the first write still has the old revision.
#[test]
fn an_operation_sees_the_writes_before_it() {
    let mut store = abc();
    let range = || RequestOp::Range(RangeRequest::of(KeyRange::all()));
    let past = RequestOp::Range(at(key("a"), 4));
    let request = txn(vec![
        range(),
        delete_op(key("q")),
        put_op("a", "9"),
        range(),
        past,
        delete_op(key("a")),
    ]);
    let responses = store.txn(&request, &mut ()).unwrap().responses;
    let found: Vec<(Revision, String)> = responses
        .iter()
        .filter_map(|response| match response {
            ResponseOp::Range(range, _) => Some((range.revision, shown(&range.kvs))),
            ResponseOp::DeleteRange(delete) => Some((delete.revision, delete.deleted.to_string())),
            _ => None,
        })
        .collect();
    let expected = [(4, "a=3 b=2 c=1"), (4, "0"), (5, "a=9 b=2 c=1"), (5, "a=3"), (5, "1")];
    assert_eq!(found, expected.map(|(r, s)| (r, s.to_owned())));
    assert!(!store.contains(b"a"));
}

/// TXN-1: a nested comparison sees the state before the outer transaction.
#[test]
fn comparisons_see_the_state_before_the_transaction() {
    let mut store = abc();
    let is_absent = Compare {
        range: key("x"),
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    };
    let inner = TxnRequest {
        compare: vec![is_absent],
        success: vec![put_op("y", "absent")],
        failure: vec![put_op("y", "present")],
    };
    store.txn(&txn(vec![put_op("x", "1"), RequestOp::Txn(inner)]), &mut ()).unwrap();
    assert_eq!(store.get(b"y").unwrap().value(), b"absent");
}

/// A refused operation of a transaction rolls back all others (KV-1).
#[test]
fn a_refused_transaction_leaves_no_trace() {
    let mut store = abc();
    let before = (store.held(), store.revision(), store.sizes());
    let keep = |lease| PutRequest { lease, ignore_value: true, ..PutRequest::of("a", "") };
    let refusals = [
        (RequestOp::Put(keep(5)), Refusal::LeaseNotFound),
        (RequestOp::Put(PutRequest { key: "q".into(), ..keep(0) }), Refusal::KeyNotFound),
        // etcd uses the revision before the transaction, so its own revision is the future.
        (RequestOp::Range(at(key("a"), 5)), Refusal::FutureRevision { current: 4 }),
        // A revision below zero is not "now" here, but before the compacted one.
        (RequestOp::Range(at(key("a"), -2)), Refusal::Compacted { compacted: -1 }),
    ];
    for (op, refusal) in refusals {
        let request = txn(vec![put_op("new", "1"), delete_op(key("b")), op]);
        assert_eq!(store.txn(&request, &mut ()), Err(refusal));
        assert_eq!((store.held(), store.revision(), store.sizes()), before);
    }
    // The check for duplicates does not see the deletion to the end of the keyspace, and etcd's
    // members panic at the next operation. Here the transaction is refused after it has written.
    let request = txn(vec![
        put_op("0", "1"),
        delete_op(KeyRange::between("a", vec![0])),
        RequestOp::Put(keep(0)),
    ]);
    assert_eq!(check::txn(&request, 128), Ok(()));
    assert_eq!(store.txn(&request, &mut ()), Err(Refusal::KeyNotFound));
    assert_eq!((store.held(), store.revision(), store.sizes()), before);
    assert_eq!(store.events(0, 9).count(), 3);
    assert_eq!(put(&mut store, "a", "4"), 5);
    assert_eq!(store.get(b"a").unwrap().version, 2);
}

/// Creation, revision, version; a deletion starts over, also within one revision.
#[test]
fn a_key_that_comes_back_is_a_new_one() {
    let mut store = abc();
    put(&mut store, "a", "4");
    let stamp =
        |store: &Store| store.get(b"a").map(|e| (e.create_revision, e.mod_revision, e.version));
    assert_eq!(stamp(&store), Some((2, 5, 2)));
    delete(&mut store, key("a"));
    assert_eq!(stamp(&store), None);
    put(&mut store, "a", "5");
    assert_eq!(stamp(&store), Some((7, 7, 1)));
    store.txn(&txn(vec![delete_op(key("a")), put_op("a", "6")]), &mut ()).unwrap();
    assert_eq!(stamp(&store), Some((8, 8, 1)));
}

#[test]
fn a_put_keeps_what_it_is_told_to_keep() {
    let mut world = World { leases: [7].into(), ..World::default() };
    let mut store = Store::new();
    let leased = PutRequest { lease: 7, ..PutRequest::of("a", "1") };
    store.put(&leased, &mut world).unwrap();
    let keep_value = PutRequest { ignore_value: true, prev_kv: true, ..PutRequest::of("a", "") };
    let prev = store.put(&keep_value, &mut world).unwrap().prev.unwrap();
    assert_eq!((prev.value(), prev.lease), (&b"1"[..], 7));
    assert_eq!(store.get(b"a").map(|e| (e.value(), e.lease)), Some((&b"1"[..], 0)));
    store.put(&leased, &mut world).unwrap();
    let keep_lease = PutRequest { ignore_lease: true, ..PutRequest::of("a", "2") };
    assert_eq!(store.put(&keep_lease, &mut world).unwrap().prev, None);
    assert_eq!(store.get(b"a").map(|e| (e.value(), e.lease)), Some((&b"2"[..], 7)));
    // The check of the lease comes first.
    let neither = PutRequest { lease: 9, ignore_value: true, ..PutRequest::of("q", "") };
    assert_eq!(store.put(&neither, &mut world), Err(Refusal::LeaseNotFound));
    let absent = PutRequest { lease: 0, ..neither };
    assert_eq!(store.put(&absent, &mut world), Err(Refusal::KeyNotFound));
    assert_eq!(world.wrote.len(), 4);
}

/// 001-36.
#[test]
fn a_read_at_an_old_revision_finds_the_old_versions() {
    let mut store = abc();
    delete(&mut store, between("a", "c"));
    put(&mut store, "b", "5");
    let found = |revision| shown(&store.range(&at(KeyRange::all(), revision)).unwrap().kvs);
    let expected = [(2, "a=3"), (3, "a=3 b=2"), (4, "a=3 b=2 c=1"), (5, "c=1"), (6, "b=5 c=1")];
    for (revision, keys) in expected {
        assert_eq!(found(revision), keys, "at {revision}");
    }
    // Revision 1 is before the first write; zero and less are now; the header is always now.
    for (revision, keys) in [(1, ""), (0, "b=5 c=1"), (-5, "b=5 c=1")] {
        assert_eq!(found(revision), keys);
    }
    assert_eq!(store.range(&at(key("a"), 2)).unwrap().revision, 6);
}

/// 000-53: reads before the compacted revision are refused at once, and so are those of the future.
#[test]
fn compacted_and_future_revisions_are_refused() {
    let mut store = abc();
    put(&mut store, "a", "4");
    let future = Refusal::FutureRevision { current: 5 };
    assert_eq!(store.range(&at(key("a"), 6)), Err(future.clone()));
    assert_eq!(store.compact(6), Err(future));
    // A store that was never compacted can be compacted at 0, once; etcd starts at -1.
    assert_eq!(store.compact(-1), Err(Refusal::Compacted { compacted: -1 }));
    assert_eq!(store.compact(0), Ok(5));
    assert_eq!(store.compact(0), Err(Refusal::Compacted { compacted: 0 }));
    assert_eq!(store.compact(4), Ok(5));
    assert_eq!(store.range(&at(key("a"), 3)), Err(Refusal::Compacted { compacted: 4 }));
    assert_eq!(shown(&store.range(&at(key("a"), 4)).unwrap().kvs), "a=3");
    assert_eq!(store.hash_kv(3), Err(Refusal::Compacted { compacted: 4 }));
    assert_eq!(store.compact(3), Err(Refusal::Compacted { compacted: 4 }));
}

/// The count is that of the range, before filters and limit.
#[test]
fn the_count_is_taken_before_filters_and_limit() {
    let store = abc();
    let ask = |request: RangeRequest| {
        let found = store.range(&request).unwrap();
        (shown(&found.kvs), found.count, found.more)
    };
    let all = RangeRequest::of(KeyRange::all());
    assert_eq!(ask(RangeRequest { limit: 2, ..all.clone() }), ("a=3 b=2".into(), 3, true));
    assert!(!ask(RangeRequest { limit: 3, ..all.clone() }).2);
    assert_eq!(ask(RangeRequest { limit: -2, ..all.clone() }).1, 3);
    assert_eq!(
        ask(RangeRequest { count_only: true, limit: 1, ..all.clone() }),
        (String::new(), 3, false)
    );
    let late = RangeRequest { modified: Bounds { min: 3, max: 0 }, ..all.clone() };
    assert_eq!(ask(late.clone()), ("b=2 c=1".into(), 3, false));
    assert_eq!(ask(RangeRequest { limit: 1, ..late }), ("b=2".into(), 3, true));
    let early = RangeRequest { created: Bounds { min: 0, max: 2 }, limit: 1, ..all };
    assert_eq!(ask(early), ("a=3".into(), 3, false));
}

/// A target without an order sorts after the limit: an etcd bug that clients can see.
#[test]
fn a_sort_without_an_order_comes_after_the_limit() {
    let store = abc();
    let ask = |order, limit| {
        let target = SortTarget::Value;
        let request = RangeRequest { order, target, limit, ..RangeRequest::of(KeyRange::all()) };
        shown(&store.range(&request).unwrap().kvs)
    };
    assert_eq!(ask(SortOrder::Ascend, 1), "c=1");
    assert_eq!(ask(SortOrder::Descend, 1), "a=3");
    assert_eq!(ask(SortOrder::None, 0), "c=1 b=2 a=3");
    assert_eq!(ask(SortOrder::None, 1), "b=2");
    let down = RangeRequest { order: SortOrder::Descend, ..RangeRequest::of(KeyRange::all()) };
    assert_eq!(shown(&store.range(&down).unwrap().kvs), "c=1 b=2 a=3");
}

/// etcd 3.7 answers a range of keys only from its index, which has no leases; unless it sorts by
/// value.
#[test]
fn keys_only_leaves_leases_out_too() {
    let all = RangeRequest { keys_only: true, ..RangeRequest::of(KeyRange::all()) };
    assert_eq!(all.shape(), KeysOnly::Yes);
    assert_eq!(RangeRequest { target: SortTarget::Value, ..all }.shape(), KeysOnly::WithLease);
}

#[test]
fn ranges_end_where_etcd_ends_them() {
    let mut store = abc();
    put(&mut store, "\u{10ffff}", "4");
    let found = |range| store.range(&RangeRequest::of(range)).unwrap().count;
    assert_eq!(found(key("b")), 1);
    assert_eq!(found(between("b", "c")), 1);
    assert_eq!(found(between("b", "\0")), 3);
    assert_eq!(found(between("\0", "\0")), 4);
    assert_eq!(found(between("c", "b")), 0);
    assert_eq!(found(between("b", "b")), 0);
    assert_eq!(found(KeyRange::prefix("")), 4);
    assert_eq!(KeyRange::prefix(vec![b'a', 0xff]), KeyRange::between(vec![b'a', 0xff], "b"));
    assert!(KeyRange::prefix(vec![0xff]).is_open_ended());
}

/// Every key of a range must satisfy a comparison; a range without keys counts as one missing key.
#[test]
fn comparisons_of_ranges_and_of_missing_keys() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    assert!(only_if(Version(1), Equal, KeyRange::all()));
    assert!(only_if(Mod(1), Greater, KeyRange::all()));
    assert!(!only_if(Mod(2), Greater, KeyRange::all()));
    assert!(only_if(Create(4), Less, between("a", "c")));
    assert!(!only_if(Create(3), NotEqual, between("a", "c")));
    assert!(only_if(Lease(0), Equal, key("missing")));
    assert!(only_if(Version(0), Equal, between("x", "\0")));
    assert!(only_if(Mod(-1), Greater, key("missing")));
    assert!(only_if(Value("3".into()), Equal, key("a")));
    // Not equal does not hold either: a missing value cannot be compared.
    assert!(!only_if(Value("3".into()), NotEqual, key("missing")));
    assert!(!only_if(Value("".into()), Equal, key("missing")));
}

/// 000-31: of many writers that saw the same revision exactly one succeeds.
#[test]
fn one_of_many_racers_on_a_revision_wins() {
    let mut store = abc();
    let seen = store.get(b"a").unwrap().mod_revision;
    let race = |n: usize| TxnRequest {
        compare: vec![Compare {
            range: key("a"),
            result: CompareResult::Equal,
            target: CompareTarget::Mod(seen),
        }],
        success: vec![put_op("a", &n.to_string())],
        failure: vec![RequestOp::Range(RangeRequest::of(key("a")))],
    };
    let won: Vec<bool> = (0..9).map(|n| store.txn(&race(n), &mut ()).unwrap().succeeded).collect();
    assert_eq!(won.iter().filter(|&&won| won).count(), 1);
    assert_eq!((store.revision(), store.get(b"a").unwrap().value()), (5, &b"0"[..]));
}

/// A lease deletes its keys at one revision; keys that were deleted before do not count.
#[test]
fn keys_of_a_lease_go_at_one_revision() {
    let mut store = abc();
    let mut world = World::default();
    assert_eq!(store.delete_keys(["c", "gone", "a", "c"], &mut world), 2);
    assert_eq!(store.revision(), 5);
    assert_eq!(world.wrote[1].1.as_ref().unwrap().value(), b"3");
    let order: Vec<&[u8]> = store.events_at(5).iter().map(|e| e.key()).collect();
    assert_eq!(order, [b"c", b"a"]);
}

/// A watch may start at the compacted revision and receives all of its events (000-39).
#[test]
fn events_reach_back_to_the_compacted_revision() {
    let mut store = abc();
    assert_eq!(store.first_event_revision(), 2);
    delete(&mut store, key("a"));
    put(&mut store, "a", "7");
    store.compact(5).unwrap();
    while store.reclaim(1) == Reclaimed::More {}
    assert_eq!(store.first_event_revision(), 5);
    assert!(store.events_at(5)[0].is_deletion());
    assert!(store.events_at(4).is_empty() && store.events_at(7).is_empty());
    assert_eq!(store.events(1, 1).count(), 1);
    assert_eq!(store.events(7, 1).count() + store.events(i64::MAX, 1).count(), 0);
    // The version before the deletion is compacted, as in etcd.
    assert_eq!(store.previous(&store.events_at(5)[0]), None);
    assert!(store.holds(b"a", 5) && store.holds(b"b", 3) && !store.holds(b"a", 2));
}

/// 000-05: after a restored snapshot, revisions continue above all that clients saw.
#[test]
fn a_gap_in_revisions_is_a_compaction() {
    let mut store = abc();
    delete(&mut store, key("c"));
    assert_eq!(store.advance_to(5), Err(Refusal::Compacted { compacted: 5 }));
    store.advance_to(1_000).unwrap();
    assert_eq!((store.revision(), store.compacted()), (1_000, 1_000));
    assert_eq!(store.first_event_revision(), 1_001);
    assert_eq!(store.range(&at(key("a"), 999)), Err(Refusal::Compacted { compacted: 1_000 }));
    assert_eq!(put(&mut store, "a", "9"), 1_001);
    assert_eq!(store.events(0, 9).count(), 1);
    let disk = store.take_events();
    let disk = disk.into_iter().filter(|e| store.holds(e.key(), e.mod_revision));
    let restored = Store::restore(1_000, disk).unwrap();
    assert_eq!((restored.held(), restored.revision()), (store.held(), 1_001));
    let all = RangeRequest::of(KeyRange::all());
    assert_eq!(restored.range(&all), store.range(&all));
}

fn crowd(keys: usize) -> Store {
    let mut store = Store::new();
    for n in 0..keys {
        put(&mut store, &format!("k{n:04}"), "v");
    }
    store
}

/// TXN-3: thousands of operations may each be about every key.
#[test]
fn a_transaction_visits_a_bounded_number_of_keys() {
    const KEYS: usize = 500;
    let ops = TXN_KEYS_MAX / KEYS;
    let count = RangeRequest { count_only: true, ..RangeRequest::of(KeyRange::all()) };
    let ranges = |ops| vec![RequestOp::Range(count.clone()); ops];
    let nested = |ops| {
        let halves = [ops / 2, ops - ops / 2].map(|ops| RequestOp::Txn(txn(ranges(ops))));
        txn(halves.into())
    };
    let exists = Compare {
        range: KeyRange::all(),
        result: CompareResult::Greater,
        target: CompareTarget::Version(0),
    };
    let compares = |ops| TxnRequest { compare: vec![exists.clone(); ops], ..TxnRequest::default() };
    // The keys that the first deletion leaves in the history are visited by the others.
    let deletions = |ops| txn(vec![delete_op(KeyRange::all()); ops]);
    for (what, request) in [
        ("ranges", &(|ops| txn(ranges(ops))) as &dyn Fn(usize) -> TxnRequest),
        ("nested ranges", &nested),
        ("comparisons", &compares),
        ("deletions", &deletions),
    ] {
        assert!(crowd(KEYS).txn(&request(ops), &mut ()).is_ok(), "{what} at the limit");
        let mut store = crowd(KEYS);
        let before = store.held();
        let refused = store.txn(&request(ops + 1), &mut ());
        assert_eq!(refused, Err(Refusal::TooManyOps), "{what} over it");
        assert_eq!((store.held(), store.revision()), (before, 1 + KEYS as i64), "{what}");
    }
    let store = crowd(KEYS);
    assert!(store.read_txn(&txn(ranges(ops))).is_ok());
    assert_eq!(store.read_txn(&txn(ranges(ops + 1))), Err(Refusal::TooManyOps));
}

/// TXN-3: each of thousands of operations may read the same long value.
#[test]
fn a_transaction_reads_a_bounded_number_of_bytes() {
    let mut store = Store::new();
    put(&mut store, "k", &"v".repeat(1024 * 1024 - 1));
    let reads = |ops| txn(vec![RequestOp::Range(RangeRequest::of(key("k"))); ops]);
    let ops = TXN_READ_BYTES_MAX / (1024 * 1024);
    assert!(store.txn(&reads(ops), &mut ()).is_ok());
    assert_eq!(store.txn(&reads(ops + 1), &mut ()), Err(Refusal::TooManyOps));
    assert_eq!(store.read_txn(&reads(ops + 1)), Err(Refusal::TooManyOps));
    let given = "v".repeat(1024 * 1024 - 1).into();
    let target = CompareTarget::Value(given);
    let same = Compare { range: key("k"), result: CompareResult::Equal, target };
    let compares = |ops| TxnRequest { compare: vec![same.clone(); ops], ..TxnRequest::default() };
    assert!(store.txn(&compares(ops), &mut ()).unwrap().succeeded);
    assert_eq!(store.txn(&compares(ops + 1), &mut ()), Err(Refusal::TooManyOps));
}

/// TXN-3, KV-4: a member that has reclaimed deleted keys refuses what one that has not refuses.
#[test]
fn whether_a_transaction_visits_too_many_keys_does_not_depend_on_reclaim() {
    const KEYS: usize = 500;
    let [mut reclaimed, mut kept] = [0, 1].map(|_| {
        let mut store = crowd(KEYS);
        delete(&mut store, between("k0100", "k0200"));
        store.compact(store.revision()).unwrap();
        delete(&mut store, between("k0300", "k0350"));
        store
    });
    while reclaimed.reclaim(usize::MAX) == Reclaimed::More {}
    let count = RangeRequest { count_only: true, ..RangeRequest::of(KeyRange::all()) };
    let at_limit = TXN_KEYS_MAX / (KEYS - 100);
    for (ops, fits) in [(at_limit, true), (at_limit + 1, false)] {
        let request = txn(vec![RequestOp::Range(count.clone()); ops]);
        let outcomes = [&mut reclaimed, &mut kept].map(|store| store.txn(&request, &mut ()));
        assert_eq!(outcomes[0].is_ok(), fits);
        assert_eq!(outcomes[0], outcomes[1]);
    }
}
