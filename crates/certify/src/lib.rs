//! Certificates, and the one way in which every tier verifies them.
//!
//! A region is trusted to deliver, never to author; a validator is trusted only as one of many.
//! So every tier, from validator to edge, holds a [`Replica`] that starts at the [`Genesis`] and
//! moves only by [`Replica::verify`]: light-client steps over [`Checkpoint`]s signed by more than
//! two thirds of the validators, history consistency, heads proven in the directory, and content
//! whose Merkle root is recomputed here. Bytes from a peer, from the Raft log and from the own
//! disk go the same way.
//!
//! # Reading order
//!
//! [`genesis`] → [`change`] → [`checkpoint`] → [`vote`] → [`commit`] → [`light`] → [`update`] →
//! [`replica`] → [`report`].
//!
//! # Invariants
//!
//! - A [`Certified`] value comes out of verification and from nowhere else.
//! - Verification never changes the replica; only [`Replica::advance`] does, and it takes a
//!   `Certified` value. A refused update leaves no trace.
//! - Every refusal is a [`Rejection`] that names its rule; `docs/spec/` lists them.
//!
//! # Deliberately absent
//!
//! No IO, no clock (the caller passes `now`), no randomness, and no serde on domain types: the
//! genesis file is the one JSON, parsed at the rim in [`genesis`].

pub mod certified;
pub mod change;
pub mod checkpoint;
pub mod commit;
pub mod directory;
pub mod genesis;
pub mod governance;
pub mod keys;
pub mod light;
pub mod light_block;
pub mod limits;
pub mod names;
pub mod rejection;
pub mod replica;
pub mod report;
pub mod timestamp;
pub mod update;
pub mod validators;
pub mod vote;

pub use certified::Certified;
pub use change::{Action, Approval, Block, Change, Publish, Retire, SignedChange};
pub use checkpoint::{BlockId, Checkpoint, Commitments};
pub use commit::Commit;
pub use directory::Head;
pub use genesis::{Genesis, Policy, Realm};
pub use governance::{Class, ClassKind, Governance, GovernanceAct, Operator, Quota, ValidatorInfo};
pub use keys::{Address, PublicKey, SignatureBytes};
pub use light::{Clock, Linkage, StepRules, Trusted};
pub use names::{BundleName, ChainId, Label};
pub use rejection::Rejection;
pub use replica::{Advance, Answer, Memory, Replica};
pub use report::{Report, SignedReport};
pub use timestamp::Timestamp;
pub use update::{Delta, Interest, Position, Snapshot, Step, Update};
pub use validators::{Validator, ValidatorSet};

pub use satrap_merkle::{Digest, Key};
