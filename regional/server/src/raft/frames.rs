//! How openraft's messages travel between members, and how long ones are cut into frames.
//!
//! Every message starts with a header that names the ring and the instances of sender and receiver,
//! because mTLS proves only a name: a member that was pointed at the wrong ring, or that lost its
//! disk and came back with an empty one, has the same certificate as before.
//!
//! ```text
//!   version u8 | kind u8 | ring [32] | from instance [16] since u64 | to instance [16] | postcard body
//! ```
//!
//! The receiver's instance is all zeros as long as no membership names it.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use satrap_certify::Digest;
use satrap_proto::v1::RingFrame;
use satrap_regional_storage::InstanceId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tonic::Status;

use super::{
    types::{SnapshotMeta, Vote, decode, encode},
    waiters::Origin,
};
use crate::limits::RING_CHUNK_BYTES;

const VERSION: u8 = 2;
const HEADER_BYTES: usize = 1 + 1 + 32 + 16 + 8 + 16;
/// Addresses whoever has the name, before a membership says who is meant.
pub const ANY_INSTANCE: InstanceId = [0; 16];

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Append entries, heartbeats included, after the sender's `QuorumAge`.
    Append = 1,
    /// A real election.
    Vote = 2,
    /// Would you vote for me?
    PreVote = 3,
    /// A whole snapshot.
    Snapshot = 4,
    /// Take over leadership.
    Transfer = 5,
    /// Who are you, and has this ring been founded? Sent before the first election.
    Hello = 6,
    /// Append what clients asked of the sender.
    Propose = 7,
    /// How far must the sender have applied to read what is committed now?
    ReadIndex = 8,
    /// Change the ring, or let the sender in.
    Order = 9,
    /// Which digests did the receiver take of its keyspace?
    Digests = 10,
}

/// Who sends: on every message and every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The ring it believes to be in.
    pub ring: Digest,
    /// Of its disk.
    pub instance: InstanceId,
    /// Since when it belongs to the ring, as far as it knows; see `MemberNode::since`.
    pub since: u64,
}

/// A message that is not one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not of this protocol or release.
    #[error("not a ring message of version {VERSION}; run the same release on all members")]
    Header,
    /// Meant for another ring.
    #[error(
        "the message belongs to another ring (other genesis or region); check the `members` of \
         both sides"
    )]
    Ring,
    /// Meant for this member before it lost its disk.
    #[error(
        "the message is for this member as it was before it lost its disk; {}",
        super::peers::LOST_DISK_REMEDY
    )]
    Instance,
    /// The body does not decode.
    #[error("{0}")]
    Body(#[from] super::types::CodecError),
}

/// Answer to [`Kind::Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// An entry has reached this member: the ring exists.
    pub founded: bool,
    /// Who founds the ring, if none is there: see [`founders_digest`](super::founding::founders_digest).
    pub founders: Digest,
}

/// The body of [`Kind::Propose`]: one entry, but for the leader's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// Who answers its clients.
    pub origin: Origin,
    /// Only a leader of this term may append it.
    pub term: u64,
    /// What they asked for.
    pub proposals: Proposals,
}

/// What fills one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposals {
    /// How many.
    pub count: usize,
    /// Canonically encoded, one after the other.
    pub encoded: Bytes,
}

/// What is known about an entry that was handed in; also the answer to [`Kind::Propose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// The leader has applied it.
    Applied,
    /// No log holds it, and none will.
    NotAppended,
    /// It may be in a log.
    Unknown,
}

/// What a leader answers to [`Kind::ReadIndex`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadIndexReply {
    /// Apply up to here, then read.
    Index(Option<u64>),
    /// The member that was asked does not lead, or cannot show that it does.
    NotLeading,
}

/// The body of [`Kind::ReadIndex`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadProof {
    /// A quorum confirms that the leader leads, after the question was asked.
    Quorum,
    /// A quorum confirmed it so lately that nobody else can lead.
    Lease,
}

/// The body of [`Kind::Snapshot`], the first message of a stream; frames of the snapshot follow as
/// they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// Of the leader that sends it.
    pub vote: Vote,
    /// What it covers.
    pub meta: SnapshotMeta,
}

/// What the receiver answers at the end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotReply {
    /// Go on with this frame.
    Next(u64),
    /// It is installed, or its leader is not one any more: what the receiver votes.
    Done(Vote),
}

/// Writes one message for the instance `to`.
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

/// Reads the header: who sends, and the body.
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

/// Whether this claims to be a greeting, which shares an RPC with pre-votes.
#[must_use]
pub fn is_hello(bytes: &[u8]) -> bool {
    bytes.get(1) == Some(&(Kind::Hello as u8))
}

/// Reads the body of a message.
///
/// # Errors
///
/// [`FrameError::Body`].
pub fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    Ok(decode("ring message", bytes)?)
}

/// Cuts a message into frames that share its memory.
pub fn split(message: Vec<u8>) -> impl Iterator<Item = RingFrame> + Send + 'static {
    let mut rest = Bytes::from(message);
    std::iter::from_fn(move || {
        let length = rest.len().min(RING_CHUNK_BYTES);
        (length > 0).then(|| RingFrame { payload: rest.split_to(length) })
    })
}

/// Puts a message together again; `bytes_max` is checked before each frame is kept.
///
/// # Errors
///
/// The stream's own error, or [`Status::resource_exhausted`].
pub async fn join(
    mut frames: impl Stream<Item = Result<RingFrame, Status>> + Unpin,
    bytes_max: usize,
) -> Result<Bytes, Status> {
    let mut message = BytesMut::new();
    while let Some(frame) = frames.next().await {
        let payload = frame?.payload;
        if message.len() + payload.len() > bytes_max {
            let text = format!("ring message exceeds {bytes_max} bytes");
            return Err(Status::resource_exhausted(text));
        }
        message.extend_from_slice(&payload);
    }
    Ok(message.freeze())
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
        let frames: Vec<_> = split(message.clone()).map(Ok).collect();
        assert_eq!(frames.len(), 3);
        let bytes = message.len();
        assert_eq!(block_on(join(stream::iter(frames.clone()), bytes)).unwrap(), message);
        let refused = block_on(join(stream::iter(frames), bytes - 1)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }
}
