//! What goes through the log for the keyspace, after the rim has authenticated, parsed and bounded
//! it. Passwords arrive hashed, bearer tokens as digests: the log never holds a secret that opens
//! anything.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    alarm::AlarmRequest,
    auth::AuthRequest,
    fencing::{GrantRole, ReleaseRole},
    kv::request::{DeleteRangeRequest, LeaseId, PutRequest, Revision, TxnRequest},
    members::MemberRequest,
    quota::QuotaRequest,
    recovery::RecoveryRecord,
};

/// Milliseconds of replicated time: stamped by the leader into every batch, never decreasing.
///
/// It starts where the first leader's clock stood. Only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingTime(pub u64);

impl RingTime {
    /// This much later.
    #[must_use]
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Time from `earlier` until this; zero if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for RingTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Who asks, as the rim authenticated them.
///
/// The default is somebody nobody authenticated: right while authentication is off, refused after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user of the token, or the common name of the certificate.
    pub user: Option<Arc<str>>,
    /// `Auth::revision` when the rim looked; zero if there is no user.
    pub auth_revision: u64,
}

/// Everything that goes through the log, except `Command::Adopt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Writes one key.
    Put(PutRequest),
    /// Deletes keys.
    DeleteRange(DeleteRangeRequest),
    /// Compares and writes at one revision.
    Txn(TxnRequest),
    /// Forgets versions before a revision.
    Compact {
        /// The oldest that stays readable.
        revision: Revision,
    },
    /// Writes one key if it is what the caller last saw.
    PutIfRevision(PutIfRevision),
    /// Writes a new key whose name the ring chooses.
    PutSequential(PutSequential),
    /// Takes a fenced role.
    GrantRole(GrantRole),
    /// Gives a fenced role back.
    ReleaseRole(ReleaseRole),
    /// Creates a lease.
    LeaseGrant {
        /// The rim replaces a client's zero by an id of its choice.
        id: LeaseId,
        /// Seconds.
        ttl_s: i64,
    },
    /// Ends a lease and deletes its keys.
    LeaseRevoke {
        /// Which.
        id: LeaseId,
    },
    /// Starts the lease's time again.
    LeaseRenew {
        /// Which.
        id: LeaseId,
    },
    /// Advances time and nothing else.
    Tick,
    /// Users, roles and tokens.
    Auth(AuthRequest),
    /// Alarms of members.
    Alarm(AlarmRequest),
    /// Limits.
    Quota(QuotaRequest),
    /// Who is expected, and where clients reach whom.
    Member(MemberRequest),
    /// The history of this keyspace was cut; see there.
    Recovery(RecoveryRecord),
}

/// 000-31: of N callers that saw the same revision exactly one succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutIfRevision {
    /// The key.
    pub key: Bytes,
    /// Its `mod_revision` must be this; zero: it must not exist.
    pub expected_revision: Revision,
    /// What to write.
    pub value: Bytes,
    /// The lease the key lives by, or zero.
    pub lease: LeaseId,
    /// A refusal shall carry the present value; needs permission to read.
    pub want_value: bool,
}

/// 001-34: a key `prefix` + suffix, where the suffix is larger than every suffix before.
///
/// The suffix is the recovery epoch in 8 digits and the revision of the write in 19. So it grows
/// over deletions, compactions and restores, and costs no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutSequential {
    /// What the key starts with.
    pub prefix: Bytes,
    /// What to write.
    pub value: Bytes,
    /// The lease the key lives by, or zero.
    pub lease: LeaseId,
}

/// One request and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Who.
    pub caller: Caller,
    /// What.
    pub request: Request,
}

/// One Raft entry of the keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The leader's time; what is less than the ring has seen counts as what it has seen.
    pub time: RingTime,
    /// Applied in this order.
    pub proposals: Vec<Proposal>,
}
