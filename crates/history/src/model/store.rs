//! The store of the model: correct, unless told to be wrong once.

use std::collections::{BTreeMap, BTreeSet};

use super::Bug;
use crate::{
    Answer, Body, Event, Failure, KeyValue, Nanos, Outcome, PutIf, Range, Request, Revision,
    Sequential, Span, Timeline, Txn,
    evaluate::{At, Keys, compares_hold, evaluate},
    sequence::creates,
};

const SECOND_NS: i64 = 1_000_000_000;
const TERM: u64 = 2;
/// How much too early a faulty end of a lease is; keepers look more often than that.
const EARLY_NS_MIN: Nanos = 700_000_000;
/// How long an answer travels at most.
pub(super) const ANSWER_NS_MAX: Nanos = 3_000_000;

/// A lease of the model.
struct Lease {
    /// Whether its owner was told of it and of its last renewal; a fault of another lease cannot be
    /// proved.
    granted: bool,
    ttl_s: i64,
    deadline_ns: Nanos,
}

/// Where an effect takes place.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The time of the effect.
    pub(super) now: Nanos,
    /// The member that answers.
    pub(super) member: u64,
    /// When the operation was called.
    pub(super) call_ns: Nanos,
    /// Whether its answer arrives. An answer that no client has cannot be wrong.
    pub(super) answered: bool,
    /// The newest revision that was returned to any client before the call.
    pub(super) known: Revision,
}

pub(super) struct Store {
    pub(super) timeline: Timeline,
    /// When each revision was made.
    pub(super) made_ns: BTreeMap<Revision, Nanos>,
    /// Compactions, with their times.
    pub(super) compactions: Vec<(Nanos, Revision)>,
    compacted: Revision,
    leases: BTreeMap<i64, Lease>,
    /// Leases that ended, and were known to their owners.
    once: BTreeSet<i64>,
    bug: Option<Bug>,
    /// The bug waits for an occasion from this time on.
    armed_ns: Nanos,
    pub(super) fired: bool,
    /// Whether the request at hand is one that goes unanswered.
    unanswered: bool,
    /// Compactions that were answered, with the time from which that is known.
    compactions_known: Vec<(Nanos, Revision)>,
    /// A key that a faulty compaction hides, with the revision it has.
    hidden: Option<KeyValue>,
    /// Whether a sequential key was named.
    named: bool,
}

impl Store {
    pub(super) fn new(bug: Option<Bug>, armed_ns: Nanos) -> Self {
        Self {
            timeline: Timeline::default(),
            made_ns: BTreeMap::new(),
            compactions: Vec::new(),
            compacted: 0,
            leases: BTreeMap::new(),
            once: BTreeSet::new(),
            bug,
            armed_ns,
            fired: false,
            unanswered: false,
            compactions_known: Vec::new(),
            hidden: None,
            named: false,
        }
    }

    /// Whether the bug is this one, and has still to strike.
    pub(super) fn is_due(&self, bug: Bug, now: Nanos) -> bool {
        self.bug == Some(bug) && !self.fired && !self.unanswered && now >= self.armed_ns
    }

    fn head(&self) -> Revision {
        self.timeline.head()
    }

