//! Transactions: comparisons about the state before, then one branch, at one revision.
//!
//! ```text
//!   choose: every comparison, of nested transactions too ─▶ one bit for each transaction taken
//!   check:  what can be refused is refused now           ─▶ nothing has changed yet
//!   run:    the operations, each seeing the writes of those before it
//! ```
//!
//! # Invariants
//!
//! - **T1** No comparison sees a write of its own transaction.
//! - **T2** All writes have one main revision and their order is their sub-revision; a refusal
//!   after the first write takes all of them back.

use core::cmp::Ordering;

use super::{
    Compare, CompareResult, CompareTarget, KeyValue, Owner, RangeRequest, RequestOp, ResponseOp,
    Revision, Store, TxnRequest, TxnResponse,
};
use crate::Refusal;

/// Which branch each transaction takes, outer before inner, in the order they are met.
type Path = Vec<bool>;
/// The rest of a path.
type Steps<'a> = core::slice::Iter<'a, bool>;

impl Store {
    /// Executes a transaction.
    ///
    /// # Errors
    ///
    /// Those of its operations. Then none of them was done.
    pub fn txn(
        &mut self,
        request: &TxnRequest,
        owner: &mut impl Owner,
    ) -> Result<TxnResponse, Refusal> {
        let mut path = Path::new();
        self.choose(request, &mut path);
        self.check(request, &mut path.iter(), owner)?;
        match self.run(request, &mut path.iter()) {
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
    /// Those of its ranges.
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let succeeded = self.all_hold(&request.compare);
        let branch = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::with_capacity(branch.len());
        for op in branch {
            if let RequestOp::Range(range) = op {
                self.check_range(range)?;
                responses.push(ResponseOp::Range(self.range(range)?, range.shape()));
            }
        }
        Ok(TxnResponse { revision: self.revision, succeeded, responses })
    }

    fn choose(&self, request: &TxnRequest, path: &mut Path) {
        let succeeded = self.all_hold(&request.compare);
        path.push(succeeded);
        for op in request.branch(succeeded) {
            if let RequestOp::Txn(inner) = op {
                self.choose(inner, path);
            }
        }
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

    fn run(&mut self, request: &TxnRequest, path: &mut Steps<'_>) -> Result<TxnResponse, Refusal> {
        let succeeded = next(path);
        let branch = request.branch(succeeded);
        let mut responses = Vec::with_capacity(branch.len());
        for op in branch {
            responses.push(match op {
                RequestOp::Range(range) => ResponseOp::Range(self.range(range)?, range.shape()),
                RequestOp::Put(put) => ResponseOp::Put(self.write(put)?),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(self.erase(delete)),
                RequestOp::Txn(inner) => ResponseOp::Txn(self.run(inner, path)?),
            });
        }
        Ok(TxnResponse { revision: 0, succeeded, responses })
    }

    /// In a transaction etcd looks at the revision as it was given: one below zero is not "now"
    /// but before the compacted revision, which is -1 as long as nothing was compacted.
    fn check_range(&self, range: &RangeRequest) -> Result<(), Refusal> {
        match range.revision {
            0 => Ok(()),
            r if r > self.revision => Err(Refusal::FutureRevision { current: self.revision }),
            r if r < self.compacted => Err(Refusal::Compacted { compacted: self.compacted }),
            _ => Ok(()),
        }
    }

    fn all_hold(&self, compares: &[Compare]) -> bool {
        compares.iter().all(|compare| self.holds_for_all(compare))
    }

    /// Whether a comparison holds for every key of its range. A range without keys is compared as
    /// one key that has never been written; a value of it cannot be compared, so that fails.
    fn holds_for_all(&self, compare: &Compare) -> bool {
        let mut found = false;
        for (_, versions) in self.index.walk(&compare.range, None) {
            let Some(event) = versions.at(Revision::MAX) else { continue };
            found = true;
            if !compare.holds(Some(event)) {
                return false;
            }
        }
        found || compare.holds(None)
    }
}

impl TxnRequest {
    fn branch(&self, succeeded: bool) -> &[RequestOp] {
        if succeeded { &self.success } else { &self.failure }
    }
}

impl Compare {
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
