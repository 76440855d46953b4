//! The record of clients: operations with times, members and outcomes.
//!
//! Keys and values are text, because a report that names the offending operation must be readable.
//! Every put of a workload carries a value that no other put carries; that is what lets a checker
//! say which operation an event came from.

use std::fmt;

/// A main revision of the store, as etcd counts them: the first write makes revision 2.
pub type Revision = i64;
/// Nanoseconds of one monotonic clock that all clients of a recording share.
pub type Nanos = u64;

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client, which has at most one operation outstanding.
    pub client: u32,
    /// Unique within the recording.
    pub id: u64,
    /// When the client sent it.
    pub call_ns: Nanos,
    /// When the client had its answer; `None` if it never had one.
    pub return_ns: Option<Nanos>,
    /// The member it was sent to.
    pub member: u64,
    /// The request.
    pub request: Request,
    /// The outcome.
    pub outcome: Outcome,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read keys.
    Range(Range),
    /// Write one key.
    Put(Put),
    /// Delete keys.
    Delete(Span),
    /// Compare, then do one of two lists, atomically.
    Txn(Txn),
    /// Write one key if its last write has a given revision.
    PutIf(PutIf),
    /// Write a new key that the store names.
    PutSequential(Sequential),
    /// Forget what lies below this revision.
    Compact(Revision),
    /// Create a lease.
    Grant {
        /// The id of the lease, chosen by the client.
        lease: i64,
        /// The time to live asked for, in seconds.
        ttl_s: i64,
    },
    /// Renew a lease.
    Renew(i64),
    /// End a lease.
    Revoke(i64),
    /// Ask what is left of a lease.
    Inspect(i64),
}

/// A key, or the keys in `[key, end)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The first key.
    pub key: String,
    /// The first key behind the last; `None` for the one key.
    pub end: Option<String>,
}

impl Span {
    /// The span of one key.
    #[must_use]
    pub fn key(key: impl Into<String>) -> Self {
        Self { key: key.into(), end: None }
    }

    /// All keys that start with `prefix`, whose last character must not be the greatest.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        let mut end = prefix.to_owned();
        let last = end.pop().and_then(|c| char::from_u32(c as u32 + 1));
        end.extend(last);
        Self { key: prefix.to_owned(), end: Some(end) }
    }

    /// Whether the span holds `key`.
    #[must_use]
    pub fn holds(&self, key: &str) -> bool {
        match &self.end {
            None => self.key == key,
            Some(end) => self.key.as_str() <= key && key < end.as_str(),
        }
    }
}

/// A read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub span: Span,
    /// At which revision; 0 for the newest.
    pub revision: Revision,
    /// At most so many keys; 0 for all.
    pub limit: usize,
    /// Whether a possibly stale answer of the one member will do.
    pub serializable: bool,
}

impl Range {
    /// A linearizable read of one key.
    #[must_use]
    pub fn key(key: impl Into<String>) -> Self {
        Self { span: Span::key(key), revision: 0, limit: 0, serializable: false }
    }
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: String,
    /// A value that no other put of the recording carries.
    pub value: String,
    /// The lease to attach; 0 for none.
    pub lease: i64,
}

/// A write of one key that nothing else has written since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutIf {
    /// The write.
    pub put: Put,
    /// The revision of the key's last write; 0 for a key that is not there.
    pub revision: Revision,
}

/// A write of a new key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequential {
    /// The key is this and a number that the store chooses.
    pub prefix: String,
    /// A value that no other put of the recording carries.
    pub value: String,
}

/// A compare of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key compared.
    pub key: String,
    /// The side of the key that is compared, and with what.
    pub target: Target,
    /// How.
    pub order: Order,
}

/// The side of a key that a compare looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The value; a missing key never compares.
    Value(String),
    /// The revision of the last write; 0 for a missing key.
    Modified(Revision),
    /// The revision of the creation; 0 for a missing key.
    Created(Revision),
    /// How many writes since the creation; 0 for a missing key.
    Version(i64),
}

/// How a compare compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The key's side equals the given one.
    Equal,
    /// It differs.
    NotEqual,
    /// It is greater.
    Greater,
    /// It is less.
    Less,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// All must hold for `success`.
    pub compares: Vec<Compare>,
    /// Done if all compares hold.
    pub success: Vec<Request>,
    /// Done otherwise.
    pub failure: Vec<Request>,
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store answered.
    Ok(Answer),
    /// The store refused, and provably did nothing.
    Fail(Failure),
    /// It may have happened or not: a timeout, a reset stream, an unavailable member.
    Unknown,
}

