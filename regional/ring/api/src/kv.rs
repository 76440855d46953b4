//! The `KV` service of etcd, which serves most of the load.
//!
//! Each call takes an encoded request and returns an encoded response. The checks come in etcd's order, because the
//! client sees the error of the first check that fails: fields, caller, size, and then those that need the state.
//!
//! # Invariants
//!
//! - **REQUEST-1** No message is decoded before its size in memory is bounded.
//! - **REQUEST-2** A read holds the lock for a bounded number of keys at a time, and has one revision.

use bytes::Bytes;
use prost::Message;
use satrap_proto::etcdserverpb as pb;
use satrap_ring_core::kv::check;
use satrap_ring_core::kv::request::{KeysOnly, RangeRequest, SortOrder};
use satrap_ring_core::kv::response::RangeResponse;
use satrap_ring_core::kv::{Budget, Progress, Scan};
use satrap_ring_core::{Refusal, Request, Response};
use tokio::sync::SemaphorePermit;
use tonic::Status;

use crate::api::{Api, mismatch};
use crate::calls::{Failure, ReadMode, Unavailable};
use crate::convert::{kv, prescan, txn};
use crate::grpc::{self, Gone, Replies, Room};
use crate::limits::{READ_BYTES_AT_ONCE, READ_KEYS_AT_ONCE, READ_RESTARTS_MAX};
use crate::peer::Credentials;
use crate::status::unavailable;

/// The result of a call: the response as a gRPC frame, or the status of the error.
pub type Answer = Result<Bytes, Status>;

const READ_AT_ONCE: Budget = Budget { keys: READ_KEYS_AT_ONCE, bytes: READ_BYTES_AT_ONCE };

/// Reads keys.
///
/// # Errors
///
/// As etcd.
pub async fn range(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
    mode: ReadMode,
    room: &mut Room,
) -> Answer {
    let request: pb::RangeRequest = decode(message)?;
    let serializable = request.serializable;
    let request = kv::range_request(request).map_err(Failure::from)?;
    if !serializable {
        api.check_voter()?;
        api.backend.fresh(mode).await.map_err(Failure::from)?;
    }
    // The permit of a long read is held until there is memory for the response, which refers to many keys.
    let (response, _turn) = read(api, credentials, &request).await?;
    let header = Some(api.backend.header_at(response.revision));
    let framed = room.frame(|| kv::range_response(header, &response, request.shape())).await;
    framed.map_err(unavailable)
}

