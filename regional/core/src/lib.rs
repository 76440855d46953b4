//! The state machine of one regional ring: what every member computes from the same Raft log.
//!
//! Two states stand next to each other. [`Region`] is the verified copy of what the validators
//! certified; the ring cannot author it. [`Keyspace`] is the coordination state that the region
//! itself owns: keys, leases, users, roles and what limits them. An entry of the log is for one or
//! the other.
//!
//! # Invariants
//!
//! - **G1** Two members that applied the same commands hold equal states and gave equal replies.
//!   Time is part of the command, ordered maps are the only maps, and nothing else gets in.
//! - **G2** Nothing enters the replica but what `Replica::verify` certified.
//!
//! # Deliberately absent
//!
//! IO, clocks, randomness, locks, protobuf. Whoever proposes has parsed, bounded and hashed what a
//! client sent; whoever applies writes what [`Keyspace::take_changes`] gives.

pub mod alarm;
pub mod auth;
pub mod digest;
pub mod fencing;
pub mod keyspace;
pub mod kv;
pub mod lease;
pub mod limits;
pub mod members;
pub mod quota;
pub mod recovery;
pub mod refusal;
mod region;
mod table;
pub mod watch;

use bytes::Bytes;
pub use keyspace::{Batch, Caller, Keyspace, Proposal, Reply, Request, Response, RingTime};
use kv::{Decode as _, Ownership};
pub use refusal::{Code, Refusal};
pub use region::{Outcome, Region};
use satrap_certify::{Timestamp, Update};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take over what the validators certified; goes to [`Region`].
    Adopt {
        /// From the replica's present position.
        update: Box<Update>,
        /// The leader's clock when it proposed this; the only time there is (G1).
        now: Timestamp,
    },
    /// What clients asked for, many at once; goes to [`Keyspace`].
    Batch(Batch),
}

impl Command {
    /// The bytes of a [`Command::Batch`] of `count` proposals, each encoded already: whoever leads
    /// stamps the time, whoever else gathered the proposals.
    #[must_use]
    pub fn encode_batch(time: RingTime, count: usize, proposals: &[u8]) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(BATCH);
        w.u64(time.0);
        w.count(count);
        w.encoded(proposals);
        w.finish()
    }

    /// Reads a command that fills `bytes`; keys and values of a batch share their memory.
    ///
    /// # Errors
    ///
    /// As [`Canonical::from_canonical`].
    pub fn from_shared(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let command = match r.u8()? {
            BATCH => Self::Batch(Batch::decode_with(&mut r, Ownership::Shared(bytes))?),
            _ => return Self::from_canonical(bytes),
        };
        match r.remaining() {
            0 => Ok(command),
            n => Err(DecodeError::Trailing(n)),
        }
    }
}

const ADOPT: u8 = 0;
const BATCH: u8 = 1;

impl Canonical for Command {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Adopt { update, now } => {
                w.u8(ADOPT);
                now.encode(w);
                update.encode(w);
            }
            Self::Batch(batch) => {
                w.u8(BATCH);
                batch.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            ADOPT => {
                let now = Timestamp::decode(r)?;
                Ok(Self::Adopt { update: Box::new(Update::decode(r)?), now })
            }
            BATCH => Ok(Self::Batch(Batch::decode(r)?)),
            _ => Err(DecodeError::Invalid("regional command")),
        }
    }
}
