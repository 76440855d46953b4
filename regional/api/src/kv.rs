//! The `KV` service: what carries most of the load.
//!
//! A call takes the bytes of one request and gives the bytes of one answer, so that HTTP/2, and tests
//! without it, drive the same code. The checks come in etcd's order, because a client sees which one
//! failed first: shape, caller, size, and then what depends on state.
//!
//! # Invariants
//!
//! - **K1** Nothing is decoded before its cost was bounded.
//! - **K2** A read holds the lock for a bounded number of keys at a time, and has one revision.

use std::future::ready;

use bytes::Bytes;
use futures::FutureExt as _;
use prost::Message;
use prost::encoding::encoded_len_varint;
use satrap_proto::etcdserverpb as pb;
use satrap_regional_core::kv::check;
use satrap_regional_core::kv::request::{RangeRequest, SortOrder};
use satrap_regional_core::kv::response::{KeysOnly, RangeResponse};
use satrap_regional_core::kv::{Budget, Progress, Scan};
use satrap_regional_core::{Refusal, Request, Response};
use tokio::sync::SemaphorePermit;
use tonic::Status;

use crate::api::Api;
use crate::backend::{Applied, Backend, Failure, ReadMode, Unavailable};
use crate::convert::{kv, prescan, txn};
use crate::grpc::{self, Gone, Replies, Room};
use crate::limits::{READ_BYTES_AT_ONCE, READ_KEYS_AT_ONCE, READ_RESTARTS_MAX};
use crate::peer::Credentials;
use crate::status::unavailable;

/// What became of a call: an answer with its prefix, or why there is none.
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
    // Held until there is room for the answer: long ones are references to many keys.
    let (response, _turn) = read(api, credentials, &request).await?;
    let header = Some(api.backend.header_at(response.revision));
    let framed = room.frame(|| kv::range_response(header, &response, request.shape())).await;
    framed.map_err(unavailable)
}

/// Reads a range that may be larger than memory allows, in parts of one revision.
///
/// # Errors
///
/// As etcd. [`Gone`] inside if there is nobody left to read it to.
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
        api.backend.linearizable().await.map_err(Failure::from)?;
    }
    let mut scan = begin(api, credentials, &request)?;
    loop {
        // Not while a part is on its way: its client may be slow.
        let turn = api.turn_to_read().await;
        let progress = step(api, &mut scan)?;
        drop(turn);
        let (header, part) = match progress {
            Progress::More => (None, RangeResponse { kvs: scan.take(), ..Default::default() }),
            Progress::Done => {
                // The last part counts what all of them hold.
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
    let answer = propose(api, credentials, bytes, Request::Put(request)).await?;
    let Response::Put(put) = &answer.response else { return Err(answer.mismatch()) };
    let header = Some(answer.header(api));
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
    let answer = propose(api, credentials, bytes, Request::DeleteRange(request)).await?;
    let Response::DeleteRange(delete) = &answer.response else { return Err(answer.mismatch()) };
    let header = Some(answer.header(api));
    written(room.frame(|| kv::delete_range_response(header, delete)).await)
}

/// Compares, then reads or writes, at one revision.
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
        let answer = propose(api, credentials, bytes, Request::Txn(request)).await?;
        let Response::Txn(txn) = &answer.response else { return Err(answer.mismatch()) };
        let header = Some(answer.header(api));
        return written(room.frame(|| txn::txn_response(header, txn)).await);
    }
    if !serializable {
        api.backend.linearizable().await.map_err(Failure::from)?;
    }
    let caller = credentials.caller(&api.backend)?;
    let response = api.backend.read_keys(|keyspace| keyspace.read_txn(&caller, &request));
    let response = response.map_err(Failure::from)?;
    let header = Some(api.backend.header_at(response.revision));
    room.frame(|| txn::txn_response(header, &response)).await.map_err(unavailable)
}

/// Forgets old versions. They are gone for readers when this returns, whether or not the client
/// asked to wait for that; what they occupied is given back in the background.
///
/// # Errors
///
/// As etcd.
pub async fn compact(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let request: pb::CompactionRequest = decode(message)?;
    // etcd asks for an administrator before it proposes, and answers differently from then on.
    let caller = credentials.caller(&api.backend)?;
    let admin = api.backend.read(|keyspace| keyspace.auth().check_admin(&caller));
    admin.map_err(Failure::from)?;
    let request = Request::Compact { revision: request.revision };
    let answer = propose(api, credentials, bytes, request).await?;
    Ok(grpc::frame(&pb::CompactionResponse { header: Some(answer.header(api)) }))
}

