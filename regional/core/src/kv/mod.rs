//! The key-value store of a ring: keys, all their versions since the last compaction, and
//! revisions counted exactly as etcd 3.7 counts them.
//!
//! Every member applies the same requests in the same order and must come to the same answers,
//! byte by byte; clients written for etcd must not be able to tell the difference. So each odd
//! corner of etcd is kept, and the tests name the ones we know.
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
//! - **K1** A request that writes takes one main revision, the next; one that writes nothing takes
//!   none. A refused request leaves no trace.
//! - **K2** The first write has revision 2, and revisions never decrease.
//! - **K3** What can be read at a revision at or after the compacted one never changes. Before it,
//!   every read is refused from the moment of the compaction, however far [`Store::reclaim`] got.
//! - **K4** No answer, size or digest depends on how far `reclaim` got.
//! - **K5** Outside of a transaction no version has a revision beyond [`Store::revision`].
//!
//! # Deliberately absent
//!
//! Time, leases' lives, permissions and quotas; [`crate::keyspace`] has them. Of leases the store
//! only asks whether one exists, through [`Owner`].

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

/// What the store asks of, and tells, the state it is part of.
pub trait Owner {
    /// Whether a key may be attached to `lease`, which is not zero.
    fn lease_exists(&self, lease: LeaseId) -> bool;

    /// A write that happened; `replaced` is what the key held before, if it existed. Called once
    /// for each write, in order, after the whole request has succeeded.
    fn wrote(&mut self, event: &Event, replaced: Option<&Event>);
}

/// Nobody: no lease exists and no write is noticed.
impl Owner for () {
    fn lease_exists(&self, _: LeaseId) -> bool {
        false
    }

    fn wrote(&mut self, _: &Event, _: Option<&Event>) {}
}

/// How much memory versions take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// What reads can still reach; the same on every member, so a quota compares with this. It is
    /// what etcd calls the database size in use.
    pub held_bytes: u64,
    /// With what is compacted and not yet reclaimed; differs between members. etcd's database size.
    pub resident_bytes: u64,
}

/// A digest of what a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionHash {
    /// Of every version that could be read at some revision from the compacted one to `revision`.
    pub hash: u128,
    /// The compacted revision; -1 if there was no compaction.
    pub compacted: Revision,
    /// The last revision that is covered.
    pub revision: Revision,
}

/// A write that has happened and may still be taken back, and what it replaced.
#[derive(Debug)]
struct OpenWrite {
    event: Event,
    replaced: Option<Event>,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    index: Index,
    log: EventLog,
    revision: Revision,
    /// -1 until the first compaction, as in etcd; a client can tell, by compacting at 0.
    compacted: Revision,
    /// Writes of the request being executed; empty between requests (K5).
    open: Vec<OpenWrite>,
    untaken: Vec<Event>,
    sums: Sums,
    /// The sums after the last finished request; what a roll-back returns to.
    settled: Sums,
    marks: Marks,
    reclaim: compact::ReclaimState,
    resident_bytes: u64,
}

/// The revision of a store that was never written.
const REVISION_START: Revision = 1;

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A store that was never written: revision 1, nothing compacted.
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

    /// The oldest revision that can be read; -1 if there was no compaction.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// How many keys exist now.
    #[must_use]
    pub fn live_keys(&self) -> u64 {
        self.sums.live.versions
    }

    /// What the key holds now.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Event> {
        self.index.at(key, Revision::MAX)
    }

    /// What the key held at `revision`; now if that is zero or less.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Result<Option<&Event>, Refusal> {
        let at = self.readable(revision)?;
        Ok(self.index.at(key, at))
    }

    /// What a watch that asked for it shows as the value before `event`: what the key held at the
    /// revision before. Nothing if that is compacted, as in etcd.
    #[must_use]
    pub fn previous(&self, event: &KeyValue) -> Option<&Event> {
        match event.mod_revision - 1 {
            ..=0 => None,
            revision => self.get_at(event.key(), revision).ok().flatten(),
        }
    }

    /// Whether the key now exists.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// The oldest revision whose writes [`Store::events`] has. A watch may start there, or later.
    /// That is the compacted revision itself, as in etcd, or the first write.
    #[must_use]
    pub fn first_event_revision(&self) -> Revision {
        self.log.first().max(self.compacted)
    }

    /// The writes of up to `revisions_max` revisions from `from` on, one slice for each revision.
    ///
    /// A `from` before [`Store::first_event_revision`] starts there: whoever must not miss a write
    /// compares first.
    pub fn events(
        &self,
        from: Revision,
        revisions_max: usize,
    ) -> impl Iterator<Item = &[Event]> + use<'_> {
        self.log.from(from.max(self.first_event_revision())).take(revisions_max)
    }

    /// The writes of one revision; none if it is before [`Store::first_event_revision`] or has not
    /// happened.
    #[must_use]
    pub fn events_at(&self, revision: Revision) -> &[Event] {
        if revision < self.compacted { &[] } else { self.log.at(revision) }
    }

    /// Every write since the last call, in order, also if it was compacted meanwhile. Takes no
    /// time, however many they are.
    pub fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.untaken)
    }

    /// See there.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes { held_bytes: self.held().bytes, resident_bytes: self.resident_bytes }
    }

    /// Sum over what is held: everything that a read at or after the compacted revision can find,
    /// and the deletions since. Equal on members that applied the same requests (K4).
    #[must_use]
    pub fn held(&self) -> Tally {
        self.held_until(self.sums.written)
    }

    /// The digest of what is held up to `revision`, or now if that is zero or less. As etcd's
    /// `HashKV` it depends on the compacted revision; the numbers are not etcd's.
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

    /// The revision to read at, if `revision` can be read.
    fn readable(&self, revision: Revision) -> Result<Revision, Refusal> {
        let current = self.horizon();
        match revision {
            r if r > current => Err(Refusal::FutureRevision { current }),
            ..=0 => Ok(current),
            r if r < self.compacted => Err(Refusal::Compacted { compacted: self.compacted }),
            r => Ok(r),
        }
    }

    /// The newest revision that the request being executed can see: its own, once it has written.
    fn horizon(&self) -> Revision {
        self.revision + Revision::from(!self.open.is_empty())
    }
}
