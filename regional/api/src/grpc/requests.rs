//! The messages of a request. The client may be hostile: a length prefix reserves nothing, and no
//! message grows beyond its bound, however well it was compressed.
//!
//! # Invariants
//!
//! - **F1** A message longer than the bound is refused when its prefix arrives.
//! - **F2** At most one message and one HTTP/2 window are held per stream.
//! - **F3** Messages that are longer than a window are held only within a budget for all streams.
//! - **F4** A compressed message is refused as soon as more than the bound comes out of it, and the
//!   bound counts for the budget before anything does.

use std::fmt;
use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::PREFIX_BYTES;

/// Messages up to here fit into a window, which has its own bound.
const LONG_MESSAGE_BYTES_MIN: usize = 64 * 1024;
/// What one permit of a budget for long messages stands for.
pub const BUDGET_UNIT_BYTES: usize = 1024;
/// The header that says how messages are compressed.
pub const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The messages of a request, in order.
#[derive(Debug)]
pub struct Requests {
    body: RecvStream,
    /// What was read and is not yet part of a message.
    pending: BytesMut,
    message_bytes_max: usize,
    encoding: Encoding,
    shared: Option<Arc<Semaphore>>,
    budget: Budget,
    /// F3: what the last message has of the budget, until the next one is asked for.
    delivered: Option<OwnedSemaphorePermit>,
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

/// Whether messages of a request with these headers may be compressed.
#[must_use]
pub fn is_compressed(headers: &HeaderMap) -> bool {
    headers.contains_key(ENCODING)
}

/// F3: what the message that is being collected has of the shared budget.
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
            pending: BytesMut::new(),
            message_bytes_max,
            encoding: Encoding::of(headers),
            shared: None,
            budget: Budget::None,
            delivered: None,
        }
    }

    /// Makes long messages wait until all of them together fit into a budget (F3).
    pub fn share(&mut self, budget: Arc<Semaphore>) {
        self.shared = Some(budget);
    }

    /// The next message; `None` after the last. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// A [`Status`] if the stream broke, or a message is too long, cut off, or compressed in a way
    /// that we do not know.
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
            if let Some(prefix) = self.prefix(&self.pending)? {
                let has_arrived = self.pending.len() >= PREFIX_BYTES + prefix.len;
                if !has_arrived || prefix.is_compressed {
                    ready!(self.poll_budget(prefix, cx));
                }
                if has_arrived {
                    self.pending.advance(PREFIX_BYTES);
                    let message = self.pending.split_to(prefix.len).freeze();
                    return Poll::Ready(self.deliver(prefix, message).map(Some));
                }
            }
            let Some(chunk) = ready!(self.body.poll_data(cx)) else {
                return Poll::Ready(self.end());
            };
            let chunk = chunk.map_err(|error| broken(&error))?;
            // The window is for the time until we have read it; what we hold is bounded otherwise.
            let released = self.body.flow_control().release_capacity(chunk.len());
            released.map_err(|error| broken(&error))?;
            if self.pending.is_empty()
                && let Some(message) = self.whole(&chunk)?
            {
                return Poll::Ready(Ok(Some(message)));
            }
            self.pending.extend_from_slice(&chunk);
        }
    }

    /// Gives back what the last message has of the budget, for those who count it themselves.
    pub fn release(&mut self) {
        self.delivered = None;
    }

    fn poll_budget(&mut self, prefix: Prefix, cx: &mut Context<'_>) -> Poll<()> {
        let bytes = if prefix.is_compressed { self.message_bytes_max } else { prefix.len };
        if let Budget::None = self.budget
            && let Some(shared) = &self.shared
            && bytes > LONG_MESSAGE_BYTES_MIN
        {
            let units = u32::try_from(bytes / BUDGET_UNIT_BYTES).unwrap_or(u32::MAX);
            self.budget = Budget::Waiting(Box::pin(shared.clone().acquire_many_owned(units)));
        }
        if let Budget::Waiting(permit) = &mut self.budget {
            let permit = ready!(permit.as_mut().poll(cx));
            self.budget = Budget::Taken(permit.expect("nobody closes this semaphore"));
        }
        Poll::Ready(())
    }

    /// Hands a message out, with as much of the budget as it takes.
    fn deliver(&mut self, prefix: Prefix, message: Bytes) -> Result<Bytes, Status> {
        let budget = std::mem::replace(&mut self.budget, Budget::None);
        let message = match prefix.is_compressed {
            true => self.inflate(&message)?,
            false => message,
        };
        if let Budget::Taken(mut permit) = budget {
            drop(
                permit
                    .split(permit.num_permits().saturating_sub(message.len() / BUDGET_UNIT_BYTES)),
            );
            self.delivered = Some(permit);
        }
        Ok(message)
    }

    /// F4
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
        let mut message = Vec::new();
        // One byte more than may come out shows that there is more.
        let mut decoder = MultiGzDecoder::new(compressed).take(bytes_max as u64 + 1);
        decoder.read_to_end(&mut message).map_err(|error| {
            Status::internal(format!("grpc: failed to decompress the message: {error}"))
        })?;
        if message.len() > bytes_max {
            let text = "grpc: received message after decompression larger than max";
            return Err(Status::resource_exhausted(format!("{text} {bytes_max}")));
        }
        Ok(message.into())
    }

    /// What the peer says at the end.
    ///
    /// # Errors
    ///
    /// If the stream broke.
    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, h2::Error> {
        poll_fn(|cx| self.body.poll_trailers(cx)).await
    }

    /// The usual case, a chunk that is exactly one message, without a copy.
    fn whole(&self, chunk: &Bytes) -> Result<Option<Bytes>, Status> {
        match self.prefix(chunk)? {
            Some(Prefix { is_compressed: false, len }) if chunk.len() == PREFIX_BYTES + len => {
                Ok(Some(chunk.slice(PREFIX_BYTES..)))
            }
            _ => Ok(None),
        }
    }

    /// What stands at the start of `bytes`; `None` if it is not there yet (F1).
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
        if self.pending.is_empty() {
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

/// What a message starts with.
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
