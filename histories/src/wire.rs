//! Between the words of the checkers and those of the etcd API.

use satrap_history::{
    Body, Compare, Event, Failure, KeyValue, Order, Outcome, PutIf, Range, Request, Sequential,
    Span, Target, Txn, WatchEvent,
};
use satrap_proto::{
    etcdserverpb::{
        self as pb, CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
        ResponseOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request as Op,
        response_op::Response as OpAnswer,
    },
    mvccpb,
    v1::{self, PutIfRevisionRequest, PutSequentialRequest},
};
use tonic::{Code, Status};

fn span(span: &Span) -> (Vec<u8>, Vec<u8>) {
    let end = span.end.clone().unwrap_or_default();
    (span.key.clone().into_bytes(), end.into_bytes())
}

/// A read.
#[must_use]
pub fn range(range: &Range) -> RangeRequest {
    let (key, range_end) = span(&range.span);
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: range.limit as i64,
        revision: range.revision,
        serializable: range.serializable,
        ..RangeRequest::default()
    }
}

/// A write, which always asks for the value before.
#[must_use]
pub fn put(put: &satrap_history::Put) -> PutRequest {
    PutRequest {
        key: put.key.clone().into_bytes().into(),
        value: put.value.clone().into_bytes().into(),
        lease: put.lease,
        prev_kv: true,
        ..PutRequest::default()
    }
}

/// A conditional write, which always asks for the value in the way.
#[must_use]
pub fn put_if(PutIf { put, revision }: &PutIf) -> PutIfRevisionRequest {
    PutIfRevisionRequest {
        key: put.key.clone().into_bytes().into(),
        value: put.value.clone().into_bytes().into(),
        mod_revision: *revision,
        lease: put.lease,
        want_value: true,
    }
}

/// A write of a key that the ring names.
#[must_use]
pub fn put_sequential(put: &Sequential) -> PutSequentialRequest {
    PutSequentialRequest {
        prefix: put.prefix.clone().into_bytes().into(),
        value: put.value.clone().into_bytes().into(),
        lease: 0,
    }
}

/// The header of an answer beyond the etcd API, as the one that etcd has.
#[must_use]
pub fn header(header: v1::StoreHeader) -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision,
        raft_term: header.raft_term,
    }
}

/// The body of a conditional write's answer.
#[must_use]
pub fn put_if_body(answer: &v1::PutIfRevisionResponse) -> Body {
    let value = answer.value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    Body::PutIf { written: answer.written, modified: answer.mod_revision, value }
}

/// A deletion, which always asks for the values before.
#[must_use]
pub fn delete(keys: &Span) -> DeleteRangeRequest {
    let (key, range_end) = span(keys);
    DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: true }
}

/// A compaction.
#[must_use]
pub fn compact(revision: i64) -> CompactionRequest {
    CompactionRequest { revision, physical: false }
}

/// A transaction.
#[must_use]
pub fn txn(txn: &Txn) -> TxnRequest {
    TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().filter_map(operation).collect(),
        failure: txn.failure.iter().filter_map(operation).collect(),
    }
}

fn operation(request: &Request) -> Option<RequestOp> {
    let request = match request {
        Request::Range(inner) => Op::RequestRange(range(inner)),
        Request::Put(inner) => Op::RequestPut(put(inner)),
        Request::Delete(keys) => Op::RequestDeleteRange(delete(keys)),
        Request::Txn(inner) => Op::RequestTxn(txn(inner)),
        // Nothing else can be part of a transaction.
        Request::PutIf(_) | Request::PutSequential(_) => return None,
        Request::Compact(_) | Request::Grant { .. } => return None,
        Request::Renew(_) | Request::Revoke(_) | Request::Inspect(_) => return None,
    };
    Some(RequestOp { request: Some(request) })
}

fn compare(compare: &Compare) -> pb::Compare {
    let result = match compare.order {
        Order::Equal => CompareResult::Equal,
        Order::NotEqual => CompareResult::NotEqual,
        Order::Greater => CompareResult::Greater,
        Order::Less => CompareResult::Less,
    };
    let (target, union) = match &compare.target {
        Target::Value(value) => {
            (CompareTarget::Value, TargetUnion::Value(value.clone().into_bytes().into()))
        }
        Target::Modified(revision) => (CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
        Target::Created(revision) => {
            (CompareTarget::Create, TargetUnion::CreateRevision(*revision))
        }
        Target::Version(version) => (CompareTarget::Version, TargetUnion::Version(*version)),
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: compare.key.clone().into_bytes().into(),
        target_union: Some(union),
        ..pb::Compare::default()
    }
}

/// A key as the checkers see it.
#[must_use]
pub fn key_value(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        value: String::from_utf8_lossy(&kv.value).into_owned(),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// The body of a read's answer.
#[must_use]
pub fn range_body(answer: &pb::RangeResponse) -> Body {
    Body::Range { keys: answer.kvs.iter().map(key_value).collect(), count: answer.count }
}

/// The body of a write's answer.
#[must_use]
pub fn put_body(answer: &pb::PutResponse) -> Body {
    Body::Put(answer.prev_kv.as_ref().map(key_value))
}

/// The body of a deletion's answer.
#[must_use]
pub fn delete_body(answer: &pb::DeleteRangeResponse) -> Body {
    Body::Delete(answer.prev_kvs.iter().map(key_value).collect())
}

/// The body of a transaction's answer.
#[must_use]
pub fn txn_body(answer: &pb::TxnResponse) -> Body {
    let bodies = answer.responses.iter().filter_map(operation_body).collect();
    Body::Txn { succeeded: answer.succeeded, bodies }
}

fn operation_body(answer: &ResponseOp) -> Option<Body> {
    Some(match answer.response.as_ref()? {
        OpAnswer::ResponseRange(answer) => range_body(answer),
        OpAnswer::ResponsePut(answer) => put_body(answer),
        OpAnswer::ResponseDeleteRange(answer) => delete_body(answer),
        OpAnswer::ResponseTxn(answer) => txn_body(answer),
    })
}

/// An event of a watch.
#[must_use]
pub fn event(event: &mvccpb::Event) -> Option<WatchEvent> {
    let kv = event.kv.as_ref()?;
    let is_delete = event.r#type() == mvccpb::event::EventType::Delete;
    let what = if is_delete {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        Event::Delete { key, revision: kv.mod_revision }
    } else {
        Event::Put(key_value(kv))
    };
    Some(WatchEvent { event: what, before: event.prev_kv.as_ref().map(key_value) })
}

/// The outcome that an error proves. Only refusals that name the request as their reason prove that
/// nothing happened; whatever the network or an election may have caused leaves the outcome unknown.
#[must_use]
pub fn refusal(status: &Status) -> Outcome {
    let message = status.message();
    let failure = match status.code() {
        Code::OutOfRange if message.contains("has been compacted") => Failure::Compacted,
        Code::OutOfRange if message.contains("future revision") => Failure::Future,
        Code::NotFound if message.contains("lease not found") => Failure::NoLease,
        Code::InvalidArgument | Code::Unimplemented => Failure::Refused(message.to_owned()),
        Code::ResourceExhausted
            if message.contains("too many requests") || message.contains("space exceeded") =>
        {
            Failure::Refused(message.to_owned())
        }
        _ => return Outcome::Unknown,
    };
    Outcome::Fail(failure)
}
