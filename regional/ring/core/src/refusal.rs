//! Refusals: the errors of requests. The caller is at fault, and the state is unchanged.
//!
//! # Deliberately absent
//!
//! Codes and texts. etcd clients compare both, so they are part of etcd's API, and the crate that
//! implements that API has them.

use bytes::Bytes;

use crate::{
    fencing_token::FencingToken,
    kv::request::{LeaseId, Revision},
};

/// A refused request. One variant for each of etcd's errors that a ring can return, and satrap's
/// own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of etcd's errors")]
pub enum Refusal {
    // Key-value requests.
    EmptyKey,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    DuplicateKey,
    InvalidSortOption,
    Compacted {
        /// The oldest readable revision.
        compacted: Revision,
    },
    FutureRevision {
        /// The current revision.
        current: Revision,
    },
    NoSpace,
    Corrupt,
    RequestTooLarge,
    TooManyRequests,
    // Leases.
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    // Users, roles, tokens.
    RootUserNotExist,
    RootRoleNotExist,
    UserAlreadyExists,
    UserEmpty,
    UserNotFound,
    RoleAlreadyExists,
    RoleNotFound,
    RoleEmpty,
    AuthFailed,
    NoPasswordUser,
    PermissionNotGiven,
    PermissionDenied,
    RoleNotGranted,
    PermissionNotGranted,
    AuthNotEnabled,
    InvalidAuthToken,
    InvalidAuthMgmt,
    AuthOldRevision,
    // Members.
    MemberExists,
    PeerUrlExists,
    MemberNotEnoughStarted,
    MemberBadUrls,
    MemberNotFound,
    MemberNotLearner,
    LearnerNotReady,
    TooManyLearners,
    NotSupportedForLearner,
    BadLeaderTransferee,
    // Satrap's own.
    /// `PutIfRevision` found another revision; `PutSequential` found an existing key.
    Conflict {
        /// Revision of the keyspace at which that was found.
        at: Revision,
        /// Revision of the key's last write; 0 if the key does not exist.
        current: Revision,
        /// The current value, if the request asked for it and the key exists.
        value: Option<Bytes>,
    },
    /// A live lease holds the fenced role.
    RoleHeld {
        /// The holder.
        holder: String,
        /// Its lease.
        lease: LeaseId,
        /// Milliseconds of ring time until that lease ends unless it is renewed.
        remaining_ms: u64,
    },
    /// The token is not that of the current grant.
    StaleToken {
        /// The newest token granted for the role; zero if there is none.
        current: FencingToken,
    },
    /// The role used up every token of this epoch; a recovery starts the next.
    TokensExhausted,
    /// A quota on a prefix would be exceeded.
    PrefixQuota {
        /// The prefix.
        prefix: Bytes,
        /// The exceeded limit.
        limit: QuotaLimit,
        /// The limit.
        max: u64,
        /// The usage after the write.
        would_be: u64,
    },
    /// The prefix has no quota to remove.
    QuotaNotFound,
    /// A list of the keyspace is full; see `limits`.
    Full(&'static str),
    /// A recovery names an earlier epoch, or a revision that is not ahead.
    StaleRecovery,
}

/// The unit of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaLimit {
    /// Bytes of live keys and values.
    Bytes,
    /// Live keys.
    Keys,
}
