//! The wire form of an update: its canonical bytes in messages of at most [`PIECE_BYTES`].
//!
//! HTTP/2 buffers one or two messages for a follower that does not read. Because an update is sent
//! in pieces, that buffer does not grow with the update.

use bytes::Bytes;
use satrap_proto::v1::FollowReply;

/// The bytes of an update that one message carries.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Bytes of protobuf around a piece.
pub const ENVELOPE_BYTES: usize = 64;

/// `update` as the messages that carry it, in order.
pub fn pieces(update: Bytes) -> impl Iterator<Item = FollowReply> {
    let starts = (0..update.len().max(1)).step_by(PIECE_BYTES);
    starts.map(move |start| piece(&update, start))
}

/// The message that carries the piece of `update` which begins at `start`.
pub(crate) fn piece(update: &Bytes, start: usize) -> FollowReply {
    let end = update.len().min(start + PIECE_BYTES);
    FollowReply { update: update.slice(start..end), more: end < update.len() }
}
