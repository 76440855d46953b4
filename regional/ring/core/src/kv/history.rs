//! The history of one key, for a watch on it that starts in the past.

use super::index::Versions;
use super::{Event, Revision, Store};

impl Store {
    /// The first write of `key` at or after `from`. A caller that must not miss one first compares
    /// `from` with [`Store::first_event_revision`].
    #[must_use]
    pub fn next_write(&self, key: &[u8], from: Revision) -> Option<&Event> {
        // The index may have dropped a deletion at the compacted revision; the log has it
        // (COMPACT-1).
        if from <= self.compacted {
            let events = self.log.at(self.compacted);
            if let Some(event) = events.iter().find(|event| event.key() == key) {
                return Some(event);
            }
        }
        let from = from.max(self.compacted);
        match self.index.versions(key)? {
            Versions::One(event) => (event.mod_revision >= from).then_some(event),
            Versions::Many(events) => {
                events.get(events.partition_point(|event| event.mod_revision < from))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kv::{DeleteRangeRequest, KeyRange, PutRequest, Store};

    fn put(store: &mut Store, key: &'static str) {
        let put = PutRequest {
            key: key.into(),
            value: "v".into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        store.put(&put, &mut ()).unwrap();
    }

    /// A watch opened at the compacted revision sees a deletion at it, also after the memory was
    /// reclaimed.
    #[test]
    fn a_deletion_at_the_compacted_revision_is_found() {
        let mut store = Store::new();
        put(&mut store, "a");
        let range = KeyRange { start: "a".into(), end: "".into() };
        store.delete_range(&DeleteRangeRequest { range, prev_kv: false }, &mut ());
        put(&mut store, "b");
        put(&mut store, "a");
        let found = |store: &Store, from| store.next_write(b"a", from).map(|e| e.mod_revision);
        let expected = [(1, Some(2)), (2, Some(2)), (3, Some(3)), (4, Some(5)), (6, None)];
        for (from, revision) in expected {
            assert_eq!(found(&store, from), revision, "from {from}");
        }
        store.compact(3).unwrap();
        while store.reclaim(1) != crate::kv::Reclaimed::Everything {}
        assert_eq!(found(&store, 3), Some(3));
        assert_eq!(found(&store, 4), Some(5));
        assert_eq!(found(&store, 6), None);
    }
}
