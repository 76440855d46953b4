//! Progress notifications of watches (WATCH-3).
//!
//! Only a synced watch has progress to report, and the notification goes after all buffered
//! messages of the client.

use std::ops::Bound;

use super::{
    hub::{Hub, State, Stream, StreamId, Wants},
    message::{Message, Progress},
    view::View,
};
use crate::kv::request::Revision;

impl Hub {
    /// Handles a client's request for the progress of all its watches.
    ///
    /// As in etcd, a stream without watches, or with one that starts in the future, gets no answer.
    /// If a watch is behind, etcd does not answer either; here the answer follows once all are
    /// synced.
    pub fn ask_progress(&mut self, view: &impl View, id: StreamId) {
        let newest = view.revision();
        let Some(stream) = self.stream_mut(id) else { return };
        if stream.starts_after(newest) || !stream.ids.values().any(Option::is_some) {
            return;
        }
        stream.known = stream.known.max(newest);
        self.progress_asked.insert(id);
        self.tell_progress(id);
    }

    pub(super) fn tell_asked_progress(&mut self) {
        let mut after = None;
        while let Some(id) = self.next_asked(after) {
            self.tell_progress(id);
            after = Some(id);
        }
    }

    fn next_asked(&self, after: Option<StreamId>) -> Option<StreamId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.progress_asked.range((from, Bound::Unbounded)).next().copied()
    }

    /// Sends the progress if all watches of the stream are synced.
    fn tell_progress(&mut self, id: StreamId) {
        let revision = self.revision;
        let Some(stream) = self.stream_mut(id) else { return };
        if stream.behind > 0 || stream.known > revision {
            return;
        }
        let may_tell = !stream.starts_after(revision);
        self.progress_asked.remove(&id);
        if may_tell {
            self.post(id, Message::Progress { of: Progress::All, revision });
        }
    }

    /// The time at which [`Hub::tick`] is due next, in milliseconds.
    #[must_use]
    pub fn next_tick(&self) -> Option<u64> {
        self.timers.first().map(|(due_ms, _)| *due_ms)
    }

    /// Sends progress for synced watches that asked for it and had no event since the last tick.
    pub fn tick(&mut self, now_ms: u64) {
        while let Some(&(due_ms, id)) = self.timers.first() {
            if due_ms > now_ms {
                return;
            }
            self.timers.pop_first();
            let Some(stream) = self.stream_mut(id) else { continue };
            stream.due_ms = now_ms.saturating_add(stream.interval_ms.max(1));
            let entry = (stream.due_ms, id);
            let slots: Vec<_> = stream.ids.values().flatten().copied().collect();
            let known = stream.known;
            self.timers.insert(entry);
            for slot in slots {
                self.tick_watcher(slot, known);
            }
        }
    }

    fn tick_watcher(&mut self, slot: u32, known: Revision) {
        let revision = self.revision;
        let Some(watcher) = self.watcher_mut(slot) else { return };
        if !watcher.wants.has(Wants::PROGRESS) {
            return;
        }
        let due = watcher.wants.has(Wants::PROGRESS_DUE);
        watcher.wants.set(Wants::PROGRESS_DUE);
        let there = watcher.state == State::Synced
            && watcher.next <= revision.saturating_add(1)
            && known <= revision;
        if due && there {
            let (id, of) = (watcher.stream, Progress::Watch(watcher.id));
            self.post(id, Message::Progress { of, revision });
        }
    }
}

impl Stream {
    /// Whether one of the watches starts in the future.
    fn starts_after(&mut self, revision: Revision) -> bool {
        while self.future.first().is_some_and(|(start, _)| *start <= revision) {
            self.future.pop_first();
        }
        !self.future.is_empty()
    }
}
