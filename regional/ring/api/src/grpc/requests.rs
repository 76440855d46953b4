//! The messages of a request. The client may be hostile: a length prefix reserves nothing, and no
//! message grows beyond its bound, however well it was compressed.
//!
//! # Invariants
//!
//! - **FRAME-1** A message longer than the bound is refused when its prefix arrives.
//! - **FRAME-2** At most one message and one HTTP/2 window are held per stream.
//! - **FRAME-3** Memory for a message is charged as its bytes arrive: a short message to the reservation of its
//!   stream, a long one to a budget that all streams share. A message that has begun arrives within
//!   [`BODY_TIMEOUT`], or its stream ends.
//! - **FRAME-4** A compressed message is refused as soon as more than the bound comes out of it, and the
//!   bound counts for the budget before anything does.
//! - **FRAME-7** Bytes that come out of compressed messages are charged to the rate of their connection. One that
//!   owes has no message decompressed.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::rate::ConnectionRate;
use super::streams::Reservation;
use super::{PREFIX_BYTES, inflate};
use crate::limits::BODY_TIMEOUT;
use crate::status::unavailable;

/// Messages of up to this size are charged to the reservation of their stream, and longer ones to the shared budget
/// once this much of them has arrived.
const LONG_MESSAGE_BYTES_MIN: usize = 64 * 1024;
/// The bytes that one permit of a budget for long messages counts for.
pub const BUDGET_UNIT_BYTES: usize = 1024;
/// The header that says how messages are compressed.
pub const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The messages of a request, in order.
#[derive(Debug)]
pub struct Requests {
    body: RecvStream,
    /// The part of the last frame that was not looked at yet.
    chunk: Bytes,
    /// The start of a message whose rest is not in the same frame.
    begun: BytesMut,
    message_bytes_max: usize,
    encoding: Encoding,
    bounds: Option<Bounds>,
    budget: Budget,
    /// FRAME-3: what the last message has of the budget, until the next one is asked for.
    delivered: Option<OwnedSemaphorePermit>,
}

/// FRAME-3: the bounds for messages of clients.
#[derive(Debug)]
struct Bounds {
    budget: Arc<Semaphore>,
    /// Charged for the bytes of a short message.
    reservation: Reservation,
    rate: ConnectionRate,
    /// When the message that has begun must be here, if its client was waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// How the peer compresses the messages that it marks as compressed.
#[derive(Debug)]
enum Encoding {
    Identity,
    Gzip,
    Unknown(Box<str>),
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(other) => Self::Unknown(String::from_utf8_lossy(other).into()),
        }
    }
}

/// FRAME-3: what the message that is being collected has of the shared budget.
enum Budget {
    None,
    Waiting(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
    Taken(OwnedSemaphorePermit),
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Waiting(_) => "Waiting",
            Self::Taken(_) => "Taken",
        })
    }
}

impl Requests {
    /// Reads the body that came with `headers`, with messages up to a size.
    #[must_use]
    pub fn new(headers: &HeaderMap, body: RecvStream, message_bytes_max: usize) -> Self {
        Self {
            body,
            chunk: Bytes::new(),
            begun: BytesMut::new(),
            message_bytes_max,
            encoding: Encoding::of(headers),
            bounds: None,
            budget: Budget::None,
            delivered: None,
        }
    }

    /// Bounds the memory of messages and the time that they take to arrive (FRAME-3): short ones are charged to
    /// `reservation`, that of their stream, and a long one waits until the `budget` of all streams has room for it.
    /// Bytes that are decompressed are charged to `rate` (FRAME-7).
    pub fn bound(
        &mut self,
        budget: Arc<Semaphore>,
        reservation: Reservation,
        rate: &ConnectionRate,
    ) {
        self.bounds = Some(Bounds { budget, reservation, rate: rate.clone(), deadline: None });
    }

