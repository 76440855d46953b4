//! Brings the state to disk behind the log, and gives back what is not needed any more.
//!
//! The log makes writes durable; a checkpoint only bounds how much log there is. So it runs on a
//! thread of its own and takes whatever changed since the last one in a single transaction, a few
//! times a second under load and not at all when nothing happens. In the same rhythm it drops a
//! little of what was compacted, from memory and from disk, so that no compaction is ever a pause.
//!
//! # Invariants
//!
//! - **K1** State, membership and index of a checkpoint belong together: they are taken under the
//!   lock under which entries are applied.
//! - **K2** The disk drops a version only for a compaction that is on disk itself. Otherwise a crash
//!   would restart into a state that misses what it does not know to be compacted.
//! - **K3** The first failed write ends the thread, and with it the process.
//! - **K4** A full disk is no failed write. What could not be written is kept and tried again, first of
//!   all in the room that the reserve gives back; whoever asked for a checkpoint waits for it.
//! - **K5** What lies on the disk is compared with its digests all the time, a little of it each
//!   minute; what the engine holds in its cache, there. Rot is told to operators, and ends nothing: this
//!   member has the state in memory, and its peers see to it that nobody gets what is rotten.

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

use satrap_host::clock;
use satrap_regional_core::{Keyspace, Region, kv};
use satrap_regional_storage::{Checkpoint, Reserve, State, StorageError, snapshot::Received};

use super::{
    disk::{self, Restored, applied_mark},
    meters::Meters,
    types::{LogId, Membership},
};
use crate::limits::{
    DIGEST_EVERY_ENTRIES, DIGESTS_MAX, DISK_RECLAIM_BYTES, DISK_RECLAIM_PIECES, DISK_SCRUB_BYTES,
    MEMORY_RECLAIM_BREATH, MEMORY_RECLAIM_PIECES, MEMORY_RECLAIM_VERSIONS,
};

/// Between checkpoints while there is something to write.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(500);
/// So many steps go by between looks at what lies on the disk: about a minute.
const SCRUB_EVERY_STEPS: u64 = 120;
/// What a complaint is about.
const DISK_FULL: &str = "disk";
const DISK_ROTTEN: &str = "state on disk";

/// Everything applied, shared between who applies, who reads and who writes it down.
#[derive(Clone)]
pub struct Shared {
    /// The lock that K1 speaks of.
    pub keyspace: Arc<RwLock<Keyspace>>,
    standing: Arc<Mutex<Standing>>,
    /// How many snapshots took the place of entries.
    installs: Arc<AtomicU64>,
    /// Of the whole keyspace, at some entries; oldest first.
    digests: Arc<Mutex<VecDeque<Taken>>>,
    /// What is wrong with this member, by what it is about.
    complaints: Arc<Mutex<BTreeMap<&'static str, String>>>,
    /// What is counted.
    pub meters: Meters,
}

/// The digest of the keyspace after the entry with this index.
pub type Taken = (u64, [u8; 16]);

/// What stands beside the keyspace.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The certified replica.
    pub region: Arc<Region>,
    /// The last entry applied.
    pub applied: Option<LogId>,
    /// The membership at that entry.
    pub membership: Membership,
    /// The replica changed since the last checkpoint.
    pub region_changed: bool,
}

impl Shared {
    /// The state that was on disk.
    #[must_use]
    pub fn new(restored: Restored) -> Self {
        let Restored { region, keyspace, applied, membership } = restored;
        let region = Arc::new(region);
        let standing = Standing { region, applied, membership, region_changed: false };
        Self {
            keyspace: Arc::new(RwLock::new(keyspace)),
            standing: Arc::new(Mutex::new(standing)),
            installs: Arc::default(),
            digests: Arc::default(),
            complaints: Arc::default(),
            meters: Meters::default(),
        }
    }

