//! Tests of the checks without state: etcd's texts and order.

use super::*;
use crate::kv::check::{self, sort_order, sort_target};
use crate::limits::TXN_DEPTH_MAX;

fn put_op(key: &'static str) -> RequestOp {
    RequestOp::Put(PutRequest::of(key, ""))
}

fn delete_op(range: KeyRange) -> RequestOp {
    RequestOp::DeleteRange(DeleteRangeRequest { range, prev_kv: false })
}

fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { compare: vec![], success, failure }
}

fn inner(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    RequestOp::Txn(txn(success, failure))
}

fn duplicate(success: Vec<RequestOp>) -> bool {
    let checked = check::txn(&txn(success.clone(), vec![]), 128);
    assert_eq!(checked, check::txn(&txn(vec![], success), 128));
    match checked {
        Ok(()) => false,
        Err(Refusal::DuplicateKey) => true,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn single_requests() {
    assert_eq!(check::range(&RangeRequest::of(key(""))), Err(Refusal::EmptyKey));
    assert_eq!(check::range(&RangeRequest::of(key("a"))), Ok(()));
    let delete = DeleteRangeRequest { range: between("", "b"), prev_kv: false };
    assert_eq!(check::delete_range(&delete), Err(Refusal::EmptyKey));
    let put = PutRequest { lease: 1, ..PutRequest::of("a", "v") };
    assert_eq!(check::put(&put), Ok(()));
    let both = PutRequest { ignore_value: true, ignore_lease: true, ..put };
    assert_eq!(check::put(&both), Err(Refusal::ValueProvided));
    let lease = PutRequest { value: Default::default(), ..both };
    assert_eq!(check::put(&lease), Err(Refusal::LeaseProvided));
    assert_eq!(check::put(&PutRequest { lease: 0, ..lease.clone() }), Ok(()));
    assert_eq!(
        check::put(&PutRequest { key: Default::default(), ..lease }),
        Err(Refusal::EmptyKey)
    );
}

#[test]
fn numbers_of_sort_options() {
    assert_eq!((sort_order(2), sort_target(4)), (Ok(SortOrder::Descend), Ok(SortTarget::Value)));
    for number in [-1, 5, i32::MAX] {
        assert_eq!(sort_order(number), Err(Refusal::InvalidSortOption));
        assert_eq!(sort_target(number), Err(Refusal::InvalidSortOption));
    }
    assert_eq!(sort_order(3), Err(Refusal::InvalidSortOption));
}

/// Each level takes its largest list from the limit of the levels inside it.
#[test]
fn too_many_operations() {
    let ranges = |n| vec![RequestOp::Range(RangeRequest::of(key("a"))); n];
    assert_eq!(check::txn(&txn(ranges(128), ranges(128)), 128), Ok(()));
    assert_eq!(check::txn(&txn(vec![], ranges(129)), 128), Err(Refusal::TooManyOps));
    let compare =
        Compare { range: key("a"), result: CompareResult::Equal, target: CompareTarget::Mod(0) };
    let compares = TxnRequest { compare: vec![compare; 129], ..TxnRequest::default() };
    assert_eq!(check::txn(&compares, 128), Err(Refusal::TooManyOps));
    let nested = |n| txn(vec![inner(ranges(n), vec![])], ranges(8));
    assert_eq!(check::txn(&nested(120), 128), Ok(()));
    assert_eq!(check::txn(&nested(121), 128), Err(Refusal::TooManyOps));
    let deep = |n| (0..n).fold(txn(vec![], vec![]), |t, _| txn(vec![RequestOp::Txn(t)], vec![]));
    assert_eq!(check::txn(&deep(TXN_DEPTH_MAX), 128), Ok(()));
    assert_eq!(check::txn(&deep(TXN_DEPTH_MAX + 1), 128), Err(Refusal::TooManyOps));
}

#[test]
fn keys_of_all_parts_are_looked_at() {
    let compare =
        Compare { range: key(""), result: CompareResult::Equal, target: CompareTarget::Mod(0) };
    let compares = TxnRequest { compare: vec![compare], ..TxnRequest::default() };
    assert_eq!(check::txn(&compares, 128), Err(Refusal::EmptyKey));
    assert_eq!(check::txn(&txn(vec![], vec![put_op("")]), 128), Err(Refusal::EmptyKey));
    // An invalid shape takes precedence over a duplicate.
    let both = txn(vec![put_op("a"), put_op("a")], vec![inner(vec![put_op("")], vec![])]);
    assert_eq!(check::txn(&both, 128), Err(Refusal::EmptyKey));
}

#[test]
fn a_key_is_written_once() {
    assert!(duplicate(vec![put_op("a"), put_op("b"), put_op("a")]));
    assert!(!duplicate(vec![put_op("a"), put_op("b")]));
    assert!(duplicate(vec![delete_op(key("a")), put_op("a")]));
    assert!(duplicate(vec![put_op("b"), delete_op(between("a", "c"))]));
    assert!(!duplicate(vec![put_op("c"), delete_op(between("a", "c"))]));
    assert!(!duplicate(vec![delete_op(between("a", "c")), delete_op(key("b"))]));
    // The two branches exclude each other.
    assert_eq!(check::txn(&txn(vec![put_op("a")], vec![put_op("a")]), 128), Ok(()));
}

#[test]
fn overlapping_deletions_are_one() {
    let many = [("d", "f"), ("a", "b"), ("e", "k"), ("a", "c"), ("m", "m"), ("x", "q")];
    let deletes: Vec<RequestOp> = many.iter().map(|(a, b)| delete_op(between(a, b))).collect();
    let with = |put| duplicate([deletes.clone(), vec![put_op(put)]].concat());
    for put in ["a", "b", "bz", "d", "f", "j"] {
        assert!(with(put), "{put}");
    }
    for put in ["A", "c", "k", "m", "q", "r", "x"] {
        assert!(!with(put), "{put}");
    }
}

/// etcd compares a range literally, and one zero byte sorts before every other end.
#[test]
fn a_deletion_to_the_end_is_not_seen() {
    assert!(!duplicate(vec![delete_op(KeyRange::between("a", vec![0])), put_op("b")]));
}

#[test]
fn a_key_is_written_once_also_by_nested_transactions() {
    let a = || vec![put_op("a")];
    let delete = || vec![delete_op(key("a"))];
    assert!(!duplicate(vec![inner(a(), a())]));
    assert!(duplicate(vec![inner(a(), vec![]), inner(vec![], a())]));
    assert!(duplicate(vec![inner(a(), vec![]), put_op("a")]));
    assert!(duplicate(vec![inner(vec![inner(vec![], a())], vec![]), put_op("a")]));
    assert!(duplicate(vec![inner(a(), vec![]), delete_op(between("a", "b"))]));
    assert!(duplicate(vec![inner(delete(), vec![]), put_op("a")]));
    // Side by side the order counts: a client can thus put and delete a key at one revision.
    assert!(!duplicate(vec![inner(a(), vec![]), inner(delete(), vec![])]));
    assert!(duplicate(vec![inner(delete(), vec![]), inner(a(), vec![])]));
    assert!(!duplicate(vec![inner(delete(), a())]));
}

/// The work is linear in the request; quadratic work would take hours here.
#[test]
fn a_hostile_transaction_is_checked_in_no_time() {
    let name = |n: usize| bytes::Bytes::from(format!("{n:06}"));
    let puts = (0..60_000).map(|n| RequestOp::Put(PutRequest::of(name(2 * n), "")));
    let deletes = (0..60_000).map(|n| delete_op(KeyRange::key(name(2 * n + 1))));
    let half = inner(deletes.collect(), puts.collect());
    let deep = (0..TXN_DEPTH_MAX).fold(half, |op, _| inner(vec![op], vec![]));
    assert!(!duplicate_of(deep));
}

fn duplicate_of(op: RequestOp) -> bool {
    let request = txn(vec![op], vec![]);
    check::txn(&request, 200_000) == Err(Refusal::DuplicateKey)
}
