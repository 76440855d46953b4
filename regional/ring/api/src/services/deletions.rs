//! Wakes tasks that wait for a key to be deleted.
//!
//! Each contender for a lock waits for the key of the contender before it, so a release must wake one waiter and cost
//! the others nothing. A watch per waiter, or a read of the key after every write, would wake all. Here one of the
//! waiters reads the event log for all; when its own wait is over, another waiter takes over.
//!
//! # Invariants
//!
//! - **DELETION-1** No waiter is woken too early: it waits for one incarnation of the key, identified by its create
//!   revision.
//! - **DELETION-2** No waiter is missed: a wait begins with a read of the key, and from then on the event log is read
//!   without a gap, or every key is read again.
//! - **DELETION-3** A waiter that gives up leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use satrap_ring_core::kv::Store;
use satrap_ring_core::kv::request::Revision;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::calls::Unavailable;
use crate::limits::{CONTENDERS_MAX, DELETIONS_REVISIONS_AT_ONCE};

/// The waiters for deletions of keys at one member. Clones share it.
#[derive(Clone, Debug)]
pub struct Deletions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    backend: Backend,
    /// One permit for each client that may wait.
    slots: Arc<Semaphore>,
    /// The waiter that holds this lock reads the event log for all.
    reader: tokio::sync::Mutex<()>,
    waiters: Mutex<Waiters>,
    /// Clean-up tasks for clients that left; aborted when this is dropped.
    cleanups: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Waiters {
    /// The newest revision whose events were compared with the waiters.
    seen: Revision,
    last_id: u64,
    waiting: BTreeMap<Bytes, Vec<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    created: Revision,
    gone: oneshot::Sender<()>,
}

impl Deletions {
    /// No waiters yet, for the keys of this ring.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self(Arc::new(Shared {
            backend,
            slots: Arc::new(Semaphore::new(CONTENDERS_MAX)),
            reader: tokio::sync::Mutex::new(()),
            waiters: Mutex::default(),
            cleanups: Mutex::default(),
        }))
    }

    /// Reserves a slot for one client that is going to wait, perhaps for several keys in turn.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`] if [`CONTENDERS_MAX`] clients wait already.
    pub fn reserve(&self) -> Result<OwnedSemaphorePermit, Unavailable> {
        let slot = self.0.slots.clone().try_acquire_owned();
        slot.map_err(|_| Unavailable::TooManyRequests)
    }

    /// Runs a clean-up task for a client that left. With [`CONTENDERS_MAX`] such tasks running it does nothing: the
    /// client's key then goes when its lease expires.
    pub fn clean_up(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut cleanups = self.0.cleanups.lock().unwrap_or_else(PoisonError::into_inner);
        while cleanups.try_join_next().is_some() {}
        // A runtime that is shutting down takes no more tasks.
        if let Ok(runtime) = Handle::try_current()
            && cleanups.len() < CONTENDERS_MAX
        {
            cleanups.spawn_on(task, &runtime);
        }
    }

    /// Waits until the incarnation of `key` that was created at revision `created` is deleted.
    ///
    /// # Errors
    ///
    /// [`Unavailable::Stopped`] if the ring stops.
    pub async fn gone(&self, key: Bytes, created: Revision) -> Result<(), Unavailable> {
        let Some(mut wait) = self.wait(key, created) else {
            return Ok(());
        };
        tokio::select! {
            biased;
            _ = &mut wait.gone => Ok(()),
            _reading = self.0.reader.lock() => self.read_for_all(&mut wait.gone).await,
        }
    }

    fn wait(&self, key: Bytes, created: Revision) -> Option<Wait> {
        let mut waiters = self.0.waiters();
        let (present, revision) = self.0.backend.inspect(|keyspace| {
            (is_present(keyspace.store(), &key, created), keyspace.store().revision())
        });
        if !present {
            return None;
        }
        if waiters.waiting.is_empty() {
            waiters.seen = revision;
        }
        let (sender, gone) = oneshot::channel();
        waiters.last_id += 1;
        let id = waiters.last_id;
        let waiter = Waiter { id, created, gone: sender };
        waiters.waiting.entry(key.clone()).or_default().push(waiter);
        Some(Wait { shared: self.0.clone(), key, id, gone })
    }

    async fn read_for_all(&self, mine: &mut oneshot::Receiver<()>) -> Result<(), Unavailable> {
        let mut applied = self.0.backend.applied();
        loop {
            while self.0.step() {
                tokio::task::yield_now().await;
            }
            tokio::select! {
                biased;
                _ = &mut *mine => return Ok(()),
                changed = applied.changed() => changed.map_err(|_| Unavailable::Stopped)?,
            }
        }
    }
}

fn is_present(store: &Store, key: &[u8], created: Revision) -> bool {
    store.get(key).is_some_and(|event| event.create_revision == created)
}

impl Shared {
    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        // Every critical section leaves the waiters valid, even after a panic.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares some new events with the waiters. Returns whether there are more.
    fn step(&self) -> bool {
        let mut waiters = self.waiters();
        self.backend.inspect(|keyspace| waiters.read_events(keyspace.store()))
    }
}

impl Waiters {
    fn read_events(&mut self, store: &Store) -> bool {
        let newest = store.revision();
        // DELETION-2: events are missing after a compaction, or after a snapshot replaced the state.
        if self.seen > newest || self.seen + 1 < store.first_event_revision() {
            self.waiting
                .retain(|key, waiters| wake(waiters, |created| !is_present(store, key, created)));
            self.seen = newest;
            return false;
        }
        for events in store.events(self.seen + 1, DELETIONS_REVISIONS_AT_ONCE) {
            self.seen += 1;
            for event in events.iter().filter(|event| event.is_deletion()) {
                let Some(waiters) = self.waiting.get_mut(event.key()) else { continue };
                // DELETION-1
                if !wake(waiters, |created| event.mod_revision > created) {
                    self.waiting.remove(event.key());
                }
            }
        }
        self.seen < newest
    }

    fn forget(&mut self, key: &Bytes, id: u64) {
        if let Some(waiters) = self.waiting.get_mut(key) {
            waiters.retain(|waiter| waiter.id != id);
            if waiters.is_empty() {
                self.waiting.remove(key);
            }
        }
    }
}

/// Wakes the waiters whose key is deleted. Returns whether any waiter is left.
fn wake(waiters: &mut Vec<Waiter>, gone: impl Fn(Revision) -> bool) -> bool {
    for waiter in waiters.extract_if(.., |waiter| gone(waiter.created)) {
        // The waiter may have given up meanwhile.
        let _ = waiter.gone.send(());
    }
    !waiters.is_empty()
}

/// One registered wait. Dropping it removes the waiter (DELETION-3).
#[derive(Debug)]
struct Wait {
    shared: Arc<Shared>,
    key: Bytes,
    id: u64,
    gone: oneshot::Receiver<()>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.shared.waiters().forget(&self.key, self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use satrap_ring_core::AppliedState;

    use super::*;
    use crate::members::MemberIdentity;

    #[test]
    fn as_many_may_wait_as_the_limit_says() {
        let identity = MemberIdentity { cluster_id: 1, member_id: 2, name: String::new() };
        let state = Arc::<RwLock<AppliedState>>::default();
        let deletions = Deletions::new(Backend::new(identity, state, 1).0);
        let mut slots: Vec<_> =
            (0..CONTENDERS_MAX).map(|_| deletions.reserve().expect("there is room")).collect();
        assert_eq!(deletions.reserve().err(), Some(Unavailable::TooManyRequests));
        slots.pop();
        assert!(deletions.reserve().is_ok());
    }
}
