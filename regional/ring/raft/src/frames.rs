//! The encoding of openraft's messages between members, and the split of long messages into frames.
//!
//! Every message starts with a header that names the ring and the instances of sender and receiver,
//! because mTLS proves only a name: a member that was pointed at the wrong ring, or that lost its
//! disk and restarted with an empty one, has the same certificate as before.
//!
//! ```text
//!   version u8 | kind u8 | ring [32] | from instance [16] since u64 | to instance [16] | postcard body
//! ```
//!
//! The receiver's instance is all zeros as long as the membership does not name it.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use satrap_proto::v1::RingFrame;
use satrap_ring_storage::InstanceId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tonic::Status;

use super::{
    setup::RingId,
    types::{SnapshotMeta, Vote, decode, encode},
    waiters::Origin,
};
use crate::limits::RING_CHUNK_BYTES;

const VERSION: u8 = 3;
const HEADER_BYTES: usize = 1 + 1 + 32 + 16 + 8 + 16;
/// The remedy for a member that lost its disk: its old vote and log must not be taken for its new
/// ones.
pub const LOST_DISK_REMEDY: &str = "run `satrap member replace` for it at another member, then start \
                                    it with an empty data directory";

/// The instance of any disk, until the membership names the member's disk.
pub const ANY_INSTANCE: InstanceId = [0; 16];

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Append entries, heartbeats included, after the sender's `QuorumAge`.
    Append = 1,
    /// A request for a vote.
    Vote = 2,
    /// A request for a pre-vote.
    PreVote = 3,
    /// A whole snapshot.
    Snapshot = 4,
    /// A transfer of leadership to the receiver.
    Transfer = 5,
    /// Asks for the receiver's identity and whether the ring has been founded. Sent before the
    /// first election.
    Hello = 6,
    /// An entry of proposals that a follower forwards to the leader.
    Propose = 7,
    /// A request to the leader for a ReadIndex.
    ReadIndex = 8,
    /// A membership change, or the sender's request to join.
    ChangeMembers = 9,
    /// A request for the digests that the receiver recorded of its keyspace.
    Digests = 10,
}

/// The sender's identity, on every message and every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The sender's ring.
    pub ring: RingId,
    /// The instance id of its disk.
    pub instance: InstanceId,
    /// The index since when it belongs to the ring, as far as it knows; see `MemberNode::since`.
    pub since: u64,
}

/// The reason why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The message is of another protocol or release.
    #[error("not a ring message of version {VERSION}; run the same release on all members")]
    Header,
    /// The message is for another ring.
    #[error(
        "the message belongs to another ring (other genesis or region); check the `members` of \
         both sides"
    )]
    Ring,
    /// The message is for this member's disk before the current one.
    #[error(
        "the message is for this member as it was before it lost its disk; {}",
        LOST_DISK_REMEDY
    )]
    Instance,
    /// The body cannot be decoded.
    #[error("{0}")]
    Body(#[from] super::types::CodecError),
}

/// The reply to [`Kind::Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Whether an entry has reached this member, so that the ring exists.
    pub founded: bool,
    /// A digest of the first members: see [`founders_digest`](super::founding::founders_digest).
    pub founders: [u8; 32],
}

/// The body of [`Kind::Propose`]: one entry without the leader's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// The waiters of the entry.
    pub origin: Origin,
    /// The term; only a leader of this term may append the entry.
    pub term: u64,
    /// The proposals of the clients.
    pub proposals: Proposals,
}

/// The proposals of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposals {
    /// Their number.
    pub count: usize,
    /// Their canonical encodings, one after the other.
    pub encoded: Bytes,
}

/// The outcome of a proposed entry; also the reply to [`Kind::Propose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// The leader has applied it.
    Applied,
    /// No log holds the entry, and none ever will.
    NotAppended,
    /// Some log may hold the entry.
    Unknown,
}

/// The leader's reply to [`Kind::ReadIndex`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadIndexReply {
    /// The index to apply before reading.
    Index(Option<u64>),
    /// The receiver does not lead, or cannot prove that it does.
    NotLeading,
}

/// The body of [`Kind::ReadIndex`]: the required proof of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadProof {
    /// A quorum confirms the leader after the request.
    Quorum,
    /// The leader's lease, under which no other member can lead.
    Lease,
}

/// The body of [`Kind::Snapshot`], the first message of a stream; the frames of the snapshot follow
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The vote of the leader that sends it.
    pub vote: Vote,
    /// The metadata of the snapshot.
    pub meta: SnapshotMeta,
}

/// The receiver's reply at the end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotReply {
    /// Continue with this frame.
    Next(u64),
    /// The snapshot is installed, or the sender no longer leads: the receiver's vote.
    Done(Vote),
}

/// Encodes one message for the instance `to`.
pub fn pack<T: Serialize>(sender: &Sender, to: &InstanceId, kind: Kind, body: &T) -> Vec<u8> {
    let body = encode(body);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&[VERSION, kind as u8]);
    bytes.extend_from_slice(&sender.ring);
    bytes.extend_from_slice(&sender.instance);
    bytes.extend_from_slice(&sender.since.to_be_bytes());
    bytes.extend_from_slice(to);
    bytes.extend_from_slice(&body);
    bytes
}

