//! The mix of requests that a recording is made of.
//!
//! The same mix drives the generator of clean histories and live rings. Few keys, so that clients
//! collide; unique values, so that every event names its writer; compares with what the client
//! last saw, so that about half of them hold; deletes with the values before, so that an answer
//! tells what was there.

use std::collections::BTreeMap;

use crate::{
    Answer, Body, Compare, Failure, KeyValue, Nanos, Order, Outcome, Put, PutIf, Range, Request,
    Revision, Sequential, Span, Target, Txn, random::Random,
};

/// The prefix of the keys that clients collide on.
pub const SHARED: &str = "k/";
/// The prefix of the keys that hang on leases.
pub const LEASED: &str = "l/";
/// How many keys clients collide on; their names are [`SHARED`] and a number below this.
pub const SHARED_KEYS: u64 = 12;
/// The prefix of the keys that the store names.
pub const SEQUENTIAL: &str = "q/";
/// How far behind the newest revision that a client knows a compaction stays.
const COMPACT_BEHIND: Revision = 40;

/// One client that reads and writes shared keys.
#[derive(Clone, Debug)]
pub struct Workload {
    client: u32,
    puts: u64,
    head: Revision,
    seen: BTreeMap<String, Option<KeyValue>>,
    /// The last key that the store named for this client.
    named: Option<String>,
}

impl Workload {
    /// A client that has seen nothing yet.
    #[must_use]
    pub fn new(client: u32) -> Self {
        Self { client, puts: 0, head: 1, seen: BTreeMap::new(), named: None }
    }

    /// The next request.
    pub fn next(&mut self, random: &mut Random) -> Request {
        let key = shared_key(random);
        match random.below(100) {
            0..20 => self.put(key),
            20..24 => self.put_if(random, key),
            24..28 => self.sequential(random),
            28..45 => Request::Range(Range::key(key)),
            45..52 => Request::Delete(Span::key(key)),
            52..54 => Request::Delete(Span { key: key.clone(), end: Some(format!("{key}~")) }),
            54..62 => {
                let limit = if random.chance(300) { 3 } else { 0 };
                let span = Span::prefix(SHARED);
                Request::Range(Range { span, revision: 0, limit, serializable: false })
            }
            62..68 => Request::Range(Range { serializable: true, ..Range::key(key) }),
            68..73 => {
                let back = random.between(0, 60) as Revision;
                let revision = (self.head - back).max(1);
                let span = Span::prefix(SHARED);
                Request::Range(Range { span, revision, limit: 0, serializable: false })
            }
            73..74 => {
                let revision = self.head + random.between(1_000_000, 2_000_000) as Revision;
                Request::Range(Range { revision, ..Range::key(key) })
            }
            _ => self.txn(random, key),
        }
    }

    /// A compaction as far as this client dares, given the newest revision that is on record.
    #[must_use]
    pub fn compaction(recorded: Revision) -> Option<Request> {
        (recorded > COMPACT_BEHIND + 2).then(|| Request::Compact(recorded - COMPACT_BEHIND))
    }

    /// A put with a value that no other one carries.
    fn write(&mut self, key: String) -> Put {
        self.puts += 1;
        Put { key, value: format!("{}:{}", self.client, self.puts), lease: 0 }
    }

    fn put(&mut self, key: String) -> Request {
        Request::Put(self.write(key))
    }

    /// A write on the condition that the key is as this client saw it last, or on a stale one.
    fn put_if(&mut self, random: &mut Random, key: String) -> Request {
        let seen = self.seen.get(&key).and_then(|seen| Some(seen.as_ref()?.modified));
        let revision = if random.chance(200) { 0 } else { seen.unwrap_or_default() };
        Request::PutIf(PutIf { put: self.write(key), revision })
    }

