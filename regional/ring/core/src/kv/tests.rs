//! Tests of the store against etcd's behavior, and against a naive model.

mod checks;
mod codecs;
mod corners;
mod memory;
mod model;
mod random;

use super::*;
use std::collections::BTreeSet;

/// The leases that exist, and the writes that the store reported.
#[derive(Default)]
struct World {
    leases: BTreeSet<LeaseId>,
    wrote: Vec<(Event, Option<Event>)>,
}

impl Owner for World {
    fn lease_exists(&self, lease: LeaseId) -> bool {
        self.leases.contains(&lease)
    }

    fn wrote(&mut self, event: &Event, replaced: Option<&Event>) {
        self.wrote.push((Arc::clone(event), replaced.cloned()));
    }
}

fn put(store: &mut Store, key: &str, value: &str) -> Revision {
    let request = PutRequest::of(key.to_owned(), value.to_owned());
    store.put(&request, &mut ()).unwrap().revision
}

fn delete(store: &mut Store, range: KeyRange) -> DeleteRangeResponse {
    store.delete_range(&DeleteRangeRequest { range, prev_kv: false }, &mut ())
}

fn key(key: &str) -> KeyRange {
    KeyRange::key(key.to_owned())
}

fn between(start: &str, end: &str) -> KeyRange {
    KeyRange::between(start.to_owned(), end.to_owned())
}

fn at(range: KeyRange, revision: Revision) -> RangeRequest {
    RangeRequest { revision, ..RangeRequest::of(range) }
}

/// The found versions as `key=value`, joined by spaces.
fn shown(kvs: &[Event]) -> String {
    let show = |e: &Event| format!("{}={}", e.key().escape_ascii(), e.value().escape_ascii());
    kvs.iter().map(show).collect::<Vec<_>>().join(" ")
}
