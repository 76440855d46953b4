//! The body of a JSON request: one message, or as many as the client likes.
//!
//! # Invariants
//!
//! - **J1** Bytes that wait to become a message are bounded, and count for the place of their stream as
//!   they arrive (L5).
//! - **J2** A message that has begun arrives within [`BODY_TIMEOUT`]. The message of a call that takes one
//!   has begun with the call.

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use prost_reflect::MessageDescriptor;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::json::Sequence;
use crate::front::Place;
use crate::limits::BODY_TIMEOUT;
use crate::status::unavailable;

/// A body that is read within bounds.
pub(super) struct JsonBody<B> {
    frames: B,
    bytes_max: usize,
    pending: Sequence,
    place: Place,
    deadline: Option<Instant>,
}

impl<B: Body<Data = Bytes> + Unpin> JsonBody<B> {
    /// Reads `frames`; up to `bytes_max` of them may wait to become a message, and count for `place`.
    pub(super) fn new(frames: B, bytes_max: usize, place: Place) -> Self {
        Self { frames, bytes_max, pending: Sequence::default(), place, deadline: None }
    }

    /// The one message of a body; it counts until [`Self::sent`].
    ///
    /// # Errors
    ///
    /// A [`Status`] if it is too long, too slow, broken or no message, or there is no memory for it.
    pub(super) async fn only(&mut self, kind: MessageDescriptor) -> Result<Bytes, Status> {
        self.begin();
        while self.read_more().await? {}
        std::mem::take(&mut self.pending).only(kind)
    }

    /// The next message of a sequence; `None` after the last.
    ///
    /// # Errors
    ///
    /// As [`Self::only`].
    pub(super) async fn next(&mut self, kind: &MessageDescriptor) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.pending.next(kind)? {
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

    /// Frees the messages that the service has got.
    pub(super) fn sent(&mut self) {
        self.pending = Sequence::default();
        self.place.give_back();
    }

    fn begin(&mut self) {
        self.deadline = Some(Instant::now() + BODY_TIMEOUT);
    }

    /// `false` at the end.
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
        self.place.hold(self.pending.capacity()).map_err(unavailable)?;
        Ok(true)
    }
}

fn too_long(bytes_max: usize) -> Status {
    Status::resource_exhausted(format!("the body is longer than {bytes_max} bytes"))
}

fn too_slow() -> Status {
    let s = BODY_TIMEOUT.as_secs();
    Status::deadline_exceeded(format!(
        "the request's JSON did not arrive within {s} s of its start"
    ))
}
