//! Concurrent clients of the model's store, in virtual time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{
    Bug, Generated, Shape,
    store::{ANSWER_NS_MAX, Place, Store},
    watchers,
};
use crate::{
    Digest, Event, Healed, LeaseLimits, MemberLog, Nanos, Operation, Outcome, Put, Range,
    Recording, Request, Revision, Span,
    random::Random,
    workload::{LeaseKeeper, SHARED, Workload},
};

pub(super) const MS: Nanos = 1_000_000;
/// How long after its call an operation of unknown outcome may still take effect.
const LATE_MS_MAX: u64 = 2_000;
const TIMEOUT_NS: Nanos = 200 * MS;
const MEMBERS: [u64; 3] = [0xa1, 0xb2, 0xc3];

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Call(usize),
    Effect { operation: usize, answered: bool },
    Tick,
}

enum Client {
    Shared(Workload),
    Keeper { keeper: LeaseKeeper, next: Option<Request>, last: Option<usize> },
    Compactor,
}

pub(super) struct Simulation {
    shape: Shape,
    bug: Option<Bug>,
    store: Store,
    clients: Vec<Client>,
    operations: Vec<Operation>,
    queue: BinaryHeap<Reverse<(Nanos, u64, Action)>>,
    queued: u64,
    now: Nanos,
    /// Operations of shared clients still to come.
    left: usize,
    /// When everything stops.
    end_ns: Nanos,
}

impl Simulation {
    pub(super) fn new(random: &mut Random, shape: Shape, bug: Option<Bug>) -> Self {
        let expected = shape.operations as u64 / u64::from(shape.clients.max(1)) * 35 * MS;
        let armed_ns = random.between(expected / 5, expected / 2);
        let mut clients: Vec<_> =
            (0..shape.clients).map(|client| Client::Shared(Workload::new(client))).collect();
        clients.extend((0..shape.keepers).map(|keeper| {
            let keeper = LeaseKeeper::new(shape.clients + keeper);
            Client::Keeper { keeper, next: None, last: None }
        }));
        clients.push(Client::Compactor);
        let mut simulation = Self {
            shape,
            bug,
            store: Store::new(bug, armed_ns),
            clients,
            operations: Vec::new(),
            queue: BinaryHeap::new(),
            queued: 0,
            now: 0,
            left: shape.operations,
            end_ns: Nanos::MAX,
        };
        for client in 0..simulation.clients.len() {
            let at = random.between(1, 40) * MS;
            simulation.schedule(at, Action::Call(client));
        }
        simulation.schedule(10 * MS, Action::Tick);
        simulation
    }

    fn schedule(&mut self, at: Nanos, action: Action) {
        self.queued += 1;
        self.queue.push(Reverse((at, self.queued, action)));
    }

    pub(super) fn run(&mut self, random: &mut Random) {
        while let Some(Reverse((at, _, action))) = self.queue.pop() {
            self.now = at;
            match action {
                Action::Call(client) if at < self.end_ns => self.call(random, client),
                Action::Call(_) => {}
                Action::Effect { operation, answered } => self.effect(random, operation, answered),
                Action::Tick => {
                    self.store.tick(at);
                    if self.queue.len() > 1 || at < self.end_ns {
                        self.schedule(at + 10 * MS, Action::Tick);
                    }
                }
            }
            if self.left == 0 && self.end_ns == Nanos::MAX {
                // Leases that were abandoned have time to end.
                self.end_ns = at + 3_000 * MS;
            }
        }
    }

    fn call(&mut self, random: &mut Random, client: usize) {
        let recorded = self.store.timeline.head();
        let request = match &mut self.clients[client] {
            Client::Shared(_) if self.left == 0 => return,
            Client::Shared(workload) => {
                self.left -= 1;
                Some(workload.next(random))
            }
            Client::Compactor => Workload::compaction(recorded),
            Client::Keeper { keeper, next, last } => match next.take() {
                Some(request) => Some(request),
                None => {
                    let outcome = last.map(|index| &self.operations[index].outcome);
                    let (request, wait) = keeper.next(random, outcome);
                    *next = Some(request);
                    return self.schedule(self.now + wait, Action::Call(client));
                }
            },
        };
        let Some(request) = request else {
            return self.schedule(self.now + 150 * MS, Action::Call(client));
        };
        let index = self.operations.len();
        if let Client::Keeper { last, .. } = &mut self.clients[client] {
            *last = Some(index);
        }
        self.operations.push(Operation {
            client: client as u32,
            id: index as u64,
            call_ns: self.now,
            return_ns: None,
            member: *random.pick(&MEMBERS),
            request,
            outcome: Outcome::Unknown,
        });
        if random.chance(self.shape.unknown_per_mille) {
            if random.chance(500) {
                let late_max = if random.chance(800) { 20 } else { LATE_MS_MAX };
                let late = random.between(1, late_max);
                let effect = Action::Effect { operation: index, answered: false };
                self.schedule(self.now + late * MS, effect);
            }
            self.schedule(self.now + TIMEOUT_NS, Action::Call(client));
        } else {
            let takes = if random.chance(950) { 4 } else { 60 };
            let at = self.now + random.between(100, takes * 1_000) * 1_000;
            self.schedule(at, Action::Effect { operation: index, answered: true });
        }
    }

