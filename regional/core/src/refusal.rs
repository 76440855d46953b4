//! Why a request is refused: always the caller's fault, and the state is unchanged.
//!
//! etcd's clients decide by comparing the text and the code of an error, so both are part of the
//! contract: [`Refusal::code`] and the `Display` of every variant that etcd has are exactly etcd's.
//! What etcd lacks says more: what is in the way, and until when.

use core::fmt;

use bytes::Bytes;

use crate::{
    fencing::FencingToken,
    kv::request::{LeaseId, Revision},
};

/// The status codes of gRPC, by their numbers; this crate knows no gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names and numbers are gRPC's")]
#[repr(u8)]
pub enum Code {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// A refused request. One variant for each of etcd's errors that a ring can answer, and our own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the texts in `etcd` say what each means")]
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
        /// The oldest revision that can still be read.
        compacted: Revision,
    },
    FutureRevision {
        /// The newest revision there is.
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
    // Ours.
    /// `PutIfRevision` met another revision; `PutSequential` met a key at its next place.
    Conflict {
        /// Revision of the key's last write; 0 if the key does not exist.
        current: Revision,
        /// What the key holds, if the request asked for it and the key exists.
        value: Option<Bytes>,
    },
    /// A live lease holds the fenced role.
    RoleHeld {
        /// Who holds it.
        holder: String,
        /// By which lease.
        lease: LeaseId,
        /// Milliseconds of ring time until that lease ends unless it is renewed.
        remaining_ms: u64,
    },
    /// The token is not the one that holds the fenced role now.
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
        /// Which limit of it.
        limit: QuotaLimit,
        /// The limit.
        max: u64,
        /// What the prefix would hold.
        would_be: u64,
    },
    /// The prefix has no quota that could be taken away.
    QuotaNotFound,
    /// A list of the keyspace is full; see `limits`.
    Full(&'static str),
    /// A recovery names an epoch that has been before, or a revision that is not ahead.
    StaleRecovery,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaLimit {
    /// Bytes of live keys and values.
    Bytes,
    /// Live keys.
    Keys,
}

impl Refusal {
    /// The code and, where etcd has this error, etcd's text; else nothing.
    ///
    /// One table, longer than a function should be: the match breaks when a variant is added.
    fn etcd(&self) -> (Code, &'static str) {
        use Code::{
            Aborted, DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange,
            ResourceExhausted, Unauthenticated, Unknown,
        };
        match self {
            Self::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
            Self::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
            Self::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
            Self::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
            Self::TooManyOps => (InvalidArgument, "etcdserver: too many operations in txn request"),
            Self::DuplicateKey => {
                (InvalidArgument, "etcdserver: duplicate key given in txn request")
            }
            Self::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
            Self::Compacted { .. } => {
                (OutOfRange, "etcdserver: mvcc: required revision has been compacted")
            }
            Self::FutureRevision { .. } => {
                (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
            Self::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Self::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
            Self::RequestTooLarge => (InvalidArgument, "etcdserver: request is too large"),
            Self::TooManyRequests => (ResourceExhausted, "etcdserver: too many requests"),
            Self::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
            Self::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
            Self::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
            Self::RootUserNotExist => (FailedPrecondition, "etcdserver: root user does not exist"),
            Self::RootRoleNotExist => {
                (FailedPrecondition, "etcdserver: root user does not have root role")
            }
            Self::UserAlreadyExists => (FailedPrecondition, "etcdserver: user name already exists"),
            Self::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
            Self::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
            Self::RoleAlreadyExists => (FailedPrecondition, "etcdserver: role name already exists"),
            Self::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            Self::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
            Self::AuthFailed => {
                (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
            }
            Self::NoPasswordUser => {
                (Unknown, "auth: authentication failed, password was given for no password user")
            }
            Self::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
            Self::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
            Self::RoleNotGranted => {
                (FailedPrecondition, "etcdserver: role is not granted to the user")
            }
            Self::PermissionNotGranted => {
                (FailedPrecondition, "etcdserver: permission is not granted to the role")
            }
            Self::AuthNotEnabled => {
                (FailedPrecondition, "etcdserver: authentication is not enabled")
            }
            Self::InvalidAuthToken => (Unauthenticated, "etcdserver: invalid auth token"),
            Self::InvalidAuthMgmt => (InvalidArgument, "etcdserver: invalid auth management"),
            Self::AuthOldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
            Self::MemberExists => (FailedPrecondition, "etcdserver: member ID already exist"),
            Self::PeerUrlExists => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
            // etcd loses this code on its way out.
            Self::MemberNotEnoughStarted => {
                (Unknown, "etcdserver: re-configuration failed due to not enough started members")
            }
            Self::MemberBadUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
            Self::MemberNotFound => (NotFound, "etcdserver: member not found"),
            Self::MemberNotLearner => {
                (FailedPrecondition, "etcdserver: can only promote a learner member")
            }
            Self::LearnerNotReady => (
                FailedPrecondition,
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            Self::TooManyLearners => {
                (FailedPrecondition, "etcdserver: too many learner members in cluster")
            }
            Self::NotSupportedForLearner => {
                (FailedPrecondition, "etcdserver: rpc not supported for learner")
            }
            Self::BadLeaderTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
            Self::Conflict { .. } => (Aborted, ""),
            Self::QuotaNotFound => (
                NotFound,
                "satrap: this prefix has no quota of its own; list the quotas to see which have",
            ),
            Self::RoleHeld { .. } | Self::StaleToken { .. } | Self::StaleRecovery => {
                (FailedPrecondition, "")
            }
            Self::TokensExhausted | Self::PrefixQuota { .. } | Self::Full(_) => {
                (ResourceExhausted, "")
            }
        }
    }

    /// The status code it is answered with.
    #[must_use]
    pub fn code(&self) -> Code {
        self.etcd().0
    }

    /// The text it is answered with.
    #[must_use]
    pub fn message(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { current: 0, .. } => {
                f.write_str("satrap: conflict: the key does not exist")
            }
            Self::Conflict { current, .. } => {
                write!(f, "satrap: conflict: the key was last written at revision {current}")
            }
            Self::RoleHeld { holder, lease, remaining_ms } => write!(
                f,
                "satrap: role is held by {holder} under lease {lease:x} for another {remaining_ms} ms"
            ),
            Self::StaleToken { current } => {
                write!(f, "satrap: token does not hold the role; the newest is {current}")
            }
            Self::TokensExhausted => {
                f.write_str("satrap: the role has used all tokens of this epoch")
            }
            Self::PrefixQuota { prefix, limit, max, would_be } => write!(
                f,
                "satrap: quota of prefix {:?} exceeded: {would_be} of at most {max} {}",
                String::from_utf8_lossy(prefix),
                match limit {
                    QuotaLimit::Bytes => "bytes",
                    QuotaLimit::Keys => "keys",
                }
            ),
            Self::Full(what) => write!(f, "satrap: no room for more {what}"),
            Self::StaleRecovery => {
                f.write_str("satrap: recovery is not ahead of what the ring has already seen")
            }
            etcds => f.write_str(etcds.etcd().1),
        }
    }
}

impl core::error::Error for Refusal {}
