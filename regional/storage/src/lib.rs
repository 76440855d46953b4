//! What a ring member keeps on disk: the log, the checkpointed state, and snapshots of it.
//!
//! A member is believed by its peers because it remembers what it voted, what it acknowledged and
//! what was committed. This crate is that memory, and treats the disk as one more stranger: it
//! loses, tears, fails, fills up and rots. Whatever is read is compared with a digest first.
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
//! Everything is synchronous and takes `&self` or `&mut self`: a member gives [`Wal`] and [`State`] a
//! thread each, a simulation calls the same functions inline on a [`sim::SimDisk`].
//!
//! # Deliberately absent
//!
//! No clock, no randomness, no threads, no network: instance ids are arguments, and waiting is the
//! caller's business. Entries, marks, votes, pages and versions are bytes; what they mean is the
//! caller's too.

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

/// Digest of genesis and region.
pub type RingDigest = [u8; 32];

/// Distinguishes a member from its namesake on another disk.
pub type InstanceId = [u8; 16];

/// Whose data it is.
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
    /// The log id, and whatever else belongs to it.
    pub id: Bytes,
}
