//! The event log: every write since the last compaction, by revision, for watches and restarts.
//!
//! # Invariants
//!
//! - **EVENTS-1** The log is dense: each main revision from the first to the last has its writes, in the
//!   order of their sub-revisions, and at least one.

use core::slice;
use std::collections::VecDeque;
use std::sync::Arc;

use super::request::Revision;
use super::response::Event;

/// The writes of one main revision; nearly always one.
#[derive(Debug)]
enum Writes {
    One(Event),
    Many(Box<[Event]>),
}

impl Writes {
    fn as_slice(&self) -> &[Event] {
        match self {
            Self::One(event) => slice::from_ref(event),
            Self::Many(events) => events,
        }
    }
}

/// The event log.
#[derive(Debug)]
pub(super) struct EventLog {
    first: Revision,
    writes: VecDeque<Writes>,
}

impl EventLog {
    /// A log whose first revision will be `first`.
    pub(super) fn starting_at(first: Revision) -> Self {
        Self { first, writes: VecDeque::new() }
    }

    /// The oldest revision that it has, or will have.
    pub(super) fn first(&self) -> Revision {
        self.first
    }

    /// Appends the writes of the next revision (EVENTS-1).
    pub(super) fn push(&mut self, events: &[Event]) {
        debug_assert!(!events.is_empty(), "EVENTS-1");
        self.writes.push_back(match events {
            [one] => Writes::One(Arc::clone(one)),
            many => Writes::Many(many.into()),
        });
    }

    /// The writes of `revision`; empty if the log does not have it.
    pub(super) fn at(&self, revision: Revision) -> &[Event] {
        self.place(revision).and_then(|place| self.writes.get(place)).map_or(&[], Writes::as_slice)
    }

    /// The writes of each revision from `from` on.
    pub(super) fn from(&self, from: Revision) -> impl Iterator<Item = &[Event]> {
        let place = self.place(from.max(self.first)).unwrap_or(usize::MAX).min(self.writes.len());
        self.writes.range(place..).map(Writes::as_slice)
    }

    /// Removes the oldest revision and returns its writes, so that the caller can drop a large
    /// number of them in steps.
    pub(super) fn pop_first(&mut self) -> Vec<Event> {
        self.first += 1;
        match self.writes.pop_front() {
            Some(Writes::One(_)) | None => Vec::new(),
            Some(Writes::Many(events)) => events.into_vec(),
        }
    }

    /// Frees memory after many revisions were removed.
    pub(super) fn shrink(&mut self) {
        if self.writes.capacity() > 4 * self.writes.len().max(1024) {
            self.writes.shrink_to(2 * self.writes.len());
        }
    }

    fn place(&self, revision: Revision) -> Option<usize> {
        usize::try_from(revision.checked_sub(self.first)?).ok()
    }
}
