//! Encoded updates: shared by followers at one position, charged to their identities, and dropped
//! when they are not taken (FOLLOW-2, FOLLOW-4).

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use satrap_certify::{
    Digest, Position, Replica, Update, limits::STEP_BYTES_MAX, update::HistoryUpdate,
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::fault;
use satrap_proto::v1::FollowReply;
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    task, time,
};
use tonic::Status;

use super::{
    limits::{
        CACHE_BYTES_MAX, CACHE_ENTRIES_MAX, CACHE_ENTRIES_PER_IDENTITY_MAX, EDGE_ANSWER_BYTES_MAX,
        POSITIONS, RELAY_ANSWER_BYTES_MAX, REPORTS, SCOPE_BYTES_MAX, SCOPE_POSITIONS,
        SCOPE_REPORTS, SWEEP_PERIOD, TAKE_WITHIN,
    },
    pace::{Pace, TooFast},
};
use crate::pieces::piece;
use satrap_identity::pki::{PeerIdentity, Role, Scope, SpiffeId};
use satrap_runtime::{Shutdown, clock};

/// Updates longer than this are encoded on another thread.
const INLINE_BYTES_MAX: usize = 256 * 1024;

/// An encoded update; its room is given back when the last follower has taken it.
#[derive(Debug)]
struct Encoded {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

type Cell = Arc<OnceCell<Arc<Encoded>>>;

/// Encoded updates for the newest height, by the position they start from.
#[derive(Default)]
struct Cache {
    height: u64,
    bytes: usize,
    cells: HashMap<Vec<u8>, Cell>,
    /// How many of them each identity was the first to ask for.
    askers: HashMap<Arc<SpiffeId>, usize>,
}

/// The half of [`Sending`] that the sweep sees.
struct Slot {
    encoded: Mutex<Option<Arc<Encoded>>>,
    since: Duration,
}

/// An update on its way to one follower.
pub(super) struct Sending {
    slot: Arc<Slot>,
    sent: usize,
    _charge: OwnedSemaphorePermit,
}

struct Inner {
    cache: Mutex<Cache>,
    rooms: Mutex<HashMap<Scope, Arc<Semaphore>>>,
    /// Room that each identity has for updates it has not taken.
    purses: Mutex<HashMap<Arc<SpiffeId>, Arc<Semaphore>>>,
    positions: Pace,
    reports: Pace,
    slots: Mutex<Vec<Weak<Slot>>>,
}

/// All answers of one server. Clones share them.
#[derive(Clone)]
pub(super) struct Answers(Arc<Inner>);

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Inner {
            cache: Mutex::default(),
            rooms: Mutex::default(),
            purses: Mutex::default(),
            positions: Pace::new(POSITIONS, SCOPE_POSITIONS),
            reports: Pace::new(REPORTS, SCOPE_REPORTS),
            slots: Mutex::default(),
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is a few moves, so the state is whole even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answers {
    fn purse(&self, id: &Arc<SpiffeId>) -> Arc<Semaphore> {
        let new = || Arc::new(Semaphore::new(purse_bytes(id)));
        lock(&self.0.purses).entry(id.clone()).or_insert_with(new).clone()
    }

    /// Counts a position that `id` named, whose scope may be the server's own.
    pub fn charge_position(&self, id: &Arc<SpiffeId>, is_own: bool) -> Result<(), Status> {
        self.0.positions.take(id, is_own).map_err(|TooFast { whose, wait }| {
            fault::limited(format!("{whose} names positions too often"), wait.or(Some(TAKE_WITHIN)))
        })
    }

    /// Whether a report of `id`, whose scope may be the server's own, is within its rates.
    pub fn may_report(&self, id: &Arc<SpiffeId>, is_own: bool) -> bool {
        self.0.reports.take(id, is_own).is_ok()
    }

    /// Encodes `update`, which leads from `position` to `replica`, once for all who ask for it now,
    /// and charges `peer` for its share. Waits while the peer has not taken what it was given.
    pub async fn sending(
        &self,
        peer: &PeerIdentity,
        replica: &Replica,
        position: &Position,
        update: Update,
    ) -> Result<Sending, Status> {
        let purse = self.purse(&peer.id);
        let size = size_at_most(&update).min(purse_bytes(&peer.id));
        let charge = acquire(&purse, size).await?;
        let cell = self.cell(replica.height(), key(replica, position), &peer.id);
        let encoded = self.encoded(&peer.id, replica.height(), cell.as_ref(), update).await?;
        let slot = Slot { encoded: Mutex::new(Some(encoded)), since: clock::monotonic() };
        let slot = Arc::new(slot);
        lock(&self.0.slots).push(Arc::downgrade(&slot));
        Ok(Sending { slot, sent: 0, _charge: charge })
    }

    /// `update`, encoded by the first of those who share `cell` that has room for it.
    async fn encoded(
        &self,
        id: &SpiffeId,
        height: u64,
        cell: Option<&Cell>,
        update: Update,
    ) -> Result<Arc<Encoded>, Status> {
        if let Some(encoded) = cell.and_then(|cell| cell.get()) {
            return Ok(encoded.clone());
        }
        // Before the cell is entered: the others in it must not wait for the room of a scope that
        // takes nothing of what it is given (FOLLOW-4).
        let room = acquire(&self.room(id.scope()), size_at_most(&update)).await?;
        let Some(cell) = cell else { return encode(update, room).await };
        let first = async || {
            let encoded = encode(update, room).await?;
            self.count(height, cell, encoded.bytes.len());
            Ok::<_, Status>(encoded)
        };
        Ok(cell.get_or_try_init(first).await?.clone())
    }

    /// The place of an update among those that are shared, if there is room for one more.
    /// An identity that asks from ever new positions gets a few places, so that it cannot keep
    /// others from sharing.
    fn cell(&self, height: u64, key: Vec<u8>, asker: &Arc<SpiffeId>) -> Option<Cell> {
        let mut cache = lock(&self.0.cache);
        if cache.height < height {
            *cache = Cache { height, ..Cache::default() };
        }
        if let Some(cell) = cache.cells.get(&key) {
            return Some(cell.clone());
        }
        if cache.height != height || cache.cells.len() >= CACHE_ENTRIES_MAX {
            return None;
        }
        let asked = cache.askers.entry(asker.clone()).or_default();
        if *asked >= CACHE_ENTRIES_PER_IDENTITY_MAX {
            return None;
        }
        *asked += 1;
        let cell = Cell::default();
        cache.cells.insert(key, cell.clone());
        Some(cell)
    }

    /// Counts an update that was just encoded; one that is too much for the cache leaves it.
    fn count(&self, height: u64, cell: &Cell, bytes: usize) {
        let mut cache = lock(&self.0.cache);
        if cache.height != height {
            return;
        }
        if cache.bytes + bytes > CACHE_BYTES_MAX {
            cache.cells.retain(|_, held| !Arc::ptr_eq(held, cell));
        } else {
            cache.bytes += bytes;
        }
    }

    /// The room for different updates of one scope (FOLLOW-4); scopes are those of the trusted CAs.
    fn room(&self, scope: Scope) -> Arc<Semaphore> {
        let new = || Arc::new(Semaphore::new(SCOPE_BYTES_MAX));
        lock(&self.0.rooms).entry(scope).or_insert_with(new).clone()
    }

    /// Drops what was not taken in time, and forgets identities that cost nothing any more.
    pub async fn sweep(self, shutdown: Shutdown) -> Result<(), Infallible> {
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                () = time::sleep(SWEEP_PERIOD) => {
                    self.drop_untaken(clock::monotonic());
                    // A permit holds its semaphore, so one that is held here alone is whole.
                    lock(&self.0.purses).retain(|_, purse| Arc::strong_count(purse) > 1);
                }
            }
        }
    }

