//! The log's writer thread: writes all waiting operations with one fsync.
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
//! - **WRITER-1** Operations reach the disk in queue order: a vote never overtakes an append.
//! - **WRITER-2** No waiter is notified before the commit that wrote its operation has returned.
//! - **WRITER-3** The first failed commit ends the thread, and with it the process: a failed fsync
//!   may have dropped the written data, so trying again proves nothing.
//! - **WRITER-4** The committed mark is written along with other operations, or when the log
//!   becomes idle; so it is a lower bound.
//! - **WRITER-5** An idle log is sealed: damage to its end then differs from an interrupted write.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use satrap_ring_storage::{Mark, Record, StorageError, Wal};
use satrap_runtime::clock;
use tokio::sync::{mpsc, oneshot};

use super::{
    meters::Meters,
    types::{LogId, Vote, encode},
};
use crate::limits::{GROUP_BYTES_MAX, WRITER_QUEUE_OPS_MAX};

/// The waiter of an operation.
enum Waiter {
    Flush(Flushed),
    Task(oneshot::Sender<()>),
    /// WRITER-5: no waiter, and no records to write.
    Idle,
}

/// The callback for when entries are on disk, or with the reason why they are not.
pub type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Records to be written together or not at all.
pub struct Operation {
    records: Vec<Record>,
    waiter: Waiter,
}

/// The newest committed mark that openraft has given; see WRITER-4.
type CommittedMark = Arc<Mutex<Option<LogId>>>;

/// Queues operations for the writer. Clones share the queue.
#[derive(Clone)]
pub struct WriteHandle {
    queue: mpsc::Sender<Operation>,
    committed: CommittedMark,
}

/// The state of the writer thread.
pub struct Writer {
    wal: Wal,
    queue: mpsc::Receiver<Operation>,
    committed: CommittedMark,
    committed_on_disk: Option<LogId>,
    /// Whether operations were written since the last call of [`WriteHandle::seal_if_idle`].
    busy: bool,
    meters: Meters,
}

fn stopped() -> io::Error {
    io::Error::other("the log writer has stopped; this member must restart")
}