    fn state(&self) -> At<'_> {
        At { timeline: &self.timeline, revision: self.head() }
    }

    fn write(&mut self, now: Nanos, revision: Revision, events: Vec<Event>) {
        self.made_ns.insert(revision, now);
        self.timeline.push(revision, events);
    }

    /// Ends the leases that are due, and lets faults that need no request strike.
    pub(super) fn tick(&mut self, now: Nanos) {
        if self.is_due(Bug::PhantomWrite, now) {
            self.fired = true;
            let put = crate::Put { key: "k/1".into(), value: "phantom".into(), lease: 0 };
            let revision = self.head() + 1;
            let (_, events) = evaluate(&Request::Put(put), &self.state(), revision);
            self.write(now, revision, events);
        }
        let early = |lease: &Lease| {
            let left = lease.deadline_ns.saturating_sub(now);
            lease.granted && (EARLY_NS_MIN..=2 * EARLY_NS_MIN).contains(&left)
        };
        if self.is_due(Bug::LeaseEarly, now)
            && let Some(id) = self.leases.iter().find(|(_, l)| early(l)).map(|(id, _)| *id)
        {
            self.fired = true;
            self.end(now, id);
        }
        let due = |lease: &Lease| lease.deadline_ns <= now;
        while let Some(id) = self.leases.iter().find(|(_, l)| due(l)).map(|(id, _)| *id) {
            let granted = self.leases.get(&id).is_some_and(|lease| lease.granted);
            if granted && self.is_due(Bug::LeaseImmortal, now) {
                self.fired = true;
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.deadline_ns = Nanos::MAX;
                }
                continue;
            }
            self.end(now, id);
        }
    }

    fn end(&mut self, now: Nanos, id: i64) {
        if self.leases.remove(&id).is_some_and(|lease| lease.granted) {
            self.once.insert(id);
        }
        let state = self.state();
        let all = Span { key: String::new(), end: Some("~".into()) };
        let keys: Vec<_> = state.scan(&all).into_iter().filter(|kv| kv.lease == id).collect();
        let revision = self.head() + 1;
        let events: Vec<_> =
            keys.iter().map(|kv| Event::Delete { key: kv.key.clone(), revision }).collect();
        if !events.is_empty() {
            self.write(now, revision, events);
        }
    }

    /// Does what is asked, and says so.
    pub(super) fn serve(&mut self, request: &Request, place: Place) -> Outcome {
        self.tick(place.now);
        self.unanswered = !place.answered;
        let outcome = self.decide(request, place);
        self.unanswered = false;
        outcome
    }

    fn decide(&mut self, request: &Request, place: Place) -> Outcome {
        let now = place.now;
        match request {
            Request::Range(range) => return self.read(range, place),
            Request::Put(put) if put.lease != 0 && !self.leases.contains_key(&put.lease) => {
                if self.is_due(Bug::AppliedRefusal, now) {
                    self.fired = true;
                    self.change(request, place);
                }
                return Outcome::Fail(Failure::NoLease);
            }
            Request::Put(_) | Request::Delete(_) | Request::Txn(_) | Request::PutIf(_) => {
                return self.change(request, place);
            }
            Request::PutSequential(put) => return self.put_sequential(put, place),
            Request::Compact(revision) => {
                if *revision <= self.compacted {
                    return Outcome::Fail(Failure::Compacted);
                }
                self.compacted = *revision;
                self.compactions.push((now, *revision));
                if place.answered {
                    self.compactions_known.push((now + ANSWER_NS_MAX, *revision));
                }
                let state = self.state();
                let old =
                    state.scan(&Span::prefix("k/")).into_iter().find(|kv| kv.modified < *revision);
                if self.is_due(Bug::CompactionLosesKey, now) && self.hidden.is_none() {
                    self.hidden = old.cloned();
                }
            }
            Request::Grant { .. }
            | Request::Renew(_)
            | Request::Revoke(_)
            | Request::Inspect(_) => {
                return self.lease(request, place);
            }
        }
        self.answer(place, self.head(), Body::Done)
    }

    fn answer(&self, place: Place, revision: Revision, body: Body) -> Outcome {
        Outcome::Ok(Answer { revision, member: place.member, term: TERM, body })
    }

    fn read(&mut self, range: &Range, place: Place) -> Outcome {
        if range.revision > self.head() {
            return Outcome::Fail(Failure::Future);
        }
        if range.revision > 0 && range.revision < self.compacted {
            let mut known = self.compactions_known.iter();
            let provable = known.any(|(at, r)| *at < place.call_ns && *r > range.revision);
            if !provable || range.serializable || !self.is_due(Bug::CompactedServed, place.now) {
                return Outcome::Fail(Failure::Compacted);
            }
            self.fired = true;
        }
        let mut header = self.head();
        let mut looked_at = if range.revision > 0 { range.revision } else { header };
        let body_at = |store: &Self, revision| {
            let state = At { timeline: &store.timeline, revision };
            evaluate(&Request::Range(range.clone()), &state, 0).0
        };
        let past = (header - 30).max(1);
        if range.serializable {
            // A member that lags a little.
            header -= header.min(2) - 1;
            looked_at = header;
        } else if range.revision == 0 && self.is_due(Bug::StaleRead, place.now) {
            if past < place.known && body_at(self, past) != body_at(self, header) {
                self.fired = true;
                (header, looked_at) = (past, past);
            }
        } else if range.revision == 0
            && self.is_due(Bug::StaleBody, place.now)
            && body_at(self, past) != body_at(self, header)
        {
            self.fired = true;
            looked_at = past;
        }
        let mut body = body_at(self, looked_at);
        if let (Some(lost), Body::Range { keys, count }) = (&self.hidden, &mut body)
            && keys.contains(lost)
            && place.answered
        {
            self.fired = true;
            keys.retain(|kv| kv != lost);
            *count -= 1;
        }
        self.answer(place, header, body)
    }

    fn put_sequential(&mut self, put: &Sequential, place: Place) -> Outcome {
        let mut number = self.head();
        if self.named && self.is_due(Bug::SequenceRegresses, place.now) {
            // Below the head of every other key.
            self.fired = true;
            number = 0;
        }
        self.named = true;
        let key = format!("{}{number:020}", put.prefix);
        let mut outcome = self.change(&creates(put, &key), place);
        if let Outcome::Ok(answer) = &mut outcome {
            answer.body = Body::PutSequential(key);
        }
        outcome
    }

    fn change(&mut self, request: &Request, place: Place) -> Outcome {
        let (now, next) = (place.now, self.head() + 1);
        let (body, events) = match self.wrong_branch(request, now) {
            Some((body, events)) => {
                self.fired = true;
                (body, events)
            }
            None => evaluate(request, &self.state(), next),
        };
        if events.is_empty() {
            return self.answer(place, next - 1, body);
        }
        let is_torn = events.len() > 1;
        let mut revision = next;
        if is_torn && self.is_due(Bug::TornTxn, now) {
            self.fired = true;
            self.write(now, next, events.into_iter().take(1).collect());
        } else if is_torn && self.is_due(Bug::SplitTxn, now) {
            self.fired = true;
            for (offset, mut event) in events.into_iter().enumerate() {
                revision = next + offset as Revision;
                renumber(&mut event, revision);
                self.write(now, revision, vec![event]);
            }
        } else if self.is_due(Bug::RevisionGap, now) {
            self.fired = true;
            revision = next + 1;
            let (_, events) = evaluate(request, &self.state(), revision);
            self.write(now, revision, events);
        } else {
            self.write(now, next, events);
        }
        let mut body = body;
        if let (true, Body::Put(before)) = (self.is_due(Bug::WrongAnswerBefore, now), &mut body)
            && let Some(before) = before
        {
            self.fired = true;
            before.value = "never".into();
        }
        if self.is_due(Bug::DuplicateRevision, now) && revision > 2 {
            self.fired = true;
            revision -= 1;
        }
        if self.is_due(Bug::LostAck, now) {
            self.fired = true;
            self.timeline.pop();
            self.made_ns.remove(&revision);
        }
        self.answer(place, revision, body)
    }

    /// The other branch of a transaction than the one its compares choose, or the other outcome of a
    /// conditional write.
    fn wrong_branch(&self, request: &Request, now: Nanos) -> Option<(Body, Vec<Event>)> {
        if let Request::PutIf(PutIf { put, revision }) = request {
            let held = self.state().get(&put.key).map_or(0, |kv| kv.modified);
            let next = self.head() + 1;
            let other = if held == *revision { held + 1 } else { held };
            let bug = if held == *revision { Bug::GuardRefuses } else { Bug::GuardIgnored };
            let other = Request::PutIf(PutIf { put: put.clone(), revision: other });
            return self.is_due(bug, now).then(|| evaluate(&other, &self.state(), next));
        }
        let Request::Txn(txn) = request else { return None };
        if !self.is_due(Bug::WrongBranch, now) || txn.success == txn.failure {
            return None;
        }
        let succeeded = !compares_hold(txn, &self.state());
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let other = Txn { compares: Vec::new(), success: branch.clone(), failure: Vec::new() };
        let next = self.head() + 1;
        match evaluate(&Request::Txn(other), &self.state(), next) {
            (Body::Txn { bodies, .. }, events) => Some((Body::Txn { succeeded, bodies }, events)),
            _ => None,
        }
    }

    fn lease(&mut self, request: &Request, place: Place) -> Outcome {
        let deadline =
            |ttl_s: i64| place.now + Nanos::try_from(ttl_s * SECOND_NS).unwrap_or_default();
        let ttl = match request {
            Request::Grant { lease, ttl_s } => {
                let (granted, deadline_ns) = (place.answered, deadline(*ttl_s));
                let made = Lease { granted, ttl_s: *ttl_s, deadline_ns };
                self.leases.insert(*lease, made);
                *ttl_s
            }
            Request::Renew(id)
                if self.once.contains(id) && self.is_due(Bug::LeaseRevived, place.now) =>
            {
                self.fired = true;
                crate::workload::TTL_S
            }
            Request::Renew(id) => match self.leases.get_mut(id) {
                Some(lease) => {
                    lease.granted = place.answered;
                    lease.deadline_ns = lease.deadline_ns.max(deadline(lease.ttl_s));
                    lease.ttl_s
                }
                None => 0,
            },
            Request::Inspect(id) => match self.leases.get(id) {
                Some(lease) if lease.deadline_ns == Nanos::MAX => 1,
                Some(lease) => ((lease.deadline_ns - place.now) as i64 / SECOND_NS).max(1),
                None => -1,
            },
            Request::Revoke(id) => {
                if !self.leases.contains_key(id) {
                    return Outcome::Fail(Failure::NoLease);
                }
                self.end(place.now, *id);
                return self.answer(place, self.head(), Body::Done);
            }
            _ => 0,
        };
        self.answer(place, self.head(), Body::Ttl(ttl))
    }
}

/// Gives an event another revision.
fn renumber(event: &mut Event, to: Revision) {
    match event {
        Event::Put(new) => {
            if new.created == new.modified {
                new.created = to;
            }
            new.modified = to;
        }
        Event::Delete { revision, .. } => *revision = to,
    }
}
