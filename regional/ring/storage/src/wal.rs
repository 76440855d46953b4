//! The Raft log of a member: its votes and entries, in order, durable before the member
//! acknowledges them.
//!
//! Raft relies on a member to remember. The adversary is the disk: it loses unsynced writes, tears
//! the write in progress, reports an error once and forgets it, fills up, and flips bits.
//!
//! ```text
//!   commit(records) ──▶ one group ──▶ one write ──▶ one sync ──▶ the caller may reply
//!        │ does not fit
//!        ▼
//!   next segment: recycled or new, begins with vote and marks, appears by rename
//!        ▲
//!   purge ──▶ the oldest segments, when all their entries are purged, wait to be used again
//! ```
//!
//! A new segment has room on the disk but no content yet. The log writes zeros ahead of its groups and
//! syncs them, [`ZERO_BYTES`] at a time, so that a group only replaces bytes that are on disk: then one
//! sync is enough (see the contract in [`crate::files`]). A segment that this process filled and recycled
//! has been through that. The head of a segment is proven by the rename that follows its sync.
//!
//! # Invariants
//!
//! - **WAL-1** Records reach the disk in the order of the calls, so a vote never overtakes an append.
//! - **WAL-2** A commit is on disk when [`Wal::commit`] returns, whole or not at all.
//! - **WAL-3** After a failed write or sync every later call fails: the kernel may have dropped what it
//!   was asked to write, so trying again proves nothing.
//! - **WAL-4** The committed mark on disk never points past the log on disk.
//! - **WAL-5** A group after the head is written only where bytes were written and synced before.
//! - **SEGMENT-1** Every group carries a checksum that is compared when it is read. Only the last group of
//!   the last segment may be unreadable: it is then the tail of an interrupted write, cut and cleared
//!   before anything follows. Anything else unreadable stops the member.
//! - **SEGMENT-2** The log has no hole.
//! - **SEGMENT-3** The log belongs to one ring and one member. Its instance id is drawn when it is created,
//!   so a member that lost its disk comes back with another one and its peers notice.
//!
//! # A limit of one copy
//!
//! A torn last group and a last group that has rotted since look the same. [`Wal::seal`] closes
//! that gap: call it when the log has been idle for a moment, and when the process stops.
//!
//! # Deliberately absent
//!
//! No reads: the owner keeps the tail in memory, which purging bounds. No thread: the caller
//! dedicates one to the log. No repair: a damaged member is rebuilt from its peers.

mod record;
mod recover;
mod rotate;
mod segment;

use std::{io, sync::Arc};

use bytes::Bytes;

pub(crate) use self::segment::is_segment;
pub use self::{record::Record, recover::Cut};
use self::{
    record::{Item, Meta},
    rotate::{Segment, Spare},
    segment::{Header, begin_group, end_group, group_bytes},
};
use crate::{
    InstanceId, Mark, Owner, Reserve, StorageError,
    files::{self, File, Files},
    limits::{SEGMENT_BYTES, SEGMENT_BYTES_MIN, SPARES_MAX, ZERO_BYTES},
};

/// Configuration of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Size of a segment, at least [`SEGMENT_BYTES_MIN`]. A commit that does not fit gets a larger
    /// segment of its own.
    pub segment_bytes: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES }
    }
}

/// The content of the log when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The instance id of this directory (SEGMENT-3).
    pub instance: InstanceId,
    /// Whether the log was created by this call.
    pub created: bool,
    /// The last vote.
    pub vote: Option<Bytes>,
    /// A lower bound of the committed entries (WAL-4).
    pub committed: Option<Mark>,
    /// The last purged entry.
    pub purged: Option<Mark>,
    /// The entries, without holes (SEGMENT-2).
    pub entries: Vec<(u64, Bytes)>,
    /// The bytes that were cleared after the last group, for the operator's log.
    pub cut: Option<Cut>,
}

/// The size of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalSize {
    /// Segments in use.
    pub segments: usize,
    /// Bytes of those segments on disk.
    pub segment_bytes: u64,
    /// Spare segments, ready to be reused.
    pub spares: usize,
    /// Commits so far, over all restarts.
    pub commits: u64,
}

/// The open log.
#[derive(Debug)]
pub struct Wal {
    files: Arc<dyn Files>,
    reserve: Arc<Reserve>,
    config: WalConfig,
    meta: Meta,
    /// Oldest first; the last one is the active segment.
    segments: Vec<Segment>,
    spares: Vec<Spare>,
    active: Arc<dyn File>,
    header: Header,
    /// Offset of the next group in the active segment.
    offset: u64,
    /// Sequence number of the next group.
    sequence: u64,
    sealed: bool,
    /// WAL-3
    failed: bool,
    buffer: Vec<u8>,
}

