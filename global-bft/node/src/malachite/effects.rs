//! The inputs and effects of the engine, and the errors after which the process must stop.

use std::time::Duration;

use satrap_certify::{Label, SignatureBytes, SignedChange};
use satrap_merkle::codec::DecodeError;

use super::{frame::Frame, timing::TimerId};
use crate::{
    guard::{Place, Refused},
    mempool::{Answer, Ticket},
    store::DiskError,
};

/// An input of the engine.
#[derive(Debug)]
pub enum EngineInput {
    /// A frame from the validator that mTLS names.
    Frame(Label, Frame),
    /// A timer fired.
    Timer(TimerId),
    /// A caller submits a change and waits for the answer.
    Submit(SignedChange, Ticket),
    /// The signer answered [`EngineEffect::Sign`] for this place. It may come late, or twice.
    Signed(Place, SignatureBytes),
    /// [`crate::limits::TICK`] has passed.
    Tick,
}

/// A message that this validator's signer is to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignRequest {
    /// Names the message: one is admitted for each place, ever.
    pub place: Place,
    /// The bytes to sign.
    pub bytes: Vec<u8>,
}

/// An effect that the caller performs, in order.
#[derive(Debug)]
pub enum EngineEffect {
    /// Send to every connected validator.
    Broadcast(Frame),
    /// Send to one.
    Send(Label, Frame),
    /// Cut the connections of a peer that sends junk.
    Disconnect(Label),
    /// Start or restart a timer.
    Schedule(TimerId, Duration),
    /// Stop a timer.
    Cancel(TimerId),
    /// Stop all timers.
    CancelAll,
    /// Ask the signer; [`EngineInput::Signed`] answers. Without an answer this validator casts no
    /// vote, and goes on otherwise.
    Sign(SignRequest),
    /// A height was decided; the engine's accessors show the new state. Signatures that are pending
    /// for it or for earlier heights are of no use any more.
    Decided(u64),
    /// Answer a caller.
    Answer(Answer),
}

/// Why the process must stop. A restart replays the log and is safe.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The database failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The last-sign file failed.
    #[error("cannot write the last-sign file: {0}")]
    Guard(#[from] std::io::Error),
    /// The log does not parse.
    #[error("the log of the height in progress is damaged: {0}")]
    Log(DecodeError),
    /// The log holds a message of this validator that the guard did not see.
    #[error(
        "the log contradicts the last-sign file: {0}; one of them comes from an old disk image, and \
         voting on could equivocate. Give this validator a new key"
    )]
    Rollback(Refused),
    /// The quorum decided what this ledger refuses.
    #[error(
        "the quorum decided a block at height {height} that this validator finds invalid ({why}); \
         it runs other code or has a damaged state"
    )]
    Diverged {
        /// The height.
        height: u64,
        /// The rule.
        why: String,
    },
    /// The core asks to stop.
    #[error("the consensus core cannot go on: {0}")]
    Core(String),
}
