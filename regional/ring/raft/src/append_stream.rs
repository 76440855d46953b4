//! The stream on which a leader sends appends to one follower, and has one answer to each.
//!
//! A leader sends appends and heartbeats without end. As a call of its own, each would cost the headers,
//! the trailers and the bookkeeping of an HTTP/2 stream, at both ends: more than the rest of a heartbeat.

use std::time::Duration;

use futures::FutureExt as _;
use satrap_proto::v1::{RingFrame, ring_client::RingClient};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{frames, peers::Wire};

/// The age at which a stream is replaced. A connection that was asked to end is cut after a longer time
/// (MTLS-4), so no append is lost with it.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Frames of a long append that wait for HTTP/2 to take them.
const FRAMES_AHEAD: usize = 2;

/// An open stream without a request under way.
pub struct AppendStream {
    requests: mpsc::Sender<RingFrame>,
    replies: Streaming<RingFrame>,
    opened: Instant,
}

impl AppendStream {
    /// Opens a stream.
    ///
    /// # Errors
    ///
    /// A [`Status`] if the follower cannot be reached or refuses.
    pub async fn open(mut ring: RingClient<Wire>) -> Result<Self, Status> {
        let (requests, frames) = mpsc::channel(FRAMES_AHEAD);
        let replies = ring.append(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { requests, replies, opened: Instant::now() })
    }

    /// Whether the stream may be used for another request: it is neither old nor closed.
    pub fn is_usable(&mut self) -> bool {
        self.opened.elapsed() < AGE_MAX && self.replies.message().now_or_never().is_none()
    }

    /// Sends one request and returns its answer. If it fails, or is cancelled, the stream must not be used
    /// again: the answer may still come.
    ///
    /// # Errors
    ///
    /// The [`Status`] with which the follower ended the stream.
    pub async fn ask(&mut self, request: Vec<u8>) -> Result<RingFrame, Status> {
        for frame in frames::split(request) {
            if self.requests.send(frame).await.is_err() {
                // The follower has ended the stream; its status says why.
                break;
            }
        }
        let ended = || Status::unavailable("the follower ended the stream without an answer");
        self.replies.message().await?.ok_or_else(ended)
    }
}
