//! Transactions: comparisons on the state before, then one branch, at one revision.
//!
//! ```text
//!   choose: every comparison, of nested transactions too ─▶ one bit for each transaction taken
//!   check:  every refusal known before writing           ─▶ nothing has changed yet
//!   run:    the operations, each seeing the writes of those before it
//! ```
//!
//! # Invariants
//!
//! - **TXN-1** No comparison sees a write of its own transaction.
//! - **TXN-2** All writes have one main revision and their order is their sub-revision; a refusal
//!   after the first write rolls all of them back.
//! - **TXN-3** A transaction that would visit more than [`TXN_KEYS_MAX`] keys, or read or compare more than
//!   [`TXN_READ_BYTES_MAX`], is refused: each of thousands of operations may be about every key, and all members
//!   would execute them before anything else.

use core::cmp::Ordering;

use super::{
    Budget, Compare, CompareResult, CompareTarget, KeyRange, KeyValue, Owner, Progress,
    RangeRequest, RangeResponse, RequestOp, ResponseOp, Revision, Scan, Store, TxnRequest,
    TxnResponse,
};
use crate::{
    Refusal,
    limits::{TXN_KEYS_MAX, TXN_READ_BYTES_MAX},
};

/// Keys of a range between two checks of TXN-3.
const CHECKED_KEYS: Budget = Budget { keys: 4_096, bytes: usize::MAX };

/// The branch that each transaction takes, outer before inner, in order of execution.
type Path = Vec<bool>;
/// The rest of a path.
type Steps<'a> = core::slice::Iter<'a, bool>;

/// The keys and bytes that a transaction may still read (TXN-3). Members that applied the same requests count the
/// same.
struct Allowance {
    keys: usize,
    bytes: usize,
}

impl Allowance {
    const WHOLE: Self = Self { keys: TXN_KEYS_MAX, bytes: TXN_READ_BYTES_MAX };

    fn check(&self, (keys, bytes): (usize, usize)) -> Result<(), Refusal> {
        if keys > self.keys || bytes > self.bytes { Err(Refusal::TooManyOps) } else { Ok(()) }
    }

    fn take(&mut self, visited: (usize, usize)) -> Result<(), Refusal> {
        self.check(visited)?;
        self.keys -= visited.0;
        self.bytes -= visited.1;
        Ok(())
    }
}

impl Store {
    /// Executes a transaction.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] of one of its operations; none of them was executed then.
    pub fn txn(
        &mut self,
        request: &TxnRequest,
        owner: &mut impl Owner,
    ) -> Result<TxnResponse, Refusal> {
        let (mut path, mut allowance) = (Path::new(), Allowance::WHOLE);
        self.choose(request, &mut path, &mut allowance)?;
        self.check(request, &mut path.iter(), owner)?;
        match self.run(request, &mut path.iter(), &mut allowance) {
            Ok(mut response) => {
                response.revision = self.horizon();
                self.commit(owner);
                Ok(response)
            }
            Err(refusal) => {
                self.roll_back();
                Err(refusal)
            }
        }
    }

