//! The key-value store of a ring: keys, all their versions since the last compaction, and revisions
//! counted exactly as in etcd 3.7.
//!
//! Every member applies the same requests in the same order and must give the same replies, byte by
//! byte; clients written for etcd must see no difference. So the store has all of etcd's corner
//! cases, and the tests name the known ones.
//!
//! ```text
//!                       index: key ─▶ versions, oldest first
//!   put, delete, txn ──▶                                        ──▶ range, scan, compare
//!                       log: revision ─▶ writes                 ──▶ events (watches)
//!                       untaken: writes ──▶ take_events (the disk)
//! ```
//!
//! # Invariants
//!
//! - **KV-1** A request that writes takes one main revision, the next; one that writes nothing
//!   takes none. A refused request changes nothing.
//! - **KV-2** The first write has revision 2, and revisions never decrease.
//! - **KV-3** The result of a read at or after the compacted revision never changes. From the
//!   moment of the compaction every read before it is refused, however far [`Store::reclaim`] got.
//! - **KV-4** No answer, size or digest depends on the progress of `reclaim`.
//! - **KV-5** Outside of a transaction no version has a revision beyond [`Store::revision`].
//!
//! # Deliberately absent
//!
//! Time, expiry of leases, permissions and quotas; [`crate::keyspace`] has them. The store only
//! asks whether a lease exists, through [`Owner`].

mod codec;
mod codec_response;
mod compact;
mod history;
mod index;
mod log;
mod read;
mod tally;
mod txn;
mod write;

pub mod check;
pub mod request;
pub mod response;

#[cfg(test)]
mod tests;

pub use codec::{Decode, Ownership};
pub use compact::{Reclaimed, RestoreError};
pub use read::{Budget, Progress, Scan};
pub use request::*;
pub use response::*;
pub use tally::{Tally, VERSION_OVERHEAD_BYTES};

use core::mem;
use std::sync::Arc;

use index::Index;
use log::EventLog;
use tally::{Mark, Marks, Sums};

use crate::Refusal;

/// The state around a store: it knows the leases, and is notified of writes.
pub trait Owner {
    /// Whether `lease` exists, which is not zero, so that keys can be attached to it.
    fn lease_exists(&self, lease: LeaseId) -> bool;

    /// Called after a write; `replaced` is the previous version, if the key existed. Called once
    /// for each write, in order, after the whole request has succeeded.
    fn wrote(&mut self, event: &Event, replaced: Option<&Event>);
}

/// No owner: no lease exists, and writes are not reported.
impl Owner for () {
    fn lease_exists(&self, _: LeaseId) -> bool {
        false
    }

    fn wrote(&mut self, _: &Event, _: Option<&Event>) {}
}

/// The memory that versions take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Versions that reads can reach; the same on every member, so quotas compare with this. etcd
    /// calls it the database size in use.
    pub held_bytes: u64,
    /// The same with compacted versions that are not reclaimed yet; differs between members. etcd's
    /// database size.
    pub resident_bytes: u64,
}

/// A digest of the content of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionHash {
    /// Digest of every version that is readable at some revision from the compacted one to
    /// `revision`.
    pub hash: u128,
    /// The compacted revision; -1 if there was no compaction.
    pub compacted: Revision,
    /// The last revision covered.
    pub revision: Revision,
}

/// A write that may still be rolled back, and the version that it replaced.
#[derive(Debug)]
struct OpenWrite {
    event: Event,
    replaced: Option<Event>,
}

/// The key-value store.
#[derive(Debug)]
pub struct Store {
    index: Index,
    log: EventLog,
    revision: Revision,
    /// -1 until the first compaction, as in etcd; a client can observe it, by compacting at 0.
    compacted: Revision,
    /// Writes of the current request; empty between requests (KV-5).
    open: Vec<OpenWrite>,
    untaken: Vec<Event>,
    sums: Sums,
    /// The sums after the last finished request, to which a rollback returns.
    settled: Sums,
    marks: Marks,
    reclaim: compact::ReclaimState,
    resident_bytes: u64,
}

