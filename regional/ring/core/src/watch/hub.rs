//! The hub: the watchers of one member and their streams.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    index::{Index, Span},
    limits,
    members::Slot,
    message::{Message, Open, Reason},
    view::View,
};
use crate::{
    caller::Caller,
    kv::request::{KeyRange, Revision},
};

/// One stream of watch responses, on which a client opens any number of watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// All watchers of one member.
#[derive(Debug)]
pub struct Hub {
    /// Every synced watcher has received all events up to here.
    pub(super) revision: Revision,
    pub(super) watchers: Vec<Option<Watcher>>,
    free: Vec<Slot>,
    pub(super) live: usize,
    pub(super) streams: Vec<Option<Stream>>,
    free_streams: Vec<u32>,
    pub(super) synced: Index,
    pub(super) lagging: Lagging,
    /// Streams whose client asked for progress that is not known yet.
    pub(super) progress_asked: BTreeSet<StreamId>,
    /// The times at which streams are due for automatic progress, in milliseconds.
    pub(super) timers: BTreeSet<(u64, StreamId)>,
    /// Bytes buffered for all clients together.
    pub(super) buffered: usize,
    pub(super) outbox: Vec<(StreamId, Message)>,
}

/// Lagging watchers, by the revision that they read next.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    pub(super) keys: BTreeSet<(Revision, Slot)>,
    pub(super) ranges: BTreeSet<(Revision, Slot)>,
    /// The positions at which the last step on `keys` and on `ranges` ended, so that every watcher
    /// has its turn.
    pub(super) key_cursor: (Revision, Slot),
    pub(super) range_cursor: (Revision, Slot),
    pub(super) turn: u8,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) id: i64,
    pub(super) stream: StreamId,
    pub(super) span: Span,
    /// The first revision not sent yet. For a synced watcher, only a lower bound of it.
    pub(super) next: Revision,
    /// Its position in the index, while it is synced.
    pub(super) place: u32,
    pub(super) state: State,
    pub(super) wants: Wants,
    /// The auth revision at which the caller's permission was last checked.
    pub(super) checked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Synced,
    Lagging,
    Parked,
}

/// The options of a watch; kept small because there are many watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wants(u8);

impl Wants {
    pub(super) const NO_PUT: u8 = 1;
    pub(super) const NO_DELETE: u8 = 2;
    pub(super) const PREV_KV: u8 = 4;
    pub(super) const FRAGMENT: u8 = 8;
    pub(super) const PROGRESS: u8 = 16;
    /// No event was sent since the last tick.
    pub(super) const PROGRESS_DUE: u8 = 32;

    fn of(open: &Open) -> Self {
        let mut bits = 0;
        for (set, bit) in [
            (open.no_put, Self::NO_PUT),
            (open.no_delete, Self::NO_DELETE),
            (open.prev_kv, Self::PREV_KV),
            (open.fragment, Self::FRAGMENT),
            (open.progress_notify, Self::PROGRESS | Self::PROGRESS_DUE),
        ] {
            if set {
                bits |= bit;
            }
        }
        Self(bits)
    }

    pub(super) fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    pub(super) fn set(&mut self, bit: u8) {
        self.0 |= bit;
    }

    pub(super) fn clear(&mut self, bit: u8) {
        self.0 &= !bit;
    }

    /// Whether an event of this version passes the filters; version 0 is a deletion.
    pub(super) fn pass(self, version: i64) -> bool {
        !self.has(if version == 0 { Self::NO_DELETE } else { Self::NO_PUT })
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) caller: Caller,
    /// The watches by id. `None` is a watch that the hub canceled: its id stays in use until the
    /// client cancels it, as in etcd, because the client may not know yet.
    pub(super) ids: BTreeMap<i64, Option<Slot>>,
    next_id: i64,
    pub(super) buffered: usize,
    /// Watchers that are not synced.
    pub(super) behind: usize,
    pub(super) parked: BTreeSet<Slot>,
    /// Watchers that start at a revision above the one at their opening.
    pub(super) future: BTreeSet<(Revision, Slot)>,
    /// Progress below this revision would be older than what the client has received.
    pub(super) known: Revision,
    pub(super) due_ms: u64,
    pub(super) interval_ms: u64,
}

