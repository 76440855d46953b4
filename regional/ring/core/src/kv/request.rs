//! Requests to the key-value store, which the API has parsed and bounded.
//!
//! The fields are those of etcd's `KV` service, with the same meaning. Parsing, size limits and
//! checks for duplicate keys come before; the store decides only what depends on its state.

use bytes::Bytes;

/// A main revision. The first write of a fresh store has revision 2, as in etcd.
pub type Revision = i64;

/// The id of a lease; zero is "none".
pub type LeaseId = i64;

/// Keys `[start, end)`, one key, everything from `start` on, or a prefix.
///
/// As in etcd: an empty `end` means the one key `start`; an `end` of one zero byte means "to the
/// end of the keyspace"; a `start` of one zero byte means "from the beginning".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// First key after the range, or see above.
    pub end: Bytes,
}

impl KeyRange {
    /// A range of one key.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: Bytes::new() }
    }

    /// The keys from `start` to before `end`.
    #[must_use]
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into() }
    }

    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { start: Bytes::from_static(&[0]), end: Bytes::from_static(&[0]) }
    }

    /// Every key that starts with `prefix`; every key if it is empty.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let Some(last) = start.iter().rposition(|&b| b != 0xff) else {
            let start = if start.is_empty() { Bytes::from_static(&[0]) } else { start };
            return Self { start, end: Bytes::from_static(&[0]) };
        };
        let mut end = start[..=last].to_vec();
        end[last] += 1;
        Self { start, end: end.into() }
    }

    /// Whether the range names one key, which may not exist.
    #[must_use]
    pub fn is_one_key(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether the range has no upper end.
    #[must_use]
    pub fn is_open_ended(&self) -> bool {
        self.end[..] == [0]
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_one_key() {
            return key == self.start;
        }
        key >= &self.start[..] && (self.is_open_ended() || key < &self.end[..])
    }
}

/// The direction in which a range is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// By key, ascending.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// The field by which a range is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The number of writes since it was created.
    Version,
    /// The revision of its creation.
    Create,
    /// The revision of its last write.
    Mod,
    /// The value.
    Value,
}

/// Inclusive bounds of a revision filter; zero is "no bound", as in etcd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Lowest revision that passes.
    pub min: Revision,
    /// Highest revision that passes.
    pub max: Revision,
}

/// Reads keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// The keys.
    pub range: KeyRange,
    /// The limit; zero is "all".
    pub limit: i64,
    /// The revision to read at; zero or less is "now".
    pub revision: Revision,
    /// The sort order; sorting comes before the limit.
    pub order: SortOrder,
    /// The field to sort by.
    pub target: SortTarget,
    /// Whether to omit values.
    pub keys_only: bool,
    /// Whether to return the count only.
    pub count_only: bool,
    /// Filter by the revision of the last write.
    pub modified: Bounds,
    /// Filter by the revision of creation.
    pub created: Bounds,
}

impl RangeRequest {
    /// A request for all versions of these keys, now.
    #[must_use]
    pub fn of(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            revision: 0,
            order: SortOrder::None,
            target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            modified: Bounds::default(),
            created: Bounds::default(),
        }
    }

    /// The fields of each version that the API omits from the response.
    #[must_use]
    pub fn shape(&self) -> KeysOnly {
        match (self.keys_only, self.target) {
            (false, _) => KeysOnly::No,
            (true, SortTarget::Value) => KeysOnly::WithLease,
            (true, _) => KeysOnly::Yes,
        }
    }
}

/// The fields that a response omits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysOnly {
    /// Values and leases: etcd 3.7 answers from its index, which holds neither.
    Yes,
    /// Values only: to sort by value, etcd has read the whole pair.
    WithLease,
    /// None.
    No,
}

/// Writes one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutRequest {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease of the key, or zero.
    pub lease: LeaseId,
    /// Whether to return the previous version.
    pub prev_kv: bool,
    /// Whether to keep the current value.
    pub ignore_value: bool,
    /// Whether to keep the current lease.
    pub ignore_lease: bool,
}

impl PutRequest {
    /// A plain write.
    #[must_use]
    pub fn of(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
}

/// Deletes keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRangeRequest {
    /// The keys.
    pub range: KeyRange,
    /// Whether to return the previous versions.
    pub prev_kv: bool,
}

/// The operator of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareResult {
    /// Equal.
    Equal,
    /// The key's field is greater than the operand.
    Greater,
    /// The key's field is less than the operand.
    Less,
    /// Not equal.
    NotEqual,
}

/// The field of a key to compare, and the operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// Writes since creation; 0 if the key does not exist.
    Version(i64),
    /// Revision of creation; 0 if the key does not exist.
    Create(Revision),
    /// Revision of the last write; 0 if the key does not exist.
    Mod(Revision),
    /// The value; a key that does not exist compares false.
    Value(Bytes),
    /// The lease; 0 if none or if the key does not exist.
    Lease(LeaseId),
}

/// One condition of a transaction; every key in `range` must fulfill it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The keys.
    pub range: KeyRange,
    /// The operator.
    pub result: CompareResult,
    /// The field and the operand.
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOp {
    /// Reads keys.
    Range(RangeRequest),
    /// Writes a key.
    Put(PutRequest),
    /// Deletes keys, or a nested transaction.
    DeleteRange(DeleteRangeRequest),
    /// A nested transaction; its comparisons are evaluated before any write of the outer one.
    Txn(TxnRequest),
}

/// Executes `success` if all comparisons hold, else `failure`, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnRequest {
    /// The comparisons, which must all hold.
    pub compare: Vec<Compare>,
    /// The operations if they do.
    pub success: Vec<RequestOp>,
    /// The operations if they do not.
    pub failure: Vec<RequestOp>,
}

impl TxnRequest {
    /// Whether neither branch can write, so that no log entry is needed. As in etcd, a nested
    /// transaction counts as a write, whatever its operations.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| matches!(op, RequestOp::Range(_)))
    }
}