/// Reads a range of any size at one revision, and streams it in parts.
///
/// # Errors
///
/// As etcd. [`Gone`] inside if the client has left.
pub async fn range_stream(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
    replies: &mut Replies,
) -> Result<Result<(), Gone>, Status> {
    let request: pb::RangeRequest = decode(message)?;
    let serializable = request.serializable;
    let request = kv::range_request(request).map_err(Failure::from)?;
    // As in etcd, a sort target alone is no order; such an answer comes in one part.
    if request.order != SortOrder::None && !request.is_unsorted() {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    if request.is_filtered() {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    if !serializable {
        api.linearizable().await?;
    }
    let mut scan = begin(api, credentials, &request)?;
    loop {
        // The permit is not held while a part is sent: the client may be slow.
        let turn = api.turn_to_read().await;
        let progress = step(api, &mut scan)?;
        drop(turn);
        let (header, part) = match progress {
            Progress::More => (None, RangeResponse { kvs: scan.take(), ..Default::default() }),
            Progress::Done => {
                // The last part has the count of all keys.
                let part = scan.finish();
                let header = Some(api.backend.header_at(part.revision));
                return send_part(replies, header, &part, request.shape()).await;
            }
        };
        if let Err(Gone) = send_part(replies, header, &part, request.shape()).await? {
            return Ok(Err(Gone));
        }
    }
}

async fn send_part(
    replies: &mut Replies,
    header: Option<pb::ResponseHeader>,
    part: &RangeResponse,
    shape: KeysOnly,
) -> Result<Result<(), Gone>, Status> {
    let framed = replies.room().frame(|| {
        let range_response = Some(kv::range_response(header, part, shape));
        pb::RangeStreamResponse { range_response }
    });
    let framed = framed.await.map_err(unavailable)?;
    Ok(replies.send(framed).await)
}

/// Writes one key.
///
/// # Errors
///
/// As etcd.
pub async fn put(api: &Api, credentials: &Credentials, message: Bytes, room: &mut Room) -> Answer {
    let bytes = message.len();
    let request = kv::put_request(decode(message)?).map_err(Failure::from)?;
    let answer = api.propose_message(credentials, bytes, Request::Put(request)).await?;
    let Response::Put(put) = &answer.response else { return Err(mismatch(&answer.response)) };
    let header = Some(answer.header);
    written(room.frame(|| kv::put_response(header, put)).await)
}

/// Deletes keys.
///
/// # Errors
///
/// As etcd.
pub async fn delete_range(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
    room: &mut Room,
) -> Answer {
    let bytes = message.len();
    let request = kv::delete_range_request(decode(message)?).map_err(Failure::from)?;
    let answer = api.propose_message(credentials, bytes, Request::DeleteRange(request)).await?;
    let Response::DeleteRange(delete) = &answer.response else {
        return Err(mismatch(&answer.response));
    };
    let header = Some(answer.header);
    written(room.frame(|| kv::delete_range_response(header, delete)).await)
}

/// Runs a transaction: comparisons, then the operations of one branch, at one revision.
///
/// # Errors
///
/// As etcd.
pub async fn txn(api: &Api, credentials: &Credentials, message: Bytes, room: &mut Room) -> Answer {
    prescan::txn(&message).map_err(Failure::from)?;
    let bytes = message.len();
    let request: pb::TxnRequest = decode(message)?;
    let serializable = txn::is_serializable(&request);
    let ops_max = api.requests.txn_ops_max;
    let request = txn::txn_request(request, ops_max).map_err(Failure::from)?;
    check::txn(&request, ops_max).map_err(Failure::from)?;
    if !request.is_read_only() {
        let answer = api.propose_message(credentials, bytes, Request::Txn(request)).await?;
        let Response::Txn(txn) = &answer.response else { return Err(mismatch(&answer.response)) };
        let header = Some(answer.header);
        return written(room.frame(|| txn::txn_response(header, txn)).await);
    }
    if !serializable {
        api.linearizable().await?;
    }
    let caller = api.identify(credentials)?;
    let response = api.read(|keyspace| keyspace.read_txn(&caller, &request))?;
    let header = Some(api.backend.header_at(response.revision));
    room.frame(|| txn::txn_response(header, &response)).await.map_err(unavailable)
}

/// Compacts the history before a revision. When this returns, readers no longer see it, whether or not the client asked
/// for a physical compaction. Its memory is freed in the background.
///
/// # Errors
///
/// As etcd.
pub async fn compact(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let request: pb::CompactionRequest = decode(message)?;
    // etcd checks for an administrator before it proposes, and has other errors after that.
    let caller = api.identify(credentials)?;
    api.check_admin(&caller)?;
    let request = Request::Compact { revision: request.revision };
    let answer = api.propose_message(credentials, bytes, request).await?;
    Ok(grpc::frame(&pb::CompactionResponse { header: Some(answer.header) }))
}

/// The response to a write. Without memory for it, the error must say that the write may have happened.
pub(crate) fn written(framed: Result<Bytes, Unavailable>) -> Answer {
    framed.map_err(|_| unavailable(Unavailable::Timeout))
}

/// Reads a range at one revision without holding the lock for long (REQUEST-2). A range of more than one step comes with
/// its permit for long reads.
async fn read<'a>(
    api: &'a Api,
    credentials: &Credentials,
    request: &RangeRequest,
) -> Result<(RangeResponse, Option<SemaphorePermit<'a>>), Status> {
    let mut restarts_left = READ_RESTARTS_MAX;
    let mut turn = None;
    'restart: loop {
        let mut scan = begin(api, credentials, request)?;
        loop {
            let at_once = if restarts_left == 0 { Budget::UNLIMITED } else { READ_AT_ONCE };
            match api.backend.read(|keyspace| scan.step(keyspace.store(), at_once)) {
                Ok(Progress::Done) => return Ok((scan.finish(), turn)),
                Ok(Progress::More) if turn.is_none() => turn = Some(api.turn_to_read().await),
                Ok(Progress::More) => tokio::task::yield_now().await,
                // A client that asked for the newest revision must not get the error that it was compacted meanwhile.
                Err(Refusal::Compacted { .. }) if request.revision <= 0 => {
                    restarts_left -= 1;
                    continue 'restart;
                }
                Err(refusal) => return Err(Failure::from(refusal).into()),
            }
        }
    }
}

/// Checks permissions and begins to read a range.
pub(crate) fn begin(
    api: &Api,
    credentials: &Credentials,
    request: &RangeRequest,
) -> Result<Scan, Status> {
    let caller = api.identify(credentials)?;
    let scan = api.backend.read(|keyspace| {
        keyspace.auth().check_range(&caller, request)?;
        Scan::begin(keyspace.store(), request)
    });
    scan.map_err(|refusal| Failure::from(refusal).into())
}

fn step(api: &Api, scan: &mut Scan) -> Result<Progress, Status> {
    let progress = api.backend.read(|keyspace| scan.step(keyspace.store(), READ_AT_ONCE));
    progress.map_err(|refusal| Failure::from(refusal).into())
}

/// Decodes the message of a request.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}
