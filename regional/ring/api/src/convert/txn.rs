//! Converts transactions, which may be nested, and their responses.

use satrap_proto::etcdserverpb as pb;
use satrap_ring_core::Refusal;
use satrap_ring_core::kv::request::{
    Compare, CompareResult, CompareTarget, KeyRange, RequestOp, TxnRequest,
};
use satrap_ring_core::kv::response::{ResponseOp, TxnResponse};

use super::kv;

/// Converts a transaction, and validates it. Each of its lists may hold `ops_max` operations; for a nested transaction,
/// as in etcd, the longest list of each transaction around it is subtracted.
///
/// # Errors
///
/// The fault of the request in itself, except for keys that are written twice.
pub fn txn_request(txn: pb::TxnRequest, ops_max: usize) -> Result<TxnRequest, Refusal> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let ops_left = ops_max.checked_sub(ops).ok_or(Refusal::TooManyOps)?;
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    let branch = |ops: Vec<pb::RequestOp>| -> Result<Vec<_>, Refusal> {
        ops.into_iter().map(|op| request_op(op, ops_left)).collect()
    };
    Ok(TxnRequest {
        compare: txn.compare.into_iter().filter_map(compare).collect(),
        success: branch(txn.success)?,
        failure: branch(txn.failure)?,
    })
}

fn request_op(op: pb::RequestOp, ops_max: usize) -> Result<RequestOp, Refusal> {
    use pb::request_op::Request;
    match op.request {
        Some(Request::RequestRange(range)) => kv::range_request(range).map(RequestOp::Range),
        Some(Request::RequestPut(put)) => kv::put_request(put).map(RequestOp::Put),
        Some(Request::RequestDeleteRange(delete)) => {
            kv::delete_range_request(delete).map(RequestOp::DeleteRange)
        }
        Some(Request::RequestTxn(txn)) => txn_request(txn, ops_max).map(RequestOp::Txn),
        None => Err(Refusal::KeyNotFound),
    }
}

/// Converts a comparison; `None` if it is always true. As in etcd, a comparison with an unknown operator is true, and an
/// unknown target is equal to the given value.
fn compare(compare: pb::Compare) -> Option<Compare> {
    use pb::compare::{CompareResult as Result, CompareTarget as Target, TargetUnion as Given};
    let range = KeyRange { start: compare.key, end: compare.range_end };
    let result = match Result::try_from(compare.result) {
        Ok(Result::Equal) => CompareResult::Equal,
        Ok(Result::Greater) => CompareResult::Greater,
        Ok(Result::Less) => CompareResult::Less,
        Ok(Result::NotEqual) => CompareResult::NotEqual,
        // A comparison of values is false for a key that does not exist, so this one becomes "the key exists".
        Err(_) if compare.target == i32::from(Target::Value) => {
            let (result, target) = (CompareResult::Greater, CompareTarget::Version(0));
            return Some(Compare { range, result, target });
        }
        Err(_) => return None,
    };
    // As in etcd, a value of another target counts as zero or empty.
    let target = match (Target::try_from(compare.target), compare.target_union) {
        (Ok(Target::Version), Some(Given::Version(version))) => CompareTarget::Version(version),
        (Ok(Target::Version), _) => CompareTarget::Version(0),
        (Ok(Target::Create), Some(Given::CreateRevision(revision))) => {
            CompareTarget::Create(revision)
        }
        (Ok(Target::Create), _) => CompareTarget::Create(0),
        (Ok(Target::Mod), Some(Given::ModRevision(revision))) => CompareTarget::Mod(revision),
        (Ok(Target::Mod), _) => CompareTarget::Mod(0),
        (Ok(Target::Value), Some(Given::Value(value))) => CompareTarget::Value(value),
        (Ok(Target::Value), _) => CompareTarget::Value(bytes::Bytes::new()),
        (Ok(Target::Lease), Some(Given::Lease(lease))) => CompareTarget::Lease(lease),
        (Ok(Target::Lease), _) => CompareTarget::Lease(0),
        (Err(_), _) if result == CompareResult::Equal => return None,
        // No version is below zero.
        (Err(_), _) => {
            let (result, target) = (CompareResult::Less, CompareTarget::Version(0));
            return Some(Compare { range, result, target });
        }
    };
    Some(Compare { range, result, target })
}

/// Converts the response to a transaction. As in etcd, the headers of the responses in it hold only a revision.
#[must_use]
pub fn txn_response(header: Option<pb::ResponseHeader>, txn: &TxnResponse) -> pb::TxnResponse {
    pb::TxnResponse {
        header,
        succeeded: txn.succeeded,
        responses: txn.responses.iter().map(response_op).collect(),
    }
}

fn response_op(op: &ResponseOp) -> pb::ResponseOp {
    use pb::response_op::Response;
    let inner = |revision| Some(pb::ResponseHeader { revision, ..Default::default() });
    let response = match op {
        ResponseOp::Range(range, keys_only) => {
            Response::ResponseRange(kv::range_response(inner(range.revision), range, *keys_only))
        }
        ResponseOp::Put(put) => Response::ResponsePut(kv::put_response(inner(put.revision), put)),
        ResponseOp::DeleteRange(delete) => {
            Response::ResponseDeleteRange(kv::delete_range_response(inner(delete.revision), delete))
        }
        ResponseOp::Txn(txn) => Response::ResponseTxn(txn_response(inner(txn.revision), txn)),
    };
    pb::ResponseOp { response: Some(response) }
}

/// Whether every operation of a transaction is a serializable range, as in etcd; a nested transaction is none.
#[must_use]
pub fn is_serializable(txn: &pb::TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| {
        matches!(&op.request, Some(pb::request_op::Request::RequestRange(range)) if range.serializable)
    })
}
