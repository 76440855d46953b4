//! Checker C: is the whole store linearizable, revisions included?
//!
//! The strictest search, over the state of all keys, for short histories. Operations of unknown
//! outcome are settled by the log first: those it holds did happen, no later than their revision
//! was known to a client, and the others did not. So this search trusts the log where
//! [`crate::keys`] does not, and covers whole transactions where that cannot.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Body, Event, KeyValue, Operation, Outcome, Recording, Request, Revision, Rule, Timeline,
    Violation,
    evaluate::{Keys, evaluate},
    replay::Explained,
    search::{Interval, Model, Verdict, search},
};

/// Longer histories are left to the other checkers.
pub const OPERATIONS_MAX: usize = 1_000;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Store {
    revision: Revision,
    keys: BTreeMap<String, KeyValue>,
}

enum Step<'a> {
    /// An operation with its answer.
    Answered(&'a Operation),
    /// An operation of unknown outcome that the log holds at this revision.
    Patched(&'a Operation, Revision),
    /// The end of a lease.
    Ended(&'a [Event], Revision),
}

impl Model for Vec<Step<'_>> {
    type State = Store;

    fn step(&self, state: &Store, operation: usize) -> Vec<Store> {
        let next = state.revision + 1;
        match &self[operation] {
            Step::Answered(operation) => {
                let Some(answer) = operation.answer() else { return Vec::new() };
                let (body, events) = evaluate(&operation.request, &state.keys, next);
                let revision = if events.is_empty() { state.revision } else { next };
                let fits = body == answer.body && revision == answer.revision;
                if fits { vec![after(state, &events)] } else { Vec::new() }
            }
            Step::Patched(operation, revision) => {
                let (_, events) = evaluate(&operation.request, &state.keys, next);
                let fits = *revision == next && !events.is_empty();
                if fits { vec![after(state, &events)] } else { Vec::new() }
            }
            Step::Ended(events, revision) => {
                let there =
                    events.iter().all(|event| Keys::get(&state.keys, event.key()).is_some());
                if *revision == next && there { vec![after(state, events)] } else { Vec::new() }
            }
        }
    }
}

fn after(state: &Store, events: &[Event]) -> Store {
    let mut state = state.clone();
    for event in events {
        state.revision = event.revision();
        match event {
            Event::Put(new) => state.keys.insert(new.key.clone(), new.clone()),
            Event::Delete { key, .. } => state.keys.remove(key),
        };
    }
    state
}

/// Checks a recording of at most [`OPERATIONS_MAX`] operations; longer ones are passed over.
#[must_use]
pub fn check(
    recording: &Recording,
    timeline: &Timeline,
    explained: &Explained,
    steps_max: usize,
) -> Vec<Violation> {
    if recording.operations.len() > OPERATIONS_MAX {
        return Vec::new();
    }
    let known_by = recording.first_known();
    let happened: HashMap<usize, Revision> =
        explained.writer.iter().map(|(revision, index)| (*index, *revision)).collect();
    let mut steps = Vec::new();
    let mut intervals = Vec::new();
    for (index, operation) in recording.operations.iter().enumerate() {
        let call_ns = operation.call_ns;
        match &operation.outcome {
            Outcome::Ok(answer) if is_checked(&operation.request, &answer.body) => {
                steps.push(Step::Answered(operation));
                intervals.push(Interval { call_ns, return_ns: operation.return_ns });
            }
            Outcome::Unknown => {
                let Some(revision) = happened.get(&index) else { continue };
                steps.push(Step::Patched(operation, *revision));
                intervals.push(Interval { call_ns, return_ns: Some(known_by(*revision)) });
            }
            Outcome::Ok(_) | Outcome::Fail(_) => {}
        }
    }
    for revision in explained.ended.keys() {
        let Some(events) = timeline.events(*revision) else { continue };
        steps.push(Step::Ended(events, *revision));
        intervals.push(Interval { call_ns: 0, return_ns: Some(known_by(*revision)) });
    }
    let empty = Store { revision: 1, keys: BTreeMap::new() };
    match search(&steps, &intervals, empty, steps_max) {
        Verdict::Linearizable => Vec::new(),
        Verdict::Impossible(stuck) => {
            let stuck: Vec<_> = stuck
                .iter()
                .map(|step| match &steps[*step] {
                    Step::Answered(operation) | Step::Patched(operation, _) => {
                        operation.to_string()
                    }
                    Step::Ended(events, _) => format!("the end of a lease: {events:?}"),
                })
                .collect();
            let what = format!("no order has next any of: {}", stuck.join("; "));
            vec![Violation::new(Rule::StoreOrder, what)]
        }
        Verdict::Exhausted => vec![Violation::new(Rule::Exhausted, "the search over the store")],
    }
}

/// Reads of old revisions and of stale members are for replay. So are refused conditional writes,
/// whose header may be younger than the decision.
fn is_checked(request: &Request, body: &Body) -> bool {
    match request {
        Request::PutIf(_) => body.wrote(),
        Request::Range(range) => !range.serializable && range.revision == 0,
        Request::Put(_) | Request::Delete(_) | Request::Txn(_) => true,
        _ => false,
    }
}
