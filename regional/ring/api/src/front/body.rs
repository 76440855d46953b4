//! Adapts HTTP/2 request streams to [`http_body::Body`] for tower services and the JSON gateway, and sends their
//! responses within the limits on memory.

use std::fmt::Display;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tonic::Status;

use crate::gateway::{self, GatewayBody};
use crate::grpc::{
    Gone, LongAnswers, PREFIX_BYTES, Requests, Room, SHORT_ANSWER_BYTES_MAX, deliver, held,
    hold_until_written, put_prefix,
};
use crate::meters::CallMeter;

/// An HTTP/2 request stream as a body, with its DATA frames as they arrive.
#[derive(Debug)]
pub(super) struct H2Body(pub(super) RecvStream);

impl Body for H2Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            let frame = data.and_then(|data| {
                self.0.flow_control().release_capacity(data.len())?;
                Ok(Frame::data(data))
            });
            return Poll::Ready(Some(frame));
        }
        let trailers = ready!(self.0.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A gRPC request stream as a body: each frame is one complete, uncompressed message.
#[derive(Debug)]
pub(super) struct MessageBody(pub(super) Requests);

impl Body for MessageBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let message = ready!(self.0.poll_next(cx)).transpose();
        Poll::Ready(message.map(|message| {
            let message = message?;
            let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
            put_prefix(&mut frame, message.len());
            frame.extend_from_slice(&message);
            Ok(Frame::data(frame.freeze()))
        }))
    }
}

/// Charges the frames of `response` that are longer than [`SHORT_ANSWER_BYTES_MAX`] to the budget for long answers,
/// until they are written (FRAME-5). Over the budget, a response of known length is replaced by a refusal, and a
/// streamed one is cut off.
pub(super) fn charge_long_frames(
    response: http::Response<GatewayBody>,
    long: LongAnswers,
) -> http::Response<GatewayBody> {
    let known = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let mut taken = match known {
        Some(bytes) if bytes <= SHORT_ANSWER_BYTES_MAX => return response,
        Some(bytes) => match long.try_take(bytes) {
            None => return gateway::refused(),
            taken => taken,
        },
        None => None,
    };
    let mut charge = move |data| match taken.take() {
        Some(taken) => Some(held(data, taken)),
        None => long.try_charge(data),
    };
    response.map(|body| {
        let frames = BodyStream::new(body).map(move |frame| {
            let frame = frame?;
            match frame.into_data() {
                Ok(data) => charge(data).map(Frame::data).ok_or(Gone),
                Err(trailers) => Ok(trailers),
            }
        });
        BodyExt::boxed_unsync(StreamBody::new(frames))
    })
}

/// Sends a response as fast as the client reads. `call_meter` records the status with which the call ends, and
/// `room` is given back when HTTP/2 has written the end of the stream.
///
/// # Errors
///
/// [`Gone`] if the client reset the stream or left, and also if this member reset the stream: because there is no
/// memory for a frame, or because the body failed.
pub(super) async fn send<B>(
    response: http::Response<B>,
    mut respond: SendResponse<Bytes>,
    mut call_meter: Option<CallMeter>,
    mut room: Room,
) -> Result<(), Gone>
where
    B: Body<Data = Bytes>,
    B::Error: Display,
{
    let mut record_status = |headers: &HeaderMap| {
        if let (Some(meter), Some(status)) = (&mut call_meter, Status::from_header_map(headers)) {
            meter.record(status.code());
        }
    };
    let (mut head, body) = response.into_parts();
    record_status(&head.headers);
    if body.is_end_stream() {
        hold_until_written(&mut head.headers, room);
        let response = http::Response::from_parts(head, ());
        return respond.send_response(response, true).map(drop).map_err(|_| Gone);
    }
    let response = http::Response::from_parts(head, ());
    let mut stream = respond.send_response(response, false).map_err(|_| Gone)?;
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| {
            // Poll for a reset here too: a service that waits for something else would not notice that its client
            // left.
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            body.as_mut().poll_frame(cx).map(Ok)
        });
        let Some(frame) = frame.await? else {
            return stream.send_data(held([], room), true).map_err(|_| Gone);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                // At debug, because a client can cause it at will: by answers over the budget (FRAME-5).
                tracing::debug!(%error, "reset a stream, because the body of its response failed");
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(Gone);
            }
        };
        match frame.into_data() {
            Ok(data) => match room.count(data).await {
                Ok(data) => deliver(&mut stream, data).await?,
                Err(_) => {
                    // gRPC clients map this code to RESOURCE_EXHAUSTED.
                    stream.send_reset(Reason::ENHANCE_YOUR_CALM);
                    return Err(Gone);
                }
            },
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    record_status(&trailers);
                    hold_until_written(&mut trailers, room);
                    return stream.send_trailers(trailers).map_err(|_| Gone);
                }
            }
        }
    }
}
