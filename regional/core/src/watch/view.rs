//! What the hub reads of the ring's state.

use std::sync::Arc;

use crate::{
    keyspace::Caller,
    kv::{
        request::{KeyRange, Revision},
        response::Event,
    },
    refusal::Refusal,
};

/// The state of the ring at one moment, as far as watches depend on it.
///
/// The events of every revision from [`View::compacted`] on are there, that one included: a watch
/// may start at the very revision that was compacted.
pub trait View {
    /// The newest revision.
    fn revision(&self) -> Revision;

    /// The revision last compacted at; nothing below it can be watched. Zero if never.
    fn compacted(&self) -> Revision;

    /// What happened at one revision, in the order of its writes; nothing for a revision that
    /// wrote nothing.
    fn events(&self, revision: Revision) -> &[Event];

    /// The first write of a key at or after a revision.
    fn next_write(&self, key: &[u8], from: Revision) -> Option<Event>;

    /// What the key of an event held just before; nothing if it did not exist, or if that state
    /// is compacted.
    fn previous(&self, event: &Event) -> Option<Event>;

    /// Changes whenever an answer of [`View::may_watch`] may have changed.
    fn auth_revision(&self) -> u64;

    /// Whether this caller may open a watch on these keys.
    ///
    /// # Errors
    ///
    /// What the caller lacks, in etcd's words.
    fn may_open(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal>;

    /// Whether a watch that was opened may still be told about these keys. Unlike at its opening,
    /// the caller's token may be older than the last change of users and roles: what counts is
    /// what the user may do now.
    ///
    /// # Errors
    ///
    /// What the caller lacks, in etcd's words.
    fn may_watch(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal>;
}

/// One event as one watcher gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The write.
    pub event: Event,
    /// What the key held before, if the watcher wants to know, the key existed, and that state is
    /// not compacted.
    pub before: Option<Event>,
}

impl Told {
    /// Whether the write created the key.
    #[must_use]
    pub fn is_create(&self) -> bool {
        self.event.is_creation()
    }
}

/// What one response tells; shared by all watchers that are told the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// In the order of revisions and of writes within one.
    pub events: Vec<Told>,
    /// What it counts against a stream's buffer; see [`super::limits`].
    pub cost: usize,
}

impl Batch {
    pub(super) fn new(events: Vec<Told>) -> Arc<Self> {
        let cost = events.iter().map(cost).sum();
        Arc::new(Self { events, cost })
    }
}

/// What one event counts against a stream's buffer.
pub(super) fn cost(told: &Told) -> usize {
    let size = |event: &Event| event.key_and_value().len() + 32;
    let bytes = size(&told.event) + told.before.as_ref().map_or(0, size);
    bytes.max(super::limits::EVENT_COST_MIN)
}
