//! Routes each HTTP/2 request by its path, and applies the rules for all calls: deadlines, calls that a learner
//! refuses, and clients that require a leader.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, header};
use tokio::time::timeout;
use tonic::Status;
use tower::ServiceExt;

use super::body::{self, H2Body, MessageBody};
use super::serving::Serving;
use crate::api::Api;
use crate::exchange::{Exchange, read_mode, timeout_of};
use crate::grpc::{ENCODING, Gone, Replies, Requests, Reservation, Room, refuse};
use crate::limits::{BODY_TIMEOUT, GENERIC_STREAM_BYTES, SMALL_REQUEST_BYTES_MAX, STREAM_BYTES};
use crate::meters::CallMeter;
use crate::peer::Credentials;
use crate::watch::Dialect;
use crate::{kv, store};

/// A unary call that is served on HTTP/2 directly, without the tonic stack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unary {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compact,
    PutIfRevision,
    PutSequential,
    Get,
    ListPage,
    GrantRole,
    RenewRole,
    ReleaseRole,
    RoleStatus,
    SetQuota,
    RemoveQuota,
    ListQuotas,
}

impl Unary {
    fn may_be_stale(self) -> bool {
        let reads = [Self::Range, Self::Get, Self::ListPage, Self::RoleStatus, Self::ListQuotas];
        reads.contains(&self)
    }
}

enum Route {
    Unary(Unary),
    RangeStream,
    PutStream,
    Watch(Dialect),
    Generic,
}

fn route(path: &str) -> Route {
    match path {
        "/etcdserverpb.KV/Put" => Route::Unary(Unary::Put),
        "/etcdserverpb.KV/Range" => Route::Unary(Unary::Range),
        "/etcdserverpb.KV/Txn" => Route::Unary(Unary::Txn),
        "/etcdserverpb.KV/DeleteRange" => Route::Unary(Unary::DeleteRange),
        "/etcdserverpb.KV/Compact" => Route::Unary(Unary::Compact),
        "/etcdserverpb.KV/RangeStream" => Route::RangeStream,
        "/satrap.v1.Store/PutStream" => Route::PutStream,
        "/satrap.v1.Store/PutIfRevision" => Route::Unary(Unary::PutIfRevision),
        "/satrap.v1.Store/PutSequential" => Route::Unary(Unary::PutSequential),
        "/satrap.v1.Store/Get" => Route::Unary(Unary::Get),
        "/satrap.v1.Store/ListPage" => Route::Unary(Unary::ListPage),
        "/satrap.v1.Store/GrantRole" => Route::Unary(Unary::GrantRole),
        "/satrap.v1.Store/RenewRole" => Route::Unary(Unary::RenewRole),
        "/satrap.v1.Store/ReleaseRole" => Route::Unary(Unary::ReleaseRole),
        "/satrap.v1.Store/RoleStatus" => Route::Unary(Unary::RoleStatus),
        "/satrap.v1.Store/SetQuota" => Route::Unary(Unary::SetQuota),
        "/satrap.v1.Store/RemoveQuota" => Route::Unary(Unary::RemoveQuota),
        "/satrap.v1.Store/ListQuotas" => Route::Unary(Unary::ListQuotas),
        "/etcdserverpb.Watch/Watch" => Route::Watch(Dialect::Etcd),
        "/satrap.v1.StoreWatch/Watch" => Route::Watch(Dialect::Store),
        _ => Route::Generic,
    }
}

/// The memory of an idle stream, in bytes, besides its headers.
pub(super) fn stream_bytes(request: &Request<RecvStream>) -> usize {
    match is_grpc(request) && !matches!(route(request.uri().path()), Route::Generic) {
        true => STREAM_BYTES,
        false => GENERIC_STREAM_BYTES,
    }
}

/// Refuses one request, and drops `held` when HTTP/2 has written the refusal.
pub(super) fn reject(
    serving: &Serving,
    status: &Status,
    request: &Request<RecvStream>,
    respond: SendResponse<Bytes>,
    held: impl Send + 'static,
) {
    if let Some(mut meter) = call_meter(serving, request) {
        meter.record(status.code());
    }
    // `Gone`: no client is left to answer.
    let _: Result<(), Gone> = refuse(respond, status, held);
}

fn call_meter(serving: &Serving, request: &Request<RecvStream>) -> Option<CallMeter> {
    is_grpc(request).then(|| serving.api.meters.begin(request.uri().path())).flatten()
}

