//! The transitions of watchers between synced, lagging and parked; the diagram is in [`super`].

use super::{
    hub::{Hub, State},
    index::Span,
    members::Slot,
};
use crate::kv::request::Revision;

impl Hub {
    /// Removes a watcher from the lists of its state; the caller must enter another state.
    pub(super) fn leave(&mut self, slot: Slot) {
        let Some(watcher) = self.watchers[slot as usize].as_ref() else { return };
        let entry = (watcher.next, slot);
        match (watcher.state, &watcher.span) {
            (State::Synced, span) => {
                let place = watcher.place;
                if let Some(moved) = self.synced.remove(span, place) {
                    self.watcher_mut(moved).expect("the index has only watchers").place = place;
                }
            }
            (State::Lagging, Span::Key(_)) => _ = self.lagging.keys.remove(&entry),
            (State::Lagging, Span::Range(..)) => _ = self.lagging.ranges.remove(&entry),
            (State::Parked, _) => {
                let id = watcher.stream;
                if let Some(stream) = self.stream_mut(id) {
                    stream.parked.remove(&slot);
                }
            }
        }
    }

    pub(super) fn enter_synced(&mut self, slot: Slot) {
        let watcher = self.watchers[slot as usize].as_mut().expect("a live watcher");
        watcher.state = State::Synced;
        watcher.place = self.synced.insert(&mut watcher.span, slot);
    }

    pub(super) fn enter_lagging(&mut self, slot: Slot) {
        let watcher = self.watchers[slot as usize].as_mut().expect("a live watcher");
        watcher.state = State::Lagging;
        let set = match watcher.span {
            Span::Key(_) => &mut self.lagging.keys,
            Span::Range(..) => &mut self.lagging.ranges,
        };
        set.insert((watcher.next, slot));
    }

    /// Enters the state of a watcher that has received all events before `next`.
    pub(super) fn settle(&mut self, slot: Slot, next: Revision) {
        if self.watcher(slot).is_none() {
            return;
        }
        self.move_to(slot, next, if next > self.revision { State::Synced } else { State::Lagging });
    }

    /// Parks a watcher whose client has no room for the events of `next`.
    pub(super) fn park(&mut self, slot: Slot, next: Revision) {
        self.move_to(slot, next, State::Parked);
    }

    pub(super) fn move_to(&mut self, slot: Slot, next: Revision, state: State) {
        self.leave(slot);
        let watcher = self.watcher_mut(slot).expect("a live watcher");
        let (id, before) = (watcher.stream, watcher.state);
        watcher.next = next;
        let stream = self.stream_mut(id).expect("a watcher has a stream");
        match (before == State::Synced, state == State::Synced) {
            (true, false) => stream.behind += 1,
            (false, true) => stream.behind -= 1,
            _ => {}
        }
        match state {
            State::Synced => self.enter_synced(slot),
            State::Lagging => self.enter_lagging(slot),
            State::Parked => {
                stream.parked.insert(slot);
                self.watcher_mut(slot).expect("found above").state = State::Parked;
            }
        }
    }
}
