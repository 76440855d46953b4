//! Writes checkpoints of the applied state to disk, and reclaims compacted versions.
//!
//! The log makes writes durable; a checkpoint only bounds the length of the log. So checkpoints
//! have a thread of their own: it writes all changes since the last checkpoint in one transaction,
//! a few times a second under load and not at all when nothing changes. After each, it drops a
//! small part of the compacted versions from memory and from disk, so that no compaction causes a
//! pause.
//!
//! # Invariants
//!
//! - **CHECKPOINT-1** State, membership and index of a checkpoint belong together: they are read
//!   under the lock under which entries are applied.
//! - **CHECKPOINT-2** The disk drops a version only for a compaction that is on disk itself.
//!   Otherwise a member would restart into a state that lacks versions which it does not know to be
//!   compacted.
//! - **CHECKPOINT-3** The first failed write ends the thread, and with it the process.
//! - **CHECKPOINT-4** A full disk is not a failed write. The thread keeps the unwritten checkpoint
//!   and tries again, first in the room that the reserve releases; checkpoint requests wait for it.
//! - **CHECKPOINT-5** The thread compares a part of the rows on disk with their digests each
//!   minute; a row in the engine's cache is compared there. It reports damage to operators and does
//!   not stop this member: the state is in memory, and receivers of a snapshot verify it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use satrap_ring_core::{AppliedState, Extensions, Keyspace, kv};
use satrap_ring_storage::{Checkpoint, Reserve, State, StorageError, snapshot::Received};
use satrap_runtime::clock;

use super::{
    disk::{self, Position, Restored, applied_mark},
    meters::Meters,
    types::LogId,
};
use crate::limits::{
    DIGEST_EVERY_ENTRIES, DIGESTS_MAX, DISK_RECLAIM_BYTES, DISK_RECLAIM_PIECES, DISK_SCRUB_BYTES,
    MEMORY_RECLAIM_BREATH, MEMORY_RECLAIM_PIECES, MEMORY_RECLAIM_VERSIONS,
};

/// The time between checkpoints while there are changes.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(500);
/// Steps between two scrubs: about a minute.
const SCRUB_EVERY_STEPS: u64 = 120;
/// Subjects of reported faults.
const DISK_FULL: &str = "disk";
const DISK_DAMAGED: &str = "state on disk";

/// The applied state of this member, shared by the state machine, readers and the checkpoint
/// thread.
#[derive(Clone)]
pub struct Shared {
    /// The applied state; CHECKPOINT-1 requires its lock.
    pub state: Arc<RwLock<AppliedState>>,
    position: Arc<Mutex<Position>>,
    /// The number of snapshots installed.
    installs: Arc<AtomicU64>,
    /// Digests of the whole keyspace after some entries; oldest first.
    digests: Arc<Mutex<VecDeque<IndexedDigest>>>,
    /// The errors of this member, by subject.
    faults: Arc<Mutex<BTreeMap<&'static str, String>>>,
    /// The counters of this member.
    pub meters: Meters,
}

/// The digest of the keyspace after the entry with this index.
pub type IndexedDigest = (u64, [u8; 16]);

impl Shared {
    /// Shares the state restored from disk.
    #[must_use]
    pub fn new(restored: Restored) -> Self {
        let Restored { state, position } = restored;
        Self {
            state: Arc::new(RwLock::new(state)),
            position: Arc::new(Mutex::new(position)),
            installs: Arc::default(),
            digests: Arc::default(),
            faults: Arc::default(),
            meters: Meters::default(),
        }
    }

    /// Locks state and position, to change them together (CHECKPOINT-1).
    pub fn lock(&self) -> (RwLockWriteGuard<'_, AppliedState>, MutexGuard<'_, Position>) {
        // A panic while applying stops the process, so no reader sees a partly applied entry.
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        (state, self.position.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of snapshots installed.
    #[must_use]
    pub fn installs(&self) -> u64 {
        self.installs.load(Ordering::Acquire)
    }

    /// Records the keyspace's digest, if the entry at `index` is one after which all members do so.
    pub fn take_digest(&self, index: u64, keyspace: &Keyspace) {
        if !index.is_multiple_of(DIGEST_EVERY_ENTRIES) {
            return;
        }
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests.len() == DIGESTS_MAX {
            digests.pop_front();
        }
        digests.push_back((index, keyspace.digest().0));
    }

    /// The newest digests, oldest first.
    #[must_use]
    pub fn digests(&self) -> Vec<IndexedDigest> {
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.iter().copied().collect()
    }

    /// Sets or clears the error about a subject. Returns whether that is a change.
    pub fn report_fault(&self, about: &'static str, why: Option<&str>) -> bool {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => faults.insert(about, why.to_owned()).is_none(),
            None => faults.remove(about).is_some(),
        }
    }

    /// The errors of this member.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.iter().map(|(about, why)| format!("{about}: {why}")).collect()
    }

