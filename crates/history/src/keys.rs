//! Checker B: is each key linearizable? It does not read the log.
//!
//! Every operation is projected on the keys it touched: what it demands of the key before, and what
//! it leaves. Values are unique, so a value identifies the write it came from, and with it the
//! revision of that write where that is known. The projection allows every outcome that it cannot
//! exclude, such as either branch of a transaction of unknown outcome; it may miss a violation, and
//! never invents one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    Body, Compare, KeyValue, Nanos, Operation, Order, Outcome, PutIf, Recording, Request, Revision,
    Rule, Target, Violation,
    search::{Interval, Model, Verdict, search},
};

/// A key's state: the number of its value and its version; both 0 if it is absent.
type State = (u32, i64);
const ABSENT: State = (0, 0);

/// A condition on the key before an operation.
#[derive(Clone, Debug)]
enum Demand {
    Absent,
    Is { value: u32, version: i64 },
    Holds(Compare),
    Fails(Compare),
}

/// The effect of an operation on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Keep,
    Write(u32),
    Delete,
}

/// An operation as one key sees it.
#[derive(Clone, Debug)]
struct Part {
    /// Its index in the recording.
    operation: usize,
    demands: Vec<Demand>,
    /// One of these; several only if the outcome is unknown.
    effects: Vec<Effect>,
    interval: Interval,
    /// The first part with the same effects.
    class: usize,
}

/// All values, and the facts known of them.
#[derive(Default)]
struct Values<'a> {
    number: HashMap<&'a str, u32>,
    /// By number.
    text: Vec<&'a str>,
    written_at: HashMap<u32, Revision>,
    leased: BTreeSet<u32>,
}

impl<'a> Values<'a> {
    fn number(&mut self, text: &'a str) -> u32 {
        if let Some(number) = self.number.get(text) {
            return *number;
        }
        self.text.push(text);
        let number = self.text.len() as u32;
        self.number.insert(text, number);
        number
    }
}

struct Key<'a> {
    parts: &'a [Part],
    values: &'a Values<'a>,
}

impl Model for Key<'_> {
    type State = State;

    fn step(&self, state: &State, operation: usize) -> Vec<State> {
        let part = &self.parts[operation];
        let mut befores = vec![*state];
        // A lease may have ended unseen.
        if self.values.leased.contains(&state.0) {
            befores.push(ABSENT);
        }
        let mut afters = Vec::new();
        for before in befores {
            if !part.demands.iter().all(|demand| self.meets(demand, before)) {
                continue;
            }
            for effect in &part.effects {
                let after = match effect {
                    Effect::Keep => before,
                    Effect::Write(value) => (*value, before.1 + 1),
                    Effect::Delete => ABSENT,
                };
                if !afters.contains(&after) {
                    afters.push(after);
                }
            }
        }
        afters
    }

    fn class(&self, operation: usize) -> usize {
        self.parts[operation].class
    }
}

impl Key<'_> {
    fn meets(&self, demand: &Demand, state: State) -> bool {
        match demand {
            Demand::Absent => state == ABSENT,
            Demand::Is { value, version } => state == (*value, *version),
            Demand::Holds(compare) => self.compare(compare, state) != Some(false),
            Demand::Fails(compare) => self.compare(compare, state) != Some(true),
        }
    }

    /// Whether a compare holds; `None` if that depends on what the state does not tell.
    fn compare(&self, compare: &Compare, (value, version): State) -> Option<bool> {
        let order = match &compare.target {
            Target::Value(_) if value == 0 => return Some(false),
            // Neither its text nor its revision is known.
            Target::Value(_) | Target::Modified(_) if value == UNSEEN => return None,
            Target::Value(with) => {
                self.values.text.get(value as usize - 1).map(|text| text.cmp(&with.as_str()))
            }
            Target::Version(with) => Some(version.cmp(with)),
            Target::Modified(with) | Target::Created(with) if value == 0 => Some(0.cmp(with)),
            Target::Modified(with) => self.values.written_at.get(&value).map(|at| at.cmp(with)),
            // All that is known of a key's creation is that it has one.
            Target::Created(0) => Some(std::cmp::Ordering::Greater),
            Target::Created(_) => None,
        }?;
        Some(match compare.order {
            Order::Equal => order.is_eq(),
            Order::NotEqual => order.is_ne(),
            Order::Greater => order.is_gt(),
            Order::Less => order.is_lt(),
        })
    }
}

