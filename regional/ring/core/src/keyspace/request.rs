//! The requests of the log, which the API has authenticated, parsed and bounded. Passwords arrive
//! hashed and bearer tokens as digests, so the log holds no usable secret.

use bytes::Bytes;

use crate::{
    alarm::AlarmRequest,
    auth::AuthRequest,
    caller::Caller,
    fencing::{GrantRole, ReleaseRole},
    kv::request::{DeleteRangeRequest, LeaseId, PutRequest, Revision, TxnRequest},
    members::MemberRequest,
    quota::QuotaRequest,
    recovery::RecoveryRecord,
    time::RingTime,
};

/// A request of the log; commands for extensions are not requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Writes one key.
    Put(PutRequest),
    /// Deletes keys.
    DeleteRange(DeleteRangeRequest),
    /// Compares and writes at one revision.
    Txn(TxnRequest),
    /// Compacts the history.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
    },
    /// Writes one key if its revision is the expected one.
    PutIfRevision(PutIfRevision),
    /// Writes a new key whose name the ring chooses.
    PutSequential(PutSequential),
    /// Takes a fenced role.
    GrantRole(GrantRole),
    /// Releases a fenced role.
    ReleaseRole(ReleaseRole),
    /// Creates a lease.
    LeaseGrant {
        /// The id; the API replaces a client's zero by an id of its choice.
        id: LeaseId,
        /// Time to live in seconds.
        ttl_s: i64,
    },
    /// Ends a lease and deletes its keys.
    LeaseRevoke {
        /// The id of the lease.
        id: LeaseId,
    },
    /// Renews a lease for its full time.
    LeaseRenew {
        /// The id of the lease.
        id: LeaseId,
    },
    /// Advances time only.
    Tick,
    /// Changes users, roles and tokens.
    Auth(AuthRequest),
    /// Raises or clears an alarm.
    Alarm(AlarmRequest),
    /// Sets a quota.
    Quota(QuotaRequest),
    /// Changes invitations, and the client URLs of members.
    Member(MemberRequest),
    /// Records a cut of the history; see [`RecoveryRecord`].
    Recovery(RecoveryRecord),
}

/// A conditional write (000-31): of N callers that saw the same revision exactly one succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutIfRevision {
    /// The key.
    pub key: Bytes,
    /// The required `mod_revision`; zero if the key must not exist.
    pub expected_revision: Revision,
    /// The value.
    pub value: Bytes,
    /// The lease of the key, or zero.
    pub lease: LeaseId,
    /// Whether a refusal shall carry the current value; needs permission to read.
    pub want_value: bool,
}

/// A sequential write (001-34): a key `prefix` + suffix, where the suffix is larger than all
/// earlier ones.
///
/// The suffix is the recovery epoch in 8 digits and the revision of the write in 19. So it
/// increases over deletions, compactions and restores, and needs no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutSequential {
    /// The prefix of the key.
    pub prefix: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease of the key, or zero.
    pub lease: LeaseId,
}

/// One request and its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The caller.
    pub caller: Caller,
    /// The request.
    pub request: Request,
}

/// One Raft entry of the keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The leader's stamp; a stamp below the newest one counts as the newest one.
    pub time: RingTime,
    /// The proposals, in order.
    pub proposals: Vec<Proposal>,
}