    fn effect(&mut self, random: &mut Random, index: usize, answered: bool) {
        let known = if self.bug == Some(Bug::StaleRead) { self.known_before(index) } else { 0 };
        let operation = &mut self.operations[index];
        let (member, call_ns) = (operation.member, operation.call_ns);
        let place = Place { now: self.now, member, call_ns, answered, known };
        let outcome = self.store.serve(&operation.request, place);
        if !answered {
            let twice = matches!(operation.request, Request::Put(_))
                && matches!(outcome, Outcome::Ok(_))
                && self.store.is_due(Bug::AppliedTwice, self.now);
            if twice {
                self.store.fired = true;
                let again = Action::Effect { operation: index, answered: false };
                self.schedule(self.now + 20 * MS, again);
            }
            return;
        }
        let end = self.now + random.between(100_000, ANSWER_NS_MAX);
        operation.return_ns = Some(end);
        operation.outcome = outcome;
        let client = operation.client as usize;
        let think = match &mut self.clients[client] {
            Client::Shared(workload) => {
                if let Some(answer) = operation.answer() {
                    workload.learn(&operation.request, answer);
                }
                random.between(5, 60) * MS
            }
            Client::Keeper { .. } => MS,
            Client::Compactor => 150 * MS,
        };
        self.schedule(end + think, Action::Call(client));
    }

    /// The newest revision that was returned before the call of an operation.
    fn known_before(&self, index: usize) -> Revision {
        let call = self.operations[index].call_ns;
        let known = self.operations.iter().filter(|o| o.return_ns.is_some_and(|end| end < call));
        known.filter_map(|o| Some(o.answer()?.revision)).max().unwrap_or(0)
    }

    /// Reads everything once more, lets the watchers see it, and hands over what was recorded.
    pub(super) fn finish(mut self, random: &mut Random) -> Generated {
        let span = Span::prefix(SHARED);
        let put = Put { key: format!("{SHARED}end"), value: "end".into(), lease: 0 };
        let read = Range { span, revision: 0, limit: 0, serializable: false };
        for request in [Request::Put(put), Request::Range(read)] {
            self.now += 10 * MS;
            let (now, member) = (self.now, MEMBERS[0]);
            let place = Place { now, member, call_ns: now - MS, answered: true, known: 0 };
            let outcome = self.store.serve(&request, place);
            self.operations.push(Operation {
                client: u32::MAX,
                id: self.operations.len() as u64,
                call_ns: self.now - MS,
                return_ns: Some(self.now + MS),
                member: MEMBERS[0],
                request,
                outcome,
            });
        }
        let head = self.store.timeline.head();
        let within_ns = 2_000 * MS;
        let mut recording = Recording {
            watches: watchers::record(random, &self.store, self.now),
            operations: self.operations,
            healed: Some(Healed { at_ns: self.now, within_ns, revision: head }),
            leases: Some(LeaseLimits { late_ns_max: 500 * MS, quorum_since_ns: 0 }),
            ..Recording::default()
        };
        let entries: BTreeMap<Revision, Vec<Event>> =
            self.store.timeline.since(2).map(|(r, events)| (r, events.to_vec())).collect();
        for member in MEMBERS {
            recording.logs.push(MemberLog { member, entries: entries.clone() });
            let (revision, compacted, hash) = (head, head - 40, 0x5a7);
            recording.digests.push(Digest { member, revision, compacted, hash });
        }
        // One member was behind a compaction for a while.
        let gap = random.between(2, head.unsigned_abs()) as Revision;
        recording.logs[2].entries.retain(|revision, _| !(gap..gap + 20).contains(revision));
        let mut fired = self.store.fired;
        fired |= lie(random, self.bug, &mut recording);
        Generated { recording, fired }
    }
}

/// Falsifies the log or the digest of one member.
fn lie(random: &mut Random, bug: Option<Bug>, recording: &mut Recording) -> bool {
    match bug {
        Some(Bug::DigestDiffers) => {
            recording.digests[random.below(3) as usize].hash += 1;
            true
        }
        Some(Bug::MemberDiverges) => {
            let log = &mut recording.logs[1];
            let revisions: Vec<_> = log.entries.keys().copied().collect();
            let from = random.pick(&revisions);
            let put =
                log.entries.range_mut(from..).flat_map(|(_, events)| events).find_map(
                    |e| match e {
                        Event::Put(new) => Some(new),
                        Event::Delete { .. } => None,
                    },
                );
            if let Some(put) = put {
                put.value.push('!');
                return true;
            }
            false
        }
        _ => false,
    }
}