/// Checks every key of a recording; a key that needs more than `steps_max` steps fails.
#[must_use]
pub fn check(recording: &Recording, steps_max: usize) -> Vec<Violation> {
    let mut values = Values::default();
    let universe = learn(recording, &mut values);
    let mut parts: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for (index, operation) in recording.operations.iter().enumerate() {
        if matches!(operation.outcome, Outcome::Fail(_)) {
            continue;
        }
        let mut keys = BTreeSet::new();
        touched(&operation.request, &universe, &mut keys);
        for key in keys {
            if let Some((demands, effects)) = project(operation, key, &mut values) {
                let return_ns = operation.answer().and(operation.return_ns);
                let interval = Interval { call_ns: operation.call_ns, return_ns };
                let part = Part { operation: index, demands, effects, interval, class: 0 };
                parts.entry(key).or_default().push(part);
            }
        }
    }
    let mut found = Vec::new();
    for (key, parts) in &mut parts {
        settle(parts, &values);
        let intervals: Vec<_> = parts.iter().map(|part| part.interval).collect();
        let model = Key { parts, values: &values };
        match search(&model, &intervals, ABSENT, steps_max) {
            Verdict::Linearizable => {}
            Verdict::Impossible(stuck) => {
                let stuck: Vec<_> = stuck
                    .iter()
                    .map(|part| recording.operations[parts[*part].operation].to_string())
                    .collect();
                let what = format!("no order of key {key} has next any of: {}", stuck.join("; "));
                found.push(Violation::new(Rule::KeyOrder, what));
            }
            Verdict::Exhausted => {
                let what = format!("key {key}, {} operations", parts.len());
                found.push(Violation::new(Rule::Exhausted, what));
            }
        }
    }
    found
}

/// A value that no client ever saw. All of them are alike, as long as they are not absence.
const UNSEEN: u32 = u32::MAX;

/// Settles what operations of unknown outcome did, as far as others saw it: a write whose value was
/// seen did happen, before the client that saw it returned; the others are put into classes of like
/// effect.
fn settle(parts: &mut [Part], values: &Values<'_>) {
    let mut seen: HashMap<u32, Nanos> = HashMap::new();
    for part in parts.iter() {
        let Some(end) = part.interval.return_ns else { continue };
        for demand in &part.demands {
            let value = match demand {
                Demand::Is { value, .. } => Some(*value),
                Demand::Holds(Compare {
                    target: Target::Value(text), order: Order::Equal, ..
                }) => values.number.get(text.as_str()).copied(),
                Demand::Absent | Demand::Holds(_) | Demand::Fails(_) => None,
            };
            if let Some(value) = value {
                let first = seen.entry(value).or_insert(end);
                *first = end.min(*first);
            }
        }
    }
    let mut classes: BTreeMap<Vec<Effect>, usize> = BTreeMap::new();
    for (index, part) in parts.iter_mut().enumerate() {
        part.class = index;
        if part.interval.return_ns.is_some() {
            continue;
        }
        let sight = part.effects.iter().find_map(|effect| match effect {
            Effect::Write(value) => seen.get(value).map(|end| (*effect, *end)),
            Effect::Keep | Effect::Delete => None,
        });
        if let Some((effect, end)) = sight {
            part.effects = vec![effect];
            part.interval.return_ns = Some(end);
            continue;
        }
        for effect in &mut part.effects {
            // A leased value may vanish, so it is not like the others.
            if let Effect::Write(value) = effect
                && !values.leased.contains(value)
            {
                *value = UNSEEN;
            }
        }
        part.effects.sort_unstable();
        part.class = *classes.entry(part.effects.clone()).or_insert(index);
    }
}

/// Numbers all values, and returns all keys.
fn learn<'a>(recording: &'a Recording, values: &mut Values<'a>) -> BTreeSet<&'a str> {
    let mut universe = BTreeSet::new();
    for operation in &recording.operations {
        operation.request.for_each_put(&mut |put| {
            universe.insert(put.key.as_str());
            let number = values.number(&put.value);
            if let Some(revision) = operation.wrote_at() {
                values.written_at.insert(number, revision);
            }
            if put.lease != 0 {
                values.leased.insert(number);
            }
        });
    }
    universe
}