/// A refusal that proves that nothing happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The revision asked for was compacted.
    Compacted,
    /// The revision asked for does not exist yet.
    Future,
    /// There is no such lease.
    NoLease,
    /// Another refusal that names the request as its reason.
    Refused(String),
}

/// An answer with its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The revision in the header.
    pub revision: Revision,
    /// The member in the header.
    pub member: u64,
    /// The Raft term in the header.
    pub term: u64,
    /// The body.
    pub body: Body,
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Of a read.
    Range {
        /// The keys in order.
        keys: Vec<KeyValue>,
        /// How many keys the span has, whatever the limit.
        count: i64,
    },
    /// Of a put: what was there before, if that was asked for.
    Put(Option<KeyValue>),
    /// Of a delete: what was there before.
    Delete(Vec<KeyValue>),
    /// Of a transaction.
    Txn {
        /// Whether all compares held.
        succeeded: bool,
        /// One body for each request of the branch taken.
        bodies: Vec<Body>,
    },
    /// Of a write under a condition.
    PutIf {
        /// Whether it was written.
        written: bool,
        /// The revision of the key's last write, this one if it was written; 0 for no key.
        modified: Revision,
        /// The value in the way.
        value: Option<String>,
    },
    /// Of a write of a new key: its name.
    PutSequential(String),
    /// Of a compaction, or of a revoked lease: nothing.
    Done,
    /// Of a grant, a renewal or an inspection: seconds left, 0 or less when there is no lease.
    Ttl(i64),
}

impl Body {
    /// Whether an operation with this answer changed the store.
    #[must_use]
    pub fn wrote(&self) -> bool {
        match self {
            Self::Put(_) | Self::PutSequential(_) => true,
            Self::PutIf { written, .. } => *written,
            Self::Delete(before) => !before.is_empty(),
            Self::Txn { bodies, .. } => bodies.iter().any(Self::wrote),
            Self::Range { .. } | Self::Done | Self::Ttl(_) => false,
        }
    }
}

/// A key with its value and its place in the history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The revision that created it.
    pub created: Revision,
    /// The revision that wrote it last.
    pub modified: Revision,
    /// How many writes since the creation.
    pub version: i64,
    /// The lease attached; 0 for none.
    pub lease: i64,
}

impl Request {
    /// Whether a later read may find a trace of it.
    #[must_use]
    pub fn may_write(&self) -> bool {
        match self {
            Self::Put(_) | Self::Delete(_) | Self::PutIf(_) | Self::PutSequential(_) => true,
            Self::Txn(txn) => txn.success.iter().chain(&txn.failure).any(Self::may_write),
            Self::Range(_) | Self::Compact(_) => false,
            Self::Grant { .. } | Self::Renew(_) | Self::Revoke(_) | Self::Inspect(_) => false,
        }
    }

    /// Calls `visit` with every put in it.
    pub fn for_each_put<'a>(&'a self, visit: &mut impl FnMut(&'a Put)) {
        match self {
            Self::Put(put) | Self::PutIf(PutIf { put, .. }) => visit(put),
            Self::Txn(txn) => {
                txn.success.iter().chain(&txn.failure).for_each(|r| r.for_each_put(visit));
            }
            _ => {}
        }
    }
}

impl Operation {
    /// The answer, if there was one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Fail(_) | Outcome::Unknown => None,
        }
    }

    /// The revision it wrote, if it is known to have written.
    #[must_use]
    pub fn wrote_at(&self) -> Option<Revision> {
        self.answer().filter(|answer| answer.body.wrote()).map(|answer| answer.revision)
    }

    /// Whether its answer may not be older than what was known at its call.
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        match &self.request {
            Request::Range(range) => !range.serializable,
            Request::Put(_) | Request::Delete(_) | Request::Txn(_) => true,
            Request::PutIf(_) | Request::PutSequential(_) => true,
            // Their headers tell what the answering member knew, which is no promise.
            Request::Compact(_) | Request::Grant { .. } => false,
            Request::Renew(_) | Request::Revoke(_) | Request::Inspect(_) => false,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: Nanos| ns as f64 / 1e6;
        write!(f, "#{} client {} at {:x} ", self.id, self.client, self.member)?;
        match self.return_ns {
            Some(end) => write!(f, "[{:.3}..{:.3} ms] ", ms(self.call_ns), ms(end))?,
            None => write!(f, "[{:.3} ms..] ", ms(self.call_ns))?,
        }
        write!(f, "{:?} -> {:?}", self.request, self.outcome)
    }
}
