//! The log of a member: what it voted and appended, in order, on disk before anybody is told.
//!
//! Consensus trusts a member to remember. The disk is the adversary: it loses what was not synced,
//! tears what was being written, reports errors once and forgets them, fills up, and flips bits.
//!
//! ```text
//!   commit(records) ──▶ one group ──▶ one write ──▶ one sync ──▶ the caller may tell others
//!        │ does not fit
//!        ▼
//!   next segment: recycled or new, begins with vote and marks, appears by rename
//!        ▲
//!   purge ──▶ the oldest segments, when all their entries are purged, wait to be used again
//! ```
//!
//! # Invariants
//!
//! - **W1** Records reach the disk in the order of the calls, so a vote never overtakes an append.
//! - **W2** A commit is on disk when [`Wal::commit`] returns, whole or not at all.
//! - **W3** After a failed write or sync every later call fails: the kernel may have dropped what it
//!   was asked to write, so trying again proves nothing.
//! - **W4** The committed mark on disk never points past the log on disk.
//! - **S1** Every group carries a checksum that is compared when it is read. Only the last group of
//!   the last segment may be unreadable: it is then the tail of an interrupted write, cut and cleared
//!   before anything follows. Anything else unreadable stops the member.
//! - **S2** The log has no hole.
//! - **S3** The log belongs to one ring and one member. Its instance id is drawn when it is created,
//!   so a member that lost its disk comes back with another one and its peers notice.
//!
//! # What one copy cannot know
//!
//! Whether the very last group was torn or has rotted since looks the same. [`Wal::seal`] closes that
//! gap: call it when the log has been idle for a moment, and when the process stops.
//!
//! # Deliberately absent
//!
//! No reading: the owner keeps the tail in memory, which purging bounds. No thread: the caller has
//! one that does nothing else. No repair: a damaged member is rebuilt from its peers.

mod record;
mod recover;
mod rotate;
mod segment;

use std::sync::Arc;

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
    files::{File, Files},
    limits::{SEGMENT_BYTES, SEGMENT_BYTES_MIN, SPARES_MAX},
};

/// How the log is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Size of a segment, at least [`SEGMENT_BYTES_MIN`]. A commit that does not fit gets a larger
    /// one of its own.
    pub segment_bytes: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES }
    }
}

/// What was on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Of this directory (S3).
    pub instance: InstanceId,
    /// Whether the log was created just now.
    pub created: bool,
    /// The last vote.
    pub vote: Option<Bytes>,
    /// A lower bound of what is committed (W4).
    pub committed: Option<Mark>,
    /// Everything up to here was removed.
    pub purged: Option<Mark>,
    /// The entries, without holes (S2).
    pub entries: Vec<(u64, Bytes)>,
    /// What was cleared behind the end, for the operator's log.
    pub cut: Option<Cut>,
}

/// How large the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalSize {
    /// Segments in use.
    pub segments: usize,
    /// Bytes of those on disk.
    pub segment_bytes: u64,
    /// Segments that wait to be used again.
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
    /// Oldest first; the last one is written to.
    segments: Vec<Segment>,
    spares: Vec<Spare>,
    active: Arc<dyn File>,
    header: Header,
    /// Where the next group goes in the active segment.
    offset: u64,
    /// Of the next group.
    sequence: u64,
    sealed: bool,
    /// W3
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
            let what = format!("segments of {} bytes; the least is {least}", config.segment_bytes);
            return Err(StorageError::Order(what));
        }
        owner.check()?;
        recover::open(files, reserve, config, owner, fresh)
    }

    /// Whose log it is (S3).
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.header.instance
    }

    /// Index of the last entry on disk, or of the last one purged if there is none behind it.
    #[must_use]
    pub fn last_index(&self) -> Option<u64> {
        self.meta.ends.last
    }

    /// The committed mark on disk.
    #[must_use]
    pub fn committed(&self) -> Option<&Mark> {
        self.meta.committed.as_ref()
    }

    /// How large the log is.
    #[must_use]
    pub fn size(&self) -> WalSize {
        WalSize {
            segments: self.segments.len(),
            segment_bytes: self.segments.iter().map(|segment| segment.bytes).sum(),
            spares: self.spares.len(),
            commits: self.sequence,
        }
    }

    /// Writes `records` with one write and one sync, all of them or none (W1, W2).
    ///
    /// Nothing happens if there are none, or if all of them are left out (see [`Record`]).
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`], [`StorageError::TooLarge`] and [`StorageError::NoSpace`] change
    /// nothing. After any other error the process must stop (W3).
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

    /// Proves that what was committed is durable, so that damage to it is told from an interrupted
    /// write. Does nothing if the last commit is sealed.
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

    /// W2, W3
    fn write(&mut self, items: impl FnOnce(&mut Vec<u8>)) -> Result<(), StorageError> {
        let mut group = std::mem::take(&mut self.buffer);
        group.clear();
        begin_group(&mut group);
        items(&mut group);
        end_group(&mut group, &self.header, self.sequence, self.offset);
        let done = self.active.write_at(self.offset, &group).map_err(|error| ("write", error));
        let done = done.and_then(|()| self.active.sync_data().map_err(|error| ("sync", error)));
        if let Err((doing, source)) = done {
            self.failed = true;
            let file = segment::segment_name(self.header.generation);
            return Err(StorageError::Io { file, doing, source });
        }
        self.offset += group.len() as u64;
        self.sequence += 1;
        self.buffer = group;
        // One large commit must not hold its memory for good.
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }
}

/// Of the buffer that groups are built in.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;
const _: () = assert!(SPARES_MAX > 0);
