//! The one thread that writes to disk: many waiting operations, one fsync.
//!
//! ```text
//!   openraft ── append, vote, truncate, purge ──▶ queue ──▶ one write, one fsync ──▶ completions
//! ```
//!
//! An fsync on the Raft thread would delay heartbeats by its duration, and one fsync per append
//! would cap the ring at a few thousand writes. So operations queue up while a commit runs, and the
//! next commit takes all of them.
//!
//! # Invariants
//!
//! - **W1** Operations reach the disk in queue order: a vote never overtakes an append.
//! - **W2** Nobody is told that something is on disk before the commit returned.
//! - **W3** The first failed commit ends the thread, and with it the process: a failed fsync may
//!   have dropped what it was asked to write, so trying again proves nothing.
//! - **W4** The committed mark is written along with other operations only, never for its own sake,
//!   so it is a lower bound.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use satrap_regional_storage::{Mark, Record, StorageError, Wal};
use tokio::sync::{mpsc, oneshot};

use super::types::{LogId, Vote, encode};
use crate::limits::{GROUP_BYTES_MAX, WRITER_QUEUE_OPS_MAX};

/// Who waits for an operation.
enum Waiter {
    Flush(Flushed),
    Task(oneshot::Sender<()>),
}

/// Told when entries are on disk, or why they are not.
pub type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What is written together or not at all.
pub struct Operation {
    records: Vec<Record>,
    waiter: Waiter,
}

/// The newest commit mark that openraft told us; see W4.
type CommittedMark = Arc<Mutex<Option<LogId>>>;

/// Queues operations for the writer. Clones share the queue.
#[derive(Clone)]
pub struct WriteHandle {
    queue: mpsc::Sender<Operation>,
    committed: CommittedMark,
}

/// The body of the writer thread.
pub struct Writer {
    wal: Wal,
    queue: mpsc::Receiver<Operation>,
    committed: CommittedMark,
    committed_on_disk: Option<LogId>,
}

fn stopped() -> io::Error {
    io::Error::other("the log writer has stopped; this member must restart")
}

/// A position in the log, as the WAL keeps it.
#[must_use]
pub fn mark(id: &LogId) -> Mark {
    Mark { index: id.index, id: encode(id).into() }
}

impl WriteHandle {
    /// Queues entries; `flushed` is called once they are on disk.
    ///
    /// # Errors
    ///
    /// If the writer has stopped.
    pub async fn append(&self, entries: Vec<(u64, Bytes)>, flushed: Flushed) -> io::Result<()> {
        let entries = entries.into_iter().map(|(index, bytes)| Record::Append { index, bytes });
        let (records, waiter) = (entries.collect(), Waiter::Flush(flushed));
        self.queue.send(Operation { records, waiter }).await.map_err(|_| stopped())
    }

    /// Writes the vote and waits until it is on disk.
    ///
    /// # Errors
    ///
    /// If the writer has stopped.
    pub async fn vote(&self, vote: &Vote) -> io::Result<()> {
        self.write(Record::Vote(encode(vote).into())).await
    }

    /// Removes the log from `from` on and waits until that is on disk.
    ///
    /// # Errors
    ///
    /// If the writer has stopped.
    pub async fn truncate(&self, from: u64) -> io::Result<()> {
        self.write(Record::Truncate { from }).await
    }

    /// Removes the log up to `upto` and waits until that is on disk.
    ///
    /// # Errors
    ///
    /// If the writer has stopped.
    pub async fn purge(&self, upto: &LogId) -> io::Result<()> {
        self.write(Record::Purge(mark(upto))).await
    }

    async fn write(&self, record: Record) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        let operation = Operation { records: vec![record], waiter: Waiter::Task(done) };
        self.queue.send(operation).await.map_err(|_| stopped())?;
        written.await.map_err(|_| stopped())
    }

    /// Notes what is committed, to be written along with something else (W4).
    pub fn note_committed(&self, committed: Option<LogId>) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = committed;
    }

    /// What was noted last.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// A writer of `wal`, which knows that `committed` is.
    #[must_use]
    pub fn new(wal: Wal, committed: Option<LogId>) -> (Self, WriteHandle) {
        let (sender, queue) = mpsc::channel(WRITER_QUEUE_OPS_MAX);
        let mark = CommittedMark::new(Mutex::new(committed));
        let handle = WriteHandle { queue: sender, committed: mark.clone() };
        (Self { wal, queue, committed: mark, committed_on_disk: committed }, handle)
    }

    /// Writes until every [`WriteHandle`] is gone. Blocks; call it on a thread of its own.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (W3).
    pub fn run(mut self) -> Result<(), StorageError> {
        while let Some(first) = self.queue.blocking_recv() {
            self.commit(first)?;
        }
        self.finish()
    }

    /// The next operation; none once every [`WriteHandle`] is gone.
    pub async fn next(&mut self) -> Option<Operation> {
        self.queue.recv().await
    }

    /// Writes what is still worth to be known after a restart.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub fn finish(&mut self) -> Result<(), StorageError> {
        // Nobody waits any more, but a restart then begins where this run ended.
        let committed: Vec<_> =
            self.committed_record().map(|(_, record)| record).into_iter().collect();
        if committed.is_empty() { Ok(()) } else { self.wal.commit(&committed) }
    }

    /// Writes `first` and all that waits behind it, and tells who waited.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (W3).
    pub fn commit(&mut self, first: Operation) -> Result<(), StorageError> {
        let size = |records: &[Record]| records.iter().map(Record::encoded_bytes).sum::<usize>();
        let mut bytes = size(&first.records);
        let (mut records, mut waiters) = (first.records, vec![first.waiter]);
        while bytes < GROUP_BYTES_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            bytes += size(&next.records);
            records.extend(next.records);
            waiters.push(next.waiter);
        }
        let committed = self.committed_record();
        let (committed, record) = committed.unzip();
        records.extend(record);
        let result = self.wal.commit(&records);
        for waiter in waiters {
            match (waiter, &result) {
                // W2
                (Waiter::Flush(flushed), Ok(())) => flushed(Ok(())),
                (Waiter::Task(done), Ok(())) => {
                    // Whoever asked may have been cancelled; the write stands.
                    let _ = done.send(());
                }
                (Waiter::Flush(flushed), Err(error)) => {
                    flushed(Err(io::Error::other(error.to_string())));
                }
                // Dropping the sender reports the failure.
                (Waiter::Task(_), Err(_)) => {}
            }
        }
        if result.is_ok() {
            self.committed_on_disk = committed.or(self.committed_on_disk);
        }
        result
    }

    fn committed_record(&self) -> Option<(LogId, Record)> {
        let noted = (*self.committed.lock().unwrap_or_else(PoisonError::into_inner))?;
        (Some(noted) > self.committed_on_disk).then(|| (noted, Record::Committed(mark(&noted))))
    }
}
