//! Sequential keys: the store names them, and their numbers only grow.
//!
//! The name of a key is known from the answer, or from the log, where its unique value leads to it.
//! With that name the request is a transaction that creates the key, and every other checker sees it
//! as such.
//!
//! # Invariants
//!
//! - HISTKV-9: In the order of their revisions, the keys of a prefix end in numbers that strictly
//!   increase and have equally many digits, also after keys were deleted.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Answer, Body, Compare, Operation, Order, Outcome, Put, Recording, Request, Revision, Rule,
    Sequential, Target, Timeline, Txn, Violation,
};

/// Puts transactions in place of sequential puts whose keys are known, and checks HISTKV-9.
#[must_use]
pub fn resolve(recording: &Recording, timeline: &Timeline) -> (Recording, Vec<Violation>) {
    let held = by_value(timeline);
    let mut resolved = recording.clone();
    let mut found = Vec::new();
    let mut named: BTreeMap<&str, BTreeMap<Revision, (&str, usize)>> = BTreeMap::new();
    for (index, operation) in recording.operations.iter().enumerate() {
        let Request::PutSequential(put) = &operation.request else { continue };
        let key = match &operation.outcome {
            Outcome::Ok(Answer { revision, body: Body::PutSequential(key), .. }) => {
                Some((*revision, key.as_str()))
            }
            Outcome::Unknown => held.get(put.value.as_str()).copied(),
            Outcome::Ok(_) | Outcome::Fail(_) => None,
        };
        let Some((revision, key)) = key else { continue };
        rename(&mut resolved.operations[index], put, key);
        if let Some((_, other)) =
            named.entry(&put.prefix).or_default().insert(revision, (key, index))
        {
            let other = &recording.operations[other];
            let what = format!("two keys were made at revision {revision}: {operation}; {other}");
            found.push(Violation::new(Rule::SequenceGrows, what));
        }
    }
    for (prefix, keys) in named {
        let mut last: Option<&str> = None;
        for (key, index) in keys.into_values() {
            let operation = &recording.operations[index];
            let number = key.strip_prefix(prefix).filter(|number| is_number(number));
            let grows =
                |number: &str| last.is_none_or(|last| number.len() == last.len() && number > last);
            if !number.is_some_and(grows) {
                let what = format!("key {key} follows number {last:?} of {prefix}: {operation}");
                found.push(Violation::new(Rule::SequenceGrows, what));
            }
            last = number.or(last);
        }
    }
    (resolved, found)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where the log holds each value for the first time.
fn by_value(timeline: &Timeline) -> HashMap<&str, (Revision, &str)> {
    let mut held = HashMap::new();
    for (revision, events) in timeline.since(2) {
        for kv in events.iter().filter_map(|event| event.after()) {
            held.entry(kv.value.as_str()).or_insert((revision, kv.key.as_str()));
        }
    }
    held
}

/// The operation as the transaction that creates `key`.
fn rename(operation: &mut Operation, put: &Sequential, key: &str) {
    operation.request = creates(put, key);
    if let Outcome::Ok(answer) = &mut operation.outcome {
        answer.body = Body::Txn { succeeded: true, bodies: vec![Body::Put(None)] };
    }
}

/// The transaction that creates `key` as `put` asks.
#[must_use]
pub fn creates(put: &Sequential, key: &str) -> Request {
    let absent = Compare { key: key.into(), target: Target::Created(0), order: Order::Equal };
    let put = Put { key: key.into(), value: put.value.clone(), lease: 0 };
    Request::Txn(Txn { compares: vec![absent], success: vec![Request::Put(put)], failure: vec![] })
}
