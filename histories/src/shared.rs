//! State that the clients of a run share with the thread that injects faults.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use satrap_history::{Nanos, Operation, Revision, random::Random};
use tokio::sync::Semaphore;

use crate::{answers::Answers, session::Dialer};

/// How many watchers open their streams at once.
const OPENING_MAX: usize = 16;

/// Lets some watchers at a time open their streams. Hundreds at once, as after the death of all
/// members, keep each other waiting for longer than each may wait, and then all begin anew.
#[derive(Debug)]
pub struct Turns(pub Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(OPENING_MAX))
    }
}

/// A member that clients may talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its slot.
    pub slot: usize,
    /// Where it listens.
    pub url: String,
}

/// Flags and counts of one run.
#[derive(Debug, Default)]
pub struct Shared {
    /// How clients connect.
    pub dialer: Dialer,
    /// When watchers open their streams.
    pub turns: Turns,
    peers: Mutex<Vec<Peer>>,
    writers_stop: AtomicBool,
    stop: AtomicBool,
    answers: Mutex<Answers>,
    recorded: Mutex<BTreeMap<usize, Revision>>,
    target: AtomicI64,
    acknowledged_ns: AtomicU64,
    caught_up: AtomicU64,
    waiters: AtomicU64,
}

/// Now, on the one clock of a run.
#[must_use]
pub fn now_ns() -> Nanos {
    u64::try_from(satrap_runtime::clock::monotonic().as_nanos()).unwrap_or(Nanos::MAX)
}

impl Shared {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, ..Self::default() }
    }

    /// The members that clients may talk to.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.peers.lock().map(|peers| peers.clone()).unwrap_or_default()
    }

    /// Replaces them.
    pub fn set_peers(&self, new: Vec<Peer>) {
        if let Ok(mut peers) = self.peers.lock() {
            *peers = new;
        }
    }

    /// One of them, if there are any.
    pub fn any_peer(&self, random: &mut Random) -> Option<Peer> {
        let peers = self.peers();
        (!peers.is_empty()).then(|| random.pick(&peers).clone())
    }

    /// Tells clients that write to end.
    pub fn stop_writers(&self) {
        self.writers_stop.store(true, Ordering::Relaxed);
    }

    /// Whether clients that write should end.
    #[must_use]
    pub fn writers_should_stop(&self) -> bool {
        self.writers_stop.load(Ordering::Relaxed)
    }

    /// Tells everyone to end.
    pub fn stop(&self) {
        self.stop_writers();
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether everyone should end.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counts an operation of a client.
    pub fn count(&self, operation: &Operation) {
        if let Ok(mut answers) = self.answers.lock() {
            answers.add(operation);
        }
        if operation.wrote_at().is_some() {
            self.acknowledged_ns.fetch_max(operation.call_ns, Ordering::Relaxed);
        }
    }

    /// The answers that clients have had.
    #[must_use]
    pub fn answers(&self) -> Answers {
        self.answers.lock().map(|answers| answers.clone()).unwrap_or_default()
    }

    /// When the youngest acknowledged write was called.
    #[must_use]
    pub fn acknowledged_ns(&self) -> Nanos {
        self.acknowledged_ns.load(Ordering::Relaxed)
    }

    /// Notes that the recorder of a slot holds all up to a revision that it could get.
    pub fn record(&self, slot: usize, revision: Revision) {
        if let Ok(mut recorded) = self.recorded.lock() {
            recorded.insert(slot, revision);
        }
    }

    /// How far the recorder of a slot is.
    #[must_use]
    pub fn recorded_of(&self, slot: usize) -> Revision {
        let recorded = self.recorded.lock();
        recorded.map_or(0, |recorded| recorded.get(&slot).copied().unwrap_or(0))
    }

    /// The revision up to which the log is on record, so that it may be compacted. One recorder
    /// suffices: what another one misses was compacted, and so on record before.
    #[must_use]
    pub fn recorded(&self) -> Revision {
        let recorded = self.recorded.lock();
        recorded.map_or(0, |recorded| recorded.values().copied().max().unwrap_or(0))
    }

    /// Sets the last revision, which watchers wait for.
    pub fn set_target(&self, revision: Revision) {
        self.target.store(revision, Ordering::Relaxed);
    }

    /// Counts a watcher or recorder that will wait for the last revision.
    pub fn will_wait(&self) {
        self.waiters.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that has it.
    pub fn has_caught_up(&self) {
        self.caught_up.fetch_add(1, Ordering::Relaxed);
    }

    /// How many do not have it yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiters.load(Ordering::Relaxed) - self.caught_up.load(Ordering::Relaxed)
    }

    /// The last revision, once it is known.
    #[must_use]
    pub fn target(&self) -> Option<Revision> {
        Some(self.target.load(Ordering::Relaxed)).filter(|target| *target > 0)
    }
}
