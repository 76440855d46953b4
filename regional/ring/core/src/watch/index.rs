//! The index of watchers by key: a map for single keys, a tree for ranges.

use std::{collections::HashMap, sync::Arc};

use super::{
    interval::Intervals,
    members::{Members, Slot},
};

/// The keys that a watcher watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// One key.
    Key(Arc<[u8]>),
    /// From the first up to, not including, the second; `None` is the end of the keyspace.
    Range(Arc<[u8]>, Option<Arc<[u8]>>),
}

/// Watchers by their keys.
#[derive(Debug, Default)]
pub(super) struct Index {
    // Never iterated, so its order cannot affect messages; lookups are on the hot path.
    keys: HashMap<Arc<[u8]>, Members>,
    ranges: Intervals,
}

impl Index {
    /// Adds a watcher and returns its position in the list of its equals. `span` shares their bytes
    /// afterwards, so that ten thousand watchers of one key store it once.
    pub(super) fn insert(&mut self, span: &mut Span, slot: Slot) -> u32 {
        match span {
            Span::Range(start, end) => self.ranges.insert(start, end, slot),
            Span::Key(key) => {
                if let Some((shared, _)) = self.keys.get_key_value(&*key) {
                    *key = shared.clone();
                }
                match self.keys.get_mut(&*key) {
                    Some(members) => members.push(slot),
                    None => {
                        self.keys.insert(key.clone(), Members::One(slot));
                        0
                    }
                }
            }
        }
    }

    /// Removes the watcher at `position`; returns the watcher that moved there, if one did.
    pub(super) fn remove(&mut self, span: &Span, position: u32) -> Option<Slot> {
        match span {
            Span::Range(start, end) => self.ranges.remove(start, end, position),
            Span::Key(key) => {
                let members = self.keys.get_mut(key)?;
                let moved = members.remove(position);
                if members.slots().is_empty() {
                    self.keys.remove(key);
                }
                moved
            }
        }
    }

    /// Calls `hit` for every watcher of `key`.
    pub(super) fn matching(&self, key: &[u8], hit: &mut impl FnMut(Slot)) {
        if let Some(members) = self.keys.get(key) {
            members.slots().iter().copied().for_each(&mut *hit);
        }
        self.ranges.stab(key, hit);
    }
}
