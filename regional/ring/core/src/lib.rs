//! The state machine of one ring: the state that every member computes from the same Raft log.
//!
//! [`AppliedState`] is the whole state, and [`AppliedState::apply`] the only function that changes
//! it. It consists of the [`Keyspace`], the coordination state of clients (keys, leases, users,
//! roles and their limits), and of [`Extensions`], states that the ring replicates for its owner
//! without knowing their meaning. The first byte of a command names one of them.
//!
//! # Invariants
//!
//! - **STATE-1** Two members that applied the same entries have equal states and gave equal
//!   replies. Time is part of the command, all maps are ordered, and there is no other input.
//!
//! # Deliberately absent
//!
//! IO, clocks, randomness, locks, protobuf. The API has parsed, bounded and hashed a client's
//! request before it is proposed; the member that applies an entry stores the result of
//! [`AppliedState::take_changes`].

pub mod alarm;
mod applied;
pub mod auth;
mod caller;
pub mod digest;
pub mod extension;
pub mod fencing;
pub mod fencing_token;
pub mod keyspace;
pub mod kv;
pub mod lease;
pub mod limits;
pub mod members;
pub mod quota;
pub mod recovery;
pub mod refusal;
mod table;
mod time;
pub mod watch;

pub use applied::{AppliedState, Entry, Outcome, Prepared, StateChanges, StateSetup, Verified};
use bytes::Bytes;
pub use caller::Caller;
pub use extension::{Extension, Extensions, Registration, Rejected};
pub use keyspace::{Batch, Keyspace, Proposal, Reply, Request, Response};
use kv::{Decode as _, Ownership};
pub use recovery::Signatories;
pub use refusal::Refusal;
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};
pub use time::RingTime;

/// The command of an entry in the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Requests of many clients, for the [`Keyspace`].
    Batch(Batch),
    /// A command for the [`Extension`] with this tag.
    Extension {
        /// The first byte of the command.
        tag: u8,
        /// The other bytes.
        body: Bytes,
    },
}

impl Command {
    /// Encodes a [`Command::Batch`] of `count` encoded proposals: the leader stamps the time, and
    /// any member may have gathered the proposals.
    #[must_use]
    pub fn encode_batch(time: RingTime, count: usize, proposals: &[u8]) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(BATCH);
        w.u64(time.0);
        w.count(count);
        w.encoded(proposals);
        w.finish()
    }

    /// Encodes a [`Command::Extension`].
    #[must_use]
    pub fn encode_for(tag: u8, body: &impl Canonical) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(tag);
        body.encode(&mut w);
        w.finish()
    }

    /// Encodes the command.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Batch(batch) => Self::encode_for(BATCH, batch),
            Self::Extension { tag, body } => [&[*tag], &body[..]].concat(),
        }
    }

    /// Decodes a command that fills `bytes`; its keys and values share their memory.
    ///
    /// # Errors
    ///
    /// As [`Canonical::from_canonical`]. The body of an extension is not parsed.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let tag = r.u8()?;
        if tag != BATCH {
            return Ok(Self::Extension { tag, body: bytes.slice(1..) });
        }
        let batch = Batch::decode_with(&mut r, Ownership::Shared(bytes))?;
        match r.remaining() {
            0 => Ok(Self::Batch(batch)),
            n => Err(DecodeError::Trailing(n)),
        }
    }
}

/// The tag of a batch for the keyspace.
const BATCH: u8 = 1;
