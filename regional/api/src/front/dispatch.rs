//! Decides by path who answers a request, and sees to what holds for all: deadlines, learners,
//! clients that want a leader.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, header};
use tokio::time::timeout;
use tonic::Status;
use tower::ServiceExt;

use super::bridge::{self, StreamBody};
use super::connection::Serving;
use crate::exchange::{Exchange, check_leader, read_mode, timeout_of};
use crate::grpc::{Gone, Replies};
use crate::limits::{BODY_TIMEOUT, REQUEST_BYTES_MAX, REQUEST_OVERHEAD_BYTES_MAX};
use crate::peer::Credentials;
use crate::watch::Dialect;
use crate::{kv, store};

/// A unary call that does without the generic stack.
#[derive(Clone, Copy)]
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
        "/etcdserverpb.Watch/Watch" => Route::Watch(Dialect::Etcd),
        "/satrap.v1.StoreWatch/Watch" => Route::Watch(Dialect::Store),
        _ => Route::Generic,
    }
}

/// Answers one request. Whoever drops this has given up on the stream.
pub(super) async fn handle(
    serving: Arc<Serving>,
    admitted: Result<(), Status>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    // `Gone` has nobody left to be told.
    let _: Result<(), Gone> = if let Err(status) = admitted {
        Replies::new(respond).finish(&status).await
    } else if is_grpc(&request) {
        match route(request.uri().path()) {
            Route::Unary(call) => unary(&serving, call, exchange(&serving, request, respond)).await,
            Route::RangeStream => {
                Box::pin(range_stream(&serving, exchange(&serving, request, respond))).await
            }
            Route::PutStream => {
                Box::pin(put_stream(&serving, exchange(&serving, request, respond))).await
            }
            Route::Watch(dialect) => {
                let exchange = exchange(&serving, request, respond);
                Box::pin(carry(&serving, dialect, exchange)).await
            }
            Route::Generic => Box::pin(generic(&serving, request, respond)).await,
        }
    } else {
        let request = request.map(StreamBody);
        Box::pin(async { bridge::send(serving.gateway.handle(request).await, respond).await }).await
    };
}

fn is_grpc(request: &Request<RecvStream>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    request.method() == Method::POST
        && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn exchange(
    serving: &Serving,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Exchange {
    let bytes_max = REQUEST_BYTES_MAX + REQUEST_OVERHEAD_BYTES_MAX;
    let mut exchange = Exchange::new(serving.peer.clone(), request, respond, bytes_max);
    exchange.requests.share(serving.api.long_messages.clone());
    exchange
}

async fn unary(serving: &Serving, call: Unary, mut exchange: Exchange) -> Result<(), Gone> {
    let deadline = timeout_of(&exchange.head.headers);
    let answer = answer(serving, call, &mut exchange);
    let answer = match deadline {
        Some(deadline) => timeout(deadline, answer).await.unwrap_or_else(|_| Err(too_late())),
        None => answer.await,
    };
    match answer {
        Ok(frame) => exchange.replies.unary(frame).await,
        Err(status) => exchange.replies.finish(&status).await,
    }
}

async fn answer(serving: &Serving, call: Unary, exchange: &mut Exchange) -> kv::Answer {
    let api = &serving.api;
    let message = timeout(BODY_TIMEOUT, exchange.requests.only()).await;
    let message = message.map_err(|_| too_late())??;
    // A learner serves reads that may be stale, which shows only after decoding.
    if !matches!(call, Unary::Range | Unary::Get | Unary::ListPage | Unary::RoleStatus) {
        api.check_voter()?;
    }
    check_leader(&exchange.head.headers, &api.backend)?;
    let credentials = &exchange.credentials();
    match call {
        Unary::Put => kv::put(api, credentials, message).await,
        Unary::Range => {
            let mode = read_mode(&exchange.head.headers)?;
            kv::range(api, credentials, message, mode).await
        }
        Unary::Txn => kv::txn(api, credentials, message).await,
        Unary::DeleteRange => kv::delete_range(api, credentials, message).await,
        Unary::Compact => kv::compact(api, credentials, message).await,
        Unary::PutIfRevision => store::put_if_revision(api, credentials, message).await,
        Unary::PutSequential => store::put_sequential(api, credentials, message).await,
        Unary::Get => store::get(api, credentials, message).await,
        Unary::ListPage => store::list_page(api, credentials, message).await,
        Unary::GrantRole => store::grant_role(api, credentials, message).await,
        Unary::RenewRole => store::renew_role(api, credentials, message).await,
        Unary::ReleaseRole => store::release_role(api, credentials, message).await,
        Unary::RoleStatus => store::role_status(api, credentials, message).await,
    }
}

async fn put_stream(serving: &Serving, mut exchange: Exchange) -> Result<(), Gone> {
    let api = &serving.api;
    let checked =
        api.check_voter().and_then(|()| check_leader(&exchange.head.headers, &api.backend));
    let served = match checked {
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
    api.check_voter()?;
    check_leader(&exchange.head.headers, &api.backend)?;
    kv::range_stream(api, &exchange.credentials(), message, &mut exchange.replies).await
}

/// Ends a stream with what became of it.
async fn finish(replies: Replies, sent: Result<Result<(), Gone>, Status>) -> Result<(), Gone> {
    match sent {
        Ok(Ok(())) => replies.finish(&Status::ok("")).await,
        Ok(Err(gone)) => Err(gone),
        Err(status) => replies.finish(&status).await,
    }
}

/// Hands a watch stream to the loop that carries them all.
async fn carry(serving: &Serving, dialect: Dialect, exchange: Exchange) -> Result<(), Gone> {
    let api = &serving.api;
    let checked =
        api.check_voter().and_then(|()| check_leader(&exchange.head.headers, &api.backend));
    match checked {
        Ok(()) => serving.watches.carry(exchange, dialect).await,
        Err(status) => exchange.replies.finish(&status).await,
    }
}

/// Through the generic stack.
async fn generic(
    serving: &Serving,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Result<(), Gone> {
    let mut request = request.map(StreamBody);
    let credentials = Credentials::new(&serving.peer, request.headers());
    request.extensions_mut().insert(credentials);
    let Ok(response) = serving.routes.clone().oneshot(request).await;
    bridge::send(response, respond).await
}

fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}
