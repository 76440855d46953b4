//! The encoding of responses between members, and of versions on disk. See [`super::codec`].
//!
//! # Deliberately absent
//!
//! Bounds on a whole response: the transport bounds it. Memory grows with the bytes read, never
//! with a number in the bytes.

use std::sync::Arc;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use super::codec::{flags, i64, items, put_flags, put_i64, put_items};
use super::{
    DeleteRangeResponse, Event, KeyValue, KeysOnly, PutResponse, RangeResponse, ResponseOp, Stamp,
    TxnResponse,
};
use crate::limits::{TXN_DEPTH_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX};

/// The transport bounds a list; see the module.
const ANSWER_ITEMS_MAX: usize = u32::MAX as usize;

impl Canonical for KeyValue {
    fn encode(&self, w: &mut Writer) {
        w.bytes(self.key());
        w.bytes(self.value());
        put_i64(w, self.create_revision);
        put_i64(w, self.mod_revision);
        w.u32(self.sub_revision);
        put_i64(w, self.version);
        put_i64(w, self.lease);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let key = r.bytes(VALUE_BYTES_MAX)?;
        let value = r.bytes(VALUE_BYTES_MAX)?;
        let create_revision = i64(r)?;
        let mod_revision = i64(r)?;
        let sub_revision = r.u32()?;
        let version = i64(r)?;
        let lease = i64(r)?;
        let stamp = Stamp { create_revision, mod_revision, sub_revision, version, lease };
        Ok(Self::new(key, value, stamp))
    }
}

fn put_events(w: &mut Writer, events: &[Event]) {
    put_items(w, events, |event, w| event.encode(w));
}

fn events(r: &mut Reader<'_>) -> Result<Vec<Event>, DecodeError> {
    items(r, ANSWER_ITEMS_MAX, |r| KeyValue::decode(r).map(Arc::new))
}

impl Canonical for RangeResponse {
    fn encode(&self, w: &mut Writer) {
        put_i64(w, self.revision);
        put_events(w, &self.kvs);
        put_flags(w, [self.more]);
        put_i64(w, self.count);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let revision = i64(r)?;
        let kvs = events(r)?;
        let [more] = flags(r)?;
        Ok(Self { revision, kvs, more, count: i64(r)? })
    }
}

impl Canonical for PutResponse {
    fn encode(&self, w: &mut Writer) {
        put_i64(w, self.revision);
        w.option(self.prev.as_deref());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { revision: i64(r)?, prev: r.option::<KeyValue>()?.map(Arc::new) })
    }
}

impl Canonical for DeleteRangeResponse {
    fn encode(&self, w: &mut Writer) {
        put_i64(w, self.revision);
        put_i64(w, self.deleted);
        put_events(w, &self.prev);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { revision: i64(r)?, deleted: i64(r)?, prev: events(r)? })
    }
}

impl ResponseOp {
    fn read(r: &mut Reader<'_>, depth: usize) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            0 => {
                let response = RangeResponse::decode(r)?;
                Self::Range(
                    response,
                    match r.u8()? {
                        0 => KeysOnly::No,
                        1 => KeysOnly::Yes,
                        2 => KeysOnly::WithLease,
                        _ => return Err(DecodeError::Invalid("shape of an answer")),
                    },
                )
            }
            1 => Self::Put(PutResponse::decode(r)?),
            2 => Self::DeleteRange(DeleteRangeResponse::decode(r)?),
            3 => Self::Txn(TxnResponse::read(r, depth)?),
            _ => return Err(DecodeError::Invalid("operation")),
        })
    }
}

impl Canonical for ResponseOp {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Range(response, shape) => {
                w.u8(0);
                response.encode(w);
                w.u8(match shape {
                    KeysOnly::No => 0,
                    KeysOnly::Yes => 1,
                    KeysOnly::WithLease => 2,
                });
            }
            Self::Put(response) => {
                w.u8(1);
                response.encode(w);
            }
            Self::DeleteRange(response) => {
                w.u8(2);
                response.encode(w);
            }
            Self::Txn(response) => {
                w.u8(3);
                response.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::read(r, 0)
    }
}

impl TxnResponse {
    fn read(r: &mut Reader<'_>, depth: usize) -> Result<Self, DecodeError> {
        if depth > TXN_DEPTH_MAX {
            return Err(DecodeError::TooLong { claimed: depth, max: TXN_DEPTH_MAX });
        }
        let revision = i64(r)?;
        let [succeeded] = flags(r)?;
        let responses = items(r, TXN_OPS_MAX, |r| ResponseOp::read(r, depth + 1))?;
        Ok(Self { revision, succeeded, responses })
    }
}

impl Canonical for TxnResponse {
    fn encode(&self, w: &mut Writer) {
        put_i64(w, self.revision);
        put_flags(w, [self.succeeded]);
        put_items(w, &self.responses, ResponseOp::encode);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::read(r, 0)
    }
}
