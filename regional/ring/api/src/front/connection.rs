//! Serves one HTTP/2 connection: accepts its requests and runs them to their ends.
//!
//! All requests of a connection run inside one task. So answers that arrive from the ring together are written
//! together, and when the connection ends, all of its requests end with it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use h2::server::SendResponse;
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use satrap_runtime::coalesce::Coalesce;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval, timeout};

use super::dispatch::{handle, reject, stream_bytes};
use super::metered::Metered;
use super::serving::Serving;
use crate::gateway::link;
use crate::grpc::ConnectionRate;
use crate::limits::{
    CONNECTION_AGE_MAX, CONNECTION_GRACE, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX,
    GATEWAY_CALLS_MAX, GATEWAY_REQUEST_WINDOW_BYTES, HANDSHAKE_TIMEOUT, HEADER_LIST_BYTES_MAX,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, LOCAL_ERROR_RESETS_MAX, PENDING_ACCEPT_RESETS_MAX,
    REFUSALS_UNREAD_MAX, SEND_BUFFER_BYTES_MAX, SMALL_FRAMES_BUDGET, STREAM_WINDOW_BYTES,
    STREAMS_ANNOUNCED_MAX,
};
use crate::status::unavailable;

/// How long a connection may last (LISTEN-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// Bounded: a client's connection.
    Bounded,
    /// As long as the process: the JSON gateway's own connection.
    Process,
}

/// How often keepalive and age of a connection are checked.
const ROUND: Duration = Duration::from_secs(5);

/// Serves one connection to its end.
pub(super) async fn serve<T>(io: T, serving: Serving, lifetime: Lifetime)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = Metered { io: Coalesce::new(io), api: serving.api.clone() };
    let builder = match lifetime {
        Lifetime::Bounded => builder(),
        Lifetime::Process => gateway_builder(),
    };
    let mut connection = match timeout(HANDSHAKE_TIMEOUT, builder.handshake(io)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            return tracing::debug!(%error, "closed a connection: the HTTP/2 handshake failed");
        }
        Err(_elapsed) => {
            return tracing::debug!(
                "closed a connection: its HTTP/2 settings did not arrive in time"
            );
        }
    };
    let pings = match lifetime {
        Lifetime::Bounded => connection.ping_pong(),
        // After a pause of the process, as of a virtual machine, the gateway's connection must not time out.
        Lifetime::Process => None,
    };
    let mut keep_alive = KeepAlive::new(pings, lifetime);
    let mut rounds = interval(ROUND);
    let mut under_way = FuturesUnordered::new();
    let streams = serving.streams.connection();
    let (gateway, rate) =
        (serving.gateway.connection(), ConnectionRate::new(serving.api.connection_rate));
    let serving = Arc::new(Serving { gateway, rate, ..serving });
    let mut stopped = serving.stopped.clone();
    // An error means that the sender is gone, which also means to stop.
    let mut stop = pin!(async move { drop(stopped.wait_for(|stopped| *stopped).await) });
    let mut begin = |request: Request<RecvStream>, respond: SendResponse<Bytes>| {
        let paid = serving.rate.request();
        let opened = paid.and_then(|()| streams.open(stream_bytes(&request), request.headers()));
        match opened {
            Ok(reservation) => Ok(Some(handle(serving.clone(), reservation, request, respond))),
            Err(error) => {
                let unread = streams.refusal().ok_or(Ended::Flooded)?;
                reject(&serving, &unavailable(error), &request, respond, unread);
                Ok(None)
            }
        }
    };
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| turn(cx, &mut connection, &mut under_way, &mut begin)) => match ended {
                Ended::Closed => return,
                Ended::Broken(error) => return tracing::debug!(%error, "a connection failed"),
                Ended::Flooded => {
                    return tracing::debug!("closed a connection: its client does not read refusals");
                }
            },
            now = rounds.tick() => match keep_alive.round(now) {
                Verdict::Fine => {}
                Verdict::AskToEnd => connection.graceful_shutdown(),
                Verdict::Cut => {
                    return tracing::debug!(
                        "closed a connection: it is too old, or its client does not answer pings"
                    );
                }
            },
            () = &mut stop, if !keep_alive.is_ending() => {
                keep_alive.end(Instant::now());
                connection.graceful_shutdown();
            }
        }
    }
}

/// Why a connection ended.
enum Ended {
    Closed,
    Broken(h2::Error),
    /// Too many refusals are unread (STREAMS-5).
    Flooded,
}