/// A position in the log, in the WAL's terms.
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

    /// Seals the log, unless operations were written since the last call (WRITER-5).
    pub fn seal_if_idle(&self) {
        // A queue that is full is not idle.
        let _ = self.queue.try_send(Operation { records: Vec::new(), waiter: Waiter::Idle });
    }

    async fn write(&self, record: Record) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        let operation = Operation { records: vec![record], waiter: Waiter::Task(done) };
        self.queue.send(operation).await.map_err(|_| stopped())?;
        written.await.map_err(|_| stopped())
    }

    /// Records the committed mark, to be written along with other operations (WRITER-4).
    pub fn note_committed(&self, committed: Option<LogId>) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = committed;
    }

    /// The last recorded mark.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// A writer of `wal` whose committed mark is `committed`.
    #[must_use]
    pub fn new(wal: Wal, committed: Option<LogId>, meters: Meters) -> (Self, WriteHandle) {
        let (sender, queue) = mpsc::channel(WRITER_QUEUE_OPS_MAX);
        let mark = CommittedMark::new(Mutex::new(committed));
        let handle = WriteHandle { queue: sender, committed: mark.clone() };
        let (committed_on_disk, busy) = (committed, true);
        (Self { wal, queue, committed: mark, committed_on_disk, busy, meters }, handle)
    }

    /// Writes until every [`WriteHandle`] is gone. Blocks; call it on a thread of its own.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (WRITER-3).
    pub fn run(mut self) -> Result<(), StorageError> {
        while let Some(first) = self.queue.blocking_recv() {
            self.commit(first)?;
        }
        self.finish()
    }

    /// The next operation; `None` once every [`WriteHandle`] is gone.
    pub async fn next(&mut self) -> Option<Operation> {
        self.queue.recv().await
    }

    /// Writes the committed mark, and seals the log (WRITER-5).
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (WRITER-3).
    pub fn finish(&mut self) -> Result<(), StorageError> {
        if let Some((committed, record)) = self.committed_record() {
            self.wal.commit(&[record])?;
            self.committed_on_disk = Some(committed);
        }
        self.wal.seal()
    }

    /// Writes `first` and all operations behind it, and notifies their waiters.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (WRITER-3).
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
        if records.is_empty() {
            return if std::mem::take(&mut self.busy) { Ok(()) } else { self.finish() };
        }
        self.busy = true;
        let committed = self.committed_record();
        let (committed, record) = committed.unzip();
        records.extend(record);
        let began = clock::monotonic();
        let result = self.wal.commit(&records);
        self.meters.log_sync.observe(clock::monotonic().saturating_sub(began));
        for waiter in waiters {
            match (waiter, &result) {
                // WRITER-2
                (Waiter::Flush(flushed), Ok(())) => flushed(Ok(())),
                (Waiter::Task(done), Ok(())) => {
                    // The caller may have gone away; the records were written.
                    let _ = done.send(());
                }
                (Waiter::Flush(flushed), Err(error)) => {
                    flushed(Err(io::Error::other(error.to_string())));
                }
                // Dropping the sender reports the failure.
                (Waiter::Task(_), Err(_)) | (Waiter::Idle, _) => {}
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

#[cfg(test)]
mod tests {
    use satrap_ring_storage::{
        Owner, Reserve, SpaceConfig, WalConfig,
        files::Files,
        limits::SEGMENT_BYTES_MIN,
        sim::{SimDisk, Survival},
    };

    use super::*;

    fn open(sim: &SimDisk) -> Result<Wal, StorageError> {
        let files: Arc<dyn Files> = Arc::new(sim.clone());
        let space = SpaceConfig { reserve_bytes: 0, low_bytes: 0 };
        let reserve = Arc::new(Reserve::open(files.clone(), space)?);
        let config = WalConfig { segment_bytes: SEGMENT_BYTES_MIN };
        let owner = Owner { ring: [1; 32], member: "m1".into() };
        Wal::open(files, reserve, config, &owner, [7; 16]).map(|(wal, _)| wal)
    }

    /// Writes one entry, lets the log be idle `idle_looks` times, then flips a bit of the entry.
    fn rot_after(idle_looks: usize) -> Result<Wal, StorageError> {
        let sim = SimDisk::new(1);
        let (mut writer, handle) = Writer::new(open(&sim).unwrap(), None, Meters::default());
        let entry = Bytes::from_static(b"an entry that was acknowledged");
        let append = handle.append(vec![(1, entry.clone())], Box::new(|done| done.unwrap()));
        futures::executor::block_on(append).unwrap();
        (0..idle_looks).for_each(|_| handle.seal_if_idle());
        while let Ok(next) = writer.queue.try_recv() {
            // Each on its own, as an idle ring sends them.
            let rest: Vec<_> = std::iter::from_fn(|| writer.queue.try_recv().ok()).collect();
            writer.commit(next).unwrap();
            rest.into_iter().for_each(|next| handle.queue.try_send(next).unwrap());
        }
        sim.crash(Survival::None);
        let segment = "wal-0000000000000001.seg";
        let content = sim.content(segment).unwrap();
        let at = content.windows(entry.len()).position(|bytes| bytes == entry).unwrap();
        sim.rot(segment, at as u64, 1);
        open(&sim)
    }

    /// WRITER-5
    #[test]
    fn rot_in_the_last_entry_of_an_idle_log_is_noticed() {
        assert!(rot_after(0).is_ok(), "it may have been an interrupted write");
        assert!(rot_after(1).is_ok(), "something was written since the last look");
        assert!(matches!(rot_after(2), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn a_log_that_is_closed_is_sealed() {
        let sim = SimDisk::new(1);
        let (mut writer, _handle) = Writer::new(open(&sim).unwrap(), None, Meters::default());
        writer.wal.commit(&[Record::Append { index: 1, bytes: vec![9; 600].into() }]).unwrap();
        writer.finish().unwrap();
        sim.rot("wal-0000000000000001.seg", 1024, 1);
        assert!(matches!(open(&sim), Err(StorageError::Damaged { .. })));
    }
}
