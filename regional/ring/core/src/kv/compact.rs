//! Compaction, which takes effect at once for readers and frees memory in small steps; and
//! restoring a store from the events on disk.
//!
//! A compaction only moves the compacted revision (KV-3). [`Store::reclaim`] then frees memory, in
//! slices so small that no write waits long. It walks the log: each write up to the compacted
//! revision made the version before it superfluous, so it visits only keys that were written.
//!
//! # Invariants
//!
//! - **COMPACT-1** After reclaiming, a key has the version in force at the compacted revision and
//!   all later ones; the log has the compacted revision and all later ones.
//! - **COMPACT-2** A restored store answers every request as the one whose events it was given.

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
    /// Nothing is left until the next compaction.
    Everything,
}

/// The progress of reclaiming.
#[derive(Debug)]
pub(super) struct ReclaimState {
    /// The index holds no version that a write up to here replaced.
    settled: Revision,
    /// The number of writes of the next revision for which that holds too.
    settled_writes: usize,
    /// Events removed from the log and not yet dropped.
    doomed: Vec<Event>,
}

impl ReclaimState {
    pub(super) fn after(settled: Revision) -> Self {
        Self { settled, settled_writes: 0, doomed: Vec::new() }
    }
}

/// The list of events is invalid. The disk that held it, or the peer that sent it, can no longer be
/// trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// An event does not come after the one before it.
    OutOfOrder(Revision),
    /// Events of this revision are missing.
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
    /// [`Refusal::Compacted`] if the revision is compacted already, [`Refusal::FutureRevision`] if
    /// it does not exist yet.
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

    /// Leaves a gap: the next write has the revision after `revision`, at which all earlier ones
    /// are compacted. A restored snapshot thus gets ahead of all revisions that clients have seen.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] if `revision` is not after the store's.
    ///
    /// Takes time in proportion to the log; for recoveries only.
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

    /// Frees memory of compacted versions; visits at most `budget` writes.
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

    /// Drops up to `budget` events that left the log; returns their number.
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

    /// Removes the versions that up to `budget` compacted writes replaced from the index; returns
    /// the number of writes.
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

    /// Whether a restart, or a member that receives a snapshot, needs the version of `key` written
    /// at `revision`. The disk drops the other versions.
    #[must_use]
    pub fn holds(&self, key: &[u8], revision: Revision) -> bool {
        // At the compacted revision deletions are needed too: a watch may start there.
        revision >= self.compacted
            || self.index.at(key, self.compacted).is_some_and(|e| e.mod_revision == revision)
    }

    /// Restores a store (COMPACT-2) from its compacted revision and the events that it
    /// [holds](Store::holds), in order. Further events do no harm.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] if no store can have these events.
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

    /// Adds an event at or before the compacted revision.
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

    /// Begins the history after the last event up to the compacted revision.
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

    /// Adds an event after the compacted revision; `untaken` collects those of its revision.
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

    /// Completes the revision being restored.
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