    /// Reads the keyspace.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        f(self.state.read().unwrap_or_else(PoisonError::into_inner).keyspace())
    }

    /// The current extensions.
    #[must_use]
    pub fn extensions(&self) -> Extensions {
        self.state.read().unwrap_or_else(PoisonError::into_inner).extensions().clone()
    }

    /// The current position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the state with that of a snapshot that is on disk already.
    pub fn replace(&self, restored: Restored) {
        let Restored { state, position } = restored;
        let (mut held, mut held_position) = self.lock();
        *held_position = position;
        // Freed after the lock: dropping millions of keys takes a while.
        let old = std::mem::replace(&mut *held, state);
        drop((held, held_position));
        drop(old);
    }
}

/// A request for a checkpoint now; completed once all that was applied before is on disk.
pub type CheckpointRequest = tokio::sync::oneshot::Sender<()>;

/// Writes checkpoints. Clones share the writer.
#[derive(Clone)]
pub struct Checkpoints(Arc<Mutex<Checkpointer>>);

impl Checkpoints {
    /// Continues from the state that `shared` was restored with; `reserve` is released when the
    /// disk is full.
    #[must_use]
    pub fn new(shared: Shared, state: Arc<State>, reserve: Arc<Reserve>) -> Self {
        Self(Arc::new(Mutex::new(Checkpointer::new(shared, state, reserve))))
    }

    /// The body of the checkpoint thread: serves `requests` until all senders are gone.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (CHECKPOINT-3).
    pub fn run(&self, requests: &mpsc::Receiver<CheckpointRequest>) -> Result<(), StorageError> {
        loop {
            let request = match requests.recv_timeout(CHECKPOINT_INTERVAL) {
                Ok(request) => Some(request),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.step(),
            };
            match request {
                Some(request) => self.serve(request)?,
                None => self.step()?,
            }
        }
    }

    /// Writes a checkpoint for a request, even if nothing changed. While the disk is full, requests
    /// wait (CHECKPOINT-4).
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (CHECKPOINT-3).
    pub fn serve(&self, request: CheckpointRequest) -> Result<(), StorageError> {
        let mut held = self.lock();
        held.waiting.push(request);
        held.step()
    }

    /// Writes everything that was applied before the call.
    ///
    /// # Errors
    ///
    /// [`StorageError::NoSpace`] if the disk is full; after any other the process must stop (CHECKPOINT-3).
    pub fn complete(&self) -> Result<(), StorageError> {
        self.lock().write_all()
    }

    /// Writes the changes, if there are any, and reclaims a bounded number of versions.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (CHECKPOINT-3).
    pub fn step(&self) -> Result<(), StorageError> {
        self.lock().step()
    }

    /// Replaces the state on disk and in memory with a snapshot.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (CHECKPOINT-3).
    pub fn install(&self, received: Received, restored: Restored) -> Result<(), StorageError> {
        let mut held = self.lock();
        held.state.replace(received)?;
        held.pending = None;
        held.written = restored.position.applied;
        held.compacted = restored.state.keyspace().store().compacted();
        (held.reclaimed, held.reclaiming) = (0, None);
        held.shared.replace(restored);
        held.shared.installs.fetch_add(1, Ordering::Release);
        held.shared.meters.snapshots_installed.add_one();
        Ok(())
    }

    /// The state on disk.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.lock().state.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Checkpointer> {
        // A panic in a checkpoint ends its thread, and with it the process.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Checkpointer {
    shared: Shared,
    state: Arc<State>,
    reserve: Arc<Reserve>,
    written: Option<LogId>,
    compacted: i64,
    /// The compaction whose versions are all reclaimed on disk, and the one being reclaimed.
    reclaimed: i64,
    reclaiming: Option<i64>,
    /// CHECKPOINT-4: changes taken from the state that are not on disk yet.
    pending: Option<Pending>,
    /// The callers that asked for a checkpoint.
    waiting: Vec<CheckpointRequest>,
    steps: u64,
}

/// A checkpoint to be written.
struct Pending {
    checkpoint: Checkpoint,
    applied: Option<LogId>,
    compacted: i64,
}

impl Checkpointer {
    fn new(shared: Shared, state: Arc<State>, reserve: Arc<Reserve>) -> Self {
        let written = shared.position().applied;
        let compacted = shared.read(|keyspace| keyspace.store().compacted());
        Self {
            shared,
            state,
            reserve,
            written,
            compacted,
            reclaimed: 0,
            reclaiming: None,
            pending: None,
            waiting: Vec::new(),
            steps: 0,
        }
    }

