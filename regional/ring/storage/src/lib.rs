//! The durable storage of a ring member: the Raft log, the checkpointed state, and snapshots of it.
//!
//! Raft relies on a member to remember its votes, the entries that it acknowledged and the entries
//! that were committed. This crate is that memory, and it does not trust the disk: a disk loses,
//! tears and corrupts writes, fails, and fills up. Everything that is read is first compared with a
//! digest.
//!
//! ```text
//!   proposals ──▶ [`Wal::commit`] ──▶ acknowledged                 thread "log": one sync a group
//!                      │ applied in memory
//!                      ▼
//!                 [`State::checkpoint`] ──▶ [`Wal`] may be purged  thread "checkpoint"
//!                      │
//!                      ▼
//!                 [`snapshot::Reader`] ──frames──▶ [`snapshot::Receiver`] ──▶ [`State::replace`]
//! ```
//!
//! All calls are synchronous and take `&self` or `&mut self`: a member runs [`Wal`] and [`State`]
//! on a thread each, and a simulation calls the same functions inline on a [`sim::SimDisk`].
//!
//! # Deliberately absent
//!
//! No clock, no randomness, no threads, no network: the caller passes instance ids and does the
//! waiting. Entries, marks, votes, pages and versions are opaque bytes to this crate.

pub mod files;
pub mod limits;
pub mod sim;
pub mod snapshot;
pub mod state;
pub mod wal;

mod error;
mod member;
mod space;

use bytes::Bytes;

pub use crate::{
    error::StorageError,
    member::{Config, Member},
    space::{Reserve, Space, SpaceConfig},
    state::{Checkpoint, History, Row, State, StateConfig, Version},
    wal::{Record, Recovered, Wal, WalConfig},
};

/// The digest of the genesis and the region's name.
pub type RingDigest = [u8; 32];

/// Tells a member apart from one of the same name on another disk.
pub type InstanceId = [u8; 16];

/// The ring and the member that data belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The ring.
    pub ring: RingDigest,
    /// The member's name.
    pub member: String,
}

impl Owner {
    fn check(&self) -> Result<(), StorageError> {
        let (bytes, bytes_max) = (self.member.len() as u64, limits::NAME_BYTES_MAX as u64);
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(StorageError::TooLarge { what: "member name", bytes, bytes_max })
    }
}

/// A position in the log: its index, and the log id as its owner encoded it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The index.
    pub index: u64,
    /// The log id, with anything that its owner encoded beside it.
    pub id: Bytes,
}
