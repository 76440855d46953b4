//! The key-value store's responses.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::request::{KeysOnly, LeaseId, Revision};

/// One version of one key.
///
/// Key and value share one allocation of exactly their size, made when the version is written. So a
/// small live key does not keep a large log entry, or a large batch, in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    data: Bytes,
    key_bytes: u32,
    /// Its number among the writes of that revision.
    pub sub_revision: u32,
    /// Revision of the key's creation; 0 for a deletion.
    pub create_revision: Revision,
    /// Revision of this version.
    pub mod_revision: Revision,
    /// Writes since creation, this one included; 0 marks a deletion.
    pub version: i64,
    /// The lease of the key, or zero.
    pub lease: LeaseId,
}

/// The metadata of a version; the fields are those of [`KeyValue`].
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
    /// If the key has 4 GiB or more; the API and every decoder bound it far below that.
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

    /// The metadata of the version.
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

    /// Whether this version is a deletion.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        self.version == 0
    }

    /// Whether this write created the key.
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

/// The response to a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The store's revision at the read.
    pub revision: Revision,
    /// The versions that passed filters and limit. With `keys_only`, the API leaves the values out.
    pub kvs: Vec<Arc<KeyValue>>,
    /// Whether the limit left versions out.
    pub more: bool,
    /// Keys in the range, as etcd counts them: before filters and limit.
    pub count: i64,
}

/// The response to a put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutResponse {
    /// Revision of the write.
    pub revision: Revision,
    /// The previous version, if requested.
    pub prev: Option<Arc<KeyValue>>,
}

/// The response to a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// The store's revision afterwards.
    pub revision: Revision,
    /// The number of deleted keys.
    pub deleted: i64,
    /// The deleted versions, if requested.
    pub prev: Vec<Arc<KeyValue>>,
}

/// The response to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseOp {
    /// The response to a range, with `keys_only` of its request.
    Range(RangeResponse, KeysOnly),
    /// The response to a put.
    Put(PutResponse),
    /// The response to a deletion.
    DeleteRange(DeleteRangeResponse),
    /// The response to a nested transaction.
    Txn(TxnResponse),
}

/// The response to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResponse {
    /// The store's revision afterwards; 0 in a nested transaction, whose header etcd leaves empty.
    pub revision: Revision,
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// One response for each operation of the branch taken.
    pub responses: Vec<ResponseOp>,
}

/// One write, as watchers see it. A `version` of 0 is a deletion.
pub type Event = Arc<KeyValue>;