/// Answers one request. Dropping the future resets the stream.
///
/// Thousands of these futures exist at a time and each is moved before its first poll, so they are kept small: the
/// state of rare requests is boxed.
pub(super) fn handle(
    serving: Arc<Serving>,
    reservation: Reservation,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> impl Future<Output = ()> + Send {
    let room = Room::new(reservation, serving.api.long_answers.clone());
    let replies = Replies::new(respond, call_meter(&serving, &request), room);
    let handled = match is_grpc(&request) {
        true => match route(request.uri().path()) {
            Route::Unary(call) => Handled::Unary(call, exchange(&serving, request, replies)),
            route => Handled::Rare(Box::pin(rare(serving.clone(), route, request, replies))),
        },
        false => Handled::Rare(Box::pin(other(serving.clone(), request, replies))),
    };
    async move {
        // `Gone`: no client is left to answer.
        let _: Result<(), Gone> = match handled {
            Handled::Unary(call, mut exchange) => {
                let answer = unary(&serving, call, &mut exchange).await;
                // From here on, the answer is charged instead of the request.
                exchange.requests.release();
                match answer {
                    Ok(frame) => exchange.replies.unary(frame).await,
                    Err(status) => exchange.replies.finish(&status),
                }
            }
            Handled::Rare(handled) => handled.await,
        };
    }
}

/// A request with its handler.
#[expect(clippy::large_enum_variant, reason = "nearly all requests are of the large variant")]
enum Handled {
    Unary(Unary, Exchange),
    Rare(Pin<Box<dyn Future<Output = Result<(), Gone>> + Send>>),
}

async fn rare(
    serving: Arc<Serving>,
    route: Route,
    request: Request<RecvStream>,
    replies: Replies,
) -> Result<(), Gone> {
    if matches!(route, Route::Generic) {
        return generic(&serving, request, replies).await;
    }
    let exchange = exchange(&serving, request, replies);
    match route {
        Route::Unary(_) | Route::Generic => unreachable!("handled before"),
        Route::RangeStream => range_stream(&serving, exchange).await,
        Route::PutStream => put_stream(&serving, exchange).await,
        Route::Watch(dialect) => watch(&serving, dialect, exchange).await,
    }
}

/// Answers a request that is not gRPC, by the JSON gateway.
async fn other(
    serving: Arc<Serving>,
    request: Request<RecvStream>,
    replies: Replies,
) -> Result<(), Gone> {
    let (mut respond, call_meter, room) = replies.into_parts();
    let request = request.map(H2Body);
    let answer = serving.gateway.handle(request, room.sibling());
    let response = while_wanted(&mut respond, answer).await?;
    body::send(response, respond, call_meter, room).await
}

/// Drops the answer if the client resets the stream.
async fn while_wanted<T>(
    respond: &mut SendResponse<Bytes>,
    answer: impl Future<Output = T>,
) -> Result<T, Gone> {
    tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => Err(Gone),
        answer = answer => Ok(answer),
    }
}

fn is_grpc(request: &Request<RecvStream>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    request.method() == Method::POST
        && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn exchange(serving: &Serving, request: Request<RecvStream>, mut replies: Replies) -> Exchange {
    let (head, body) = request.into_parts();
    let bytes_max = serving.api.requests.message_bytes_max();
    let mut requests = Requests::new(&head.headers, body, bytes_max);
    requests.bound(serving.api.long_messages.clone(), replies.room().sibling(), &serving.rate);
    Exchange { peer: serving.peer.clone(), headers: head.headers, requests, replies }
}

/// Answers within the deadline of the client, if it gave one.
async fn unary(serving: &Serving, call: Unary, exchange: &mut Exchange) -> kv::Answer {
    let deadline = timeout_of(&exchange.headers);
    let answer = pin!(answer(&serving.api, call, exchange));
    within(deadline, answer).await.unwrap_or_else(|| Err(too_late()))
}

/// `None` if the deadline passes first.
async fn within<T>(deadline: Option<Duration>, answer: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout(deadline, answer).await.ok(),
        None => Some(answer.await),
    }
}

async fn answer(api: &Api, call: Unary, exchange: &mut Exchange) -> kv::Answer {
    let message = timeout(BODY_TIMEOUT, exchange.requests.only()).await;
    let message = message.map_err(|_| too_late())??;
    // A learner serves serializable reads. Whether a read is one shows only after decoding.
    if !call.may_be_stale() {
        api.check_voter()?;
    }
    api.check_leader(&exchange.headers)?;
    let credentials = &exchange.credentials();
    let room = exchange.replies.room();
    match call {
        Unary::Put => kv::put(api, credentials, message, room).await,
        Unary::Range => {
            let mode = read_mode(&exchange.headers)?;
            kv::range(api, credentials, message, mode, room).await
        }
        Unary::Get => store::get(api, credentials, message, room).await,
        call => Box::pin(rarer(api, credentials, call, message, room)).await,
    }
}