    /// Locks both, to change them together (K1).
    pub fn lock(&self) -> (RwLockWriteGuard<'_, Keyspace>, MutexGuard<'_, Standing>) {
        // A panic while applying stops the process; nobody uses what it left.
        let keyspace = self.keyspace.write().unwrap_or_else(PoisonError::into_inner);
        (keyspace, self.standing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many snapshots took the place of entries.
    #[must_use]
    pub fn installs(&self) -> u64 {
        self.installs.load(Ordering::Acquire)
    }

    /// Takes the keyspace's digest if this entry is one at which all members do.
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
    pub fn digests(&self) -> Vec<Taken> {
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.iter().copied().collect()
    }

    /// Something is wrong with this member, or no longer. Says whether that is news.
    pub fn complain(&self, about: &'static str, why: Option<&str>) -> bool {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => complaints.insert(about, why.to_owned()).is_none(),
            None => complaints.remove(about).is_some(),
        }
    }

    /// What is wrong with this member.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.iter().map(|(about, why)| format!("{about}: {why}")).collect()
    }

    /// Looks at the keyspace.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        f(&self.keyspace.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What stands beside the keyspace now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces everything, by a snapshot that is on disk already.
    pub fn replace(&self, restored: Restored) {
        let Restored { region, keyspace, applied, membership } = restored;
        let (mut held, mut standing) = self.lock();
        let region = Arc::new(region);
        *standing = Standing { region, applied, membership, region_changed: false };
        // Freed after the lock: dropping millions of keys takes a while.
        let old = std::mem::replace(&mut *held, keyspace);
        drop((held, standing));
        drop(old);
    }
}

/// Asks for a checkpoint now; answered when what was applied before is on disk.
pub type CheckpointRequest = tokio::sync::oneshot::Sender<()>;

/// Writes checkpoints. Clones are the same one.
#[derive(Clone)]
pub struct Checkpoints(Arc<Mutex<Checkpointer>>);

impl Checkpoints {
    /// Continues after what `shared` was restored from; `reserve` is for when the disk is full.
    #[must_use]
    pub fn new(shared: Shared, state: Arc<State>, reserve: Arc<Reserve>) -> Self {
        Self(Arc::new(Mutex::new(Checkpointer::new(shared, state, reserve))))
    }

    /// The body of the checkpoint thread: serves `requests` until all senders are gone.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (K3).
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

    /// Writes a checkpoint for whoever asked, even if it is of nothing. They wait while the disk is
    /// full (K4).
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (K3).
    pub fn serve(&self, request: CheckpointRequest) -> Result<(), StorageError> {
        let mut held = self.lock();
        held.waiting.push(request);
        held.step()
    }

    /// Writes all that was applied before the call.
    ///
    /// # Errors
    ///
    /// [`StorageError::NoSpace`] if the disk is full; after any other the process must stop (K3).
    pub fn complete(&self) -> Result<(), StorageError> {
        self.lock().write_all()
    }

    /// Writes what changed, if anything did, and reclaims a little.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (K3).
    pub fn step(&self) -> Result<(), StorageError> {
        self.lock().step()
    }

    /// Puts a snapshot in the place of disk and memory.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop (K3).
    pub fn install(&self, received: Received, restored: Restored) -> Result<(), StorageError> {
        let mut held = self.lock();
        held.state.replace(received)?;
        held.pending = None;
        held.written = restored.applied;
        held.compacted = restored.keyspace.store().compacted();
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
    /// The compaction that all of the history on disk was gone through for, and that for which it is
    /// being gone through.
    reclaimed: i64,
    reclaiming: Option<i64>,
    /// K4: taken from the keyspace, and not on disk.
    pending: Option<Pending>,
    /// Those that asked for a checkpoint.
    waiting: Vec<CheckpointRequest>,
    steps: u64,
}

/// A checkpoint that is to be written.
struct Pending {
    checkpoint: Checkpoint,
    applied: Option<LogId>,
    compacted: i64,
}

impl Checkpointer {
    fn new(shared: Shared, state: Arc<State>, reserve: Arc<Reserve>) -> Self {
        let written = shared.standing().applied;
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
        // K4: what it gave is taken back as soon as there is room.
        self.reserve.refill()?;
        self.steps += 1;
        if self.steps.is_multiple_of(SCRUB_EVERY_STEPS) {
            self.scrub()?;
        }
        Ok(())
    }