    /// Executes a transaction that [is read only](TxnRequest::is_read_only).
    ///
    /// # Errors
    ///
    /// The [`Refusal`] of one of its ranges.
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let mut allowance = Allowance::WHOLE;
        let succeeded = self.all_hold(&request.compare, &mut allowance)?;
        let branch = request.branch(succeeded);
        let mut responses = Vec::with_capacity(branch.len());
        for op in branch {
            if let RequestOp::Range(range) = op {
                self.check_range(range)?;
                let found = self.range_within(range, &mut allowance)?;
                responses.push(ResponseOp::Range(found, range.shape()));
            }
        }
        Ok(TxnResponse { revision: self.revision, succeeded, responses })
    }

    fn choose(
        &self,
        request: &TxnRequest,
        path: &mut Path,
        allowance: &mut Allowance,
    ) -> Result<(), Refusal> {
        let succeeded = self.all_hold(&request.compare, allowance)?;
        path.push(succeeded);
        for op in request.branch(succeeded) {
            if let RequestOp::Txn(inner) = op {
                self.choose(inner, path, allowance)?;
            }
        }
        Ok(())
    }

    fn check(
        &self,
        request: &TxnRequest,
        path: &mut Steps<'_>,
        owner: &impl Owner,
    ) -> Result<(), Refusal> {
        let succeeded = next(path);
        for op in request.branch(succeeded) {
            match op {
                RequestOp::Range(range) => self.check_range(range)?,
                RequestOp::Put(put) => self.check_put(put, owner)?,
                RequestOp::DeleteRange(_) => {}
                RequestOp::Txn(inner) => self.check(inner, path, owner)?,
            }
        }
        Ok(())
    }

    fn run(
        &mut self,
        request: &TxnRequest,
        path: &mut Steps<'_>,
        allowance: &mut Allowance,
    ) -> Result<TxnResponse, Refusal> {
        let succeeded = next(path);
        let branch = request.branch(succeeded);
        let mut responses = Vec::with_capacity(branch.len());
        for op in branch {
            responses.push(match op {
                RequestOp::Range(range) => {
                    ResponseOp::Range(self.range_within(range, allowance)?, range.shape())
                }
                RequestOp::Put(put) => ResponseOp::Put(self.write(put)?),
                RequestOp::DeleteRange(delete) => {
                    allowance.take((self.keys_within(&delete.range, allowance.keys), 0))?;
                    ResponseOp::DeleteRange(self.erase(delete))
                }
                RequestOp::Txn(inner) => ResponseOp::Txn(self.run(inner, path, allowance)?),
            });
        }
        Ok(TxnResponse { revision: 0, succeeded, responses })
    }

    /// In a transaction etcd checks the revision literally: one below zero is not "now" but before
    /// the compacted revision, which is -1 before the first compaction.
    fn check_range(&self, range: &RangeRequest) -> Result<(), Refusal> {
        match range.revision {
            0 => Ok(()),
            r if r > self.revision => Err(Refusal::FutureRevision { current: self.revision }),
            r if r < self.compacted => Err(Refusal::Compacted { compacted: self.compacted }),
            _ => Ok(()),
        }
    }

    /// [`Store::range`], unless it visits or finds more than is left (TXN-3).
    fn range_within(
        &self,
        request: &RangeRequest,
        allowance: &mut Allowance,
    ) -> Result<RangeResponse, Refusal> {
        let mut scan = Scan::begin(self, request)?;
        while scan.step(self, CHECKED_KEYS)? == Progress::More {
            allowance.check(scan.visited())?;
        }
        allowance.take(scan.visited())?;
        Ok(scan.finish())
    }

    /// The number of keys in a range that every member has; stops once it is over `max`.
    fn keys_within(&self, range: &KeyRange, max: usize) -> usize {
        let held = self.index.walk(range, None).filter(|(_, v)| v.is_held(self.compacted));
        held.take(max.saturating_add(1)).count()
    }

    fn all_hold(&self, compares: &[Compare], allowance: &mut Allowance) -> Result<bool, Refusal> {
        for compare in compares {
            if !self.holds_for_all(compare, allowance)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a comparison holds for every key of its range. A range without keys counts as one
    /// key that was never written; its value cannot be compared, so that fails.
    fn holds_for_all(&self, compare: &Compare, allowance: &mut Allowance) -> Result<bool, Refusal> {
        let mut found = false;
        for (_, versions) in self.index.walk(&compare.range, None) {
            allowance.take((usize::from(versions.is_held(self.compacted)), 0))?;
            let Some(event) = versions.at(Revision::MAX) else { continue };
            found = true;
            allowance.take((0, compare.bytes(event)))?;
            if !compare.holds(Some(event)) {
                return Ok(false);
            }
        }
        Ok(found || compare.holds(None))
    }
}

impl TxnRequest {
    fn branch(&self, succeeded: bool) -> &[RequestOp] {
        if succeeded { &self.success } else { &self.failure }
    }
}

impl Compare {
    /// The most bytes that are compared.
    fn bytes(&self, event: &KeyValue) -> usize {
        match &self.target {
            CompareTarget::Value(given) => given.len().min(event.value().len()),
            _ => 0,
        }
    }

    fn holds(&self, event: Option<&KeyValue>) -> bool {
        let number = |of: fn(&KeyValue) -> i64, given: i64| event.map_or(0, of).cmp(&given);
        let order = match &self.target {
            CompareTarget::Version(given) => number(|e| e.version, *given),
            CompareTarget::Create(given) => number(|e| e.create_revision, *given),
            CompareTarget::Mod(given) => number(|e| e.mod_revision, *given),
            CompareTarget::Lease(given) => number(|e| e.lease, *given),
            CompareTarget::Value(given) => match event {
                Some(event) => event.value().cmp(given),
                None => return false,
            },
        };
        match self.result {
            CompareResult::Equal => order == Ordering::Equal,
            CompareResult::NotEqual => order != Ordering::Equal,
            CompareResult::Greater => order == Ordering::Greater,
            CompareResult::Less => order == Ordering::Less,
        }
    }
}

fn next(path: &mut Steps<'_>) -> bool {
    *path.next().expect("choose and run meet the same transactions in the same order")
}
