//! Tells those who wait for a key to go that it is gone.
//!
//! Those who queue for a lock each wait for the one before them, so a release must wake one of them
//! and cost the others nothing. A watch per waiter, or a look at the key after every write, would
//! wake all. Here one of the waiters reads the log for everybody; when its own wait is over, it hands
//! the seat to the next.
//!
//! # Invariants
//!
//! - **N1** No waiter hears too early: what is gone is this incarnation of the key, known by the
//!   revision at which it was created.
//! - **N2** No waiter is forgotten: a wait begins with a look at the key, and the log is read without a
//!   gap from then on, or every key is looked at again.
//! - **N3** A waiter that gives up leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use satrap_regional_core::kv::Store;
use satrap_regional_core::kv::request::Revision;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::backend::{Backend, Unavailable};
use crate::limits::{CONTENDERS_MAX, DEPARTURES_REVISIONS_AT_ONCE};

/// The waiting room of one member. Clones share it.
#[derive(Clone, Debug)]
pub struct Departures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    backend: Backend,
    places: Arc<Semaphore>,
    /// The waiter that holds it reads the log.
    seat: tokio::sync::Mutex<()>,
    board: Mutex<Board>,
    /// What is still to be done for clients that went away; ends with this room.
    sweeping: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Board {
    /// Everything up to here was looked at, for those who wait.
    seen: Revision,
    tickets: u64,
    waiting: BTreeMap<Bytes, Vec<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    created: Revision,
    gone: oneshot::Sender<()>,
}

impl Departures {
    /// For the keys of this ring.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self(Arc::new(Shared {
            backend,
            places: Arc::new(Semaphore::new(CONTENDERS_MAX)),
            seat: tokio::sync::Mutex::new(()),
            board: Mutex::default(),
            sweeping: Mutex::default(),
        }))
    }

    /// A place for one client that is going to wait, perhaps for several keys.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`] if the room is full.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Unavailable> {
        let place = self.0.places.clone().try_acquire_owned();
        place.map_err(|_| Unavailable::TooManyRequests)
    }

    /// Finishes what a client left behind. Beyond as many as may wait, it is left to the leases.
    pub fn sweep(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut sweeping = self.0.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        while sweeping.try_join_next().is_some() {}
        // A runtime that stops takes nothing more.
        if let Ok(runtime) = Handle::try_current()
            && sweeping.len() < CONTENDERS_MAX
        {
            sweeping.spawn_on(task, &runtime);
        }
    }

    /// Waits until `key`, as it was created at `created`, is gone.
    ///
    /// # Errors
    ///
    /// [`Unavailable::Stopped`].
    pub async fn gone(&self, key: Bytes, created: Revision) -> Result<(), Unavailable> {
        let Some(mut ticket) = self.wait(key, created) else {
            return Ok(());
        };
        tokio::select! {
            biased;
            _ = &mut ticket.gone => Ok(()),
            _seat = self.0.seat.lock() => self.read_for_all(&mut ticket.gone).await,
        }
    }

    fn wait(&self, key: Bytes, created: Revision) -> Option<Ticket> {
        let mut board = self.0.board();
        let (present, revision) = self.0.backend.read(|keyspace| {
            (is_present(keyspace.store(), &key, created), keyspace.store().revision())
        });
        if !present {
            return None;
        }
        if board.waiting.is_empty() {
            board.seen = revision;
        }
        let (sender, gone) = oneshot::channel();
        board.tickets += 1;
        let number = board.tickets;
        let waiter = Waiter { ticket: number, created, gone: sender };
        board.waiting.entry(key.clone()).or_default().push(waiter);
        Some(Ticket { shared: self.0.clone(), key, number, gone })
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
    fn board(&self) -> MutexGuard<'_, Board> {
        // Every critical section leaves the board whole.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at some of what is new; says whether there is more.
    fn step(&self) -> bool {
        let mut board = self.board();
        self.backend.read(|keyspace| board.look(keyspace.store()))
    }
}

impl Board {
    fn look(&mut self, store: &Store) -> bool {
        let newest = store.revision();
        // N2: the log has a gap for us after a compaction, and after the state was replaced.
        if self.seen > newest || self.seen + 1 < store.first_event_revision() {
            self.waiting
                .retain(|key, waiters| depart(waiters, |created| !is_present(store, key, created)));
            self.seen = newest;
            return false;
        }
        for events in store.events(self.seen + 1, DEPARTURES_REVISIONS_AT_ONCE) {
            self.seen += 1;
            for event in events.iter().filter(|event| event.is_deletion()) {
                let Some(waiters) = self.waiting.get_mut(event.key()) else { continue };
                // N1
                if !depart(waiters, |created| event.mod_revision > created) {
                    self.waiting.remove(event.key());
                }
            }
        }
        self.seen < newest
    }

    fn forget(&mut self, key: &Bytes, ticket: u64) {
        if let Some(waiters) = self.waiting.get_mut(key) {
            waiters.retain(|waiter| waiter.ticket != ticket);
            if waiters.is_empty() {
                self.waiting.remove(key);
            }
        }
    }
}

/// Tells those for whom it is true; says whether anybody still waits.
fn depart(waiters: &mut Vec<Waiter>, gone: impl Fn(Revision) -> bool) -> bool {
    for waiter in waiters.extract_if(.., |waiter| gone(waiter.created)) {
        // A waiter that gave up meanwhile need not know.
        let _ = waiter.gone.send(());
    }
    !waiters.is_empty()
}

/// A place on the board (N3).
#[derive(Debug)]
struct Ticket {
    shared: Arc<Shared>,
    key: Bytes,
    number: u64,
    gone: oneshot::Receiver<()>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.board().forget(&self.key, self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use satrap_regional_core::Keyspace;

    use super::*;
    use crate::backend::MemberIdentity;

    #[test]
    fn the_room_has_as_many_places_as_it_says() {
        let identity = MemberIdentity { cluster_id: 1, member_id: 2, name: String::new() };
        let state = Arc::new(RwLock::new(Keyspace::new()));
        let departures = Departures::new(Backend::new(identity, state, 1).0);
        let mut places: Vec<_> =
            (0..CONTENDERS_MAX).map(|_| departures.place().expect("there is room")).collect();
        assert_eq!(departures.place().err(), Some(Unavailable::TooManyRequests));
        places.pop();
        assert!(departures.place().is_ok());
    }
}
