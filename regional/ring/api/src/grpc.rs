//! gRPC framing directly on HTTP/2 (`h2`), for the calls that carry most of the load: reads messages from a request
//! stream without copying them, and sends answers within the limits on memory.
//!
//! The generic stack (tonic) costs more CPU per request than the ring itself.

mod inflate;
mod rate;
mod requests;
mod room;
mod streams;

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;
use tonic::{Code, Status};

use crate::meters::CallMeter;
pub use rate::ConnectionRate;
pub use requests::{BUDGET_UNIT_BYTES, ENCODING, Requests};
pub use room::{LongAnswers, Room};
pub(crate) use room::{SHORT_ANSWER_BYTES_MAX, deliver, held, hold_until_written};
pub use streams::Reservation;
pub(crate) use streams::Streams;

/// Bytes of a message's prefix: one flag, and the length in four bytes.
pub const PREFIX_BYTES: usize = 5;

/// The client closed the connection or reset the stream, so no answer can reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer is gone")]
pub struct Gone;

/// Encodes a message with its prefix.
#[must_use]
pub fn frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + len);
    put_prefix(&mut buffer, len);
    message.encode(&mut buffer).expect("the buffer grows");
    buffer.freeze()
}

/// Writes the prefix of a message of `len` bytes, whose bytes the caller appends.
pub fn put_prefix(buffer: &mut BytesMut, len: usize) {
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(len).expect("answers are bounded far below 4 GiB"));
}

/// Sends the answers to one request, in order.
#[derive(Debug)]
pub struct Replies {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
    call_meter: Option<CallMeter>,
    room: Room,
}

impl Replies {
    /// Answers on `respond`. `call_meter` records the code with which the call ends, and `room` is given back when HTTP/2
    /// has written the end of the stream (FRAME-5).
    #[must_use]
    pub fn new(respond: SendResponse<Bytes>, call_meter: Option<CallMeter>, room: Room) -> Self {
        Self { respond, stream: None, call_meter, room }
    }

    /// The parts, for a caller that answers in another way.
    #[must_use]
    pub fn into_parts(self) -> (SendResponse<Bytes>, Option<CallMeter>, Room) {
        (self.respond, self.call_meter, self.room)
    }

    /// The memory that answers are charged to.
    pub fn room(&mut self) -> &mut Room {
        &mut self.room
    }

    /// Sends the answer to a unary request and ends the stream. The caller has charged `frame` to the room.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn unary(mut self, frame: Bytes) -> Result<(), Gone> {
        let stream = self.started()?;
        stream.reserve_capacity(frame.len());
        if frame.len() <= SHORT_ANSWER_BYTES_MAX && stream.capacity() >= frame.len() {
            // The flow-control window has room for all of it, so there is nothing to wait for.
            stream.send_data(frame, false).map_err(|_| Gone)?;
        } else {
            Box::pin(deliver(stream, frame)).await?;
        }
        self.finish(&Status::ok(""))
    }

    /// Sends the headers, so that the client knows that the stream is open before its first answer.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn start(&mut self) -> Result<(), Gone> {
        self.started().map(drop)
    }

    fn started(&mut self) -> Result<&mut SendStream<Bytes>, Gone> {
        match &mut self.stream {
            Some(stream) => Ok(stream),
            none => {
                let stream = self.respond.send_response(response(), false).map_err(|_| Gone)?;
                Ok(none.insert(stream))
            }
        }
    }

    /// Sends one message of a stream with its prefix, and waits until HTTP/2 has written it. The caller has charged `frame`
    /// to the room.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn send(&mut self, frame: Bytes) -> Result<(), Gone> {
        deliver(self.started()?, frame).await
    }

    /// Ends the stream with a status.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn finish(mut self, status: &Status) -> Result<(), Gone> {
        if let Some(meter) = &mut self.call_meter {
            meter.record(status.code());
        }
        let Some(stream) = &mut self.stream else {
            return refuse(self.respond, status, self.room);
        };
        let mut trailers = trailers(status);
        hold_until_written(&mut trailers, self.room);
        stream.send_trailers(trailers).map_err(|_| Gone)
    }

    /// Completes when the client resets the stream or leaves.
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

    /// The HTTP/2 stream after [`Self::start`], for a caller that does its own flow control.
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

/// Answers a request with a status only, and drops `held` when HTTP/2 has written it.
///
/// # Errors
///
/// [`Gone`].
pub(crate) fn refuse(
    mut respond: SendResponse<Bytes>,
    status: &Status,
    held: impl Send + 'static,
) -> Result<(), Gone> {
    let mut response = response();
    response.headers_mut().extend(trailers(status));
    hold_until_written(response.headers_mut(), held);
    respond.send_response(response, true).map(drop).map_err(|_| Gone)
}

fn response() -> Response<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// The trailers that end a stream with this status.
fn trailers(status: &Status) -> HeaderMap {
    if status.code() == Code::Ok {
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        return trailers;
    }
    let mut trailers = HeaderMap::with_capacity(4);
    if status.add_header(&mut trailers).is_err() {
        // Cannot happen: only metadata that is not valid as a header fails, and no status here has such.
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}
