//! The keyspace's replies to proposals.

use bytes::Bytes;

use crate::{
    alarm::AlarmMember,
    fencing_token::FencingToken,
    kv::{
        request::{LeaseId, Revision},
        response::{DeleteRangeResponse, PutResponse, TxnResponse},
    },
    refusal::Refusal,
};

/// The reply to one proposal; after a refusal nothing has changed.
pub type Reply = Result<Response, Refusal>;

/// The result of one proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The response to `Put` and `PutIfRevision`.
    Put(PutResponse),
    /// The response to `DeleteRange`.
    DeleteRange(DeleteRangeResponse),
    /// The response to `Txn`.
    Txn(TxnResponse),
    /// The response to `Compact`.
    Compacted {
        /// The store's revision.
        revision: Revision,
    },
    /// The response to `PutSequential`.
    PutSequential {
        /// The key that was written.
        key: Bytes,
        /// Revision of the write.
        revision: Revision,
    },
    /// The response to `GrantRole`.
    RoleGranted {
        /// The token; larger than every earlier token of this role.
        token: FencingToken,
        /// The lease that holds the role; renew it.
        lease: LeaseId,
        /// Seconds, after the bounds on leases.
        ttl_s: i64,
        /// The store's revision.
        revision: Revision,
    },
    /// The response to `ReleaseRole`.
    RoleReleased {
        /// The store's revision, after keys of the role's lease were deleted.
        revision: Revision,
    },
    /// The response to `LeaseGrant`.
    LeaseGranted {
        /// Id of the lease.
        id: LeaseId,
        /// Seconds, after the bounds on leases.
        ttl_s: i64,
        /// The store's revision.
        revision: Revision,
    },
    /// The response to `LeaseRevoke`.
    LeaseRevoked {
        /// The store's revision, after the lease's keys were deleted.
        revision: Revision,
    },
    /// The response to `LeaseRenew`.
    LeaseRenewed {
        /// Seconds from the batch's time.
        ttl_s: i64,
        /// The store's revision.
        revision: Revision,
    },
    /// The response to `Tick`, `Auth` and `Quota`.
    Done {
        /// The store's revision.
        revision: Revision,
    },
    /// The response to `Alarm`: the alarms that the request named or changed.
    Alarms {
        /// In order of kind and member.
        alarms: Vec<AlarmMember>,
        /// The store's revision.
        revision: Revision,
    },
    /// The response to `Recovery`.
    Recovered {
        /// The epoch that began.
        epoch: u32,
        /// The store's revision.
        revision: Revision,
    },
}

impl Response {
    /// The store's revision after the proposal, for the header of the response.
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
