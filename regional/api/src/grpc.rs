//! gRPC framing straight on HTTP/2, for the calls that carry the load.
//!
//! A generic stack costs more per request than everything the ring does with it. These few types
//! read messages off a stream without copying them and write an answer that was encoded once. The
//! client may be hostile: a length prefix reserves nothing, and no message grows beyond its bound.
//!
//! # Invariants
//!
//! - **F1** A message longer than the bound is refused when its prefix arrives.
//! - **F2** At most one message and one HTTP/2 window are held per stream.
//! - **F3** Messages that are longer than a window are held only within a budget for all streams.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

/// One flag byte and the length.
const PREFIX_BYTES: usize = 5;
/// An answer up to here is handed over at once; the window then paces it below us.
const SEND_AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// Messages up to here fit into a window, which has its own bound.
const LONG_MESSAGE_BYTES_MIN: usize = 64 * 1024;
/// What one permit of a budget for long messages stands for.
pub const BUDGET_UNIT_BYTES: usize = 1024;

/// The peer went away, or reset the stream. There is nobody to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer is gone")]
pub struct Gone;

/// A message with its prefix.
#[must_use]
pub fn frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + len);
    put_prefix(&mut buffer, len);
    message.encode(&mut buffer).expect("the buffer grows");
    buffer.freeze()
}

/// The prefix of a message of `len` bytes, for those who encode by hand.
pub fn put_prefix(buffer: &mut BytesMut, len: usize) {
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(len).expect("answers are bounded far below 4 GiB"));
}

/// The messages of a request, in order.
#[derive(Debug)]
pub struct Requests {
    body: RecvStream,
    /// What was read and is not yet part of a message.
    pending: BytesMut,
    message_bytes_max: usize,
    shared: Option<Arc<Semaphore>>,
    budget: Budget,
}

/// F3: what the message that is being collected has of the shared budget.
enum Budget {
    None,
    Waiting(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
    #[expect(dead_code, reason = "held, not read")]
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
    /// Reads `body`, with messages up to a size.
    #[must_use]
    pub fn new(body: RecvStream, message_bytes_max: usize) -> Self {
        Self {
            body,
            pending: BytesMut::new(),
            message_bytes_max,
            shared: None,
            budget: Budget::None,
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
    /// A [`Status`] if the stream broke, or a message is too long, compressed or cut off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] as a poll function.
    ///
    /// # Errors
    ///
    /// See there.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some(len) = message_bytes(&self.pending, self.message_bytes_max)? {
                if self.pending.len() >= PREFIX_BYTES + len {
                    self.budget = Budget::None;
                    self.pending.advance(PREFIX_BYTES);
                    return Poll::Ready(Ok(Some(self.pending.split_to(len).freeze())));
                }
                ready!(self.poll_budget(len, cx));
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

    fn poll_budget(&mut self, message_bytes: usize, cx: &mut Context<'_>) -> Poll<()> {
        if let Budget::None = self.budget
            && let Some(shared) = &self.shared
            && message_bytes > LONG_MESSAGE_BYTES_MIN
        {
            let units = u32::try_from(message_bytes / BUDGET_UNIT_BYTES).unwrap_or(u32::MAX);
            self.budget = Budget::Waiting(Box::pin(shared.clone().acquire_many_owned(units)));
        }
        if let Budget::Waiting(permit) = &mut self.budget {
            let permit = ready!(permit.as_mut().poll(cx));
            self.budget = Budget::Taken(permit.expect("nobody closes this semaphore"));
        }
        Poll::Ready(())
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
        match message_bytes(chunk, self.message_bytes_max)? {
            Some(len) if chunk.len() == PREFIX_BYTES + len => Ok(Some(chunk.slice(PREFIX_BYTES..))),
            _ => Ok(None),
        }
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

/// What the prefix at the start of `bytes` says; `None` if it is not there yet (F1).
fn message_bytes(bytes: &[u8], bytes_max: usize) -> Result<Option<usize>, Status> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err(Status::unimplemented("grpc: compressed messages are not supported"));
    }
    let len = u32::from_be_bytes(length) as usize;
    if len > bytes_max {
        // As the Go implementation words it, because clients show it.
        let text = format!("grpc: received message larger than max ({len} vs. {bytes_max})");
        return Err(Status::resource_exhausted(text));
    }
    Ok(Some(len))
}

fn broken(error: &h2::Error) -> Status {
    match error.reason() {
        Some(Reason::CANCEL) => Status::cancelled("context canceled"),
        _ => Status::unavailable(format!("stream error: {error}")),
    }
}

/// The answers to a request, in order.
#[derive(Debug)]
pub struct Replies {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

impl Replies {
    /// Nothing has been sent yet.
    #[must_use]
    pub fn new(respond: SendResponse<Bytes>) -> Self {
        Self { respond, stream: None }
    }

    /// Sends the one answer of a unary request and ends the stream.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn unary(mut self, frame: Bytes) -> Result<(), Gone> {
        self.send(frame).await?;
        self.finish(&Status::ok(""))
    }

    /// Sends the headers, so that the client knows the stream stands before there is an answer.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn start(&mut self) -> Result<(), Gone> {
        if self.stream.is_none() {
            let stream = self.respond.send_response(response(), false).map_err(|_| Gone)?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends one message with its prefix, as fast as the client reads.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn send(&mut self, frame: Bytes) -> Result<(), Gone> {
        self.start()?;
        let stream = self.stream.as_mut().expect("started above");
        if frame.len() <= SEND_AT_ONCE_BYTES_MAX && stream.capacity() >= frame.len() {
            return stream.send_data(frame, false).map_err(|_| Gone);
        }
        send_data(stream, frame).await
    }

    /// Ends the stream with a status.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn finish(mut self, status: &Status) -> Result<(), Gone> {
        match &mut self.stream {
            Some(stream) => stream.send_trailers(trailers(status)).map_err(|_| Gone),
            None => {
                let mut response = response();
                response.headers_mut().extend(trailers(status));
                self.respond.send_response(response, true).map(drop).map_err(|_| Gone)
            }
        }
    }

    /// Completes when the client gives up on the stream.
    pub async fn gone(&mut self) -> Gone {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    /// [`Self::gone`] as a poll function.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        let reset = match &mut self.stream {
            Some(stream) => stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|_| Gone)
    }

    /// The HTTP/2 stream after [`Self::start`], for those who pace themselves.
    pub fn stream(&mut self) -> Option<&mut SendStream<Bytes>> {
        self.stream.as_mut()
    }
}

/// Sends all of `data`, as fast as the peer reads.
///
/// # Errors
///
/// [`Gone`].
pub async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Gone> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or(Gone)?;
        let room = room.map_err(|_| Gone)?.min(data.len());
        if room > 0 {
            stream.send_data(data.split_to(room), false).map_err(|_| Gone)?;
        }
    }
    Ok(())
}

fn response() -> Response<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// What ends a stream.
fn trailers(status: &Status) -> HeaderMap {
    if status.code() == Code::Ok {
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        return trailers;
    }
    let mut trailers = HeaderMap::with_capacity(4);
    if status.add_header(&mut trailers).is_err() {
        // Only metadata that is no header could fail, and we attach none such.
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}