    /// A new key that the store names, or the deletion of the last one that it named for this client.
    fn sequential(&mut self, random: &mut Random) -> Request {
        if random.chance(300)
            && let Some(key) = self.named.take()
        {
            return Request::Delete(Span::key(key));
        }
        let Put { value, .. } = self.write(String::new());
        Request::PutSequential(Sequential { prefix: SEQUENTIAL.to_owned(), value })
    }

    fn txn(&mut self, random: &mut Random, key: String) -> Request {
        let seen = self.seen.get(&key).cloned().flatten();
        let mut other = shared_key(random);
        while other == key {
            other = shared_key(random);
        }
        let target = match (random.below(5), &seen) {
            (0, Some(kv)) => Target::Value(kv.value.clone()),
            (1, kv) => Target::Modified(kv.as_ref().map_or(0, |kv| kv.modified)),
            (2, kv) => Target::Version(kv.as_ref().map_or(0, |kv| kv.version)),
            (3, kv) => Target::Created(kv.as_ref().map_or(0, |kv| kv.created)),
            (_, _) => Target::Created(0),
        };
        let order = match random.below(6) {
            0 => Order::NotEqual,
            1 => Order::Greater,
            2 => Order::Less,
            _ => Order::Equal,
        };
        let compare = Compare { key: key.clone(), target, order };
        let read = Request::Range(Range::key(key.clone()));
        let (compares, success, failure) = match random.below(6) {
            // A guarded write of one key.
            0 | 1 => (vec![compare], vec![self.put(key)], vec![read]),
            // Two keys at once, whatever they hold.
            2 => (vec![], vec![self.put(key), self.put(other)], vec![]),
            // A move.
            3 => {
                let put = self.put(other);
                (vec![compare], vec![Request::Delete(Span::key(key)), put], vec![read])
            }
            // Two compares, and a write in either branch.
            4 => {
                let second = Compare {
                    key: other.clone(),
                    target: Target::Version(2),
                    order: Order::Greater,
                };
                let (yes, no) = (self.put(key), self.put(other));
                (vec![compare, second], vec![yes], vec![no, read])
            }
            // Only reads.
            _ => {
                let both = vec![read.clone(), Request::Range(Range::key(other))];
                (vec![compare], both, vec![read])
            }
        };
        Request::Txn(Txn { compares, success, failure })
    }

    /// Takes in an answer.
    pub fn learn(&mut self, request: &Request, answer: &Answer) {
        self.head = self.head.max(answer.revision);
        self.learn_body(request, &answer.body, answer.revision);
    }

    fn learn_body(&mut self, request: &Request, body: &Body, revision: Revision) {
        match (request, body) {
            (Request::Range(Range { span, revision: 0, .. }), Body::Range { keys, .. }) => {
                if span.end.is_none() {
                    self.seen.insert(span.key.clone(), None);
                }
                for kv in keys {
                    self.seen.insert(kv.key.clone(), Some(kv.clone()));
                }
            }
            (Request::Put(put), Body::Put(before)) => {
                let new = KeyValue {
                    key: put.key.clone(),
                    value: put.value.clone(),
                    created: before.as_ref().map_or(revision, |kv| kv.created),
                    modified: revision,
                    version: before.as_ref().map_or(1, |kv| kv.version + 1),
                    lease: put.lease,
                };
                self.seen.insert(put.key.clone(), Some(new));
            }
            (Request::PutSequential(_), Body::PutSequential(key)) => {
                self.named = Some(key.clone());
            }
            (Request::Delete(span), _) => {
                self.seen.insert(span.key.clone(), None);
            }
            (Request::Txn(txn), Body::Txn { succeeded, bodies }) => {
                let branch = if *succeeded { &txn.success } else { &txn.failure };
                for (request, body) in branch.iter().zip(bodies) {
                    self.learn_body(request, body, revision);
                }
            }
            _ => {}
        }
    }
}

fn shared_key(random: &mut Random) -> String {
    format!("{SHARED}{}", random.below(SHARED_KEYS))
}