/// Decodes the header: returns the sender and the body.
///
/// # Errors
///
/// [`FrameError`] if the message is of another kind, release or ring, or for another instance.
pub fn open<'a>(
    own: &Sender,
    kind: Kind,
    bytes: &'a [u8],
) -> Result<(Sender, &'a [u8]), FrameError> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Header)?;
    let ([version, of], rest) = header.split_first_chunk().expect("a header has two bytes");
    if (*version, *of) != (VERSION, kind as u8) {
        return Err(FrameError::Header);
    }
    let (ring, rest) = rest.split_first_chunk::<32>().expect("and 32 more");
    let (instance, rest) = rest.split_first_chunk::<16>().expect("and 16 more");
    let (since, to) = rest.split_first_chunk::<8>().expect("and 8 more");
    if *ring != own.ring {
        return Err(FrameError::Ring);
    }
    if *to != own.instance && *to != ANY_INSTANCE {
        return Err(FrameError::Instance);
    }
    let since = u64::from_be_bytes(*since);
    Ok((Sender { ring: *ring, instance: *instance, since }, body))
}

/// Whether this claims to be a [`Kind::Hello`], which shares an RPC with pre-votes.
#[must_use]
pub fn is_hello(bytes: &[u8]) -> bool {
    bytes.get(1) == Some(&(Kind::Hello as u8))
}

/// Decodes the body of a message.
///
/// # Errors
///
/// [`FrameError::Body`].
pub fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    Ok(decode("ring message", bytes)?)
}

/// Splits a message into frames that share its memory.
pub fn split(message: Vec<u8>) -> impl Iterator<Item = RingFrame> + Send + 'static {
    let mut rest = Bytes::from(message);
    std::iter::from_fn(move || {
        let payload = rest.split_to(rest.len().min(RING_CHUNK_BYTES));
        (!payload.is_empty()).then(|| RingFrame { payload, more: !rest.is_empty() })
    })
}

/// Joins the frames of the next message; checks `bytes_max` before it keeps a frame. `None` at the end of
/// the stream.
///
/// # Errors
///
/// The stream's own error, [`Status::resource_exhausted`], or [`Status::invalid_argument`] if the stream
/// ends within a message.
pub async fn join(
    frames: &mut (impl Stream<Item = Result<RingFrame, Status>> + Unpin),
    bytes_max: usize,
) -> Result<Option<Bytes>, Status> {
    let mut message = BytesMut::new();
    while let Some(frame) = frames.next().await {
        let RingFrame { payload, more } = frame?;
        if message.len() + payload.len() > bytes_max {
            let text = format!("ring message exceeds {bytes_max} bytes");
            return Err(Status::resource_exhausted(text));
        }
        if message.is_empty() && !more {
            return Ok(Some(payload));
        }
        message.extend_from_slice(&payload);
        if !more {
            return Ok(Some(message.freeze()));
        }
    }
    match message.is_empty() {
        true => Ok(None),
        false => Err(Status::invalid_argument("the stream ended within a ring message")),
    }
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, stream};

    use super::*;

    const SENDER: Sender = Sender { ring: [7; 32], instance: [9; 16], since: 5 };
    const WELCOME: Welcome = Welcome { founded: true, founders: [3; 32] };

    #[test]
    fn a_message_is_of_one_kind_and_one_ring() {
        let message = pack(&SENDER, &ANY_INSTANCE, Kind::Hello, &WELCOME);
        let (sender, rest) = open(&SENDER, Kind::Hello, &message).unwrap();
        assert_eq!(sender, SENDER);
        assert!(body::<Welcome>(rest).unwrap().founded);
        assert!(matches!(open(&SENDER, Kind::Vote, &message), Err(FrameError::Header)));
        let other = Sender { ring: [8; 32], ..SENDER };
        assert!(matches!(open(&other, Kind::Hello, &message), Err(FrameError::Ring)));
        let after_loss = Sender { instance: [1; 16], ..SENDER };
        let addressed = pack(&SENDER, &SENDER.instance, Kind::Hello, &WELCOME);
        assert!(open(&SENDER, Kind::Hello, &addressed).is_ok());
        let refused = open(&after_loss, Kind::Hello, &addressed);
        assert!(matches!(refused, Err(FrameError::Instance)));
        for end in 0..HEADER_BYTES {
            assert!(open(&SENDER, Kind::Hello, &message[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn long_messages_travel_in_pieces_up_to_the_limit() {
        let message = vec![5; 2 * RING_CHUNK_BYTES + 1];
        let frames: Vec<_> = split(message.clone()).chain(split(vec![6])).map(Ok).collect();
        assert_eq!(frames.len(), 4);
        let bytes = message.len();
        let mut all = stream::iter(frames.clone());
        for expected in [Some(message), Some(vec![6]), None] {
            assert_eq!(block_on(join(&mut all, bytes)).unwrap().map(Vec::from), expected);
        }
        let refused = block_on(join(&mut stream::iter(frames.clone()), bytes - 1)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let cut_off = &mut stream::iter(frames.into_iter().take(2));
        let refused = block_on(join(cut_off, bytes)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