    fn drop_untaken(&self, now: Duration) {
        lock(&self.0.slots).retain(|slot| {
            let Some(slot) = slot.upgrade() else { return false };
            let late = now.saturating_sub(slot.since) > TAKE_WITHIN;
            if late {
                lock(&slot.encoded).take();
            }
            !late
        });
    }
}

impl Sending {
    /// The next piece; `None` after the last.
    pub fn next(&mut self) -> Result<Option<FollowReply>, Status> {
        let encoded = lock(&self.slot.encoded);
        let Some(encoded) = &*encoded else {
            let why = format!("an update was not taken within {TAKE_WITHIN:?}; ask again");
            return Err(fault::limited(why, None));
        };
        if self.sent == encoded.bytes.len() {
            return Ok(None);
        }
        let reply = piece(&encoded.bytes, self.sent);
        self.sent += reply.update.len();
        Ok(Some(reply))
    }
}

/// Encodes `update`, for which there is `room`; no other follower can hold this up.
async fn encode(update: Update, mut room: OwnedSemaphorePermit) -> Result<Arc<Encoded>, Status> {
    let size = room.num_permits();
    let bytes = if size <= INLINE_BYTES_MAX {
        update.to_canonical()
    } else {
        let encoded = task::spawn_blocking(move || update.to_canonical()).await;
        encoded.map_err(|_| fault::unavailable("this server is stopping; ask another one"))?
    };
    // The estimate was generous.
    drop(room.split(size.saturating_sub(bytes.len())));
    Ok(Arc::new(Encoded { bytes: bytes.into(), _room: room }))
}

fn purse_bytes(id: &SpiffeId) -> usize {
    match id.role() {
        Role::Edge { .. } => EDGE_ANSWER_BYTES_MAX,
        _ => RELAY_ANSWER_BYTES_MAX,
    }
}

async fn acquire(room: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
    let bytes = u32::try_from(bytes).expect("limits keep updates below 4 GiB");
    let permit = room.clone().acquire_many_owned(bytes).await;
    Ok(permit.expect("this semaphore is never closed"))
}

/// The question behind `position`: a directory that is not this replica's is any other.
fn key(replica: &Replica, position: &Position) -> Vec<u8> {
    let ours: Option<Digest> = replica.trusted().certified.as_ref().map(|(_, c)| c.directory_root);
    let mut position = position.clone();
    if Some(position.directory_root) != ours {
        position.directory_root = [0; 32];
    }
    position.to_canonical()
}

/// An upper bound of the encoded size, from the lengths of its parts.
fn size_at_most(update: &Update) -> usize {
    const FIXED_BYTES: usize = 1_024;
    let contents: u64 = update.contents.iter().map(|delta| delta.wire_bytes() + 256).sum();
    let history = match &update.history {
        Some(HistoryUpdate::Leaves(leaves)) => 32 * leaves.len(),
        Some(HistoryUpdate::Proof(_)) => 64 * 64,
        None => 0,
    };
    let heads = update.heads.as_ref().map_or(0, |proof| proof.to_canonical().len());
    let contents = usize::try_from(contents).expect("content is in memory");
    FIXED_BYTES + update.steps.len() * STEP_BYTES_MAX + history + heads + contents
}

#[cfg(test)]
mod tests;
