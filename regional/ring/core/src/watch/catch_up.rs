//! Catching up: lagging watchers read the log, a bounded step at a time.
//!
//! A watcher of one key looks its key up. Watchers of ranges share the reading: a step reads a
//! stretch of the log for all watchers whose next revision is in it. The stretches move upwards, so
//! watchers that start far in the past gather on the way and become synced together; every other
//! step serves the watchers near the newest revision, so that they do not wait for the others.

use std::sync::Arc;

use super::{
    dispatch::told,
    hub::{Hub, Wants},
    index::Index,
    limits,
    members::Slot,
    view::{Batch, View, cost},
};
use crate::kv::{request::Revision, response::Event};

/// A stretch of the log and its events for the lagging watchers.
struct Stretch {
    /// Last revision in it.
    end: Revision,
    /// Events by watcher, then in the order of the log.
    hits: Vec<(Slot, Event)>,
}

/// The events of a stretch for one watcher.
type Group<'a> = &'a [(Slot, Event)];

/// Matches found in one stretch; a stretch ends with the revision that reaches this.
const HITS_MAX: usize = 50_000;

impl Hub {
    pub(super) fn catch_up_keys(&mut self, view: &impl View) {
        let cursor = self.lagging.key_cursor;
        let mut turn: Vec<_> =
            self.lagging.keys.range(cursor..).take(limits::STEP_WATCHERS_MAX).copied().collect();
        self.lagging.key_cursor = match turn.last() {
            Some(&(next, slot)) if turn.len() == limits::STEP_WATCHERS_MAX => (next, slot + 1),
            _ => (0, 0),
        };
        if turn.is_empty() {
            turn = self.lagging.keys.iter().take(limits::STEP_WATCHERS_MAX).copied().collect();
        }
        for (_, slot) in turn {
            self.catch_up_key(view, slot);
        }
    }

    fn catch_up_key(&mut self, view: &impl View, slot: Slot) {
        let Some(watcher) = self.watcher(slot) else { return };
        let (next, wants, stream) = (watcher.next, watcher.wants, watcher.stream);
        let super::index::Span::Key(key) = watcher.span.clone() else { return };
        if next < view.compacted() {
            self.compact(slot, view.compacted());
            return;
        }
        if !self.has_room(stream) {
            self.park(slot, next);
            return;
        }
        let mut at = next;
        let mut response = Response::default();
        while let Some(event) = view.next_write(&key, at) {
            if event.mod_revision > self.revision || response.is_full_before(event.mod_revision) {
                break;
            }
            at = event.mod_revision + 1;
            if wants.pass(event.version) {
                response.push(view, &event, wants);
            }
        }
        let next = response.full_at.unwrap_or(self.revision + 1);
        if let Some(batch) = response.finish() {
            self.tell(view, slot, batch);
        }
        self.settle(slot, next);
    }

