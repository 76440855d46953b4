//! Dispatch: sends new events to synced watchers.

use std::sync::Arc;

use super::{
    hub::{Hub, State, Wants},
    limits,
    members::Slot,
    view::{Batch, View, WatchEvent},
};
use crate::kv::{request::Revision, response::Event};

/// Batches of one revision, so that watchers with the same events share one. There are few, because
/// a revision of many watchers is one event for all, or different ones for each.
#[derive(Default)]
struct Interned(Vec<(Vec<u32>, bool, Arc<Batch>)>);

const INTERNED_MAX: usize = 8;

impl Interned {
    fn batch(
        &mut self,
        view: &impl View,
        chosen: &[u32],
        events: &[Event],
        prev: bool,
    ) -> Arc<Batch> {
        let known = self.0.iter().rev().find(|(of, with, _)| *with == prev && of == chosen);
        if let Some((_, _, batch)) = known {
            return batch.clone();
        }
        let told = chosen.iter().map(|&at| told(view, &events[at as usize], prev)).collect();
        let batch = Batch::new(told);
        if self.0.len() == INTERNED_MAX {
            self.0.remove(0);
        }
        self.0.push((chosen.to_vec(), prev, batch.clone()));
        batch
    }
}

/// An event for a watcher, with the previous version if wanted and present.
pub(super) fn told(view: &impl View, event: &Event, prev: bool) -> WatchEvent {
    let before = if prev && !event.is_creation() { view.previous(event) } else { None };
    WatchEvent { event: event.clone(), before }
}

impl Hub {
    /// Does a bounded amount of the pending work; returns whether there is more (WATCH-7).
    ///
    /// The messages to send are in the outbox afterwards.
    pub fn step(&mut self, view: &impl View) -> bool {
        let newest = view.revision();
        self.advance(view, newest);
        self.catch_up_keys(view);
        self.catch_up_ranges(view);
        self.tell_asked_progress();
        self.revision < newest || self.has_lagging()
    }

    fn advance(&mut self, view: &impl View, newest: Revision) {
        if self.live == 0 {
            self.revision = self.revision.max(newest);
            return;
        }
        if self.revision < newest && self.revision + 1 < view.compacted() {
            self.fall_behind(newest);
            return;
        }
        let before = self.outbox_len();
        let mut events = 0;
        while self.revision < newest
            && self.outbox_len() - before < limits::STEP_RESPONSES_MAX
            && events < limits::STEP_EVENTS_MAX
        {
            self.revision += 1;
            events += 1 + self.dispatch(view, self.revision);
        }
    }

    /// Handles a new state whose log does not reach back to the events sent: all watchers read the
    /// log, and those that would miss an event are canceled (WATCH-4, WATCH-5).
    fn fall_behind(&mut self, newest: Revision) {
        let missed = self.revision + 1;
        self.revision = newest;
        for slot in 0..self.watchers.len() {
            let slot = Slot::try_from(slot).expect("limits::WATCHERS_MAX fits");
            let Some(watcher) = self.watcher(slot) else { continue };
            if watcher.state == State::Synced && watcher.next <= newest {
                self.move_to(slot, watcher.next.max(missed), State::Lagging);
            }
        }
    }

    /// Sends one revision to all synced watchers; returns the number of its events.
    fn dispatch(&mut self, view: &impl View, revision: Revision) -> usize {
        let events = view.events(revision);
        let mut hits: Vec<(Slot, u32)> = Vec::new();
        for (at, event) in (0..).zip(events) {
            self.synced.matching(event.key(), &mut |slot| hits.push((slot, at)));
        }
        if events.len() > 1 {
            hits.sort_unstable();
        }
        let mut interned = Interned::default();
        let mut chosen = Vec::new();
        for group in hits.chunk_by(|a, b| a.0 == b.0) {
            let slot = group[0].0;
            let Some(watcher) = self.watcher(slot) else { continue };
            if revision < watcher.next {
                continue;
            }
            let wants = watcher.wants;
            chosen.clear();
            chosen.extend(
                group
                    .iter()
                    .map(|(_, at)| *at)
                    .filter(|at| wants.pass(events[*at as usize].version)),
            );
            if chosen.is_empty() {
                continue;
            }
            if !self.has_room(watcher.stream) {
                self.park(slot, revision);
                continue;
            }
            let batch = interned.batch(view, &chosen, events, wants.has(Wants::PREV_KV));
            self.tell(view, slot, batch);
        }
        events.len()
    }
}
