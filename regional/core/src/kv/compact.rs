//! Forgets history: at once for whoever reads, bit by bit for the memory; and rebuilds a store
//! from what a disk kept.
//!
//! A compaction only moves the compacted revision (K3). Memory comes back through
//! [`Store::reclaim`], in slices so small that no write waits long. It walks the log, because what
//! a compaction frees is what the writes up to it replaced: each of them frees the version before
//! it, so no key that was not written is visited.
//!
//! # Invariants
//!
//! - **P1** After reclaiming, a key has the version in force at the compacted revision and those
//!   since; the log has the compacted revision and those since.
//! - **P2** A restored store answers every request as the one whose events it was given.

use core::cmp::Ordering;
use core::fmt;

use super::index::order;
use super::log::EventLog;
use super::tally::{Mark, Marks};
use super::write::cost;
use super::{Event, KeyValue, REVISION_START, Revision, Store};
use crate::Refusal;

/// Whether memory is left to reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// Call again.
    More,
    /// Until the next compaction.
    Everything,
}

/// How far reclaiming got.
#[derive(Debug)]
pub(super) struct ReclaimState {
    /// The index has nothing that the writes up to here replaced.
    settled: Revision,
    /// And up to this write of the revision after.
    settled_writes: usize,
    /// Taken out of the log, not yet dropped.
    doomed: Vec<Event>,
}

impl ReclaimState {
    pub(super) fn after(settled: Revision) -> Self {
        Self { settled, settled_writes: 0, doomed: Vec::new() }
    }
}

/// What is wrong with the events a store is rebuilt from. The disk, or whoever sent them, is not
/// to be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// An event does not come after the one before it.
    OutOfOrder(Revision),
    /// Nothing was found at this revision, or not all of it.
    Gap(Revision),
    /// The event of this revision contradicts an earlier one of its key.
    Contradiction(Revision),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfOrder(r) => write!(f, "an event of revision {r} is out of order"),
            Self::Gap(r) => write!(f, "events of revision {r} are missing"),
            Self::Contradiction(r) => {
                write!(f, "an event of revision {r} contradicts the history of its key")
            }
        }
    }
}

impl core::error::Error for RestoreError {}

