//! The hub's [`View`] of the keyspace.

use super::view::View;
use crate::{
    caller::Caller,
    keyspace::Keyspace,
    kv::{
        request::{KeyRange, Revision},
        response::Event,
    },
    refusal::Refusal,
};

impl View for Keyspace {
    fn revision(&self) -> Revision {
        self.store().revision()
    }

    fn compacted(&self) -> Revision {
        self.store().compacted()
    }

    fn events(&self, revision: Revision) -> &[Event] {
        let first = self.store().first_event_revision();
        if revision < first {
            return &[];
        }
        self.store().events(revision, 1).next().unwrap_or_default()
    }

    fn next_write(&self, key: &[u8], from: Revision) -> Option<Event> {
        self.store().next_write(key, from).cloned()
    }

    fn previous(&self, event: &Event) -> Option<Event> {
        self.store().previous(event).cloned()
    }

    /// Enabling authentication does not increase the revision of the auth store, as in etcd.
    fn auth_revision(&self) -> u64 {
        self.auth().revision() << 1 | u64::from(self.auth().enabled())
    }

    fn may_open(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.auth().check_read(caller, range)
    }

    fn may_watch(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.auth().check_watching(caller, range)
    }
}