impl Hub {
    /// A hub without watchers, for a state whose newest revision is `revision`.
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self {
            revision,
            watchers: Vec::new(),
            free: Vec::new(),
            live: 0,
            streams: Vec::new(),
            free_streams: Vec::new(),
            synced: Index::default(),
            lagging: Lagging::default(),
            progress_asked: BTreeSet::new(),
            timers: BTreeSet::new(),
            buffered: 0,
            outbox: Vec::new(),
        }
    }

    /// The number of open watches.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.live
    }

    /// The number of watches that are lagging or parked.
    #[must_use]
    pub fn behind(&self) -> usize {
        self.streams.iter().flatten().map(|stream| stream.behind).sum()
    }

    /// Whether [`Hub::step`] has work even without new events.
    #[must_use]
    pub fn has_lagging(&self) -> bool {
        !self.lagging.keys.is_empty() || !self.lagging.ranges.is_empty()
    }

    /// The bytes buffered for a stream's client; see [`Message::cost`].
    #[must_use]
    pub fn buffered(&self, stream: StreamId) -> usize {
        self.stream(stream).map_or(0, |stream| stream.buffered)
    }

    /// Opens a stream that is due for automatic progress every `interval_ms` from `now_ms` on.
    pub fn open_stream(&mut self, caller: Caller, now_ms: u64, interval_ms: u64) -> StreamId {
        let due_ms = now_ms.saturating_add(interval_ms);
        let stream = Stream {
            caller,
            ids: BTreeMap::new(),
            next_id: 0,
            buffered: 0,
            behind: 0,
            parked: BTreeSet::new(),
            future: BTreeSet::new(),
            known: 0,
            due_ms,
            interval_ms,
        };
        let id = if let Some(at) = self.free_streams.pop() {
            self.streams[at as usize] = Some(stream);
            StreamId(at)
        } else {
            self.streams.push(Some(stream));
            StreamId(u32::try_from(self.streams.len() - 1).expect("fewer sockets than that"))
        };
        self.timers.insert((due_ms, id));
        id
    }

    /// Closes a stream and its watches, and drops its messages. The id may be used again.
    pub fn close_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id.0 as usize).and_then(Option::as_ref) else { return };
        let slots: Vec<_> = stream.ids.values().flatten().copied().collect();
        for slot in slots {
            self.drop_watcher(slot);
        }
        let Some(stream) = self.streams[id.0 as usize].take() else { return };
        self.buffered -= stream.buffered;
        self.timers.remove(&(stream.due_ms, id));
        self.progress_asked.remove(&id);
        self.outbox.retain(|(of, _)| *of != id);
        self.free_streams.push(id.0);
    }

    /// Opens a watch for this caller. The answer goes to the outbox.
    pub fn open(&mut self, view: &impl View, id: StreamId, caller: Caller, mut open: Open) {
        let newest = view.revision();
        if open.range.start.is_empty() {
            open.range.start = Bytes::from_static(&[0]);
        }
        match self.admit(view, id, &caller, &open) {
            Ok((watch_id, span)) => {
                let start = if open.start == 0 { newest + 1 } else { open.start };
                let watcher = Watcher {
                    id: watch_id,
                    stream: id,
                    span,
                    next: start,
                    place: 0,
                    state: State::Synced,
                    wants: Wants::of(&open),
                    checked: view.auth_revision(),
                };
                self.post(id, Message::Created { watch_id, revision: newest });
                let slot = self.insert(watcher);
                let revision = self.revision;
                let stream = self.stream_mut(id).expect("admitted");
                stream.caller = caller;
                stream.known = stream.known.max(newest);
                stream.ids.insert(watch_id, Some(slot));
                if open.start > newest {
                    stream.future.insert((open.start, slot));
                }
                if start > revision {
                    self.enter_synced(slot);
                } else {
                    self.stream_mut(id).expect("admitted").behind += 1;
                    self.enter_lagging(slot);
                }
            }
            Err(reason) => self.refuse(id, reason, newest),
        }
    }

    /// Answers a request to open a watch that failed before [`Hub::open`].
    pub fn refuse(&mut self, id: StreamId, reason: Reason, newest: Revision) {
        if self.stream(id).is_some() {
            self.post(id, Message::Refused { reason, revision: newest });
        }
    }

    /// The checks in etcd's order, because a client with several faults sees the first.
    fn admit(
        &mut self,
        view: &impl View,
        id: StreamId,
        caller: &Caller,
        open: &Open,
    ) -> Result<(i64, Span), Reason> {
        if open.start < 0 {
            return Err(Reason::NegativeStart);
        }
        view.may_open(caller, &open.range).map_err(Reason::Denied)?;
        let span = span_of(&open.range).ok_or(Reason::EmptyRange)?;
        let full = self.live >= limits::WATCHERS_MAX;
        let stream = self.stream_mut(id).ok_or(Reason::TooMany)?;
        if full || stream.ids.len() >= limits::STREAM_WATCHERS_MAX {
            return Err(Reason::TooMany);
        }
        if open.watch_id == 0 {
            while stream.ids.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            stream.next_id += 1;
            return Ok((stream.next_id - 1, span));
        }
        if stream.ids.contains_key(&open.watch_id) {
            return Err(Reason::DuplicateId);
        }
        Ok((open.watch_id, span))
    }

    /// Closes a watch for its client. As in etcd, an unknown id is not answered.
    pub fn cancel(&mut self, view: &impl View, id: StreamId, watch_id: i64) {
        let Some(stream) = self.stream_mut(id) else { return };
        let Some(slot) = stream.ids.remove(&watch_id) else { return };
        if let Some(slot) = slot {
            self.drop_watcher(slot);
        }
        self.post(id, Message::Canceled { watch_id, revision: view.revision() });
    }

    /// Takes the messages to send, in order for each stream. Call [`Hub::sent`] afterwards.
    pub fn take_outbox(&mut self) -> Vec<(StreamId, Message)> {
        std::mem::take(&mut self.outbox)
    }

    /// Returns an emptied outbox, so that its memory is reused.
    pub fn reuse_outbox(&mut self, mut outbox: Vec<(StreamId, Message)>) {
        outbox.clear();
        if self.outbox.is_empty() && outbox.capacity() <= limits::STEP_RESPONSES_MAX {
            self.outbox = outbox;
        }
    }

    pub(super) fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Records that messages of this total cost were sent; there may be room for more.
    pub fn sent(&mut self, id: StreamId, cost: usize) {
        let Some(stream) = self.stream_mut(id) else { return };
        let cost = cost.min(stream.buffered);
        stream.buffered -= cost;
        self.buffered -= cost;
        let crowded = self.buffered >= limits::BUFFERS_BYTES_MAX;
        let stream = self.stream_mut(id).expect("found above");
        // Half empty, so that a client at the limit does not change state for every event.
        if stream.buffered <= limits::STREAM_BUFFER_BYTES_MAX / 2
            && (!crowded || stream.buffered == 0)
        {
            for slot in std::mem::take(&mut stream.parked) {
                self.enter_lagging(slot);
            }
        }
    }

    fn insert(&mut self, watcher: Watcher) -> Slot {
        self.live += 1;
        if let Some(slot) = self.free.pop() {
            self.watchers[slot as usize] = Some(watcher);
            return slot;
        }
        self.watchers.push(Some(watcher));
        Slot::try_from(self.watchers.len() - 1).expect("limits::WATCHERS_MAX fits")
    }

    pub(super) fn drop_watcher(&mut self, slot: Slot) {
        self.leave(slot);
        let Some(watcher) = self.watchers[slot as usize].take() else { return };
        self.live -= 1;
        self.free.push(slot);
        if let Some(stream) = self.stream_mut(watcher.stream) {
            // If `next` has advanced, so has the ring, and the entry is dropped later.
            stream.future.remove(&(watcher.next, slot));
            if watcher.state != State::Synced {
                stream.behind -= 1;
            }
        }
    }

    pub(super) fn watcher(&self, slot: Slot) -> Option<&Watcher> {
        self.watchers.get(slot as usize)?.as_ref()
    }

    pub(super) fn watcher_mut(&mut self, slot: Slot) -> Option<&mut Watcher> {
        self.watchers.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn stream(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id.0 as usize)?.as_mut()
    }
}

/// The keys of a client's range; `None` if it is empty.
fn span_of(range: &KeyRange) -> Option<Span> {
    // A copy, because a slice of the request would keep its whole frame in memory.
    let start: Arc<[u8]> = Arc::from(&range.start[..]);
    match &range.end[..] {
        [] => Some(Span::Key(start)),
        [0] => Some(Span::Range(start, None)),
        end if *start < *end => Some(Span::Range(start, Some(Arc::from(end)))),
        _ => None,
    }
}
