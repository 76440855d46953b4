//! Checker A: every answer is replayed against the log, by revision.
//!
//! The primary checker: a million operations take a second, because the store itself says where
//! each write is in the log, and the checker only has to refute it. Its answer is as good as the log: a
//! store that lies in its log and in its answers alike is caught by [`crate::keys`], which does not
//! read the log.
//!
//! # Invariants
//!
//! HISTKV-1 to HISTKV-8 of [`Rule`], each in one function below.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    Answer, Body, Event, Failure, Nanos, Operation, Outcome, PutIf, Recording, Request, Revision,
    Rule, Timeline, Violation,
    evaluate::{At, evaluate},
};

/// The result of replay, for the checkers that build on it.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    /// The operation that made each revision, by its index in the recording.
    pub writer: BTreeMap<Revision, usize>,
    /// The lease whose end made a revision.
    pub ended: BTreeMap<Revision, i64>,
}

/// Checks the operations of a recording against its merged log.
#[must_use]
pub fn check(recording: &Recording, timeline: &Timeline) -> (Explained, Vec<Violation>) {
    let mut found = Vec::new();
    let mut explained = Explained::default();
    acknowledged(recording, timeline, &mut explained, &mut found);
    explain_rest(recording, timeline, &mut explained, &mut found);
    real_time(recording, &explained, &mut found);
    for operation in &recording.operations {
        reads_state(operation, timeline, &mut found);
    }
    compaction(recording, &mut found);
    (explained, found)
}

/// HISTKV-1, HISTKV-2, HISTKV-4: every acknowledged write is the whole of one revision, with its content.
fn acknowledged(
    recording: &Recording,
    timeline: &Timeline,
    explained: &mut Explained,
    found: &mut Vec<Violation>,
) {
    for (index, operation) in recording.operations.iter().enumerate() {
        let Some(revision) = operation.wrote_at() else { continue };
        if let Some(other) = explained.writer.insert(revision, index) {
            let other = &recording.operations[other];
            let what = format!("two writes have revision {revision}: {operation}; {other}");
            found.push(Violation::new(Rule::Dense, what));
        }
        let state = At { timeline, revision: revision - 1 };
        let (_, events) = evaluate(&operation.request, &state, revision);
        let held = timeline.events(revision);
        if held == Some(events.as_slice()) {
            continue;
        }
        // Some of the events, or more than them, is a torn transaction; none is a lost write.
        let torn = held.is_some_and(|held| held.iter().any(|event| events.contains(event)));
        let rule = if torn { Rule::Atomic } else { Rule::Acknowledged };
        let what = format!("the log holds {held:?} instead of {events:?} of {operation}");
        found.push(Violation::new(rule, what));
    }
}

/// HISTKV-5, HISTKV-6: a revision that no client was told of belongs to an operation of unknown outcome, once, or
/// to the end of a lease.
fn explain_rest(
    recording: &Recording,
    timeline: &Timeline,
    explained: &mut Explained,
    found: &mut Vec<Violation>,
) {
    let operations = &recording.operations;
    let mut by_value = HashMap::new();
    for (index, operation) in operations.iter().enumerate() {
        operation.request.for_each_put(&mut |put| {
            by_value.insert(put.value.as_str(), index);
        });
    }
    let mut deletes: BTreeSet<usize> = (0..operations.len())
        .filter(|i| {
            operations[*i].outcome == Outcome::Unknown && operations[*i].request.may_write()
        })
        .collect();
    let known_by = recording.first_known();
    let mut used: HashMap<usize, Revision> =
        explained.writer.iter().map(|(revision, index)| (*index, *revision)).collect();
    for (revision, events) in timeline.since(2) {
        if explained.writer.contains_key(&revision) {
            continue;
        }
        let value = events.iter().find_map(|event| event.after().map(|kv| kv.value.as_str()));
        if let Some(value) = value {
            let Some(&index) = by_value.get(value) else {
                let what =
                    format!("revision {revision} holds {events:?}, which no client asked for");
                found.push(Violation::new(Rule::NoPhantom, what));
                continue;
            };
            match judge_unasked(&operations[index], timeline, revision, used.get(&index)) {
                Some(violation) => found.push(violation),
                None => {
                    used.insert(index, revision);
                    explained.writer.insert(revision, index);
                }
            }
            deletes.remove(&index);
        } else if let Some(lease) = ended_lease(timeline, revision, events) {
            explained.ended.insert(revision, lease);
        } else if let Some(index) = deletes.iter().copied().find(|index| {
            // Any will do that was called before the revision was known: one that could explain
            // this revision could explain a later one as well.
            let state = At { timeline, revision: revision - 1 };
            operations[*index].call_ns < known_by(revision)
                && evaluate(&operations[*index].request, &state, revision).1 == events
        }) {
            deletes.remove(&index);
            explained.writer.insert(revision, index);
        } else {
            let what = format!("revision {revision} holds {events:?}, which no client asked for");
            found.push(Violation::new(Rule::NoPhantom, what));
        }
    }
}

