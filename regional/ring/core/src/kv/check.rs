//! Checks of a request without the state: etcd's refusals, in etcd's order.
//!
//! The API calls this before it proposes a request. The store stays correct with an unchecked
//! request, but its answer may differ from etcd's.

use core::ops::Bound;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
};
use crate::Refusal;
use crate::limits::TXN_DEPTH_MAX;

/// etcd's default for the most comparisons, or operations of one branch, of a transaction.
pub const TXN_OPS_DEFAULT: usize = 128;

/// Parses etcd's number of a sort order.
///
/// # Errors
///
/// [`Refusal::InvalidSortOption`].
pub fn sort_order(number: i32) -> Result<SortOrder, Refusal> {
    match number {
        0 => Ok(SortOrder::None),
        1 => Ok(SortOrder::Ascend),
        2 => Ok(SortOrder::Descend),
        _ => Err(Refusal::InvalidSortOption),
    }
}

/// Parses etcd's number of a sort target.
///
/// # Errors
///
/// [`Refusal::InvalidSortOption`].
pub fn sort_target(number: i32) -> Result<SortTarget, Refusal> {
    match number {
        0 => Ok(SortTarget::Key),
        1 => Ok(SortTarget::Version),
        2 => Ok(SortTarget::Create),
        3 => Ok(SortTarget::Mod),
        4 => Ok(SortTarget::Value),
        _ => Err(Refusal::InvalidSortOption),
    }
}

/// Checks a range.
///
/// # Errors
///
/// [`Refusal::EmptyKey`].
pub fn range(request: &RangeRequest) -> Result<(), Refusal> {
    key(&request.range.start)
}

/// Checks a put.
///
/// # Errors
///
/// [`Refusal::EmptyKey`], [`Refusal::ValueProvided`], [`Refusal::LeaseProvided`].
pub fn put(request: &PutRequest) -> Result<(), Refusal> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
///
/// # Errors
///
/// [`Refusal::EmptyKey`].
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    key(&request.range.start)
}

/// Checks a transaction of at most `ops_max` operations, and no two writes of one key.
///
/// # Errors
///
/// The refusals of its operations, [`Refusal::TooManyOps`] and [`Refusal::DuplicateKey`].
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Refusal> {
    shape(request, ops_max, TXN_DEPTH_MAX)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

fn key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Each level leaves the rest of its limit to the levels inside it, as in etcd. The bound on the
/// depth is satrap's, for the stacks of decoders.
fn shape(request: &TxnRequest, ops_max: usize, depth_max: usize) -> Result<(), Refusal> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let ops_left = ops_max.checked_sub(ops).ok_or(Refusal::TooManyOps)?;
    for compare in &request.compare {
        key(&compare.range.start)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            RequestOp::Range(request) => range(request)?,
            RequestOp::Put(request) => put(request)?,
            RequestOp::DeleteRange(request) => delete_range(request)?,
            RequestOp::Txn(inner) => {
                let depth_left = depth_max.checked_sub(1).ok_or(Refusal::TooManyOps)?;
                shape(inner, ops_left, depth_left)?;
            }
        }
    }
    Ok(())
}

/// The keys that a branch may put and the ranges it may delete, on any path.
///
/// No key may be put twice, or be put and deleted. As in etcd the check takes ranges literally, so
/// it does not see a deletion "to the end of the keyspace"; and a later nested transaction may
/// delete a key that an earlier one puts, but not the other way around.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Intervals<'a>,
}

impl<'a> Writes<'a> {
    fn of(ops: &'a [RequestOp]) -> Result<Self, Refusal> {
        let mut writes = Self::default();
        for op in ops {
            if let RequestOp::DeleteRange(delete) = op {
                writes.deletes.add_range(&delete.range.start, &delete.range.end);
            }
        }
        for op in ops {
            if let RequestOp::Txn(inner) = op {
                let mut either = Self::of(&inner.success)?;
                either.merge(Self::of(&inner.failure)?);
                if either.collides_with(&writes) {
                    return Err(Refusal::DuplicateKey);
                }
                writes.merge(either);
            }
        }
        for op in ops {
            if let RequestOp::Put(put) = op
                && (writes.deletes.contains(&put.key) || !writes.puts.insert(&put.key))
            {
                return Err(Refusal::DuplicateKey);
            }
        }
        Ok(writes)
    }

    /// Whether `earlier` puts or deletes a key that this puts.
    fn collides_with(&self, earlier: &Self) -> bool {
        let (few, many) = by_size(&self.puts, &earlier.puts, BTreeSet::len);
        few.iter().any(|key| many.contains(key)) || earlier.deletes.contain_any(&self.puts)
    }

    /// Merges the smaller set into the larger one, so that depth does not multiply the work.
    fn merge(&mut self, mut other: Self) {
        if self.puts.len() < other.puts.len() {
            core::mem::swap(&mut self.puts, &mut other.puts);
        }
        self.puts.extend(other.puts);
        self.deletes.merge(other.deletes);
    }
}

fn by_size<'a, T>(a: &'a T, b: &'a T, len: impl Fn(&T) -> usize) -> (&'a T, &'a T) {
    if len(a) <= len(b) { (a, b) } else { (b, a) }
}

/// The end of an interval: before a key, or with it. The order of the pairs is the order of ends.
type End<'a> = (&'a [u8], Place);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Before,
    With,
}

/// A set of keys as intervals that do not overlap: first key to end.
#[derive(Default)]
struct Intervals<'a>(BTreeMap<&'a [u8], End<'a>>);

impl<'a> Intervals<'a> {
    /// Adds a range as etcd reads it here: literally, even if the end is one zero byte.
    fn add_range(&mut self, start: &'a [u8], end: &'a [u8]) {
        match end {
            [] => self.add(start, (start, Place::With)),
            end => self.add(start, (end, Place::Before)),
        }
    }

    fn add(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        if end <= (start, Place::Before) {
            return;
        }
        if let Some((&earlier, &until)) = self.0.range(..=start).next_back()
            && until > (start, Place::Before)
        {
            start = earlier;
        }
        while let Some((&inside, &until)) = self.0.range(start..).next()
            && (inside, Place::Before) < end
        {
            end = end.max(until);
            self.0.remove(inside);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        let before = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        before.is_some_and(|(_, &until)| (key, Place::Before) < until)
    }

    fn contain_any(&self, keys: &BTreeSet<&'a [u8]>) -> bool {
        if keys.len() < self.0.len() {
            return keys.iter().any(|key| self.contains(key));
        }
        self.0.iter().any(|(&start, &until)| {
            keys.range(start..).next().is_some_and(|&key| (key, Place::Before) < until)
        })
    }

    fn merge(&mut self, mut other: Self) {
        if self.0.len() < other.0.len() {
            core::mem::swap(&mut self.0, &mut other.0);
        }
        for (start, end) in other.0 {
            self.add(start, end);
        }
    }
}
