//! Translates between the types of the history checkers and those of the keyspace.

use satrap_history::{
    Body, Compare, Event, Failure, KeyValue, Order, PutIf, Range, Request, Span, Target, Txn,
};
use satrap_ring_core::{
    Refusal, Request as Proposed, Response,
    keyspace::{PutIfRevision, PutSequential},
    kv::{
        self, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange, PutRequest, RangeRequest,
        RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse,
    },
};

fn key_range(span: &Span) -> KeyRange {
    match &span.end {
        Some(end) => KeyRange::between(span.key.clone(), end.clone()),
        None => KeyRange::key(span.key.clone()),
    }
}

/// The request of a read.
pub fn range(range: &Range) -> RangeRequest {
    let limit = i64::try_from(range.limit).unwrap();
    RangeRequest { limit, revision: range.revision, ..RangeRequest::of(key_range(&range.span)) }
}

fn put(put: &satrap_history::Put) -> PutRequest {
    let plain = PutRequest::of(put.key.clone(), put.value.clone());
    PutRequest { lease: put.lease, prev_kv: true, ..plain }
}

fn delete(span: &Span) -> DeleteRangeRequest {
    DeleteRangeRequest { range: key_range(span), prev_kv: true }
}

/// The request of a transaction.
pub fn txn(txn: &Txn) -> TxnRequest {
    TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().map(operation).collect(),
        failure: txn.failure.iter().map(operation).collect(),
    }
}

fn operation(request: &Request) -> RequestOp {
    match request {
        Request::Range(inner) => RequestOp::Range(range(inner)),
        Request::Put(inner) => RequestOp::Put(put(inner)),
        Request::Delete(span) => RequestOp::DeleteRange(delete(span)),
        Request::Txn(inner) => RequestOp::Txn(txn(inner)),
        other => panic!("{other:?} stands in no transaction"),
    }
}

fn compare(compare: &Compare) -> kv::Compare {
    let result = match compare.order {
        Order::Equal => CompareResult::Equal,
        Order::NotEqual => CompareResult::NotEqual,
        Order::Greater => CompareResult::Greater,
        Order::Less => CompareResult::Less,
    };
    let target = match &compare.target {
        Target::Value(value) => CompareTarget::Value(value.clone().into()),
        Target::Modified(revision) => CompareTarget::Mod(*revision),
        Target::Created(revision) => CompareTarget::Create(*revision),
        Target::Version(version) => CompareTarget::Version(*version),
    };
    kv::Compare { range: KeyRange::key(compare.key.clone()), result, target }
}

/// The proposal for a request; `None` for a read.
pub fn proposal(request: &Request) -> Option<Proposed> {
    Some(match request {
        Request::Range(_) => return None,
        Request::Txn(inner) if txn(inner).is_read_only() => return None,
        Request::Put(inner) => Proposed::Put(put(inner)),
        Request::PutIf(PutIf { put, revision }) => Proposed::PutIfRevision(PutIfRevision {
            key: put.key.clone().into(),
            expected_revision: *revision,
            value: put.value.clone().into(),
            lease: put.lease,
            want_value: true,
        }),
        Request::PutSequential(put) => Proposed::PutSequential(PutSequential {
            prefix: put.prefix.clone().into(),
            value: put.value.clone().into(),
            lease: 0,
        }),
        Request::Delete(span) => Proposed::DeleteRange(delete(span)),
        Request::Txn(inner) => Proposed::Txn(txn(inner)),
        Request::Compact(revision) => Proposed::Compact { revision: *revision },
        Request::Grant { lease, ttl_s } => Proposed::LeaseGrant { id: *lease, ttl_s: *ttl_s },
        Request::Renew(id) => Proposed::LeaseRenew { id: *id },
        Request::Revoke(id) => Proposed::LeaseRevoke { id: *id },
        // As in the service: advance time first, then inspect.
        Request::Inspect(_) => Proposed::Tick,
    })
}

/// The failure for a refusal, which proves that nothing was written.
pub fn failure(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::Compacted { .. } => Failure::Compacted,
        Refusal::FutureRevision { .. } => Failure::Future,
        Refusal::LeaseNotFound => Failure::NoLease,
        other => Failure::Refused(satrap_ring_api::refusal::text(other)),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("clients write text")
}

fn key_value(kv: &kv::KeyValue) -> KeyValue {
    KeyValue {
        key: text(kv.key()),
        value: text(kv.value()),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// One event of the store.
pub fn event(kv: &kv::KeyValue) -> Event {
    match kv.is_deletion() {
        true => Event::Delete { key: text(kv.key()), revision: kv.mod_revision },
        false => Event::Put(key_value(kv)),
    }
}

/// The answer to a read.
pub fn range_body(response: &RangeResponse) -> Body {
    let keys = response.kvs.iter().map(|kv| key_value(kv)).collect();
    Body::Range { keys, count: response.count }
}

/// The answer to a transaction.
pub fn txn_body(response: &TxnResponse) -> Body {
    let body = |response: &ResponseOp| match response {
        ResponseOp::Range(range, _) => range_body(range),
        ResponseOp::Put(put) => Body::Put(put.prev.as_deref().map(key_value)),
        ResponseOp::DeleteRange(delete) => {
            Body::Delete(delete.prev.iter().map(|kv| key_value(kv)).collect())
        }
        ResponseOp::Txn(txn) => txn_body(txn),
    };
    let bodies = response.responses.iter().map(body).collect();
    Body::Txn { succeeded: response.succeeded, bodies }
}

/// The answer to a refused conditional write; none for other refusals.
pub fn conflict(request: &Request, refusal: &Refusal) -> Option<Body> {
    match (request, refusal) {
        (Request::PutIf(_), Refusal::Conflict { current, value, .. }) => {
            let value = value.as_ref().map(|value| text(value));
            Some(Body::PutIf { written: false, modified: *current, value })
        }
        _ => None,
    }
}

/// The answer to `request`, which was proposed.
pub fn body(request: &Request, response: &Response) -> Body {
    match response {
        Response::Put(_) if matches!(request, Request::PutIf(_)) => {
            Body::PutIf { written: true, modified: response.revision(), value: None }
        }
        Response::PutSequential { key, .. } => Body::PutSequential(text(key)),
        Response::Put(put) => Body::Put(put.prev.as_deref().map(key_value)),
        Response::DeleteRange(delete) => {
            Body::Delete(delete.prev.iter().map(|kv| key_value(kv)).collect())
        }
        Response::Txn(txn) => txn_body(txn),
        Response::LeaseGranted { ttl_s, .. } | Response::LeaseRenewed { ttl_s, .. } => {
            Body::Ttl(*ttl_s)
        }
        _ => Body::Done,
    }
}
