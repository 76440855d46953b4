//! The one thread that writes to disk: many waiting operations, one fsync.
//!
//! ```text
//!   openraft ── append, vote, truncate, purge ──▶ queue ──▶ one transaction ──▶ completions
//!   state machine ── snapshot ──────────────────▶
//! ```
//!
//! An fsync on the Raft thread would delay heartbeats by its duration, and one fsync per append
//! would cap the ring at a few thousand writes. So operations queue up while a commit runs, and the
//! next commit takes all of them.
//!
//! # Invariants
//!
//! - **W1** Operations reach the disk in queue order: a vote never overtakes an append, a purge
//!   never overtakes the snapshot that covers it.
//! - **W2** Nobody is told that something is on disk before the commit returned.
//! - **W3** The first failed commit ends the thread, and with it the process: a failed fsync may
//!   have dropped what it was asked to write, so trying again proves nothing.
//! - **W4** The committed mark on disk never points past the log on disk. It is written along with
//!   other operations only, never for its own sake, so it is a lower bound.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use openraft::storage::IOFlushed;
use satrap_host::store::StoreError;
use tokio::sync::{mpsc, oneshot};

use super::{
    disk::{Disk, Record},
    types::{LogId, Types},
};
use crate::limits::{GROUP_BYTES_MAX, WRITER_QUEUE_OPS_MAX};

/// Who waits for an operation.
enum Waiter {
    Flush(IOFlushed<Types>),
    Task(oneshot::Sender<()>),
}

struct Operation {
    record: Record,
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
    disk: Arc<Disk>,
    queue: mpsc::Receiver<Operation>,
    committed: CommittedMark,
    committed_on_disk: Option<LogId>,
    last_on_disk: Option<u64>,
}

fn stopped() -> io::Error {
    io::Error::other("the log writer has stopped; this member must restart")
}

impl WriteHandle {
    /// Queues entries; `flushed` is called once they are on disk.
    ///
    /// # Errors
    ///
    /// If the writer has stopped.
    pub async fn append(
        &self,
        entries: Vec<(u64, Vec<u8>)>,
        flushed: IOFlushed<Types>,
    ) -> io::Result<()> {
        let (record, waiter) = (Record::Append(entries), Waiter::Flush(flushed));
        self.queue.send(Operation { record, waiter }).await.map_err(|_| stopped())
    }

    /// Queues `record` and waits until it is on disk.
    ///
    /// # Errors
    ///
    /// If the writer has stopped.
    pub async fn write(&self, record: Record) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        let operation = Operation { record, waiter: Waiter::Task(done) };
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
    /// A writer on `disk`, whose log ends at `last_on_disk`.
    #[must_use]
    pub fn new(
        disk: Arc<Disk>,
        committed: Option<LogId>,
        last_on_disk: Option<u64>,
    ) -> (Self, WriteHandle) {
        let (sender, queue) = mpsc::channel(WRITER_QUEUE_OPS_MAX);
        let mark = CommittedMark::new(Mutex::new(committed));
        let handle = WriteHandle { queue: sender, committed: mark.clone() };
        let writer =
            Self { disk, queue, committed: mark, committed_on_disk: committed, last_on_disk };
        (writer, handle)
    }

    /// Writes until every [`WriteHandle`] is gone. Blocks; call it on a thread of its own.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: the process must stop (W3).
    pub fn run(mut self) -> Result<(), StoreError> {
        while let Some(first) = self.queue.blocking_recv() {
            self.commit(first)?;
        }
        // Nobody waits any more, but a restart then begins where this run ended.
        self.committed_record().map_or(Ok(()), |record| self.disk.commit(&[record]))
    }

    fn commit(&mut self, first: Operation) -> Result<(), StoreError> {
        let mut bytes = first.record.bytes();
        let (mut records, mut waiters) = (vec![first.record], vec![first.waiter]);
        while bytes < GROUP_BYTES_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            bytes += next.record.bytes();
            records.push(next.record);
            waiters.push(next.waiter);
        }
        for record in &records {
            self.track(record);
        }
        let committed = self.committed_record();
        records.extend(committed);
        let result = self.disk.commit(&records);
        for waiter in waiters {
            match (waiter, &result) {
                // W2
                (Waiter::Flush(flushed), Ok(())) => flushed.io_completed(Ok(())),
                (Waiter::Task(done), Ok(())) => {
                    // Whoever asked may have been cancelled; the write stands.
                    let _ = done.send(());
                }
                (Waiter::Flush(flushed), Err(error)) => {
                    flushed.io_completed(Err(io::Error::other(error.to_string())));
                }
                // Dropping the sender reports the failure.
                (Waiter::Task(_), Err(_)) => {}
            }
        }
        if let (Ok(()), Some(Record::Committed(id))) = (&result, records.last()) {
            self.committed_on_disk = Some(*id);
        }
        result
    }

    /// Follows where the log on disk will end (W4).
    fn track(&mut self, record: &Record) {
        match record {
            Record::Append(entries) => {
                self.last_on_disk = entries.last().map(|(index, _)| *index).or(self.last_on_disk);
            }
            Record::Truncate(from) => {
                self.last_on_disk = self.last_on_disk.min(from.checked_sub(1));
            }
            Record::Purge(upto) => self.last_on_disk = self.last_on_disk.max(Some(upto.index)),
            Record::Vote(_) | Record::Committed(_) | Record::Snapshot(..) | Record::Peer(..) => {}
        }
    }

    fn committed_record(&self) -> Option<Record> {
        let noted = *self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = noted.filter(|id| Some(id.index) <= self.last_on_disk)?;
        (Some(noted) > self.committed_on_disk).then_some(Record::Committed(noted))
    }
}
