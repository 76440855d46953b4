//! The encoding of a batch in the log. Every count and length is bounded (`crate::limits`).

use std::sync::Arc;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use super::{Batch, Proposal, PutIfRevision, PutSequential, Request};
use crate::{
    alarm::AlarmRequest,
    auth::AuthRequest,
    fencing::{GrantRole, ReleaseRole},
    kv::{Decode, DeleteRangeRequest, Ownership, PutRequest, TxnRequest},
    limits::{BATCH_PROPOSALS_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX},
    members::MemberRequest,
    quota::QuotaRequest,
    recovery::RecoveryRecord,
};
use crate::{caller::Caller, time::RingTime};

fn put_i64(w: &mut Writer, v: i64) {
    w.u64(v.cast_unsigned());
}

fn i64(r: &mut Reader<'_>) -> Result<i64, DecodeError> {
    Ok(r.u64()?.cast_signed())
}

impl Canonical for Batch {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.time.0);
        w.list(&self.proposals);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_with(r, Ownership::Copied)
    }
}

impl Decode for Batch {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        let time = RingTime(r.u64()?);
        let mut proposals = Vec::new();
        for _ in 0..r.count(BATCH_PROPOSALS_MAX)? {
            proposals.push(Proposal::decode_with(r, ownership)?);
        }
        Ok(Self { time, proposals })
    }
}

impl Canonical for Caller {
    fn encode(&self, w: &mut Writer) {
        match &self.user {
            None => w.u8(0),
            Some(user) => {
                w.u8(1);
                w.bytes(user.as_bytes());
            }
        }
        w.u64(self.auth_revision);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let user = match r.u8()? {
            0 => None,
            1 => Some(Arc::from(r.text(NAME_BYTES_MAX)?)),
            _ => return Err(DecodeError::Invalid("caller")),
        };
        Ok(Self { user, auth_revision: r.u64()? })
    }
}

impl Canonical for Proposal {
    fn encode(&self, w: &mut Writer) {
        self.caller.encode(w);
        self.request.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_with(r, Ownership::Copied)
    }
}

impl Decode for Proposal {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Ok(Self { caller: Caller::decode(r)?, request: Request::decode_with(r, ownership)? })
    }
}

impl Canonical for PutIfRevision {
    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.key);
        put_i64(w, self.expected_revision);
        w.bytes(&self.value);
        put_i64(w, self.lease);
        w.u8(u8::from(self.want_value));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_with(r, Ownership::Copied)
    }
}

impl Decode for PutIfRevision {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            key: ownership.own(r.bytes(KEY_BYTES_MAX)?),
            expected_revision: i64(r)?,
            value: ownership.own(r.bytes(VALUE_BYTES_MAX)?),
            lease: i64(r)?,
            want_value: match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(DecodeError::Invalid("put if revision")),
            },
        })
    }
}

impl Canonical for PutSequential {
    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.prefix);
        w.bytes(&self.value);
        put_i64(w, self.lease);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_with(r, Ownership::Copied)
    }
}

impl Decode for PutSequential {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            prefix: ownership.own(r.bytes(KEY_BYTES_MAX)?),
            value: ownership.own(r.bytes(VALUE_BYTES_MAX)?),
            lease: i64(r)?,
        })
    }
}

impl Canonical for Request {
    fn encode(&self, w: &mut Writer) {
        fn tagged(w: &mut Writer, tag: u8, body: &impl Canonical) {
            w.u8(tag);
            body.encode(w);
        }
        fn numbers(w: &mut Writer, tag: u8, numbers: &[i64]) {
            w.u8(tag);
            numbers.iter().for_each(|number| put_i64(w, *number));
        }
        match self {
            Self::Put(put) => tagged(w, 0, put),
            Self::DeleteRange(delete) => tagged(w, 1, delete),
            Self::Txn(txn) => tagged(w, 2, txn),
            Self::Compact { revision } => numbers(w, 3, &[*revision]),
            Self::PutIfRevision(put) => tagged(w, 4, put),
            Self::PutSequential(put) => tagged(w, 5, put),
            Self::GrantRole(grant) => tagged(w, 6, grant),
            Self::ReleaseRole(release) => tagged(w, 7, release),
            Self::LeaseGrant { id, ttl_s } => numbers(w, 8, &[*id, *ttl_s]),
            Self::LeaseRevoke { id } => numbers(w, 9, &[*id]),
            Self::LeaseRenew { id } => numbers(w, 10, &[*id]),
            Self::Tick => numbers(w, 11, &[]),
            Self::Auth(request) => tagged(w, 12, request),
            Self::Alarm(request) => tagged(w, 13, request),
            Self::Quota(request) => tagged(w, 14, request),
            Self::Recovery(record) => tagged(w, 15, record),
            Self::Member(request) => tagged(w, 16, request),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_with(r, Ownership::Copied)
    }
}

impl Decode for Request {
    fn decode_with(r: &mut Reader<'_>, ownership: Ownership<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            0 => Self::Put(PutRequest::decode_with(r, ownership)?),
            1 => Self::DeleteRange(DeleteRangeRequest::decode_with(r, ownership)?),
            2 => Self::Txn(TxnRequest::decode_with(r, ownership)?),
            3 => Self::Compact { revision: i64(r)? },
            4 => Self::PutIfRevision(PutIfRevision::decode_with(r, ownership)?),
            5 => Self::PutSequential(PutSequential::decode_with(r, ownership)?),
            6 => Self::GrantRole(GrantRole::decode(r)?),
            7 => Self::ReleaseRole(ReleaseRole::decode(r)?),
            8 => Self::LeaseGrant { id: i64(r)?, ttl_s: i64(r)? },
            9 => Self::LeaseRevoke { id: i64(r)? },
            10 => Self::LeaseRenew { id: i64(r)? },
            11 => Self::Tick,
            12 => Self::Auth(AuthRequest::decode(r)?),
            13 => Self::Alarm(AlarmRequest::decode(r)?),
            14 => Self::Quota(QuotaRequest::decode(r)?),
            15 => Self::Recovery(RecoveryRecord::decode(r)?),
            16 => Self::Member(MemberRequest::decode(r)?),
            _ => return Err(DecodeError::Invalid("keyspace request")),
        })
    }
}
