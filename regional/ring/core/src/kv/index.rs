//! The index of keys: finds the versions of a key, and the keys of a range, in key order.
//!
//! A key has its versions from oldest to newest, deletions among them; etcd calls the versions
//! between two deletions a generation. Short keys are stored inside the tree's nodes, so that a
//! lookup compares neighbors without following a pointer for each.
//!
//! # Invariants
//!
//! - **INDEX-1** A key in the index has at least one version.
//! - **INDEX-2** Versions of a key strictly increase by (revision, sub-revision).

use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;
use core::ops::Bound;
use std::collections::{BTreeMap, VecDeque, btree_map};
use std::sync::Arc;

use super::request::{KeyRange, Revision};
use super::response::{Event, KeyValue};

/// Longest key that is stored inside a node.
const INLINE_BYTES_MAX: usize = 30;

/// A key of the index: 32 bytes, and an allocation only if it is long.
pub(super) enum Key {
    Inline(u8, [u8; INLINE_BYTES_MAX]),
    Long(Box<[u8]>),
}

impl Key {
    fn new(key: &[u8]) -> Self {
        match u8::try_from(key.len()) {
            Ok(n) if key.len() <= INLINE_BYTES_MAX => {
                let mut bytes = [0; INLINE_BYTES_MAX];
                bytes[..key.len()].copy_from_slice(key);
                Self::Inline(n, bytes)
            }
            _ => Self::Long(key.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline(n, bytes) => &bytes[..usize::from(*n)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

/// The versions of one key (INDEX-2). Most keys of a compacted store have one.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "one version is the rule, and a deque is four words")]
pub(super) enum Versions {
    One(Event),
    Many(Box<VecDeque<Event>>),
}

impl Versions {
    /// The newest version, which may be a deletion.
    pub(super) fn newest(&self) -> &Event {
        match self {
            Self::One(event) => event,
            Self::Many(events) => events.back().expect("INDEX-1: a key has a version"),
        }
    }

    /// The version in force at `revision`; `None` if the key did not exist then.
    pub(super) fn at(&self, revision: Revision) -> Option<&Event> {
        let newest = self.newest();
        let found = match self {
            _ if newest.mod_revision <= revision => newest,
            Self::One(_) => return None,
            Self::Many(events) => {
                let after = events.partition_point(|e| e.mod_revision <= revision);
                events.get(after.checked_sub(1)?)?
            }
        };
        (!found.is_deletion()).then_some(found)
    }

    /// Whether every member has this key. Some may have dropped a key that was deleted before or at `compacted`.
    pub(super) fn is_held(&self, compacted: Revision) -> bool {
        let newest = self.newest();
        !newest.is_deletion() || newest.mod_revision > compacted
    }

    /// The version right before `event`; `None` if that was a deletion.
    pub(super) fn before(&self, event: &KeyValue) -> Option<&Event> {
        let Self::Many(events) = self else { return None };
        let place = events.partition_point(|e| order(e) < order(event));
        events.get(place.checked_sub(1)?).filter(|e| !e.is_deletion())
    }

    fn push(&mut self, event: Event) {
        match self {
            Self::One(first) => {
                *self = Self::Many(Box::new(VecDeque::from([Arc::clone(first), event])));
            }
            Self::Many(events) => events.push_back(event),
        }
    }
}

/// The order of the versions of one key, and of all writes of a store.
pub(super) fn order(event: &KeyValue) -> (Revision, u32) {
    (event.mod_revision, event.sub_revision)
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Key, Versions>,
}

impl Index {
    /// The versions of `key`.
    pub(super) fn versions(&self, key: &[u8]) -> Option<&Versions> {
        self.keys.get(key)
    }

    /// The version of the key at `revision`.
    pub(super) fn at(&self, key: &[u8], revision: Revision) -> Option<&Event> {
        self.keys.get(key)?.at(revision)
    }

    /// Adds a version that `make` creates from the one it replaces.
    pub(super) fn push_with(
        &mut self,
        key: &[u8],
        make: impl FnOnce(Option<&Event>) -> Event,
    ) -> (Event, Option<Event>) {
        if let Some(versions) = self.keys.get_mut(key) {
            let old = versions.newest();
            let old = (!old.is_deletion()).then(|| Arc::clone(old));
            let event = make(old.as_ref());
            versions.push(Arc::clone(&event));
            return (event, old);
        }
        let event = make(None);
        self.keys.insert(Key::new(key), Versions::One(Arc::clone(&event)));
        (event, None)
    }

    /// Removes the newest version of `key`.
    pub(super) fn pop(&mut self, key: &[u8]) {
        match self.keys.get_mut(key) {
            Some(Versions::Many(events)) => {
                events.pop_back();
                if events.len() == 1 {
                    let last = events.pop_back().expect("there is one");
                    *self.keys.get_mut(key).expect("it was just there") = Versions::One(last);
                }
            }
            Some(Versions::One(_)) => {
                self.keys.remove(key);
            }
            None => {}
        }
    }

    /// Drops the versions of a key that a compaction at or after `event` made unreadable: those
    /// before it, and the event itself if it is a deletion. Calls `dropped` for each.
    pub(super) fn settle(&mut self, event: &KeyValue, mut dropped: impl FnMut(&Event)) {
        let Some(versions) = self.keys.get_mut(event.key()) else { return };
        let keep = if event.is_deletion() { Ordering::Greater } else { Ordering::Equal };
        let is_dropped = |e: &Event| order(e).cmp(&order(event)) < keep;
        match versions {
            Versions::One(only) => {
                if is_dropped(only) {
                    dropped(only);
                    self.keys.remove(event.key());
                }
            }
            Versions::Many(events) => {
                while events.front().is_some_and(is_dropped) {
                    events.pop_front().inspect(&mut dropped);
                }
                match events.len() {
                    0 => {
                        self.keys.remove(event.key());
                    }
                    1 => {
                        let last = events.pop_front().expect("there is one");
                        *versions = Versions::One(last);
                    }
                    n if events.capacity() > 4 * n.max(4) => events.shrink_to_fit(),
                    _ => {}
                }
            }
        }
    }

    /// The keys of `range` from `from` on, in order, with their versions.
    pub(super) fn walk<'a>(&'a self, range: &'a KeyRange, from: Option<&'a [u8]>) -> Walk<'a> {
        let start = from.unwrap_or_default().max(&range.start[..]);
        let low = Bound::Included(start);
        let high = match () {
            () if range.is_one_key() => {
                let one = if start == range.start { self.keys.get(start) } else { None };
                return Walk::One(one.map(|versions| (start, versions)));
            }
            () if range.is_open_ended() => Bound::Unbounded,
            // The tree panics at such a range; etcd finds no key in it.
            () if range.end[..] <= *start => return Walk::One(None),
            () => Bound::Excluded(&range.end[..]),
        };
        Walk::Range(self.keys.range::<[u8], _>((low, high)))
    }
}

/// Keys in order, with their versions.
pub(super) enum Walk<'a> {
    One(Option<(&'a [u8], &'a Versions)>),
    Range(btree_map::Range<'a, Key, Versions>),
}

impl<'a> Iterator for Walk<'a> {
    type Item = (&'a [u8], &'a Versions);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::One(one) => one.take(),
            Self::Range(range) => range.next().map(|(key, versions)| (key.as_bytes(), versions)),
        }
    }
}