/// The revision of a store without writes.
const REVISION_START: Revision = 1;

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A store without writes: revision 1, nothing compacted.
    #[must_use]
    pub fn new() -> Self {
        Self {
            index: Index::default(),
            log: EventLog::starting_at(REVISION_START + 1),
            revision: REVISION_START,
            compacted: -1,
            open: Vec::new(),
            untaken: Vec::new(),
            sums: Sums::default(),
            settled: Sums::default(),
            marks: Marks::starting_at(-1, Sums::default()),
            reclaim: compact::ReclaimState::after(REVISION_START),
            resident_bytes: 0,
        }
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The compacted revision, which is the oldest readable one; -1 if there was no compaction.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The number of live keys.
    #[must_use]
    pub fn live_keys(&self) -> u64 {
        self.sums.live.versions
    }

    /// The live version of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Event> {
        self.index.at(key, Revision::MAX)
    }

    /// The version of a key at `revision`; the live one if that is zero or less.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Result<Option<&Event>, Refusal> {
        let at = self.readable(revision)?;
        Ok(self.index.at(key, at))
    }

    /// The previous value that a watch shows with `event`: the version of the key at the revision
    /// before. `None` if that is compacted, as in etcd.
    #[must_use]
    pub fn previous(&self, event: &KeyValue) -> Option<&Event> {
        match event.mod_revision - 1 {
            ..=0 => None,
            revision => self.get_at(event.key(), revision).ok().flatten(),
        }
    }

    /// Whether the key exists now.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// The oldest revision whose writes [`Store::events`] has, so the earliest start of a watch:
    /// the compacted revision itself, as in etcd, or the first write.
    #[must_use]
    pub fn first_event_revision(&self) -> Revision {
        self.log.first().max(self.compacted)
    }

    /// The writes of up to `revisions_max` revisions from `from` on, one slice for each revision.
    ///
    /// A `from` before [`Store::first_event_revision`] starts there: a caller that must not miss a
    /// write compares first.
    pub fn events(
        &self,
        from: Revision,
        revisions_max: usize,
    ) -> impl Iterator<Item = &[Event]> + use<'_> {
        self.log.from(from.max(self.first_event_revision())).take(revisions_max)
    }

    /// The writes of one revision; empty if it is before [`Store::first_event_revision`] or in the
    /// future.
    #[must_use]
    pub fn events_at(&self, revision: Revision) -> &[Event] {
        if revision < self.compacted { &[] } else { self.log.at(revision) }
    }

    /// Takes every write since the last call, in order, also those compacted meanwhile. Takes
    /// constant time.
    pub fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.untaken)
    }

    /// The memory that versions take.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes { held_bytes: self.held().bytes, resident_bytes: self.resident_bytes }
    }

    /// The sum over the held versions: everything that a read at or after the compacted revision
    /// can find, and the deletions since. Equal on members that applied the same requests (KV-4).
    #[must_use]
    pub fn held(&self) -> Tally {
        self.held_until(self.sums.written)
    }

    /// The digest of the held versions up to `revision`, or up to now if that is zero or less. Like
    /// etcd's `HashKV` it depends on the compacted revision; the numbers differ from etcd's.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn hash_kv(&self, revision: Revision) -> Result<RevisionHash, Refusal> {
        let revision = self.readable(revision)?;
        let written = self.sums_after(revision).written;
        let hash = self.held_until(written).digest;
        Ok(RevisionHash { hash, compacted: self.compacted, revision })
    }

    fn held_until(&self, written: Tally) -> Tally {
        let base = self.marks.first().sums;
        base.live.plus(written.minus(base.written))
    }

    /// The running sums after `revision`, which is not compacted.
    fn sums_after(&self, revision: Revision) -> Sums {
        if revision >= self.revision {
            return self.sums;
        }
        let Mark { revision: marked, mut sums } = self.marks.before(revision);
        let passed = usize::try_from(revision - marked.max(self.log.first() - 1)).unwrap_or(0);
        for event in self.log.from(marked + 1).take(passed).flatten() {
            let replaced = self.index.versions(event.key()).and_then(|v| v.before(event));
            sums = sums.after(event, replaced.map(Arc::as_ref));
        }
        sums
    }

    /// The revision to read at for a requested `revision`.
    fn readable(&self, revision: Revision) -> Result<Revision, Refusal> {
        let current = self.horizon();
        match revision {
            r if r > current => Err(Refusal::FutureRevision { current }),
            ..=0 => Ok(current),
            r if r < self.compacted => Err(Refusal::Compacted { compacted: self.compacted }),
            r => Ok(r),
        }
    }

    /// The newest revision that the current request can see: its own, once it has written.
    fn horizon(&self) -> Revision {
        self.revision + Revision::from(!self.open.is_empty())
    }
}
