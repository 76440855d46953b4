//! Between an HTTP/2 stream and what tower services and the gateway call bodies.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, BodyStream};
use tonic::Status;

use crate::gateway::{self, GatewayBody};
use crate::grpc::{
    Gone, LongAnswers, PREFIX_BYTES, Requests, Room, SHORT_ANSWER_BYTES_MAX, deliver, held,
    hold_until_written, put_prefix,
};
use crate::meters::Counted;

/// What a client sends, as a body.
#[derive(Debug)]
pub(super) struct StreamBody(pub(super) RecvStream);

impl Body for StreamBody {
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

/// The messages of a request, as a body in which each is whole and none is compressed.
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

/// The same response, whose long frames count while they are held (F5). One that is whole is refused
/// without room for it, and a stream ends early.
pub(super) fn counted(
    response: http::Response<GatewayBody>,
    long: LongAnswers,
) -> http::Response<GatewayBody> {
    let whole = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let mut taken = match whole {
        Some(bytes) if bytes <= SHORT_ANSWER_BYTES_MAX => return response,
        Some(bytes) => match long.try_take(bytes) {
            None => return gateway::refused(),
            taken => taken,
        },
        None => None,
    };
    let mut count = move |data| match taken.take() {
        Some(taken) => Some(held(data, taken)),
        None => long.try_count(data),
    };
    response.map(|body| {
        let frames = BodyStream::new(body).map(move |frame| {
            let frame = frame?;
            match frame.into_data() {
                Ok(data) => count(data).map(Frame::data).ok_or(Gone),
                Err(trailers) => Ok(trailers),
            }
        });
        BodyExt::boxed_unsync(http_body_util::StreamBody::new(frames))
    })
}

/// Sends a response as fast as the client reads. Stops early if the client resets the stream.
pub(super) async fn send<B>(
    response: http::Response<B>,
    mut respond: SendResponse<Bytes>,
    mut counted: Option<Counted>,
    mut room: Room,
) -> Result<(), Gone>
where
    B: Body<Data = Bytes>,
{
    let mut ends_with = |headers: &HeaderMap| {
        if let (Some(counted), Some(status)) = (&mut counted, Status::from_header_map(headers)) {
            counted.ended(status.code());
        }
    };
    let (mut head, body) = response.into_parts();
    ends_with(&head.headers);
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
            // A service that waits for something else would not notice that its client left.
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            body.as_mut().poll_frame(cx).map(Ok)
        });
        let Some(frame) = frame.await? else {
            return stream.send_data(held([], room), true).map_err(|_| Gone);
        };
        let Ok(frame) = frame else {
            stream.send_reset(Reason::INTERNAL_ERROR);
            return Err(Gone);
        };
        match frame.into_data() {
            Ok(data) => match room.count(data).await {
                Ok(data) => deliver(&mut stream, data).await?,
                Err(_) => {
                    // Clients of gRPC take it for `ResourceExhausted`.
                    stream.send_reset(Reason::ENHANCE_YOUR_CALM);
                    return Err(Gone);
                }
            },
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    ends_with(&trailers);
                    hold_until_written(&mut trailers, room);
                    return stream.send_trailers(trailers).map_err(|_| Gone);
                }
            }
        }
    }
}