/// One client that keeps leases: it grants one, hangs keys on it, renews it for a while, then lets
/// it expire or revokes it, watches it end, and tries to bring it back.
#[derive(Clone, Debug)]
pub struct LeaseKeeper {
    client: u32,
    made: u32,
    lease: i64,
    step: LeaseStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseStep {
    Start,
    Attach(u8),
    Renew(u64),
    /// Abandoned or revoked, and looked at so many times until it is gone.
    Look(u8),
    Retry(u8),
}

const LOOKS_MAX: u8 = 60;
/// The shortest that etcd's default settings grant.
pub const TTL_S: i64 = 2;

impl LeaseKeeper {
    /// A keeper whose lease ids no other client uses.
    #[must_use]
    pub fn new(client: u32) -> Self {
        Self { client, made: 0, lease: 0, step: LeaseStep::Start }
    }

    /// The next request, and how long to wait before it, given what became of the last one.
    pub fn next(&mut self, random: &mut Random, last: Option<&Outcome>) -> (Request, Nanos) {
        const MS: Nanos = 1_000_000;
        let ttl = match last {
            Some(Outcome::Ok(Answer { body: Body::Ttl(ttl), .. })) => Some(*ttl),
            Some(Outcome::Fail(Failure::NoLease)) => Some(0),
            _ => None,
        };
        let gone = ttl.is_some_and(|ttl| ttl <= 0);
        let (step, request, wait) = match self.step {
            LeaseStep::Start | LeaseStep::Retry(0) => {
                self.made += 1;
                self.lease = i64::from(self.client) << 32 | i64::from(self.made);
                let keys = random.between(0, 3) as u8;
                (LeaseStep::Attach(keys), self.grant(), 10 * MS)
            }
            LeaseStep::Attach(left @ 1..) if !gone => {
                let key = format!("{LEASED}{:x}/{left}", self.lease);
                let value = format!("{:x}:{left}", self.lease);
                let put = Put { key, value, lease: self.lease };
                (LeaseStep::Attach(left - 1), Request::Put(put), 5 * MS)
            }
            LeaseStep::Attach(0) if !gone => {
                let renewals = random.between(0, 6);
                (LeaseStep::Renew(renewals), Request::Renew(self.lease), 20 * MS)
            }
            LeaseStep::Renew(left @ 1..) if !gone => {
                let wait = random.between(100, 900) * MS;
                (LeaseStep::Renew(left - 1), Request::Renew(self.lease), wait)
            }
            LeaseStep::Renew(0) if !gone && random.chance(300) => {
                (LeaseStep::Look(LOOKS_MAX), Request::Revoke(self.lease), 100 * MS)
            }
            LeaseStep::Look(left @ 1..) if !gone => {
                let wait = random.between(50, 250) * MS;
                (LeaseStep::Look(left - 1), Request::Inspect(self.lease), wait)
            }
            LeaseStep::Renew(_) if !gone => {
                (LeaseStep::Look(LOOKS_MAX), Request::Inspect(self.lease), 50 * MS)
            }
            LeaseStep::Retry(left) => (LeaseStep::Retry(left - 1), self.retry(left), 30 * MS),
            LeaseStep::Attach(_) | LeaseStep::Renew(_) | LeaseStep::Look(_) => {
                (LeaseStep::Retry(3), Request::Inspect(self.lease), 10 * MS)
            }
        };
        self.step = step;
        (request, wait)
    }

    fn grant(&self) -> Request {
        Request::Grant { lease: self.lease, ttl_s: TTL_S }
    }

    /// Requests that must fail after the lease has ended.
    fn retry(&self, left: u8) -> Request {
        match left {
            3 => Request::Renew(self.lease),
            2 => Request::Put(Put {
                key: format!("{LEASED}{:x}/ghost", self.lease),
                value: format!("{:x}:ghost", self.lease),
                lease: self.lease,
            }),
            _ => Request::Inspect(self.lease),
        }
    }
}