    pub(super) fn catch_up_ranges(&mut self, view: &impl View) {
        let compacted = view.compacted();
        let lost: Vec<_> = self
            .lagging
            .ranges
            .range(..(compacted, 0))
            .take(limits::STEP_WATCHERS_MAX)
            .map(|(_, slot)| *slot)
            .collect();
        for slot in lost {
            self.compact(slot, compacted);
        }
        let cohort = self.choose(compacted);
        let Some(&(start, _)) = cohort.first() else { return };
        let stretch = self.read(view, start, &cohort);
        let mut last: Option<(Group<'_>, Wants, Outcome)> = None;
        let mut groups = stretch.hits.chunk_by(|a, b| a.0 == b.0).peekable();
        let mut members: Vec<_> = cohort.into_iter().filter(|(at, _)| *at <= stretch.end).collect();
        members.sort_unstable_by_key(|(_, slot)| *slot);
        for (next, slot) in members {
            let group = groups.next_if(|group| group[0].0 == slot).unwrap_or_default();
            let Some(watcher) = self.watcher(slot) else { continue };
            let (wants, stream) = (watcher.wants, watcher.stream);
            if !group.is_empty() && !self.has_room(stream) {
                self.park(slot, group[0].1.mod_revision.max(next));
                continue;
            }
            // Neighbors mostly watch the same range from the same revision and share the answer.
            let outcome = match &last {
                Some((same, with, outcome))
                    if *with == wants
                        && same.len() == group.len()
                        && same.iter().zip(group).all(|(a, b)| Arc::ptr_eq(&a.1, &b.1)) =>
                {
                    outcome.clone()
                }
                _ => respond(view, group, wants),
            };
            if let Some(batch) = &outcome.batch {
                self.tell(view, slot, batch.clone());
            }
            self.settle(slot, outcome.full_at.unwrap_or(stretch.end + 1));
            last = Some((group, wants, outcome));
        }
    }

    /// The watchers of this step, by next revision.
    fn choose(&mut self, compacted: Revision) -> Vec<(Revision, Slot)> {
        let lagging = &mut self.lagging;
        lagging.turn = lagging.turn.wrapping_add(1);
        let near = (self.revision - limits::NEAR_REVISIONS, 0);
        let floor = (compacted, 0);
        let from =
            if lagging.turn.is_multiple_of(2) && lagging.ranges.range(near..).next().is_some() {
                near.max(floor)
            } else if lagging.ranges.range(lagging.range_cursor.max(floor)..).next().is_some() {
                lagging.range_cursor.max(floor)
            } else {
                floor
            };
        let Some(&(start, _)) = lagging.ranges.range(from..).next() else { return Vec::new() };
        let reach = start.saturating_add(limits::STEP_EVENTS_MAX as Revision);
        let cohort: Vec<_> = lagging
            .ranges
            .range(from..(reach, 0))
            .take(limits::STEP_WATCHERS_MAX)
            .copied()
            .collect();
        if from < near || near.0 <= compacted {
            lagging.range_cursor = match cohort.last() {
                Some(&(next, slot)) if cohort.len() == limits::STEP_WATCHERS_MAX => {
                    (next, slot + 1)
                }
                _ => (start + 1, 0),
            };
        }
        cohort
    }

    fn read(&self, view: &impl View, start: Revision, cohort: &[(Revision, Slot)]) -> Stretch {
        let mut index = Index::default();
        for &(_, slot) in cohort {
            if let Some(watcher) = self.watcher(slot) {
                index.insert(&mut watcher.span.clone(), slot);
            }
        }
        let mut hits = Vec::new();
        let mut seen = 0;
        let mut end = start - 1;
        while end < self.revision && seen < limits::STEP_EVENTS_MAX && hits.len() < HITS_MAX {
            end += 1;
            seen += 1;
            for event in view.events(end) {
                seen += 1;
                index.matching(event.key(), &mut |slot| {
                    let wanted = self.watcher(slot).is_some_and(|watcher| {
                        watcher.next <= end && watcher.wants.pass(event.version)
                    });
                    if wanted {
                        hits.push((slot, event.clone()));
                    }
                });
            }
        }
        // Stable, so that one watcher's events stay in the order of the log (WATCH-1).
        hits.sort_by_key(|(slot, _)| *slot);
        Stretch { end, hits }
    }
}

#[derive(Clone)]
struct Outcome {
    batch: Option<Arc<Batch>>,
    full_at: Option<Revision>,
}

fn respond(view: &impl View, group: Group<'_>, wants: Wants) -> Outcome {
    let mut response = Response::default();
    for (_, event) in group {
        if response.is_full_before(event.mod_revision) {
            break;
        }
        response.push(view, event, wants);
    }
    let full_at = response.full_at;
    Outcome { batch: response.finish(), full_at }
}

/// A response in progress. It ends between revisions, never within one (WATCH-2).
#[derive(Default)]
struct Response {
    events: Vec<super::view::WatchEvent>,
    revisions: usize,
    bytes: usize,
    last: Revision,
    /// The revision that did not fit.
    full_at: Option<Revision>,
}

impl Response {
    fn is_full_before(&mut self, revision: Revision) -> bool {
        if revision != self.last
            && (self.revisions == limits::RESPONSE_REVISIONS_MAX
                || self.bytes >= limits::RESPONSE_BYTES_MAX)
        {
            self.full_at = Some(revision);
            return true;
        }
        false
    }

    fn push(&mut self, view: &impl View, event: &Event, wants: Wants) {
        if event.mod_revision != self.last {
            self.last = event.mod_revision;
            self.revisions += 1;
        }
        let told = told(view, event, wants.has(Wants::PREV_KV));
        self.bytes += cost(&told);
        self.events.push(told);
    }

    fn finish(self) -> Option<Arc<Batch>> {
        (!self.events.is_empty()).then(|| Batch::new(self.events))
    }
}
