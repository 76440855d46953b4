//! gRPC framing straight on HTTP/2, for the calls that carry the load.
//!
//! A generic stack costs more per request than everything the ring does with it. These few types
//! read messages off a stream without copying them and write an answer that was encoded once.

mod inflate;
mod requests;
mod room;

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;
use tonic::{Code, Status};

use crate::meters::Counted;
pub use requests::{BUDGET_UNIT_BYTES, ENCODING, Requests};
pub use room::{LongAnswers, Room};
pub(crate) use room::{SHORT_ANSWER_BYTES_MAX, deliver, held, hold_until_written};

/// One flag byte and the length.
pub const PREFIX_BYTES: usize = 5;

/// The peer went away, or reset the stream. No answer reaches it.
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

/// The answers to a request, in order.
#[derive(Debug)]
pub struct Replies {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
    counted: Option<Counted>,
    room: Room,
}

impl Replies {
    /// Nothing has been sent yet; `counted` gets the code with which the call ends, and `room` is given
    /// back when HTTP/2 has written the end of the stream (F5).
    #[must_use]
    pub fn new(respond: SendResponse<Bytes>, counted: Option<Counted>, room: Room) -> Self {
        Self { respond, stream: None, counted, room }
    }

    /// What it was made of, for those who answer in another way.
    #[must_use]
    pub fn into_parts(self) -> (SendResponse<Bytes>, Option<Counted>, Room) {
        (self.respond, self.counted, self.room)
    }

    /// Where answers are counted.
    pub fn room(&mut self) -> &mut Room {
        &mut self.room
    }

    /// Sends the one answer of a unary request and ends the stream. The room counts for it.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn unary(mut self, frame: Bytes) -> Result<(), Gone> {
        let stream = self.started()?;
        stream.reserve_capacity(frame.len());
        if frame.len() <= SHORT_ANSWER_BYTES_MAX && stream.capacity() >= frame.len() {
            // Once it is handed over, the window paces it below us.
            stream.send_data(frame, false).map_err(|_| Gone)?;
        } else {
            Box::pin(deliver(stream, frame)).await?;
        }
        self.finish(&Status::ok(""))
    }

    /// Sends the headers, so that the client knows before there is an answer that the stream is open.
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

    /// Sends one message of several with its prefix, and waits until HTTP/2 has written it. The room
    /// counts for it.
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
        if let Some(counted) = &mut self.counted {
            counted.ended(status.code());
        }
        let Some(stream) = &mut self.stream else {
            return refuse(self.respond, status, self.room);
        };
        let mut trailers = trailers(status);
        hold_until_written(&mut trailers, self.room);
        stream.send_trailers(trailers).map_err(|_| Gone)
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

/// Answers a request with a status alone, and drops `held` when HTTP/2 has written that.
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