/// Judges a revision that holds a value of an operation which was not told of this revision.
fn judge_unasked(
    operation: &Operation,
    timeline: &Timeline,
    revision: Revision,
    used: Option<&Revision>,
) -> Option<Violation> {
    if let Some(first) = used {
        let what = format!("revisions {first} and {revision} both come from {operation}");
        return Some(Violation::new(Rule::AtMostOnce, what));
    }
    match &operation.outcome {
        Outcome::Unknown => {
            let state = At { timeline, revision: revision - 1 };
            let (_, events) = evaluate(&operation.request, &state, revision);
            let held = timeline.events(revision);
            (held != Some(events.as_slice())).then(|| {
                let what = format!("the log holds {held:?} instead of {events:?} of {operation}");
                Violation::new(Rule::Atomic, what)
            })
        }
        Outcome::Fail(_) => {
            let what = format!("revision {revision} comes from a refused {operation}");
            Some(Violation::new(Rule::NoPhantom, what))
        }
        Outcome::Ok(_) => {
            let what = format!("revision {revision} comes from {operation}");
            Some(Violation::new(Rule::Acknowledged, what))
        }
    }
}

/// The lease that ended at this revision: its keys, all of them, and nothing else, are deleted.
fn ended_lease(timeline: &Timeline, revision: Revision, events: &[Event]) -> Option<i64> {
    let before = |event: &Event| timeline.at(event.key(), revision - 1);
    let lease = before(events.first()?)?.lease;
    let all = events
        .iter()
        .all(|event| event.after().is_none() && before(event).is_some_and(|kv| kv.lease == lease));
    (lease != 0 && all).then_some(lease)
}

/// HISTKV-3: an operation's revision is no less than any that was returned before its call, and a
/// write's is greater.
fn real_time(recording: &Recording, explained: &Explained, found: &mut Vec<Violation>) {
    let operations = &recording.operations;
    // Revisions that clients knew, by the time from which they knew them.
    let mut known: Vec<(Nanos, Revision, Knower)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        if let (Some(answer), Some(at)) = (operation.answer(), operation.return_ns) {
            known.push((at, answer.revision, Knower::Operation(index)));
        }
    }
    for watch in &recording.watches {
        let revisions = watch.revisions();
        known.extend(revisions.map(|(at, r)| (at, r, Knower::Watcher(watch.client))));
    }
    known.sort_by_key(|(at, ..)| *at);
    let unknown_writes: HashMap<usize, Revision> =
        explained.writer.iter().map(|(revision, index)| (*index, *revision)).collect();
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by_key(|index| operations[*index].call_ns);
    let mut seen = known.iter().peekable();
    let mut head = (0, Knower::Watcher(0));
    for index in order {
        let operation = &operations[index];
        while let Some((_, revision, who)) = seen.next_if(|(at, ..)| *at < operation.call_ns) {
            if *revision > head.0 {
                head = (*revision, *who);
            }
        }
        let own = unknown_writes.get(&index).copied().map(|revision| (revision, true));
        let answered = operation
            .answer()
            .filter(|_| operation.is_linearizable())
            .map(|answer| (answer.revision, answer.body.wrote()))
            .or(denied_future(operation).map(|denied| (denied - 1, false)));
        let Some((revision, wrote)) = own.or(answered) else { continue };
        if revision < head.0 || wrote && revision == head.0 {
            let who = match head.1 {
                Knower::Operation(index) => operations[index].to_string(),
                Knower::Watcher(client) => format!("watcher {client}"),
            };
            let what = format!(
                "{operation} happened at revision {revision}, but {} was known before to {who}",
                head.0
            );
            found.push(Violation::new(Rule::RealTime, what));
        }
    }
}

