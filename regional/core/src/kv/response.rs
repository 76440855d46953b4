//! What the key-value store answers.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::request::{LeaseId, Revision};

/// One version of one key.
///
/// Key and value share one allocation of exactly their size, made when the version is written. So a
/// small live key never keeps a large log entry, or a large batch, in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    data: Bytes,
    key_bytes: u32,
    /// Its place among the writes of that revision.
    pub sub_revision: u32,
    /// Revision at which the key was created; 0 for a deletion.
    pub create_revision: Revision,
    /// Revision of this version.
    pub mod_revision: Revision,
    /// Writes since creation, this one included; 0 marks a deletion.
    pub version: i64,
    /// The lease the key lives by, or zero.
    pub lease: LeaseId,
}

/// What a version says besides its key and value; the fields are those of [`KeyValue`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "see KeyValue")]
pub struct Stamp {
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub sub_revision: u32,
    pub version: i64,
    pub lease: LeaseId,
}

impl KeyValue {
    /// Copies `key` and `value` into a version.
    ///
    /// # Panics
    ///
    /// If the key has 4 GiB or more; every rim and decoder bounds it far below that.
    #[must_use]
    pub fn new(key: &[u8], value: &[u8], stamp: Stamp) -> Self {
        let mut data = Vec::with_capacity(key.len() + value.len());
        data.extend_from_slice(key);
        data.extend_from_slice(value);
        Self {
            data: data.into(),
            key_bytes: u32::try_from(key.len()).expect("keys are bounded below 4 GiB"),
            sub_revision: stamp.sub_revision,
            create_revision: stamp.create_revision,
            mod_revision: stamp.mod_revision,
            version: stamp.version,
            lease: stamp.lease,
        }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.data[..self.key_bytes as usize]
    }

    /// The value; empty for a deletion.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.data[self.key_bytes as usize..]
    }

    /// The key, without a copy; it keeps the value in memory too.
    #[must_use]
    pub fn key_bytes(&self) -> Bytes {
        self.data.slice(..self.key_bytes as usize)
    }

    /// The value, without a copy; it keeps the key in memory too.
    #[must_use]
    pub fn value_bytes(&self) -> Bytes {
        self.data.slice(self.key_bytes as usize..)
    }

    /// The key directly followed by the value.
    #[must_use]
    pub fn key_and_value(&self) -> &[u8] {
        &self.data
    }

    /// What is not key or value.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp {
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            sub_revision: self.sub_revision,
            version: self.version,
            lease: self.lease,
        }
    }

    /// Whether this version says that the key is gone.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        self.version == 0
    }

    /// Whether this write brought the key into existence.
    #[must_use]
    pub fn is_creation(&self) -> bool {
        self.version == 1
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}.{}", self.key().escape_ascii(), self.mod_revision, self.sub_revision)?;
        match self.is_deletion() {
            true => f.write_str(" deleted"),
            false => write!(
                f,
                "={} (created {}, version {}, lease {:x})",
                self.value().escape_ascii(),
                self.create_revision,
                self.version,
                self.lease
            ),
        }
    }
}

/// What a range found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The store's revision when it was read.
    pub revision: Revision,
    /// What passed filters and limit. With `keys_only`, the rim leaves the values out.
    pub kvs: Vec<Arc<KeyValue>>,
    /// The limit left something out.
    pub more: bool,
    /// Keys in the range, as etcd counts them (before filters and limit).
    pub count: i64,
}

/// What a put did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutResponse {
    /// Of the write.
    pub revision: Revision,
    /// What was there, if asked for.
    pub prev: Option<Arc<KeyValue>>,
}

/// What a deletion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// The store's revision afterwards.
    pub revision: Revision,
    /// How many keys there were.
    pub deleted: i64,
    /// What was there, if asked for.
    pub prev: Vec<Arc<KeyValue>>,
}

/// What one operation of a transaction answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseOp {
    /// See there; `keys_only` of its request.
    Range(RangeResponse, KeysOnly),
    /// See there.
    Put(PutResponse),
    /// See there.
    DeleteRange(DeleteRangeResponse),
    /// See there.
    Txn(TxnResponse),
}

/// Whether values are left out of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysOnly {
    /// They are, and so are leases: etcd 3.7 answers from its index, which does not hold them.
    Yes,
    /// They are, but leases are shown: sorted by value, etcd has read the whole pair.
    WithLease,
    /// They are not.
    No,
}

/// What a transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResponse {
    /// The store's revision afterwards; 0 in a nested transaction, whose header etcd leaves empty.
    pub revision: Revision,
    /// Which branch was taken.
    pub succeeded: bool,
    /// One for each operation of that branch.
    pub responses: Vec<ResponseOp>,
}

/// One write, as watchers see it. A `version` of 0 is a deletion.
pub type Event = Arc<KeyValue>;
