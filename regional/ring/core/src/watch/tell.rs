//! Writes messages to the outbox, if the client has room and permission.

use std::sync::Arc;

use super::{
    hub::{Hub, StreamId, Wants},
    index::Span,
    limits,
    members::Slot,
    message::Message,
    view::{Batch, View},
};
use crate::kv::request::{KeyRange, Revision};

impl Hub {
    pub(super) fn has_room(&self, id: StreamId) -> bool {
        let buffered = self.buffered(id);
        buffered == 0
            || (buffered < limits::STREAM_BUFFER_BYTES_MAX
                && self.buffered < limits::BUFFERS_BYTES_MAX)
    }

    pub(super) fn post(&mut self, id: StreamId, message: Message) {
        let cost = message.cost();
        if let Some(stream) = self.stream_mut(id) {
            stream.buffered += cost;
            self.buffered += cost;
            self.outbox.push((id, message));
        }
    }

    /// Sends a batch to a watcher, if its caller has permission (WATCH-6).
    pub(super) fn tell(&mut self, view: &impl View, slot: Slot, batch: Arc<Batch>) {
        if !self.still_allowed(view, slot) {
            return;
        }
        let revision = self.revision;
        let Some(watcher) = self.watcher_mut(slot) else { return };
        watcher.wants.clear(Wants::PROGRESS_DUE);
        let fragment = watcher.wants.has(Wants::FRAGMENT);
        let (id, watch_id) = (watcher.stream, watcher.id);
        self.post(id, Message::Events { watch_id, revision, batch, fragment });
    }

    fn still_allowed(&mut self, view: &impl View, slot: Slot) -> bool {
        let auth_revision = view.auth_revision();
        let Some(watcher) = self.watcher(slot) else { return false };
        if watcher.checked == auth_revision {
            return true;
        }
        let (id, watch_id) = (watcher.stream, watcher.id);
        let range = range_of(&watcher.span);
        let caller = &self.stream(id).expect("a watcher has a stream").caller;
        match view.may_watch(caller, &range) {
            Ok(()) => {
                self.watcher_mut(slot).expect("found above").checked = auth_revision;
                true
            }
            Err(refusal) => {
                let revision = self.revision;
                self.kill(slot);
                self.post(id, Message::Denied { watch_id, refusal, revision });
                false
            }
        }
    }

    /// Cancels a watcher whose next event is compacted (WATCH-4).
    pub(super) fn compact(&mut self, slot: Slot, compacted: Revision) {
        let Some(watcher) = self.watcher(slot) else { return };
        let (id, watch_id) = (watcher.stream, watcher.id);
        self.kill(slot);
        self.post(id, Message::Compacted { watch_id, compacted });
    }

    /// Ends a watch before its client knows; the id stays in use.
    fn kill(&mut self, slot: Slot) {
        let Some(watcher) = self.watcher(slot) else { return };
        let (id, watch_id) = (watcher.stream, watcher.id);
        if let Some(stream) = self.stream_mut(id) {
            stream.ids.insert(watch_id, None);
        }
        self.drop_watcher(slot);
    }
}

fn range_of(span: &Span) -> KeyRange {
    let (start, end): (&[u8], &[u8]) = match span {
        Span::Key(key) => (key, &[]),
        Span::Range(start, Some(end)) => (start, end),
        Span::Range(start, None) => (start, &[0]),
    };
    KeyRange { start: start.to_vec().into(), end: end.to_vec().into() }
}