/// The client or watcher that knew a revision.
#[derive(Clone, Copy)]
enum Knower {
    Operation(usize),
    Watcher(u32),
}

/// The revision of which a linearizable read was told that it does not exist yet.
fn denied_future(operation: &Operation) -> Option<Revision> {
    match (&operation.request, &operation.outcome) {
        (Request::Range(range), Outcome::Fail(Failure::Future)) if !range.serializable => {
            Some(range.revision)
        }
        _ => None,
    }
}

/// HISTKV-4 and reads: the body of an answer equals what the request yields at its revision.
fn reads_state(operation: &Operation, timeline: &Timeline, found: &mut Vec<Violation>) {
    let Some(Answer { revision, body, .. }) = operation.answer() else { return };
    match operation.request {
        Request::Range(_) | Request::Put(_) | Request::PutIf(_) => {}
        Request::Delete(_) | Request::Txn(_) => {}
        // Its key is not known, so the answer is none.
        Request::PutSequential(_) => {
            let what = format!("it names no key: {operation}");
            return found.push(Violation::new(Rule::ReadsState, what));
        }
        Request::Compact(_) | Request::Grant { .. } => return,
        Request::Renew(_) | Request::Revoke(_) | Request::Inspect(_) => return,
    }
    if *revision > timeline.head() {
        // A lost write is reported as such.
        if !body.wrote() {
            let what = format!("the log ends at {}, before {operation}", timeline.head());
            found.push(Violation::new(Rule::ReadsState, what));
        }
        return;
    }
    let looked_at = match (&operation.request, body) {
        (Request::Range(range), _) if range.revision > 0 => range.revision,
        // The header may be younger than the decision; the revision in the way says more. That
        // the key was absent, and when, is for `crate::keys`.
        (
            Request::PutIf(PutIf { revision, .. }),
            Body::PutIf { written: false, modified: 0, .. },
        ) if *revision != 0 => {
            return;
        }
        (Request::PutIf(_), Body::PutIf { written: false, modified, .. }) => *modified,
        _ if body.wrote() => revision - 1,
        _ => *revision,
    };
    let state = At { timeline, revision: looked_at };
    let (expected, events) = evaluate(&operation.request, &state, *revision);
    if expected != *body {
        let what = format!("at revision {looked_at} {expected:?} was expected of {operation}");
        found.push(Violation::new(Rule::ReadsState, what));
    } else if !body.wrote() && !events.is_empty() {
        let what = format!("{operation} wrote nothing where it should write {events:?}");
        found.push(Violation::new(Rule::ReadsState, what));
    }
}

/// HISTKV-8, as seen by reads of old revisions.
fn compaction(recording: &Recording, found: &mut Vec<Violation>) {
    let mut compactions = Vec::new();
    for operation in &recording.operations {
        if let Request::Compact(revision) = operation.request
            && !matches!(operation.outcome, Outcome::Fail(_))
        {
            let done = operation.answer().and(operation.return_ns);
            compactions.push((operation.call_ns, done, revision));
        }
    }
    for operation in &recording.operations {
        let Request::Range(range) = &operation.request else { continue };
        let end = operation.return_ns.unwrap_or(Nanos::MAX);
        match &operation.outcome {
            Outcome::Fail(Failure::Compacted) => {
                let may =
                    compactions.iter().any(|(call, _, at)| *call < end && *at > range.revision);
                if range.revision == 0 || !may {
                    let what = format!("nothing compacted that far yet: {operation}");
                    found.push(Violation::new(Rule::Compaction, what));
                }
            }
            Outcome::Ok(Answer { body: Body::Range { .. }, .. })
                if range.revision > 0 && !range.serializable =>
            {
                let must = compactions.iter().any(|(_, done, at)| {
                    done.is_some_and(|done| done < operation.call_ns) && *at > range.revision
                });
                if must {
                    let what = format!("the revision was compacted before: {operation}");
                    found.push(Violation::new(Rule::Compaction, what));
                }
            }
            _ => {}
        }
    }
}
