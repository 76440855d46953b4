//! What the keyspace answers to what went through the log.

use bytes::Bytes;

use crate::{
    alarm::AlarmMember,
    fencing::FencingToken,
    kv::{
        request::{LeaseId, Revision},
        response::{DeleteRangeResponse, PutResponse, TxnResponse},
    },
    refusal::Refusal,
};

/// The answer to one proposal; a refusal changed nothing.
pub type Reply = Result<Response, Refusal>;

/// What one proposal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To `Put` and `PutIfRevision`.
    Put(PutResponse),
    /// To `DeleteRange`.
    DeleteRange(DeleteRangeResponse),
    /// To `Txn`.
    Txn(TxnResponse),
    /// To `Compact`.
    Compacted {
        /// The store's revision.
        revision: Revision,
    },
    /// To `PutSequential`.
    PutSequential {
        /// The key that was written.
        key: Bytes,
        /// Of the write.
        revision: Revision,
    },
    /// To `GrantRole`.
    RoleGranted {
        /// Larger than every token of this role before.
        token: FencingToken,
        /// Keeps the role; renew it.
        lease: LeaseId,
        /// Seconds, after the bounds on leases.
        ttl_s: i64,
        /// The store's revision.
        revision: Revision,
    },
    /// To `ReleaseRole`.
    RoleReleased {
        /// The store's revision, after keys of the role's lease were deleted.
        revision: Revision,
    },
    /// To `LeaseGrant`.
    LeaseGranted {
        /// Of the lease.
        id: LeaseId,
        /// Seconds, after the bounds on leases.
        ttl_s: i64,
        /// The store's revision.
        revision: Revision,
    },
    /// To `LeaseRevoke`.
    LeaseRevoked {
        /// The store's revision, after the lease's keys were deleted.
        revision: Revision,
    },
    /// To `LeaseRenew`.
    LeaseRenewed {
        /// Seconds from the batch's time.
        ttl_s: i64,
        /// The store's revision.
        revision: Revision,
    },
    /// To `Tick`, `Auth` and `Quota`.
    Done {
        /// The store's revision.
        revision: Revision,
    },
    /// To `Alarm`: those that the request named or changed.
    Alarms {
        /// In order of kind and member.
        alarms: Vec<AlarmMember>,
        /// The store's revision.
        revision: Revision,
    },
    /// To `Recovery`.
    Recovered {
        /// The epoch that began.
        epoch: u32,
        /// The store's revision.
        revision: Revision,
    },
}

impl Response {
    /// The store's revision after this; what the header of the answer says.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(put) => put.revision,
            Self::DeleteRange(delete) => delete.revision,
            Self::Txn(txn) => txn.revision,
            Self::Compacted { revision }
            | Self::PutSequential { revision, .. }
            | Self::RoleGranted { revision, .. }
            | Self::RoleReleased { revision }
            | Self::LeaseGranted { revision, .. }
            | Self::LeaseRevoked { revision }
            | Self::LeaseRenewed { revision, .. }
            | Self::Done { revision }
            | Self::Alarms { revision, .. }
            | Self::Recovered { revision, .. } => *revision,
        }
    }
}
