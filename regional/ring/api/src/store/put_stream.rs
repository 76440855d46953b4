//! Serves `PutStream`, the bulk write of `satrap.v1`: each message carries many puts, many messages may be in flight, and
//! one answer acknowledges all messages that are done.
//!
//! The cost of each HTTP/2 request limits unary puts, not the ring. Here a message of many puts is one call to the ring,
//! and its answer costs a few bytes per put.
//!
//! # Invariants
//!
//! - **PUTSTREAM-1** Answers come in the order of the requests, and every put is answered once.
//! - **PUTSTREAM-2** Puts of one stream are applied in the order in which they were sent.
//! - **PUTSTREAM-3** Puts that wait for the ring are bounded per stream, and for all streams together.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use satrap_proto::v1;
use satrap_ring_core::kv::request::PutRequest;
use satrap_ring_core::{Proposal, Refusal, Reply, Request};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::header;
use crate::api::{Api, raise_no_space};
use crate::backend::Backend;
use crate::calls::{AppliedMany, Failure};
use crate::convert::prescan;
use crate::exchange::Exchange;
use crate::grpc::{self, BUDGET_UNIT_BYTES, Gone};
use crate::kv::{decode, written};
use crate::limits::STREAM_MESSAGES_IN_FLIGHT_MAX;
use crate::peer::Credentials;
use crate::refusal;

/// Serves one stream to its end.
///
/// # Errors
///
/// The status that ends the stream: a message is malformed or too large, or the ring is unavailable. Puts without an
/// answer may or may not have been written. The inner error is [`Gone`], if the client left.
pub async fn put_stream(api: &Api, exchange: &mut Exchange) -> Result<Result<(), Gone>, Status> {
    let credentials = exchange.credentials();
    if exchange.replies.start().is_err() {
        return Ok(Err(Gone));
    }
    let mut under_way = FuturesOrdered::new();
    let mut all_read = false;
    while !all_read || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                let mut answer = Acknowledgement::default();
                answer.add(done)?;
                // PUTSTREAM-1: the messages behind it that are done share its answer.
                while let Some(Some(done)) = under_way.next().now_or_never() {
                    answer.add(done)?;
                }
                let framed = written(exchange.replies.room().count(answer.frame(api)).await)?;
                if exchange.replies.send(framed).await.is_err() {
                    return Ok(Err(Gone));
                }
            }
            message = exchange.requests.next(),
                if !all_read && under_way.len() < STREAM_MESSAGES_IN_FLIGHT_MAX =>
            {
                let message = message?;
                // From here on, `submit` charges the message.
                exchange.requests.release();
                match message {
                    Some(message) => under_way.push_back(submit(api, &credentials, message).await?),
                    None => all_read = true,
                }
            }
            _ = exchange.replies.gone() => return Ok(Err(Gone)),
        }
    }
    Ok(Ok(()))
}

/// The outcome of a message.
struct Done {
    /// For each put in order, the refusal of a put that was not proposed.
    refused: Vec<Option<Refusal>>,
    applied: Result<AppliedMany, Failure>,
}

/// Proposes the puts of a message. They are in the ring's queue when this returns, in order (PUTSTREAM-2); the returned
/// future waits for the ring's answer.
async fn submit(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
) -> Result<BoxFuture<'static, Done>, Status> {
    if message.len() > api.requests.bytes_max {
        return Err(Failure::from(Refusal::RequestTooLarge).into());
    }
    prescan::put_stream(&message)?;
    let held = hold(api, message.len()).await;
    let request: v1::PutStreamRequest = decode(message)?;
    let caller = api.identify(credentials)?;
    let mut refused = Vec::with_capacity(request.puts.len());
    let mut proposals = Vec::with_capacity(request.puts.len());
    for put in request.puts {
        refused.push(put.key.is_empty().then_some(Refusal::EmptyKey));
        if !put.key.is_empty() {
            let mut request = PutRequest::of(put.key, put.value);
            request.lease = put.lease;
            proposals.push(Proposal { caller: caller.clone(), request: Request::Put(request) });
        }
    }
    let applied = start(&api.backend, proposals);
    let backend = api.backend.clone();
    Ok(async move {
        let applied = applied.await;
        if let Ok(AppliedMany { replies, .. }) = &applied
            && replies.contains(&Err(Refusal::NoSpace))
        {
            raise_no_space(&backend).await;
        }
        drop(held);
        Done { refused, applied }
    }
    .boxed())
}

/// Puts the proposals into the ring's queue before the returned future is polled.
fn start(
    backend: &Backend,
    proposals: Vec<Proposal>,
) -> impl Future<Output = Result<AppliedMany, Failure>> + use<> {
    let nothing = proposals.is_empty();
    let (backend, term) = (backend.clone(), backend.mark().term);
    let mut answer = async move {
        match nothing {
            true => Ok(AppliedMany { replies: Vec::new(), term }),
            false => Ok(backend.propose_many(proposals).await?),
        }
    }
    .boxed();
    // The first poll enqueues the proposals.
    let early = (&mut answer).now_or_never();
    async move {
        match early {
            Some(answer) => answer,
            None => answer.await,
        }
    }
}

/// Takes the message's share of the budget for long messages, and waits for it if necessary (PUTSTREAM-3).
async fn hold(api: &Api, message_bytes: usize) -> Option<OwnedSemaphorePermit> {
    let units = u32::try_from(message_bytes / BUDGET_UNIT_BYTES).unwrap_or(u32::MAX);
    api.long_messages.clone().acquire_many_owned(units).await.ok()
}

/// An answer to one or more messages.
#[derive(Default)]
struct Acknowledgement {
    requests: u64,
    puts: u64,
    revision_deltas: Vec<u64>,
    refusals: Vec<v1::PutRefusal>,
    revision: i64,
    term: u64,
}

impl Acknowledgement {
    fn add(&mut self, done: Done) -> Result<(), Status> {
        let applied = done.applied?;
        self.requests += 1;
        self.term = applied.term;
        let mut replies = applied.replies.into_iter();
        for refused in done.refused {
            let reply = match refused {
                Some(refusal) => Err(refusal),
                None => replies.next().expect("BUG: the ring answered fewer puts than it took"),
            };
            self.add_put(&reply);
        }
        Ok(())
    }

    fn add_put(&mut self, reply: &Reply) {
        match reply {
            Ok(response) => {
                let revision = response.revision();
                self.revision_deltas.push((revision - self.revision).unsigned_abs());
                self.revision = revision;
            }
            Err(refusal) => self.refusals.push(v1::PutRefusal {
                index: u32::try_from(self.puts).unwrap_or(u32::MAX),
                code: refusal::code(refusal) as u32,
                message: refusal::text(refusal),
            }),
        }
        self.puts += 1;
    }

    fn frame(self, api: &Api) -> Bytes {
        let revision = match self.revision {
            0 => api.backend.mark().revision,
            revision => revision,
        };
        grpc::frame(&v1::PutStreamResponse {
            header: Some(header(api, revision, self.term)),
            requests: self.requests,
            puts: self.puts,
            revision_deltas: self.revision_deltas,
            refusals: self.refusals,
        })
    }
}