/// Answers the less frequent calls, apart so that the futures of the frequent ones stay small.
async fn rarer(
    api: &Api,
    credentials: &Credentials,
    call: Unary,
    message: Bytes,
    room: &mut Room,
) -> kv::Answer {
    match call {
        Unary::Put | Unary::Range | Unary::Get => unreachable!("answered by the caller"),
        Unary::Txn => kv::txn(api, credentials, message, room).await,
        Unary::DeleteRange => kv::delete_range(api, credentials, message, room).await,
        Unary::Compact => kv::compact(api, credentials, message).await,
        Unary::PutIfRevision => store::put_if_revision(api, credentials, message, room).await,
        Unary::PutSequential => store::put_sequential(api, credentials, message).await,
        Unary::ListPage => store::list_page(api, credentials, message, room).await,
        Unary::GrantRole => store::grant_role(api, credentials, message).await,
        Unary::RenewRole => store::renew_role(api, credentials, message).await,
        Unary::ReleaseRole => store::release_role(api, credentials, message).await,
        Unary::RoleStatus => store::role_status(api, credentials, message).await,
        Unary::SetQuota => store::set_quota(api, credentials, message).await,
        Unary::RemoveQuota => store::remove_quota(api, credentials, message).await,
        Unary::ListQuotas => store::list_quotas(api, credentials, message, room).await,
    }
}

async fn put_stream(serving: &Serving, mut exchange: Exchange) -> Result<(), Gone> {
    let api = &serving.api;
    let served = match api.admit(&exchange.headers) {
        Ok(()) => store::put_stream(api, &mut exchange).await,
        Err(status) => Err(status),
    };
    finish(exchange.replies, served).await
}

async fn range_stream(serving: &Serving, mut exchange: Exchange) -> Result<(), Gone> {
    let sent = stream_range(serving, &mut exchange).await;
    finish(exchange.replies, sent).await
}

async fn stream_range(
    serving: &Serving,
    exchange: &mut Exchange,
) -> Result<Result<(), Gone>, Status> {
    let api = &serving.api;
    let message = timeout(BODY_TIMEOUT, exchange.requests.only()).await;
    let message = message.map_err(|_| too_late())??;
    api.admit(&exchange.headers)?;
    kv::range_stream(api, &exchange.credentials(), message, &mut exchange.replies).await
}

/// Ends a stream with the status of its call.
async fn finish(replies: Replies, sent: Result<Result<(), Gone>, Status>) -> Result<(), Gone> {
    match sent {
        Ok(Ok(())) => replies.finish(&Status::ok("")),
        Ok(Err(gone)) => Err(gone),
        Err(status) => replies.finish(&status),
    }
}

/// Hands a watch stream to the watch loop.
async fn watch(serving: &Serving, dialect: Dialect, exchange: Exchange) -> Result<(), Gone> {
    match serving.api.admit(&exchange.headers) {
        Ok(()) => serving.watches.serve(exchange, dialect).await,
        Err(status) => exchange.replies.finish(&status),
    }
}

/// Serves a call through the tonic stack.
async fn generic(
    serving: &Serving,
    request: Request<RecvStream>,
    replies: Replies,
) -> Result<(), Gone> {
    let (mut respond, call_meter, room) = replies.into_parts();
    let (mut head, body) = request.into_parts();
    let deadline = timeout_of(&head.headers);
    head.extensions.insert(Credentials::new(&serving.peer, &head.headers));
    // Messages are bounded here, so that no service needs bounds of its own (FRAME-3, FRAME-4).
    let bytes_max = match carries_values(head.uri.path()) {
        true => serving.api.requests.message_bytes_max(),
        false => SMALL_REQUEST_BYTES_MAX,
    };
    let mut requests = Requests::new(&head.headers, body, bytes_max);
    requests.bound(serving.api.long_messages.clone(), room.sibling(), &serving.rate);
    head.headers.remove(ENCODING);
    let request = Request::from_parts(head, MessageBody(requests));
    let answer = serving.routes.clone().oneshot(request);
    match while_wanted(&mut respond, within(deadline, answer)).await? {
        Some(Ok(response)) => body::send(response, respond, call_meter, room).await,
        None => Replies::new(respond, call_meter, room).finish(&too_late()),
    }
}

/// Whether a call through the tonic stack may be as long as a value: candidates of an election proclaim values.
fn carries_values(path: &str) -> bool {
    path.starts_with("/v3electionpb.Election/")
}

fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}
