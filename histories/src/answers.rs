//! Counts the answers of a run by kind.
//!
//! A ring that refuses one kind of request gives the checkers nothing to judge there, so a run goes
//! on until it has enough answers of each kind, and is inconclusive if it never has them.

use std::collections::BTreeMap;

use satrap_history::{Body, Failure, Operation, Outcome, Request};

/// The kinds of answers that a run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A read.
    Read,
    /// An unconditional put.
    Put,
    /// A deletion.
    Delete,
    /// A transaction whose compares held.
    TxnSucceeded,
    /// A transaction with a compare that did not hold.
    TxnFailed,
    /// A compaction.
    Compaction,
    /// A grant, renewal, inspection or revocation of a lease.
    Lease,
    /// A `PutIfRevision` that wrote.
    PutIfWritten,
    /// A `PutIfRevision` whose condition did not hold.
    PutIfRefused,
    /// A `PutSequential`, answered with the key that the ring named.
    PutSequential,
}

/// A run with fewer completed operations is inconclusive.
pub const OPERATIONS_MIN: u64 = 10_000;
/// A run ends with so many, even if it had too few answers of a kind: the ring then refuses that kind.
pub const OPERATIONS_MAX: u64 = 4 * OPERATIONS_MIN;

/// The fewest answers of each kind in a conclusive run. While its store is full, a ring answers reads
/// and refuses puts, so runs differ in how many operations they need for these.
const MINIMA: [(Kind, usize); 10] = [
    (Kind::Read, 1_000),
    (Kind::Put, 500),
    (Kind::Delete, 200),
    (Kind::TxnSucceeded, 200),
    (Kind::TxnFailed, 100),
    (Kind::Compaction, 5),
    (Kind::Lease, 20),
    (Kind::PutIfWritten, 5),
    (Kind::PutIfRefused, 50),
    (Kind::PutSequential, 100),
];

impl Kind {
    fn of(request: &Request, body: &Body) -> Self {
        match (request, body) {
            (_, Body::Txn { succeeded: true, .. }) => Self::TxnSucceeded,
            (_, Body::PutIf { written: true, .. }) => Self::PutIfWritten,
            (Request::Txn(_), _) => Self::TxnFailed,
            (Request::PutIf(_), _) => Self::PutIfRefused,
            (Request::Range(_), _) => Self::Read,
            (Request::Put(_), _) => Self::Put,
            (Request::PutSequential(_), _) => Self::PutSequential,
            (Request::Delete(_), _) => Self::Delete,
            (Request::Compact(_), _) => Self::Compaction,
            (
                Request::Grant { .. }
                | Request::Renew(_)
                | Request::Revoke(_)
                | Request::Inspect(_),
                _,
            ) => Self::Lease,
        }
    }

    /// Whether only the store API has such requests, which etcd does not serve.
    fn is_of_store_api(self) -> bool {
        matches!(self, Self::PutIfWritten | Self::PutIfRefused | Self::PutSequential)
    }
}

/// How many operations a run completed, and how many answers of each kind it had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    completed: u64,
    kinds: BTreeMap<Kind, usize>,
}

impl Answers {
    /// Counts an operation that is complete: the ring carried it out, or failed it by its contents.
    /// An operation of unknown outcome is not complete, and a refusal is not counted: a full store
    /// refuses a thousand puts a second, which are checked, and prove little.
    pub fn add(&mut self, operation: &Operation) {
        match &operation.outcome {
            Outcome::Unknown | Outcome::Fail(Failure::Refused(_)) => {}
            Outcome::Fail(_) => self.completed += 1,
            Outcome::Ok(answer) => {
                self.completed += 1;
                *self.kinds.entry(Kind::of(&operation.request, &answer.body)).or_default() += 1;
            }
        }
    }

    /// How many operations were completed.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// The kinds of which there are too few, with their numbers. `serves_store_api` says whether the
    /// ring serves more than the API of etcd.
    #[must_use]
    pub fn too_few(&self, serves_store_api: bool) -> Vec<(Kind, usize)> {
        let expected =
            MINIMA.into_iter().filter(|(kind, _)| serves_store_api || !kind.is_of_store_api());
        let counted = expected.map(|(kind, min)| (kind, self.count(kind), min));
        counted
            .filter(|(_, count, min)| count < min)
            .map(|(kind, count, _)| (kind, count))
            .collect()
    }

    fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts: Vec<_> =
            self.kinds.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        f.write_str(&counts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::{Answers, Kind, MINIMA};

    #[test]
    fn a_ring_that_refuses_the_store_api_has_too_few_answers() {
        let of_etcd = MINIMA.into_iter().filter(|(kind, _)| !kind.is_of_store_api());
        let mut answers = Answers { completed: 0, kinds: of_etcd.collect() };
        assert_eq!(answers.too_few(false), []);
        let kinds = [Kind::PutIfWritten, Kind::PutIfRefused, Kind::PutSequential];
        assert_eq!(answers.too_few(true), kinds.map(|kind| (kind, 0)));
        answers.kinds.extend(MINIMA);
        assert_eq!(answers.too_few(true), []);
        answers.kinds.insert(Kind::Delete, 1);
        assert_eq!(answers.too_few(false), [(Kind::Delete, 1)]);
    }
}