/// The answer to a write. If there is no room for it, the client must hear that the write may have
/// happened.
pub(crate) fn written(framed: Result<Bytes, Unavailable>) -> Answer {
    framed.map_err(|_| unavailable(Unavailable::Timeout))
}

/// What the ring applied.
pub(crate) struct Answered {
    pub(crate) response: Response,
    pub(crate) term: u64,
}

impl Answered {
    fn header(&self, api: &Api) -> pb::ResponseHeader {
        api.backend.header(self.response.revision(), self.term)
    }

    /// The keyspace answers each kind of request with its own kind of response.
    pub(crate) fn mismatch(&self) -> Status {
        tracing::error!(response = ?self.response, "BUG: the answer is to another request");
        Status::internal("the answer is to another request")
    }
}

/// Puts a request through the log; a refusal is an error.
pub(crate) fn propose(
    api: &Api,
    credentials: &Credentials,
    message_bytes: usize,
    request: Request,
) -> impl Future<Output = Result<Answered, Status>> + use<> {
    let proposed = try_propose(api, credentials, message_bytes, request);
    proposed.map(|answer| answer?.map_err(|refusal| Failure::from(refusal).into()))
}

/// [`propose`] for those whose answers say more than the refusal.
pub(crate) fn try_propose(
    api: &Api,
    credentials: &Credentials,
    message_bytes: usize,
    request: Request,
) -> impl Future<Output = Result<Result<Answered, Refusal>, Status>> + use<> {
    let propose = || {
        let caller = credentials.caller(&api.backend)?;
        // etcd writes down who asks by certificate, also while authentication is off.
        let user = caller.user.as_deref().or(credentials.common_name());
        let header = user.map(|user| (user, caller.auth_revision.max(1)));
        let bytes = entry_bytes(&api.backend, header, message_bytes);
        Ok(match bytes <= api.requests.bytes_max {
            true => Ok(api.backend.propose(caller, request)),
            false => Err(Refusal::RequestTooLarge),
        })
    };
    match propose() {
        Ok(Ok(proposed)) => answered(api.backend.clone(), proposed).left_future(),
        Ok(Err(refusal)) => ready(Ok(Err(refusal))).right_future(),
        Err(status) => ready(Err(status)).right_future(),
    }
}

async fn answered(
    backend: Backend,
    proposed: impl Future<Output = Result<Applied, Unavailable>>,
) -> Result<Result<Answered, Refusal>, Status> {
    let Applied { reply, term } = proposed.await.map_err(Failure::from)?;
    if reply == Err(Refusal::NoSpace) {
        Box::pin(backend.raise_no_space()).await;
    }
    Ok(reply.map(|response| Answered { response, term }))
}

/// How long the entry is that etcd makes of a request, which is what it bounds: the message as a field
/// of `InternalRaftRequest`, behind a header that holds a number and who asks. The number begins with
/// the last two bytes of the member's id, so the members of one cluster differ by a byte or two.
fn entry_bytes(backend: &Backend, user: Option<(&str, u64)>, message_bytes: usize) -> usize {
    let number = |number: u64| 1 + encoded_len_varint(number);
    let field = |bytes: usize| number(bytes as u64) + bytes;
    let mut header = number(backend.identity().member_id << 48 | 0xffff_ffff_ffff);
    if let Some((user, auth_revision)) = user {
        header += field(user.len()) + number(auth_revision);
    }
    // The header is the field with a tag of two bytes.
    1 + field(header) + field(message_bytes)
}

/// Reads a range at one revision without holding the lock for long (K2). A range of more than one step
/// comes with the turn in which it was read.
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
                // Whoever asked for "now" must not hear that "now" was compacted meanwhile.
                Err(Refusal::Compacted { .. }) if request.revision <= 0 => {
                    restarts_left -= 1;
                    continue 'restart;
                }
                Err(refusal) => return Err(Failure::from(refusal).into()),
            }
        }
    }
}

/// Begins to read a range, after the checks.
pub(crate) fn begin(
    api: &Api,
    credentials: &Credentials,
    request: &RangeRequest,
) -> Result<Scan, Status> {
    let caller = credentials.caller(&api.backend)?;
    let scan = api.backend.read_keys(|keyspace| {
        keyspace.auth().check_range(&caller, request)?;
        Scan::begin(keyspace.store(), request)
    });
    scan.map_err(|refusal| Failure::from(refusal).into())
}

fn step(api: &Api, scan: &mut Scan) -> Result<Progress, Status> {
    let progress = api.backend.read(|keyspace| scan.step(keyspace.store(), READ_AT_ONCE));
    progress.map_err(|refusal| Failure::from(refusal).into())
}

/// Reads the message of a request.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}