    /// The next message; `None` after the last. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// A [`Status`] if the stream broke, or a message is too long, too slow, cut off, or compressed in
    /// a way that we do not know, or there is no memory for it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] as a poll function.
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        // Before anything is waited for, or streams that hold some of the budget would wait for
        // each other.
        self.release();
        loop {
            if let Some(prefix) = self.advance()? {
                let len = PREFIX_BYTES + prefix.len;
                let is_whole = self.begun.len().max(self.chunk.len()) >= len;
                if is_whole || self.begun.len() >= LONG_MESSAGE_BYTES_MIN {
                    ready!(self.poll_budget(prefix, cx));
                }
                if is_whole {
                    let mut message = match self.begun.is_empty() {
                        true => self.chunk.split_to(len),
                        false => std::mem::take(&mut self.begun).freeze(),
                    };
                    message.advance(PREFIX_BYTES);
                    return Poll::Ready(self.deliver(prefix, message).map(Some));
                }
            }
            self.hold_begun()?;
            let Poll::Ready(chunk) = self.body.poll_data(cx) else {
                return self.poll_late(cx).map(Err);
            };
            let Some(chunk) = chunk else {
                return Poll::Ready(self.end());
            };
            self.chunk = chunk.map_err(|error| broken(&error))?;
            // The window is for the time until we have read it; what we hold is bounded otherwise.
            let released = self.body.flow_control().release_capacity(self.chunk.len());
            released.map_err(|error| broken(&error))?;
        }
    }

    /// Ends the charge for the last message; for callers that charge it themselves.
    pub fn release(&mut self) {
        self.delivered = None;
        if self.begun.is_empty()
            && let Some(bounds) = &mut self.bounds
        {
            bounds.reservation.release();
        }
    }

    /// The prefix of the next message, if it is there (FRAME-1). If the message is not whole in the chunk,
    /// what the chunk has of it is moved behind its start.
    fn advance(&mut self) -> Result<Option<Prefix>, Status> {
        if self.begun.is_empty()
            && let Some(prefix) = self.prefix(&self.chunk)?
            && self.chunk.len() >= PREFIX_BYTES + prefix.len
        {
            return Ok(Some(prefix));
        }
        loop {
            let prefix = self.prefix(&self.begun)?;
            let len = PREFIX_BYTES + prefix.map_or(0, |prefix| prefix.len);
            let missing = (len - self.begun.len()).min(self.chunk.len());
            if missing == 0 {
                return Ok(prefix);
            }
            self.begun.extend_from_slice(&self.chunk.split_to(missing));
        }
    }

    /// Charges the bytes of an incomplete message to its stream, until the budget is charged for it.
    fn hold_begun(&mut self) -> Result<(), Status> {
        match (&mut self.bounds, &self.budget) {
            (Some(bounds), Budget::None | Budget::Waiting(_)) => {
                bounds.reservation.resize(self.begun.capacity()).map_err(unavailable)
            }
            _ => Ok(()),
        }
    }

    /// Ready when the rest of a message has not come in time.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let Some(bounds) = self.bounds.as_mut().filter(|_| !self.begun.is_empty()) else {
            return Poll::Pending;
        };
        let deadline = bounds.deadline.get_or_insert_with(|| Box::pin(sleep(BODY_TIMEOUT)));
        ready!(deadline.as_mut().poll(cx));
        let s = BODY_TIMEOUT.as_secs();
        let text = format!("a message of the request did not arrive within {s} s of its start");
        Poll::Ready(Status::deadline_exceeded(text))
    }

    /// The bytes that a message takes of the budget. A short compressed one is counted elsewhere until
    /// something comes out of it.
    fn budgeted(&self, prefix: Prefix) -> usize {
        let long = Some(prefix.len).filter(|len| *len > LONG_MESSAGE_BYTES_MIN).unwrap_or(0);
        let inflated = Some(self.message_bytes_max).filter(|_| prefix.is_compressed).unwrap_or(0);
        long + inflated
    }

    fn poll_budget(&mut self, prefix: Prefix, cx: &mut Context<'_>) -> Poll<()> {
        let bytes = self.budgeted(prefix);
        let Some(bounds) = self.bounds.as_mut().filter(|_| bytes > LONG_MESSAGE_BYTES_MIN) else {
            return Poll::Ready(());
        };
        if let Budget::None = self.budget {
            let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX);
            let permit = bounds.budget.clone().acquire_many_owned(units);
            self.budget = Budget::Waiting(Box::pin(permit));
        }
        if let Budget::Waiting(permit) = &mut self.budget {
            let permit = ready!(permit.as_mut().poll(cx)).expect("BUG: the budget was closed");
            self.budget = Budget::Taken(permit);
            // The time that the client was kept waiting is not its own.
            bounds.deadline = None;
            if prefix.len > LONG_MESSAGE_BYTES_MIN {
                // Exactly what was taken; growing would make it up to twice as much.
                let mut begun = BytesMut::with_capacity(PREFIX_BYTES + prefix.len);
                begun.extend_from_slice(&self.begun);
                self.begun = begun;
                bounds.reservation.release();
            }
        }
        Poll::Ready(())
    }

    /// Hands a message out, counted for as much as it takes.
    fn deliver(&mut self, prefix: Prefix, message: Bytes) -> Result<Bytes, Status> {
        let budget = std::mem::replace(&mut self.budget, Budget::None);
        let message = match prefix.is_compressed {
            true => self.inflate(&message)?,
            false => message,
        };
        let Some(bounds) = &mut self.bounds else { return Ok(message) };
        bounds.deadline = None;
        match budget {
            Budget::Taken(mut permit) => {
                let units = message.len().div_ceil(BUDGET_UNIT_BYTES);
                drop(permit.split(permit.num_permits().saturating_sub(units)));
                self.delivered = Some(permit);
                bounds.reservation.release();
            }
            Budget::None | Budget::Waiting(_) => {
                bounds.reservation.resize(message.len()).map_err(unavailable)?;
            }
        }
        Ok(message)
    }

    /// FRAME-4, FRAME-7
    fn inflate(&self, compressed: &[u8]) -> Result<Bytes, Status> {
        match &self.encoding {
            Encoding::Gzip => {}
            Encoding::Identity => {
                let text = "grpc: compressed flag set with identity or empty encoding";
                return Err(Status::internal(text));
            }
            Encoding::Unknown(name) => return Err(unknown_encoding(name)),
        }
        let bytes_max = self.message_bytes_max;
        let rate = self.bounds.as_ref().map(|bounds| &bounds.rate);
        rate.map_or(Ok(()), ConnectionRate::check).map_err(unavailable)?;
        let inflated = inflate::gzip(compressed, bytes_max);
        if let Some(rate) = rate {
            // Where it broke is not known, so a failure costs as much as it can have taken.
            rate.charge_inflated(inflated.as_ref().map_or(bytes_max, Vec::len));
        }
        match inflated {
            Ok(message) => Ok(message.into()),
            Err(inflate::Failure::TooLong) => {
                let text = "grpc: received message after decompression larger than max";
                Err(Status::resource_exhausted(format!("{text} {bytes_max}")))
            }
            Err(inflate::Failure::Broken(error)) => {
                let text = format!("grpc: failed to decompress the message: {error}");
                Err(Status::internal(text))
            }
        }
    }

    /// The trailers that end the peer's stream.
    ///
    /// # Errors
    ///
    /// If the stream broke.
    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, h2::Error> {
        poll_fn(|cx| self.body.poll_trailers(cx)).await
    }

    /// The prefix at the start of `bytes`; `None` if it is not there yet (FRAME-1).
    fn prefix(&self, bytes: &[u8]) -> Result<Option<Prefix>, Status> {
        if let Encoding::Unknown(name) = &self.encoding {
            return Err(unknown_encoding(name));
        }
        let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [flag, length @ ..] = *prefix;
        if flag > 1 {
            let text = format!("grpc: received unexpected payload format {flag}");
            return Err(Status::internal(text));
        }
        let (len, bytes_max) = (u32::from_be_bytes(length) as usize, self.message_bytes_max);
        if len > bytes_max {
            // As the Go implementation words it, because clients show it.
            let text = format!("grpc: received message larger than max ({len} vs. {bytes_max})");
            return Err(Status::resource_exhausted(text));
        }
        Ok(Some(Prefix { is_compressed: flag == 1, len }))
    }

    fn end(&self) -> Result<Option<Bytes>, Status> {
        if self.begun.is_empty() {
            return Ok(None);
        }
        Err(Status::internal("unexpected EOF"))
    }

    /// The one message of a unary request.
    ///
    /// # Errors
    ///
    /// As [`Self::next`], and if there is none.
    pub async fn only(&mut self) -> Result<Bytes, Status> {
        self.next().await?.ok_or_else(|| Status::internal("request has no message"))
    }
}

/// The prefix of a message.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    is_compressed: bool,
    /// Of what follows it.
    len: usize,
}

fn unknown_encoding(name: &str) -> Status {
    let text = format!("grpc: Decompressor is not installed for grpc-encoding {name:?}");
    Status::unimplemented(text)
}

fn broken(error: &h2::Error) -> Status {
    match error.reason() {
        Some(Reason::CANCEL) => Status::cancelled("context canceled"),
        _ => Status::unavailable(format!("stream error: {error}")),
    }
}