fn touched<'a>(request: &'a Request, universe: &BTreeSet<&'a str>, keys: &mut BTreeSet<&'a str>) {
    match request {
        Request::Range(range) if range.serializable || range.revision > 0 => {}
        Request::Range(crate::Range { span, .. }) | Request::Delete(span) => {
            keys.extend(universe.range(span.key.as_str()..).take_while(|key| span.holds(key)));
            if span.end.is_none() {
                keys.insert(&span.key);
            }
        }
        Request::Put(put) | Request::PutIf(PutIf { put, .. }) => {
            keys.insert(&put.key);
        }
        Request::Txn(txn) => {
            keys.extend(txn.compares.iter().map(|compare| compare.key.as_str()));
            txn.success.iter().chain(&txn.failure).for_each(|r| touched(r, universe, keys));
        }
        _ => {}
    }
}

/// The conditions and effects of an operation on a key; `None` if it says nothing about it.
fn project<'a>(
    operation: &'a Operation,
    key: &str,
    values: &mut Values<'a>,
) -> Option<(Vec<Demand>, Vec<Effect>)> {
    let Some(answer) = operation.answer() else {
        let mut effects = Vec::new();
        possible(&operation.request, key, values, &mut effects);
        return (!effects.is_empty()).then_some((Vec::new(), effects));
    };
    let mut demands = Vec::new();
    let mut effect = Effect::Keep;
    known(&operation.request, &answer.body, key, values, (&mut demands, &mut effect));
    (!demands.is_empty() || effect != Effect::Keep).then_some((demands, vec![effect]))
}

/// The effects that an operation of unknown outcome may have on a key.
fn possible<'a>(
    request: &'a Request,
    key: &str,
    values: &mut Values<'a>,
    effects: &mut Vec<Effect>,
) {
    match request {
        Request::Put(put) | Request::PutIf(PutIf { put, .. }) if put.key == key => {
            effects.push(Effect::Write(values.number(&put.value)))
        }
        Request::Delete(span) if span.holds(key) => effects.push(Effect::Delete),
        Request::Txn(txn) => {
            txn.success.iter().chain(&txn.failure).for_each(|r| possible(r, key, values, effects));
        }
        _ => {}
    }
}

/// The conditions and the effect that an answer proves for a key. Transactions of the workload touch
/// a key once, so every demand
/// is on the state before the transaction.
fn known<'a>(
    request: &'a Request,
    body: &'a Body,
    key: &str,
    values: &mut Values<'a>,
    told: (&mut Vec<Demand>, &mut Effect),
) {
    let (demands, effect) = told;
    match (request, body) {
        (Request::Put(put), Body::Put(before)) if put.key == key => {
            demands.push(demand(before.as_ref(), values));
            *effect = Effect::Write(values.number(&put.value));
        }
        (Request::PutIf(PutIf { put, revision }), Body::PutIf { written, modified, value })
            if put.key == key =>
        {
            let compare = |target| Compare { key: key.into(), target, order: Order::Equal };
            let expected = compare(Target::Modified(*revision));
            if *written {
                demands.push(Demand::Holds(expected));
                *effect = Effect::Write(values.number(&put.value));
            } else {
                demands.push(Demand::Fails(expected));
                demands.push(match value {
                    Some(value) => Demand::Holds(compare(Target::Value(value.clone()))),
                    None => Demand::Absent,
                });
                demands.push(Demand::Holds(compare(Target::Modified(*modified))));
            }
        }
        (Request::Delete(span), Body::Delete(before)) if span.holds(key) => {
            demands.push(demand(before.iter().find(|kv| kv.key == key), values));
            *effect = Effect::Delete;
        }
        (Request::Range(range), Body::Range { keys, count }) if range.span.holds(key) => {
            let found = keys.iter().find(|kv| kv.key == key);
            // A key that the limit cut off is unknown.
            if found.is_some() || keys.len() as i64 == *count {
                demands.push(demand(found, values));
            }
        }
        (Request::Txn(txn), Body::Txn { succeeded, bodies }) => {
            let compares = txn.compares.iter().filter(|compare| compare.key == key).cloned();
            match (succeeded, txn.compares.len()) {
                (true, _) => demands.extend(compares.map(Demand::Holds)),
                (false, 1) => demands.extend(compares.map(Demand::Fails)),
                // Which of several compares failed is not known.
                (false, _) => {}
            }
            let branch = if *succeeded { &txn.success } else { &txn.failure };
            for (request, body) in branch.iter().zip(bodies) {
                known(request, body, key, values, (&mut *demands, &mut *effect));
            }
        }
        _ => {}
    }
}

fn demand<'a>(before: Option<&'a KeyValue>, values: &mut Values<'a>) -> Demand {
    match before {
        None => Demand::Absent,
        Some(kv) => Demand::Is { value: values.number(&kv.value), version: kv.version },
    }
}
