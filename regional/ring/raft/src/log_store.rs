//! The Raft log as openraft sees it: appended entries are readable from memory at once, and durable
//! one group commit later.
//!
//! Replication reads recent entries again for each follower, so the whole log is in memory, which
//! compaction bounds (see [`super::compaction`]). The disk is read once, at the start.
//!
//! # Invariants
//!
//! - **LOGSTORE-1** When `append` returns, its entries can be read; when its callback runs, they
//!   are on disk.
//! - **LOGSTORE-2** `save_vote`, `truncate_after` and `purge` return once they are on disk, in
//!   order with appends.
//! - **LOGSTORE-3** The committed mark is a lower bound, so a restarted member may serve an older
//!   replica for a moment; the replicas that follow it refuse to go back.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    marker::PhantomData,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};

use super::{
    disk::Loaded,
    platform::{Platform, Real},
    types::{Entry, LogId, Types, Vote, encode},
    writer::WriteHandle,
};
use crate::limits::APPEND_BATCH_BYTES;

/// The log of one member. Clones read the same log.
pub struct LogStore<P = Real> {
    log: Arc<Mutex<Log>>,
    writer: WriteHandle,
    _platform: PhantomData<P>,
}

impl<P> Clone for LogStore<P> {
    fn clone(&self) -> Self {
        let (log, writer) = (self.log.clone(), self.writer.clone());
        Self { log, writer, _platform: PhantomData }
    }
}

#[derive(Default)]
struct Log {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: VecDeque<Stored>,
    bytes: usize,
}

struct Stored {
    entry: Entry,
    bytes: usize,
}

/// The size of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSize {
    /// Entries that are not purged.
    pub entries: u64,
    /// Bytes of those entries.
    pub bytes: usize,
}

impl<P: Platform> LogStore<P> {
    /// The log as `loaded` from disk, written through `writer`.
    #[must_use]
    pub fn new(loaded: Loaded, writer: WriteHandle) -> Self {
        let bytes = loaded.entries.iter().map(|(_, bytes)| bytes).sum();
        let entries = loaded.entries.into_iter().map(|(entry, bytes)| Stored { entry, bytes });
        let (vote, purged) = (loaded.vote, loaded.purged);
        let log = Log { vote, purged, entries: entries.collect(), bytes };
        Self { log: Arc::new(Mutex::new(log)), writer, _platform: PhantomData }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Critical sections only move values, so the log is valid even after a panic.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current size of the log.
    #[must_use]
    pub fn size(&self) -> LogSize {
        let log = self.log();
        LogSize { entries: log.entries.len() as u64, bytes: log.bytes }
    }

    /// Seals an idle log; call it regularly, see [`WriteHandle::seal_if_idle`].
    pub fn seal_if_idle(&self) {
        self.writer.seal_if_idle();
    }

    /// The highest index that may be purged such that the newest entries up to `snapshot` stay, at
    /// most `entries` of them and `bytes` together.
    #[must_use]
    pub fn purge_point(&self, snapshot: u64, keep: LogSize) -> Option<u64> {
        let log = self.log();
        let mut kept = LogSize::default();
        for stored in log.entries.iter().rev() {
            let index = stored.entry.log_id.index;
            if index > snapshot {
                continue;
            }
            kept.entries += 1;
            kept.bytes += stored.bytes;
            if kept.entries > keep.entries || kept.bytes > keep.bytes {
                return Some(index);
            }
        }
        None
    }
}

impl Log {
    fn position(&self, index: u64) -> usize {
        let first = self.entries.front().map_or(0, |stored| stored.entry.log_id.index);
        usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX).min(self.entries.len())
    }

    fn range(&self, range: &impl RangeBounds<u64>) -> impl Iterator<Item = &Stored> {
        let start = match range.start_bound() {
            Bound::Included(index) => self.position(*index),
            Bound::Excluded(index) => self.position(index.saturating_add(1)),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => self.position(index.saturating_add(1)),
            Bound::Excluded(index) => self.position(*index),
            Bound::Unbounded => self.entries.len(),
        };
        self.entries.range(start.min(end)..end)
    }

    fn push(&mut self, entry: Entry, bytes: usize) -> io::Result<()> {
        let index = entry.log_id.index;
        let last = self.entries.back().map(|stored| stored.entry.log_id.index);
        if last.is_some_and(|last| last + 1 != index) {
            return Err(io::Error::other(format!(
                "append of {index} after {last:?} leaves a hole"
            )));
        }
        self.bytes += bytes;
        self.entries.push_back(Stored { entry, bytes });
        Ok(())
    }
}

impl<P: Platform> RaftLogReader<Types<P>> for LogStore<P> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.log().range(&range).map(|stored| stored.entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log().vote.clone())
    }

    /// Returns at least one entry, and as many as fit one request.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let log = self.log();
        let mut bytes = 0;
        let fits = |stored: &&Stored| {
            let first = bytes == 0;
            bytes += stored.bytes;
            first || bytes <= APPEND_BATCH_BYTES
        };
        Ok(log.range(&(start..end)).take_while(fits).map(|stored| stored.entry.clone()).collect())
    }
}

impl<P: Platform> RaftLogStorage<Types<P>> for LogStore<P> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<P>>> {
        let log = self.log();
        let last_log_id = log.entries.back().map(|stored| stored.entry.log_id).or(log.purged);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.writer.vote(vote).await?;
        self.log().vote = Some(vote.clone());
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.writer.note_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.writer.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<P>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        {
            let mut log = self.log();
            for entry in entries {
                let (index, bytes) = (entry.log_id.index, Bytes::from(encode(&entry)));
                log.push(entry, bytes.len())?;
                rows.push((index, bytes));
            }
        }
        let flushed = Box::new(|result| callback.io_completed(result));
        self.writer.append(rows, flushed).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        {
            let mut log = self.log();
            let position = log.position(from);
            let removed: usize = log.entries.drain(position..).map(|stored| stored.bytes).sum();
            log.bytes -= removed;
        }
        self.writer.truncate(from).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        {
            let mut log = self.log();
            let position = log.position(log_id.index + 1);
            let removed: usize = log.entries.drain(..position).map(|stored| stored.bytes).sum();
            log.bytes -= removed;
            log.purged = log.purged.max(Some(log_id));
        }
        self.writer.purge(&log_id).await
    }
}