impl Wal {
    /// Opens the log of `owner`, or creates it with the id `fresh`.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the member must not start.
    pub fn open(
        files: Arc<dyn Files>,
        reserve: Arc<Reserve>,
        config: WalConfig,
        owner: &Owner,
        fresh: InstanceId,
    ) -> Result<(Self, Recovered), StorageError> {
        if config.segment_bytes < SEGMENT_BYTES_MIN {
            let least = SEGMENT_BYTES_MIN;
            let what =
                format!("segments of {} bytes; the minimum is {least}", config.segment_bytes);
            return Err(StorageError::Order(what));
        }
        owner.check()?;
        recover::open(files, reserve, config, owner, fresh)
    }

    /// The instance id of the log (SEGMENT-3).
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.header.instance
    }

    /// Index of the last entry on disk, or of the last purged entry if there is none after it.
    #[must_use]
    pub fn last_index(&self) -> Option<u64> {
        self.meta.ends.last
    }

    /// The committed mark on disk.
    #[must_use]
    pub fn committed(&self) -> Option<&Mark> {
        self.meta.committed.as_ref()
    }

    /// The size of the log.
    #[must_use]
    pub fn size(&self) -> WalSize {
        WalSize {
            segments: self.segments.len(),
            segment_bytes: self.segments.iter().map(|segment| segment.bytes).sum(),
            spares: self.spares.len(),
            commits: self.sequence,
        }
    }

    /// Writes `records` as one group, all of them or none (WAL-1, WAL-2): one write and one sync, and before
    /// the first group of each [`ZERO_BYTES`] those of the zeros (WAL-5).
    ///
    /// Does nothing if there are no records, or if all of them are left out (see [`Record`]).
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`], [`StorageError::TooLarge`] and [`StorageError::NoSpace`] change
    /// nothing. After any other error the process must stop (WAL-3).
    pub fn commit(&mut self, records: &[Record]) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Stopped);
        }
        let mut ends = self.meta.ends;
        let mut written = Vec::with_capacity(records.len());
        for record in records {
            if ends.follow(record)? {
                written.push(record);
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        let body_bytes: usize = written.iter().map(|record| record.encoded_bytes()).sum();
        self.make_room(group_bytes(body_bytes) as u64)?;
        self.write(|out| written.iter().for_each(|record| record.encode(out)))?;
        self.meta.ends = ends;
        for record in &written {
            self.meta.apply(record);
            self.follow(record);
        }
        self.sealed = false;
        if written.iter().any(|record| matches!(record, Record::Purge(_))) {
            self.recycle().inspect_err(|_| self.failed = true)?;
        }
        Ok(())
    }

    /// Writes a group after the last commit, which proves that the commit was synced: damage to it
    /// then differs from an interrupted write. Does nothing if the last commit is sealed.
    ///
    /// # Errors
    ///
    /// As for [`Wal::commit`].
    pub fn seal(&mut self) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Stopped);
        }
        if !self.sealed {
            self.make_room(group_bytes(1) as u64)?;
            self.write(|out| Item::Seal.encode(out))?;
            self.sealed = true;
        }
        Ok(())
    }

    /// Makes sure that a group of `bytes` fits the active segment and replaces bytes that are on disk
    /// (WAL-5).
    fn make_room(&mut self, bytes: u64) -> Result<(), StorageError> {
        self.rotate_for(bytes)?;
        let end = self.offset + bytes;
        let active = self.segments.last_mut().expect("the log has a segment");
        if end <= active.synced_to {
            return Ok(());
        }
        let from = active.synced_to.max(self.offset);
        let to = (from + ZERO_BYTES as u64).max(end).min(active.bytes);
        let done = files::zero(&*self.active, from, to).map_err(|error| ("write", error));
        let done = done.and_then(|()| self.active.sync_data().map_err(|error| ("sync", error)));
        active.synced_to = to;
        done.map_err(|failure| self.failed(failure))
    }

    /// WAL-3
    fn failed(&mut self, (doing, source): (&'static str, io::Error)) -> StorageError {
        self.failed = true;
        StorageError::Io { file: segment::segment_name(self.header.generation), doing, source }
    }

    /// WAL-2
    fn write(&mut self, items: impl FnOnce(&mut Vec<u8>)) -> Result<(), StorageError> {
        let mut group = std::mem::take(&mut self.buffer);
        group.clear();
        begin_group(&mut group);
        items(&mut group);
        end_group(&mut group, &self.header, self.sequence, self.offset);
        let done = self.active.write_at(self.offset, &group).map_err(|error| ("write", error));
        let done = done.and_then(|()| self.active.sync_data().map_err(|error| ("sync", error)));
        done.map_err(|failure| self.failed(failure))?;
        self.offset += group.len() as u64;
        self.sequence += 1;
        self.buffer = group;
        // Free the memory of a large commit.
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }
}

/// Capacity that the group buffer keeps.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;
const _: () = assert!(SPARES_MAX > 0);