impl Store {
    /// Makes everything before `revision` unreadable and returns the store's revision.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] if that was done, [`Refusal::FutureRevision`] if there is no such
    /// revision yet.
    pub fn compact(&mut self, revision: Revision) -> Result<Revision, Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted { compacted: self.compacted });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision { current: self.revision });
        }
        let sums = self.sums_after(revision);
        self.marks.forget_before(Mark { revision, sums });
        self.compacted = revision;
        Ok(self.revision)
    }

    /// Leaves a gap: the next write has the revision after `revision`, and everything so far is
    /// compacted at it. This is how a restored snapshot gets ahead of all that clients have seen.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] if `revision` is not after the store's.
    ///
    /// Takes as long as the log is; it is for an operator's recovery, not for every day.
    pub fn advance_to(&mut self, revision: Revision) -> Result<(), Refusal> {
        if revision <= self.revision {
            return Err(Refusal::Compacted { compacted: self.revision });
        }
        self.compacted = self.revision;
        while self.reclaim(usize::MAX) == Reclaimed::More {}
        self.marks.forget_before(Mark { revision, sums: self.sums });
        self.log = EventLog::starting_at(revision + 1);
        self.reclaim = ReclaimState::after(revision);
        self.revision = revision;
        self.compacted = revision;
        Ok(())
    }

    /// Gives back memory of what was compacted, looking at no more than `budget` writes.
    pub fn reclaim(&mut self, budget: usize) -> Reclaimed {
        let mut left = budget.max(1);
        loop {
            left -= self.drop_doomed(left);
            left -= self.settle(left);
            if left == 0 {
                return Reclaimed::More;
            }
            let is_settled = self.log.first() <= self.reclaim.settled;
            if self.log.first() >= self.compacted || !is_settled {
                break;
            }
            self.reclaim.doomed = self.log.pop_first();
            left -= 1;
        }
        self.log.shrink();
        Reclaimed::Everything
    }

    /// Drops up to `budget` of what left the log; returns how many.
    fn drop_doomed(&mut self, budget: usize) -> usize {
        let doomed = &mut self.reclaim.doomed;
        let rest = doomed.len().saturating_sub(budget);
        let dropped = doomed.len() - rest;
        doomed.truncate(rest);
        if rest == 0 {
            *doomed = Vec::new();
        }
        dropped
    }

    /// Lets the index forget what up to `budget` compacted writes replaced; returns how many.
    fn settle(&mut self, budget: usize) -> usize {
        let Self { index, log, reclaim, resident_bytes, .. } = self;
        let mut used = 0;
        while used < budget && reclaim.settled < self.compacted {
            let writes = &log.at(reclaim.settled + 1)[reclaim.settled_writes..];
            let now = writes.len().min(budget - used);
            for event in &writes[..now] {
                index.settle(event, |dropped| *resident_bytes -= cost(dropped));
            }
            used += now;
            reclaim.settled_writes += now;
            if now == writes.len() {
                reclaim.settled += 1;
                reclaim.settled_writes = 0;
            }
        }
        used
    }

    /// Whether a restart, or a member that gets a snapshot, needs the version of `key` that was
    /// written at `revision`. The disk asks this of what it has, and drops what is not needed.
    #[must_use]
    pub fn holds(&self, key: &[u8], revision: Revision) -> bool {
        // At the compacted revision deletions are needed too: a watch may start there.
        revision >= self.compacted
            || self.index.at(key, self.compacted).is_some_and(|e| e.mod_revision == revision)
    }

    /// Rebuilds a store (P2) from its compacted revision and the events that it
    /// [holds](Store::holds), in order. More events than those do no harm.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] if these cannot be the events of a store.
    pub fn restore(
        compacted: Revision,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Self, RestoreError> {
        let mut events = events.into_iter().peekable();
        let mut store = Self::new();
        store.compacted = compacted;
        let mut last = (REVISION_START, 0);
        while let Some(event) = events.next_if(|event| event.mod_revision <= compacted) {
            if order(&event) <= last {
                return Err(RestoreError::OutOfOrder(event.mod_revision));
            }
            last = order(&event);
            store.restore_base(event)?;
        }
        store.begin_history();
        for event in events {
            store.restore_history(event)?;
        }
        store.finish_restored();
        Ok(store)
    }

    /// Takes one event at or before the compacted revision.
    fn restore_base(&mut self, event: Event) -> Result<(), RestoreError> {
        let (_, replaced) = self.index.push_with(event.key(), |_| Event::clone(&event));
        self.sums = self.sums.after(&event, replaced.as_deref());
        self.resident_bytes += cost(&event);
        if replaced.is_some() || event.is_deletion() {
            let resident_bytes = &mut self.resident_bytes;
            self.index.settle(&event, |dropped| *resident_bytes -= cost(dropped));
        }
        if event.mod_revision == self.compacted {
            if event.sub_revision as usize != self.untaken.len() {
                return Err(RestoreError::Gap(event.mod_revision));
            }
            self.untaken.push(event);
        }
        Ok(())
    }

    /// Everything up to the compacted revision has been taken.
    fn begin_history(&mut self) {
        self.revision = self.revision.max(self.compacted);
        self.reclaim = ReclaimState::after(self.revision);
        self.marks = Marks::starting_at(self.compacted, self.sums);
        self.settled = self.sums;
        if self.untaken.is_empty() {
            self.log = EventLog::starting_at(self.revision + 1);
        } else {
            self.log = EventLog::starting_at(self.revision);
            self.log.push(&self.untaken);
            self.untaken.clear();
        }
    }

    /// Takes one event after the compacted revision; `untaken` has those of its revision.
    fn restore_history(&mut self, event: Event) -> Result<(), RestoreError> {
        let revision = event.mod_revision;
        if revision != self.revision + 1 {
            self.finish_restored();
        }
        match revision.cmp(&(self.revision + 1)) {
            Ordering::Less => return Err(RestoreError::OutOfOrder(revision)),
            Ordering::Greater => return Err(RestoreError::Gap(self.revision + 1)),
            Ordering::Equal => {}
        }
        if event.sub_revision as usize != self.untaken.len() {
            return Err(RestoreError::Gap(revision));
        }
        let (_, replaced) = self.index.push_with(event.key(), |_| Event::clone(&event));
        if !follows(&event, replaced.as_deref()) {
            return Err(RestoreError::Contradiction(revision));
        }
        self.sums = self.sums.after(&event, replaced.as_deref());
        self.resident_bytes += cost(&event);
        self.untaken.push(event);
        Ok(())
    }

    /// The revision being restored is complete.
    fn finish_restored(&mut self) {
        if self.untaken.is_empty() {
            return;
        }
        self.revision += 1;
        self.log.push(&self.untaken);
        self.untaken.clear();
        self.marks.note(self.revision, self.sums);
        self.settled = self.sums;
    }
}

/// Whether `event` can be the next version of a key that held `old`.
fn follows(event: &KeyValue, old: Option<&KeyValue>) -> bool {
    let (version, created) = match (event.is_deletion(), old) {
        (true, None) => return false,
        (true, Some(_)) => (0, 0),
        (false, None) => (1, event.mod_revision),
        (false, Some(old)) => (old.version + 1, old.create_revision),
    };
    event.version == version && event.create_revision == created
}
