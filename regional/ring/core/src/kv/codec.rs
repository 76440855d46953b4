//! The encoding of key-value requests in the log; [`super::codec_response`] has that of responses
//! and versions.
//!
//! Every member decodes a request and copies its key and value once, into the stored version. So a
//! decoder can share the entry that it reads instead of copying: [`Decode`] takes an [`Ownership`],
//! and [`Canonical`] always copies.

use bytes::Bytes;
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use super::check::{sort_order, sort_target};
use super::{
    Bounds, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange, PutRequest,
    RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
};
use crate::limits::{TXN_DEPTH_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX};

/// The memory of decoded keys and values.
#[derive(Clone, Copy, Debug)]
pub enum Ownership<'a> {
    /// Their own allocations.
    Copied,
    /// The buffer that the reader reads, which they keep in memory.
    Shared(&'a Bytes),
}

impl Ownership<'_> {
    /// The bytes, as a part of the buffer if that is shared.
    #[must_use]
    pub fn own(self, bytes: &[u8]) -> Bytes {
        match self {
            Self::Copied => Bytes::copy_from_slice(bytes),
            Self::Shared(buffer) => buffer.slice_ref(bytes),
        }
    }
}

/// A value that can be decoded without copying keys and values.
pub trait Decode: Canonical {
    /// As [`Canonical::decode`]; with [`Ownership::Shared`] `r` must read from that buffer.
    ///
    /// # Errors
    ///
    /// As [`Canonical::decode`].
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError>;
}

/// Fixed-width two's complement.
pub(super) fn put_i64(w: &mut Writer, v: i64) {
    w.u64(v.cast_unsigned());
}

pub(super) fn i64(r: &mut Reader<'_>) -> Result<i64, DecodeError> {
    Ok(r.u64()?.cast_signed())
}

/// A key may be as large as a request, as in etcd.
fn bytes(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Bytes, DecodeError> {
    Ok(ownership.own(r.bytes(VALUE_BYTES_MAX)?))
}

/// One bit for each flag, the first one lowest.
pub(super) fn put_flags<const N: usize>(w: &mut Writer, flags: [bool; N]) {
    w.u8(flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u8::from(flag)));
}

pub(super) fn flags<const N: usize>(r: &mut Reader<'_>) -> Result<[bool; N], DecodeError> {
    let bits = r.u8()?;
    if u32::from(bits) >> N != 0 {
        return Err(DecodeError::Invalid("flags"));
    }
    Ok(core::array::from_fn(|place| bits >> place & 1 == 1))
}

pub(super) fn put_items<T>(w: &mut Writer, items: &[T], put: impl Fn(&T, &mut Writer)) {
    w.count(items.len());
    for item in items {
        put(item, w);
    }
}

pub(super) fn items<T>(
    r: &mut Reader<'_>,
    max: usize,
    mut item: impl FnMut(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let n = r.count(max)?;
    let mut items = Vec::new();
    for _ in 0..n {
        items.push(item(r)?);
    }
    Ok(items)
}

/// Implements [`Canonical`] for a request from its `encode` function and its [`Decode`].
macro_rules! canonical {
    ($($request:ty),*) => {$(
        impl Canonical for $request {
            fn encode(&self, w: &mut Writer) {
                self.put(w);
            }

            fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::decode_with(r, Ownership::Copied)
            }
        }
    )*};
}

canonical!(KeyRange, RangeRequest, PutRequest, DeleteRangeRequest, Compare, RequestOp, TxnRequest);

impl KeyRange {
    fn put(&self, w: &mut Writer) {
        w.bytes(&self.start);
        w.bytes(&self.end);
    }
}

impl Decode for KeyRange {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Ok(Self { start: bytes(r, ownership)?, end: bytes(r, ownership)? })
    }
}

impl PutRequest {
    fn put(&self, w: &mut Writer) {
        w.bytes(&self.key);
        w.bytes(&self.value);
        put_i64(w, self.lease);
        put_flags(w, [self.prev_kv, self.ignore_value, self.ignore_lease]);
    }
}

impl Decode for PutRequest {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        let key = bytes(r, ownership)?;
        let value = bytes(r, ownership)?;
        let lease = i64(r)?;
        let [prev_kv, ignore_value, ignore_lease] = flags(r)?;
        Ok(Self { key, value, lease, prev_kv, ignore_value, ignore_lease })
    }
}

impl DeleteRangeRequest {
    fn put(&self, w: &mut Writer) {
        self.range.put(w);
        put_flags(w, [self.prev_kv]);
    }
}

impl Decode for DeleteRangeRequest {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        let range = KeyRange::decode_with(r, ownership)?;
        let [prev_kv] = flags(r)?;
        Ok(Self { range, prev_kv })
    }
}

impl Bounds {
    fn put(self, w: &mut Writer) {
        put_i64(w, self.min);
        put_i64(w, self.max);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { min: i64(r)?, max: i64(r)? })
    }
}

