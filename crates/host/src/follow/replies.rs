//! Updates in pieces: cut for the wire, and put together by every tier that follows.

use bytes::{Bytes, BytesMut};
use satrap_proto::v1::{FollowReply, sync_client::SyncClient};
use tonic::{Status, Streaming, transport::Channel};

use super::limits::{ENVELOPE_BYTES, PIECE_BYTES};

/// Why there is no next update.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The stream ended with an error.
    #[error("{}", .0.message())]
    Status(#[from] Status),
    /// The server sends more than any honest update takes.
    #[error("an update of more than {0} bytes; no honest server sends one")]
    TooLong(usize),
}

/// Updates of one server.
#[derive(Debug)]
pub struct Replies {
    pieces: Streaming<FollowReply>,
    bytes_max: usize,
}

/// `update` as the messages that carry it.
pub fn pieces(update: Bytes) -> impl Iterator<Item = FollowReply> {
    let starts = (0..update.len().max(1)).step_by(PIECE_BYTES);
    starts.map(move |start| piece(&update, start))
}

/// The piece of `update` that begins at `start`.
pub(super) fn piece(update: &Bytes, start: usize) -> FollowReply {
    let end = update.len().min(start + PIECE_BYTES);
    FollowReply { update: update.slice(start..end), more: end < update.len() }
}

/// A client whose messages are no longer than pieces are.
#[must_use]
pub fn client(channel: Channel) -> SyncClient<Channel> {
    SyncClient::new(channel).max_decoding_message_size(PIECE_BYTES + ENVELOPE_BYTES)
}

impl Replies {
    /// Reads updates of at most `bytes_max` from `pieces`.
    #[must_use]
    pub fn new(pieces: Streaming<FollowReply>, bytes_max: usize) -> Self {
        Self { pieces, bytes_max }
    }

    /// The next update, encoded; `None` if the server ended the stream. A part of an
    /// update is lost if this is not awaited to its end.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReplyError> {
        let mut whole = BytesMut::new();
        loop {
            let Some(FollowReply { update, more }) = self.pieces.message().await? else {
                return Ok(None);
            };
            if whole.len() + update.len() > self.bytes_max {
                return Err(ReplyError::TooLong(self.bytes_max));
            }
            match (whole.is_empty(), more) {
                (true, false) => return Ok(Some(update)),
                (_, true) => whole.extend_from_slice(&update),
                (false, false) => {
                    whole.extend_from_slice(&update);
                    return Ok(Some(whole.freeze()));
                }
            }
        }
    }
}
