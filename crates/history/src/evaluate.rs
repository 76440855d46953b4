//! The effect of a request on a state, as etcd's documentation defines it.
//!
//! The reference all checkers compare with, and the store the generator of clean histories runs.
//! Reads at an old revision are resolved by the caller, who passes the state of that revision.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    Body, Compare, Event, KeyValue, Order, Put, PutIf, Range, Request, Revision, Span, Target,
    Timeline, Txn,
};

/// A state that can be read.
pub trait Keys {
    /// The key, if it is there.
    fn get(&self, key: &str) -> Option<&KeyValue>;
    /// The keys of the span that are there, in order.
    fn scan(&self, span: &Span) -> Vec<&KeyValue>;
}

impl Keys for BTreeMap<String, KeyValue> {
    fn get(&self, key: &str) -> Option<&KeyValue> {
        BTreeMap::get(self, key)
    }

    fn scan(&self, span: &Span) -> Vec<&KeyValue> {
        self.range(span.key.clone()..)
            .map(|(_, kv)| kv)
            .take_while(|kv| span.holds(&kv.key))
            .collect()
    }
}

/// The state of a timeline at a revision.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The history.
    pub timeline: &'a Timeline,
    /// The revision looked at.
    pub revision: Revision,
}

impl Keys for At<'_> {
    fn get(&self, key: &str) -> Option<&KeyValue> {
        self.timeline.at(key, self.revision)
    }

    fn scan(&self, span: &Span) -> Vec<&KeyValue> {
        self.timeline.keys(span).filter_map(|key| self.timeline.at(key, self.revision)).collect()
    }
}

/// A state with the changes of one transaction on top.
struct Changed<'a, K> {
    base: &'a K,
    changes: BTreeMap<String, Option<KeyValue>>,
}

impl<K: Keys> Keys for Changed<'_, K> {
    fn get(&self, key: &str) -> Option<&KeyValue> {
        match self.changes.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.base.get(key),
        }
    }

    fn scan(&self, span: &Span) -> Vec<&KeyValue> {
        let held = self.base.scan(span).into_iter().map(|kv| kv.key.as_str());
        let changed = self.changes.keys().map(String::as_str).filter(|key| span.holds(key));
        let keys: BTreeSet<&str> = held.chain(changed).collect();
        keys.into_iter().filter_map(|key| self.get(key)).collect()
    }
}

/// The answer to `request` on `base`, and the events it makes if it writes revision `next`.
pub fn evaluate<K: Keys>(request: &Request, base: &K, next: Revision) -> (Body, Vec<Event>) {
    let mut state = Changed { base, changes: BTreeMap::new() };
    let mut events = Vec::new();
    let body = apply(request, &mut state, next, &mut events);
    (body, events)
}

fn apply<K: Keys>(
    request: &Request,
    state: &mut Changed<'_, K>,
    next: Revision,
    events: &mut Vec<Event>,
) -> Body {
    match request {
        Request::Range(range) => read(range, state),
        Request::Put(put) => Body::Put(write(put, state, next, events)),
        Request::PutIf(PutIf { put, revision }) => {
            let held = state.get(&put.key);
            let modified = held.map_or(0, |kv| kv.modified);
            if modified != *revision {
                let value = held.map(|kv| kv.value.clone());
                return Body::PutIf { written: false, modified, value };
            }
            write(put, state, next, events);
            Body::PutIf { written: true, modified: next, value: None }
        }
        // Its key is not known: see `crate::sequence`.
        Request::PutSequential(_) => Body::Done,
        Request::Delete(span) => {
            let before: Vec<_> = state.scan(span).into_iter().cloned().collect();
            for old in &before {
                events.push(Event::Delete { key: old.key.clone(), revision: next });
                state.changes.insert(old.key.clone(), None);
            }
            Body::Delete(before)
        }
        Request::Txn(txn) => {
            let succeeded = compares_hold(txn, state);
            let branch = if succeeded { &txn.success } else { &txn.failure };
            let bodies = branch.iter().map(|r| apply(r, state, next, events)).collect();
            Body::Txn { succeeded, bodies }
        }
        Request::Compact(_) | Request::Revoke(_) => Body::Done,
        Request::Grant { ttl_s, .. } => Body::Ttl(*ttl_s),
        Request::Renew(_) | Request::Inspect(_) => Body::Ttl(0),
    }
}

/// Writes a key, and returns what was there before.
fn write<K: Keys>(
    put: &Put,
    state: &mut Changed<'_, K>,
    next: Revision,
    events: &mut Vec<Event>,
) -> Option<KeyValue> {
    let before = state.get(&put.key).cloned();
    let new = KeyValue {
        key: put.key.clone(),
        value: put.value.clone(),
        created: before.as_ref().map_or(next, |old| old.created),
        modified: next,
        version: before.as_ref().map_or(1, |old| old.version + 1),
        lease: put.lease,
    };
    events.push(Event::Put(new.clone()));
    state.changes.insert(put.key.clone(), Some(new));
    before
}

fn read<K: Keys>(range: &Range, state: &K) -> Body {
    let keys = state.scan(&range.span);
    let count = keys.len() as i64;
    let limit = if range.limit == 0 { keys.len() } else { range.limit };
    Body::Range { keys: keys.into_iter().take(limit).cloned().collect(), count }
}

/// Whether all compares of a transaction hold.
pub fn compares_hold<K: Keys>(txn: &Txn, state: &K) -> bool {
    txn.compares.iter().all(|compare| holds(compare, state.get(&compare.key)))
}

/// Whether a compare holds for a key as it is, or for its absence.
#[must_use]
pub fn holds(compare: &Compare, key: Option<&KeyValue>) -> bool {
    let order = match (&compare.target, key) {
        (Target::Value(_), None) => return false,
        (Target::Value(value), Some(kv)) => kv.value.cmp(value),
        (Target::Modified(modified), kv) => kv.map_or(0, |kv| kv.modified).cmp(modified),
        (Target::Created(created), kv) => kv.map_or(0, |kv| kv.created).cmp(created),
        (Target::Version(version), kv) => kv.map_or(0, |kv| kv.version).cmp(version),
    };
    match compare.order {
        Order::Equal => order == Ordering::Equal,
        Order::NotEqual => order != Ordering::Equal,
        Order::Greater => order == Ordering::Greater,
        Order::Less => order == Ordering::Less,
    }
}