impl RangeRequest {
    fn put(&self, w: &mut Writer) {
        self.range.put(w);
        put_i64(w, self.limit);
        put_i64(w, self.revision);
        w.u8(match self.order {
            SortOrder::None => 0,
            SortOrder::Ascend => 1,
            SortOrder::Descend => 2,
        });
        w.u8(match self.target {
            SortTarget::Key => 0,
            SortTarget::Version => 1,
            SortTarget::Create => 2,
            SortTarget::Mod => 3,
            SortTarget::Value => 4,
        });
        put_flags(w, [self.keys_only, self.count_only]);
        self.modified.put(w);
        self.created.put(w);
    }
}

impl Decode for RangeRequest {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        let range = KeyRange::decode_with(r, ownership)?;
        let limit = i64(r)?;
        let revision = i64(r)?;
        let order = sort_order(r.u8()?.into()).or(Err(DecodeError::Invalid("sort order")))?;
        let target = sort_target(r.u8()?.into()).or(Err(DecodeError::Invalid("sort target")))?;
        let [keys_only, count_only] = flags(r)?;
        let modified = Bounds::read(r)?;
        let created = Bounds::read(r)?;
        let of = Self::of(range);
        Ok(Self { limit, revision, order, target, keys_only, count_only, modified, created, ..of })
    }
}

impl Compare {
    fn put(&self, w: &mut Writer) {
        self.range.put(w);
        w.u8(match self.result {
            CompareResult::Equal => 0,
            CompareResult::Greater => 1,
            CompareResult::Less => 2,
            CompareResult::NotEqual => 3,
        });
        let mut number = |tag, v| {
            w.u8(tag);
            put_i64(w, v);
        };
        match &self.target {
            CompareTarget::Version(v) => number(0, *v),
            CompareTarget::Create(v) => number(1, *v),
            CompareTarget::Mod(v) => number(2, *v),
            CompareTarget::Lease(v) => number(4, *v),
            CompareTarget::Value(v) => {
                w.u8(3);
                w.bytes(v);
            }
        }
    }
}

impl Decode for Compare {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        let range = KeyRange::decode_with(r, ownership)?;
        let result = match r.u8()? {
            0 => CompareResult::Equal,
            1 => CompareResult::Greater,
            2 => CompareResult::Less,
            3 => CompareResult::NotEqual,
            _ => return Err(DecodeError::Invalid("comparison")),
        };
        let target = match r.u8()? {
            0 => CompareTarget::Version(i64(r)?),
            1 => CompareTarget::Create(i64(r)?),
            2 => CompareTarget::Mod(i64(r)?),
            3 => CompareTarget::Value(bytes(r, ownership)?),
            4 => CompareTarget::Lease(i64(r)?),
            _ => return Err(DecodeError::Invalid("compared field")),
        };
        Ok(Self { range, result, target })
    }
}

impl RequestOp {
    fn put(&self, w: &mut Writer) {
        match self {
            Self::Range(request) => {
                w.u8(0);
                request.put(w);
            }
            Self::Put(request) => {
                w.u8(1);
                request.put(w);
            }
            Self::DeleteRange(request) => {
                w.u8(2);
                request.put(w);
            }
            Self::Txn(request) => {
                w.u8(3);
                request.put(w);
            }
        }
    }

    fn read(r: &mut Reader<'_>, from: Ownership<'_>, depth: usize) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => RangeRequest::decode_with(r, from).map(Self::Range),
            1 => PutRequest::decode_with(r, from).map(Self::Put),
            2 => DeleteRangeRequest::decode_with(r, from).map(Self::DeleteRange),
            3 => TxnRequest::read(r, from, depth).map(Self::Txn),
            _ => Err(DecodeError::Invalid("operation")),
        }
    }
}

impl Decode for RequestOp {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Self::read(r, ownership, 0)
    }
}

impl TxnRequest {
    fn put(&self, w: &mut Writer) {
        put_items(w, &self.compare, Compare::put);
        put_items(w, &self.success, RequestOp::put);
        put_items(w, &self.failure, RequestOp::put);
    }

    /// Decodes a transaction nested `depth` deep. The bound keeps the decoder's stack small.
    fn read(r: &mut Reader<'_>, from: Ownership<'_>, depth: usize) -> Result<Self, DecodeError> {
        if depth > TXN_DEPTH_MAX {
            return Err(DecodeError::TooLong { claimed: depth, max: TXN_DEPTH_MAX });
        }
        let compare = items(r, TXN_OPS_MAX, |r| Compare::decode_with(r, from))?;
        let success = items(r, TXN_OPS_MAX, |r| RequestOp::read(r, from, depth + 1))?;
        let failure = items(r, TXN_OPS_MAX, |r| RequestOp::read(r, from, depth + 1))?;
        Ok(Self { compare, success, failure })
    }
}

impl Decode for TxnRequest {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Self::read(r, ownership, 0)
    }
}