    fn step(&mut self) -> Result<(), StorageError> {
        let written = self.write_all();
        let full = is_only_full(&written);
        self.tell(DISK_FULL, written.as_ref().err().filter(|_| full));
        if !full {
            written?;
        }
        self.reclaim()?;
        // CHECKPOINT-4: hold the reserve again as soon as there is room.
        self.reserve.refill()?;
        self.steps += 1;
        if self.steps.is_multiple_of(SCRUB_EVERY_STEPS) {
            self.scrub()?;
        }
        Ok(())
    }

    /// Writes everything that was applied, and completes the requests that wait for that.
    fn write_all(&mut self) -> Result<(), StorageError> {
        if self.pending.is_some() {
            self.write()?;
        }
        let asked_first = !self.waiting.is_empty() && self.state.applied()?.is_none();
        if asked_first || self.shared.position().applied != self.written {
            self.write()?;
        }
        for request in self.waiting.drain(..) {
            // The caller may have gone away; the checkpoint was written.
            let _ = request.send(());
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), StorageError> {
        let pending = match self.pending.take() {
            Some(pending) => pending,
            None => self.take()?,
        };
        let began = clock::monotonic();
        let mut written = self.state.checkpoint(&pending.checkpoint);
        // CHECKPOINT-4
        if is_only_full(&written) && self.reserve.release()? {
            tracing::warn!("the disk is full: releasing the reserve");
            written = self.state.checkpoint(&pending.checkpoint);
        }
        if is_only_full(&written) {
            self.pending = Some(pending);
            return written;
        }
        written?;
        self.shared.meters.checkpoint.observe(clock::monotonic().saturating_sub(began));
        (self.written, self.compacted) = (pending.applied, pending.compacted);
        Ok(())
    }

    /// Takes the changes since the last call.
    fn take(&self) -> Result<Pending, StorageError> {
        let (mut state, position) = self.shared.lock();
        // CHECKPOINT-1
        let changes = state.take_changes();
        let compacted = state.keyspace().store().compacted();
        let taken = position.clone();
        drop((state, position));
        let on_disk = u64::try_from(compacted).unwrap_or(0);
        let checkpoint = disk::checkpoint(applied_mark(&taken), on_disk, changes)?;
        Ok(Pending { checkpoint, applied: taken.applied, compacted })
    }

    /// Sets or clears an error of this member, and logs it once.
    fn tell(&self, about: &'static str, error: Option<&StorageError>) {
        let why = error.map(ToString::to_string);
        if self.shared.report_fault(about, why.as_deref())
            && let Some(error) = error
        {
            tracing::error!(%error, "degraded: operator action required, see deploy/runbooks");
        }
    }

    /// CHECKPOINT-5
    fn scrub(&mut self) -> Result<(), StorageError> {
        let scrubbed = self.state.scrub(DISK_SCRUB_BYTES);
        let rotten = matches!(scrubbed, Err(StorageError::Damaged { .. }));
        if !rotten {
            scrubbed?;
            return Ok(());
        }
        self.tell(DISK_DAMAGED, scrubbed.as_ref().err());
        Ok(())
    }

    fn reclaim(&mut self) -> Result<(), StorageError> {
        self.reclaim_memory();
        let reclaimed = self.reclaim_disk();
        // CHECKPOINT-4
        if is_only_full(&reclaimed) { Ok(()) } else { reclaimed }
    }

    fn reclaim_memory(&self) {
        for _ in 0..MEMORY_RECLAIM_PIECES {
            let (mut state, position) = self.shared.lock();
            drop(position);
            let reclaimed = state.reclaim(MEMORY_RECLAIM_VERSIONS);
            drop(state);
            if reclaimed == kv::Reclaimed::Everything {
                return;
            }
            thread::sleep(MEMORY_RECLAIM_BREATH);
        }
    }

    /// Reclaims history once for each compaction, then does nothing until the next.
    fn reclaim_disk(&mut self) -> Result<(), StorageError> {
        for _ in 0..DISK_RECLAIM_PIECES {
            let compacted = self.compacted;
            if compacted <= 0 || compacted == self.reclaimed {
                return Ok(());
            }
            // The pass in progress has skipped earlier rows for a newer compaction, which therefore
            // gets a pass of its own.
            let began = *self.reclaiming.get_or_insert(compacted);
            let done = self.state.reclaim(DISK_RECLAIM_BYTES, |key, revision| {
                // CHECKPOINT-2
                let needed = |store: &kv::Store| {
                    store.compacted() != compacted || store.holds(key, revision.cast_signed())
                };
                self.shared.read(|keyspace| needed(keyspace.store()))
            })?;
            if done.wrapped {
                (self.reclaimed, self.reclaiming) = (began, None);
            }
        }
        Ok(())
    }
}

/// Whether the only error is a full disk.
fn is_only_full<T>(result: &Result<T, StorageError>) -> bool {
    result.as_ref().is_err_and(|error| error.is_full() && !error.is_fatal())
}

#[cfg(test)]
mod tests;