/// Accepts all requests that have arrived, then polls all that are under way, so that one write sends the answers of
/// all that are ready. Ready when the connection has ended.
fn turn<T, F>(
    cx: &mut Context<'_>,
    connection: &mut h2::server::Connection<T, Bytes>,
    under_way: &mut FuturesUnordered<F>,
    begin: &mut impl FnMut(Request<RecvStream>, SendResponse<Bytes>) -> Result<Option<F>, Ended>,
) -> Poll<Ended>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    loop {
        // This also writes the answers of the last round, and refusals.
        while let Poll::Ready(accepted) = connection.poll_accept(cx) {
            match accepted {
                Some(Ok((request, respond))) => match begin(request, respond) {
                    Ok(handled) => under_way.extend(handled),
                    Err(ended) => return Poll::Ready(ended),
                },
                Some(Err(error)) => return Poll::Ready(Ended::Broken(error)),
                None => return Poll::Ready(Ended::Closed),
            }
        }
        let mut answered = false;
        while let Poll::Ready(Some(())) = under_way.poll_next_unpin(cx) {
            answered = true;
        }
        if !answered {
            return Poll::Pending;
        }
    }
}

/// Sets every limit: the defaults of `h2` leave some unbounded.
fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_ANNOUNCED_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .max_concurrent_reset_streams(REFUSALS_UNREAD_MAX)
        .max_pending_accept_reset_streams(PENDING_ACCEPT_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS_MAX));
    builder
}

/// For the gateway's own connection. Its other end is this process, and the limits of `h2` against hostile peers are
/// per connection: one client of the gateway could end the calls of all. So unread bytes and frames are bounded by
/// the window of each call, and resets are not counted.
fn gateway_builder() -> h2::server::Builder {
    let mut builder = builder();
    builder
        .initial_window_size(GATEWAY_REQUEST_WINDOW_BYTES)
        .initial_connection_window_size(GATEWAY_REQUEST_WINDOW_BYTES * GATEWAY_CALLS_MAX)
        .data_frame_budget(link::small_frames_budget(GATEWAY_REQUEST_WINDOW_BYTES))
        .max_pending_accept_reset_streams(usize::MAX)
        .max_local_error_reset_streams(None);
    builder
}

/// Keepalive pings and the age of a connection, checked once per round and not per request.
struct KeepAlive {
    pings: Option<PingPong>,
    ping: Option<Sent>,
    next_ping: Instant,
    ends: Ends,
}

/// The time of a ping that was not answered yet.
struct Sent(Instant);

/// How a connection ends (LISTEN-3).
enum Ends {
    /// With the process.
    WithProcess,
    /// The client is asked to leave (GOAWAY) at this time.
    Asked(Instant),
    /// The client was asked to leave; the connection is closed at this time.
    Cut(Instant),
}

enum Verdict {
    Fine,
    AskToEnd,
    Cut,
}

impl KeepAlive {
    fn new(pings: Option<PingPong>, lifetime: Lifetime) -> Self {
        let now = Instant::now();
        let ends = match lifetime {
            Lifetime::Bounded => Ends::Asked(now + CONNECTION_AGE_MAX),
            Lifetime::Process => Ends::WithProcess,
        };
        Self { pings, ping: None, next_ping: now + KEEPALIVE_INTERVAL, ends }
    }

    fn is_ending(&self) -> bool {
        matches!(self.ends, Ends::Cut(_))
    }

    fn end(&mut self, now: Instant) {
        self.ends = Ends::Cut(now + CONNECTION_GRACE);
    }

    fn round(&mut self, now: Instant) -> Verdict {
        if let Some(pings) = &mut self.pings {
            let answered = poll_fn(|cx| pings.poll_pong(cx)).now_or_never();
            match (&self.ping, answered) {
                (Some(_), Some(Ok(_))) => self.ping = None,
                (Some(Sent(at)), _) if now >= *at + KEEPALIVE_TIMEOUT => return Verdict::Cut,
                (None, _) if now >= self.next_ping && pings.send_ping(Ping::opaque()).is_ok() => {
                    self.ping = Some(Sent(now));
                    self.next_ping = now + KEEPALIVE_INTERVAL;
                }
                _ => {}
            }
        }
        match self.ends {
            Ends::Asked(at) if now >= at => {
                self.end(now);
                Verdict::AskToEnd
            }
            Ends::Cut(at) if now >= at => Verdict::Cut,
            Ends::WithProcess | Ends::Asked(_) | Ends::Cut(_) => Verdict::Fine,
        }
    }
}
