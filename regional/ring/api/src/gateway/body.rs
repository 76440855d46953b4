//! Reads the JSON messages in the body of a request to the gateway, within limits on bytes and time.
//!
//! # Invariants
//!
//! - **JSON-1** Bytes that wait to become a message are bounded, and charged to the reservation of their stream as
//!   they arrive (STREAMS-5).
//! - **JSON-2** A message that has begun arrives within [`BODY_TIMEOUT`]. The message of a call that takes one
//!   has begun with the call.

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use prost_reflect::MessageDescriptor;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::json::Sequence;
use crate::grpc::Reservation;
use crate::limits::BODY_TIMEOUT;
use crate::status::unavailable;

/// The body of a request, from which messages are read.
pub(super) struct JsonBody<B> {
    frames: B,
    bytes_max: usize,
    pending: Sequence,
    reservation: Reservation,
    deadline: Option<Instant>,
}

impl<B: Body<Data = Bytes> + Unpin> JsonBody<B> {
    /// Reads `frames`. Up to `bytes_max` bytes may wait for the end of their message; they are charged to `reservation`.
    pub(super) fn new(frames: B, bytes_max: usize, reservation: Reservation) -> Self {
        Self { frames, bytes_max, pending: Sequence::default(), reservation, deadline: None }
    }

    /// Reads the only message of a body. Its bytes stay charged until [`Self::sent`].
    ///
    /// # Errors
    ///
    /// A [`Status`] if the body is too long, too slow or invalid, if the client left, or if there is no memory for it.
    pub(super) async fn only(&mut self, descriptor: MessageDescriptor) -> Result<Bytes, Status> {
        self.begin();
        while self.read_more().await? {}
        std::mem::take(&mut self.pending).decode_one(descriptor)
    }

    /// Reads the next message of a sequence; `None` after the last.
    ///
    /// # Errors
    ///
    /// As [`Self::only`].
    pub(super) async fn next(
        &mut self,
        descriptor: &MessageDescriptor,
    ) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.pending.next(descriptor)? {
                self.deadline = None;
                return Ok(Some(message));
            }
            if self.pending.len() == 0 {
                self.sent();
            } else if self.deadline.is_none() {
                self.begin();
            }
            if !self.read_more().await? {
                return match self.pending.len() {
                    0 => Ok(None),
                    _ => Err(Status::invalid_argument("unexpected EOF")),
                };
            }
        }
    }

    /// Frees the bytes of the messages that were handed to the service.
    pub(super) fn sent(&mut self) {
        self.pending = Sequence::default();
        self.reservation.release();
    }

    fn begin(&mut self) {
        self.deadline = Some(Instant::now() + BODY_TIMEOUT);
    }

    /// Reads more of the body; `false` at its end.
    async fn read_more(&mut self) -> Result<bool, Status> {
        let frame = self.frames.frame();
        let frame = match self.deadline {
            Some(deadline) => timeout_at(deadline, frame).await.map_err(|_| too_slow())?,
            None => frame.await,
        };
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|_| Status::cancelled("context canceled"))?;
        let Ok(data) = frame.into_data() else { return Ok(true) };
        if self.pending.len() + data.len() > self.bytes_max {
            return Err(too_long(self.bytes_max));
        }
        self.pending.push(&data);
        self.reservation.resize(self.pending.capacity()).map_err(unavailable)?;
        Ok(true)
    }
}

fn too_long(bytes_max: usize) -> Status {
    Status::resource_exhausted(format!(
        "the JSON of a request is longer than {bytes_max} bytes; send several requests"
    ))
}

fn too_slow() -> Status {
    let s = BODY_TIMEOUT.as_secs();
    Status::deadline_exceeded(format!(
        "the request's JSON did not arrive within {s} s of its start"
    ))
}
