//! The hub's interface to the ring's state.

use std::sync::Arc;

use crate::{
    caller::Caller,
    kv::{
        request::{KeyRange, Revision},
        response::Event,
    },
    refusal::Refusal,
};

/// The state of the ring at one moment, as far as watches depend on it.
///
/// It has the events of every revision from [`View::compacted`] on, that one included: a watch may
/// start at the compacted revision.
pub trait View {
    /// The newest revision.
    fn revision(&self) -> Revision;

    /// The compacted revision, below which no watch can start. Zero if there was no compaction.
    fn compacted(&self) -> Revision;

    /// The events of one revision, in the order of its writes; empty for a revision without writes.
    fn events(&self, revision: Revision) -> &[Event];

    /// The first write of a key at or after a revision.
    fn next_write(&self, key: &[u8], from: Revision) -> Option<Event>;

    /// The previous version of an event's key; `None` if it did not exist, or if that version is
    /// compacted.
    fn previous(&self, event: &Event) -> Option<Event>;

    /// Changes whenever an answer of [`View::may_watch`] may have changed.
    fn auth_revision(&self) -> u64;

    /// Checks that this caller may open a watch on these keys.
    ///
    /// # Errors
    ///
    /// The refusal with etcd's text.
    fn may_open(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal>;

    /// Checks that an open watch may still receive events of these keys. Unlike at its opening, the
    /// caller's token may be older than the last change of users and roles: the user's current
    /// permissions count.
    ///
    /// # Errors
    ///
    /// The refusal with etcd's text.
    fn may_watch(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal>;
}

/// An event for one watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The write.
    pub event: Event,
    /// The previous version of the key, if the watcher asked for it, the key existed, and that version
    /// is not compacted.
    pub before: Option<Event>,
}

impl WatchEvent {
    /// Whether the write created the key.
    #[must_use]
    pub fn is_create(&self) -> bool {
        self.event.is_creation()
    }
}

/// The content of one response; shared by all watchers that get the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The events, in order of revision and of writes within one.
    pub events: Vec<WatchEvent>,
    /// The cost of the batch in a stream's buffer; see [`super::limits`].
    pub cost: usize,
}

impl Batch {
    pub(super) fn new(events: Vec<WatchEvent>) -> Arc<Self> {
        let cost = events.iter().map(cost).sum();
        Arc::new(Self { events, cost })
    }
}

/// The cost of one event in a stream's buffer.
pub(super) fn cost(told: &WatchEvent) -> usize {
    let size = |event: &Event| event.key_and_value().len() + 32;
    let bytes = size(&told.event) + told.before.as_ref().map_or(0, size);
    bytes.max(super::limits::EVENT_COST_MIN)
}
