//! Tallies: count, size and digest of sets of versions, as sums.
//!
//! A sum can be subtracted, so the store knows what remains after a compaction without visiting it:
//! the held versions are (those live at the compacted revision) + (those written since), and both
//! are differences of running sums that [`Marks`] keeps. So the digests of two members with the
//! same data are equal, whatever their progress in reclaiming memory.
//!
//! # Deliberately absent
//!
//! Protection against an attacker who searches for colliding writes. Members compare the digests to
//! detect faults of a disk, a memory or the program; a client with write access may change the data
//! anyway, on all members alike.

use std::collections::VecDeque;

use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::request::Revision;
use super::response::KeyValue;

/// The memory that a version takes besides its key and value, measured in `examples/kv_figures.rs`:
/// its record, its entries in index and log, and the allocator's share.
pub const VERSION_OVERHEAD_BYTES: u64 = 208;

/// The sum over a multiset of versions. Differences are sums too, so all numbers wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sum of the versions' hashes.
    pub digest: u128,
    /// Sum of their keys, values and [`VERSION_OVERHEAD_BYTES`].
    pub bytes: u64,
    /// Number of versions.
    pub versions: u64,
}

impl Tally {
    /// The tally of one version.
    #[must_use]
    pub fn of(version: &KeyValue) -> Self {
        let stamp = version.stamp();
        let mut head = [0; 64];
        let fields = [
            version.key().len() as u64,
            u64::from(stamp.sub_revision),
            stamp.mod_revision.cast_unsigned(),
            stamp.create_revision.cast_unsigned(),
            stamp.version.cast_unsigned(),
            stamp.lease.cast_unsigned(),
        ];
        for (place, field) in head.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let body = xxh3_128(version.key_and_value());
        head[48..64].copy_from_slice(&body.to_le_bytes());
        Self {
            digest: xxh3_128_with_seed(&head, body as u64),
            bytes: version.key_and_value().len() as u64 + VERSION_OVERHEAD_BYTES,
            versions: 1,
        }
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            digest: self.digest.wrapping_add(other.digest),
            bytes: self.bytes.wrapping_add(other.bytes),
            versions: self.versions.wrapping_add(other.versions),
        }
    }

    /// The difference to `other`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            digest: self.digest.wrapping_sub(other.digest),
            bytes: self.bytes.wrapping_sub(other.bytes),
            versions: self.versions.wrapping_sub(other.versions),
        }
    }
}

/// Running sums after some revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Everything written so far, from an arbitrary origin: only differences are meaningful.
    pub(super) written: Tally,
    /// The newest version of every key that exists.
    pub(super) live: Tally,
}

impl Sums {
    /// The sums after another write.
    pub(super) fn after(self, event: &KeyValue, replaced: Option<&KeyValue>) -> Self {
        let own = Tally::of(event);
        let live = if event.is_deletion() { self.live } else { self.live.plus(own) };
        Self {
            written: self.written.plus(own),
            live: replaced.map_or(live, |old| live.minus(Tally::of(old))),
        }
    }
}

/// Sums after a revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) revision: Revision,
    pub(super) sums: Sums,
}

/// Writes after the last mark before the next one, which bounds the writes to visit for the sums in
/// between. Few in tests, so that short histories have marks.
const MARK_WRITES: u64 = if cfg!(test) { 4 } else { 64 };

/// The sums after some revisions, from the compacted one on.
#[derive(Debug)]
pub(super) struct Marks(VecDeque<Mark>);

impl Marks {
    /// The first mark, at the compacted revision.
    pub(super) fn starting_at(revision: Revision, sums: Sums) -> Self {
        Self(VecDeque::from([Mark { revision, sums }]))
    }

    /// Adds a mark after `revision` if there were enough writes since the last one.
    pub(super) fn note(&mut self, revision: Revision, sums: Sums) {
        let last = self.0.back().expect("there is always a mark");
        if sums.written.minus(last.sums.written).versions >= MARK_WRITES {
            self.0.push_back(Mark { revision, sums });
        }
    }

    /// The last mark at or before `revision`, which is not before the first mark.
    pub(super) fn before(&self, revision: Revision) -> Mark {
        let after = self.0.partition_point(|mark| mark.revision <= revision);
        self.0[after.saturating_sub(1)]
    }

    /// Makes `first` the first mark.
    pub(super) fn forget_before(&mut self, first: Mark) {
        while self.0.front().is_some_and(|mark| mark.revision <= first.revision) {
            self.0.pop_front();
        }
        self.0.push_front(first);
    }

    /// The first mark.
    pub(super) fn first(&self) -> Mark {
        self.0[0]
    }
}