    /// Brings everything that was applied to disk, and answers whoever waits for that.
    fn write_all(&mut self) -> Result<(), StorageError> {
        if self.pending.is_some() {
            self.write()?;
        }
        let asked_first = !self.waiting.is_empty() && self.state.applied()?.is_none();
        if asked_first || self.shared.standing().applied != self.written {
            self.write()?;
        }
        for request in self.waiting.drain(..) {
            // Whoever asked may have been cancelled; the checkpoint stands.
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
        // K4
        if is_only_full(&written) && self.reserve.release()? {
            tracing::warn!("the disk is full: the reserve is given back");
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

    /// What has changed since the last call.
    fn take(&self) -> Result<Pending, StorageError> {
        let (mut keyspace, mut standing) = self.shared.lock();
        // K1
        let changes = keyspace.take_changes();
        let compacted = keyspace.store().compacted();
        let taken = standing.clone();
        standing.region_changed = false;
        drop((keyspace, standing));
        let mark = applied_mark(taken.applied, &taken.membership);
        let region = taken.region_changed.then_some(&*taken.region);
        let on_disk = u64::try_from(compacted).unwrap_or(0);
        let checkpoint = disk::checkpoint(mark, on_disk, changes, region)?;
        Ok(Pending { checkpoint, applied: taken.applied, compacted })
    }

    /// Complains, or no longer does; the log hears of it once.
    fn tell(&self, about: &'static str, error: Option<&StorageError>) {
        let why = error.map(ToString::to_string);
        if self.shared.complain(about, why.as_deref())
            && let Some(error) = error
        {
            tracing::error!(%error, "this member needs an operator");
        }
    }

    /// K5
    fn scrub(&mut self) -> Result<(), StorageError> {
        let scrubbed = self.state.scrub(DISK_SCRUB_BYTES);
        let rotten = matches!(scrubbed, Err(StorageError::Damaged { .. }));
        if !rotten {
            scrubbed?;
            return Ok(());
        }
        self.tell(DISK_ROTTEN, scrubbed.as_ref().err());
        Ok(())
    }

    fn reclaim(&mut self) -> Result<(), StorageError> {
        self.reclaim_memory();
        let reclaimed = self.reclaim_disk();
        // K4
        if is_only_full(&reclaimed) { Ok(()) } else { reclaimed }
    }

    fn reclaim_memory(&self) {
        for _ in 0..MEMORY_RECLAIM_PIECES {
            let (mut keyspace, standing) = self.shared.lock();
            drop(standing);
            let reclaimed = keyspace.reclaim(MEMORY_RECLAIM_VERSIONS);
            drop(keyspace);
            if reclaimed == kv::Reclaimed::Everything {
                return;
            }
            thread::sleep(MEMORY_RECLAIM_BREATH);
        }
    }

    /// Goes through the history once for each compaction, and then rests.
    fn reclaim_disk(&mut self) -> Result<(), StorageError> {
        for _ in 0..DISK_RECLAIM_PIECES {
            let compacted = self.compacted;
            if compacted <= 0 || compacted == self.reclaimed {
                return Ok(());
            }
            // A compaction that comes while this is under way has been missed by what lies behind.
            let began = *self.reclaiming.get_or_insert(compacted);
            let done = self.state.reclaim(DISK_RECLAIM_BYTES, |key, revision| {
                // K2
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

/// Whether nothing is wrong but that there is no room.
fn is_only_full<T>(result: &Result<T, StorageError>) -> bool {
    result.as_ref().is_err_and(|error| error.is_full() && !error.is_fatal())
}

#[cfg(test)]
mod tests;
