//! The search for an order: Wing and Gong's algorithm with Lowe's memory of what was tried.
//!
//! Depth first over configurations. A configuration is the set of operations already ordered and
//! the state they led to. The set is kept as the first operation that is not in it, the few behind
//! that one that are, and the optional ones used; so its size is bounded by the concurrency of the
//! history and not by its length, and at a point where nothing is outstanding it is empty.
//!
//! # Deliberately absent
//!
//! No model: [`crate::keys`] and [`crate::revisions`] bring theirs.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
};

use crate::Nanos;

/// The operations that the search orders, and their effects.
pub trait Model {
    /// The state that operations act on.
    type State: Clone + Eq + Hash;
    /// The states that `operation` may lead to from `state`; none if its answer contradicts it.
    fn step(&self, state: &Self::State, operation: usize) -> Vec<Self::State>;
    /// Operations of one class have the same effects on every state, so that of the optional ones
    /// among them only the one that was called first need be tried. Without that, a few dozen
    /// unanswered deletes of a key could be ordered in more ways than there is memory for.
    fn class(&self, operation: usize) -> usize {
        operation
    }
}

/// When an operation happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Not before this.
    pub call_ns: Nanos,
    /// Not after this; `None` if it may also never have happened.
    pub return_ns: Option<Nanos>,
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none. The longest attempt ended where these operations had to come next.
    Impossible(Vec<usize>),
    /// The budget did not suffice.
    Exhausted,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Configuration<S> {
    /// All required operations before this one, in order of their calls, are ordered.
    first: usize,
    /// The required operations behind `first` that are ordered.
    ahead: Vec<usize>,
    /// The optional operations that are ordered.
    used: Vec<usize>,
    state: S,
}

/// Searches for an order of the operations that the model accepts and that respects the intervals.
///
/// Gives up after `steps_max` configurations.
pub fn search<M: Model>(
    model: &M,
    intervals: &[Interval],
    initial: M::State,
    steps_max: usize,
) -> Verdict {
    let mut required: Vec<(usize, Nanos, Nanos)> = Vec::new();
    let mut optional: BTreeMap<usize, Vec<(usize, Nanos)>> = BTreeMap::new();
    for (index, interval) in intervals.iter().enumerate() {
        match interval.return_ns {
            Some(end) => required.push((index, interval.call_ns, end)),
            None => {
                let class = optional.entry(model.class(index)).or_default();
                class.push((index, interval.call_ns));
            }
        }
    }
    required.sort_unstable_by_key(|(_, call, _)| *call);
    for class in optional.values_mut() {
        class.sort_unstable_by_key(|(_, call)| *call);
    }
    let start = Configuration { first: 0, ahead: Vec::new(), used: Vec::new(), state: initial };
    let mut tried = HashSet::from([start.clone()]);
    let mut stack = vec![start];
    let mut deepest = (0, Vec::new());
    while let Some(here) = stack.pop() {
        if here.first == required.len() {
            return Verdict::Linearizable;
        }
        if tried.len() > steps_max {
            return Verdict::Exhausted;
        }
        let depth = here.first + here.ahead.len() + 1;
        let (candidates, earliest_return) = next_required(&here, &required);
        if depth > deepest.0 {
            deepest = (depth, candidates.iter().map(|place| required[*place].0).collect());
        }
        // Last in is first out: optional operations are tried last, and the required ones in the
        // order of their returns, which is the likeliest.
        let unused = optional.values().filter_map(|class| {
            let first = class.iter().find(|(index, _)| !here.used.contains(index));
            first.filter(|(_, call)| *call < earliest_return)
        });
        for (index, _) in unused {
            for state in model.step(&here.state, *index) {
                let mut used = here.used.clone();
                used.insert(used.partition_point(|u| u < index), *index);
                push(Configuration { used, state, ..here.clone() }, &mut tried, &mut stack);
            }
        }
        for place in candidates.into_iter().rev() {
            for state in model.step(&here.state, required[place].0) {
                let next = Configuration { state, ..here.clone() };
                push(ordered(next, place), &mut tried, &mut stack);
            }
        }
    }
    Verdict::Impossible(deepest.1)
}

/// The required operations that may come next, by their returns, and the earliest of these.
fn next_required<S>(
    here: &Configuration<S>,
    required: &[(usize, Nanos, Nanos)],
) -> (Vec<usize>, Nanos) {
    let mut candidates = Vec::new();
    let mut earliest_return = Nanos::MAX;
    for (place, (_, call, end)) in required.iter().enumerate().skip(here.first) {
        if *call > earliest_return {
            break;
        }
        if !here.ahead.contains(&place) {
            candidates.push(place);
            earliest_return = earliest_return.min(*end);
        }
    }
    candidates.sort_by_key(|place| required[*place].2);
    (candidates, earliest_return)
}

/// Marks the required operation at `place` as ordered.
fn ordered<S>(mut configuration: Configuration<S>, place: usize) -> Configuration<S> {
    let ahead = &mut configuration.ahead;
    if place != configuration.first {
        ahead.insert(ahead.partition_point(|a| *a < place), place);
        return configuration;
    }
    configuration.first += 1;
    while ahead.first() == Some(&configuration.first) {
        ahead.remove(0);
        configuration.first += 1;
    }
    configuration
}

fn push<S: Clone + Eq + Hash>(
    configuration: Configuration<S>,
    tried: &mut HashSet<Configuration<S>>,
    stack: &mut Vec<Configuration<S>>,
) {
    if tried.insert(configuration.clone()) {
        stack.push(configuration);
    }
}
