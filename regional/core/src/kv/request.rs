//! What a client may ask of the key-value store, after the rim has parsed and bounded it.
//!
//! The fields are those of etcd's `KV` service and mean what they mean there. Parsing, size limits
//! and duplicate-key checks happen before a request becomes one of these; a store that gets one
//! decides only what depends on its state.

use bytes::Bytes;

use super::response::KeysOnly;

/// A main revision. The first write of a fresh store has revision 2, as in etcd.
pub type Revision = i64;

/// A lease; zero is "none".
pub type LeaseId = i64;

/// Keys `[start, end)`, one key, everything from `start` on, or a prefix.
///
/// As in etcd: an empty `end` means the one key `start`; an `end` of one zero byte means "to the
/// end of the keyspace"; a `start` of one zero byte means "from the beginning".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// First key that is not in the range, or see above.
    pub end: Bytes,
}

impl KeyRange {
    /// The one key.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: Bytes::new() }
    }

    /// Keys from `start` up to, not including, `end`.
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

    /// Whether it names one key, whether or not that exists.
    #[must_use]
    pub fn is_one_key(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether it has no upper end.
    #[must_use]
    pub fn is_open_ended(&self) -> bool {
        self.end[..] == [0]
    }

    /// Whether `key` is in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_one_key() {
            return key == self.start;
        }
        key >= &self.start[..] && (self.is_open_ended() || key < &self.end[..])
    }
}

/// Which way a range is sorted.
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

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// How often it was written since it was created.
    Version,
    /// When it was created.
    Create,
    /// When it was last written.
    Mod,
    /// The value.
    Value,
}

/// Inclusive bounds of a revision filter; zero is "no bound", as in etcd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Lowest that passes.
    pub min: Revision,
    /// Highest that passes.
    pub max: Revision,
}

/// Reads keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// At most this many; zero is "all".
    pub limit: i64,
    /// At which revision; zero or less is "now".
    pub revision: Revision,
    /// Sorting happens before the limit.
    pub order: SortOrder,
    /// See there.
    pub target: SortTarget,
    /// Leave values out.
    pub keys_only: bool,
    /// Leave everything out but the count.
    pub count_only: bool,
    /// Filters by the last write.
    pub modified: Bounds,
    /// Filters by creation.
    pub created: Bounds,
}

impl RangeRequest {
    /// Everything about these keys, now.
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

    /// What the rim leaves out of the answer.
    #[must_use]
    pub fn shape(&self) -> KeysOnly {
        match (self.keys_only, self.target) {
            (false, _) => KeysOnly::No,
            (true, SortTarget::Value) => KeysOnly::WithLease,
            (true, _) => KeysOnly::Yes,
        }
    }
}

/// Writes one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutRequest {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease the key lives by, or zero.
    pub lease: LeaseId,
    /// Return what was there.
    pub prev_kv: bool,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
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
    /// Which keys.
    pub range: KeyRange,
    /// Return what was there.
    pub prev_kv: bool,
}

/// How a comparison is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareResult {
    /// Equal.
    Equal,
    /// The key's is greater than the given.
    Greater,
    /// The key's is less than the given.
    Less,
    /// Not equal.
    NotEqual,
}

/// What of a key is compared, and with what.
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
    /// Which keys.
    pub range: KeyRange,
    /// How.
    pub result: CompareResult,
    /// With what.
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOp {
    /// See there.
    Range(RangeRequest),
    /// See there.
    Put(PutRequest),
    /// See there.
    DeleteRange(DeleteRangeRequest),
    /// A nested transaction; its comparisons are evaluated before any write of the outer one.
    Txn(TxnRequest),
}

/// If all comparisons hold `success`, else `failure`, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnRequest {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// If they do.
    pub success: Vec<RequestOp>,
    /// If they do not.
    pub failure: Vec<RequestOp>,
}

impl TxnRequest {
    /// Whether neither branch can write, so that no log entry is needed. A nested transaction
    /// counts as a write, whatever it holds, as in etcd.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| matches!(op, RequestOp::Range(_)))
    }
}
