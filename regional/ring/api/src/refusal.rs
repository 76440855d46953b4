//! The gRPC code and the text of each refusal.
//!
//! etcd clients compare both, so for every refusal that etcd has, both are exactly etcd's. The texts of other refusals
//! name the cause, and how long it lasts.

use satrap_ring_core::Refusal;
use satrap_ring_core::refusal::QuotaLimit;
use tonic::Code;

/// The gRPC code of a refusal.
#[must_use]
pub fn code(refusal: &Refusal) -> Code {
    etcd(refusal).0
}

/// The text of a refusal.
#[must_use]
pub fn text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Conflict { current: 0, .. } => {
            "satrap: conflict: the key does not exist".to_owned()
        }
        Refusal::Conflict { current, .. } => {
            format!("satrap: conflict: the key was last written at revision {current}")
        }
        Refusal::RoleHeld { holder, lease, remaining_ms } => format!(
            "satrap: role is held by {holder} under lease {lease:x} for another {remaining_ms} ms"
        ),
        Refusal::StaleToken { current } => {
            format!("satrap: token does not hold the role; the newest is {current}")
        }
        Refusal::TokensExhausted => "satrap: the role has used all tokens of this epoch".to_owned(),
        Refusal::PrefixQuota { prefix, limit, max, would_be } => format!(
            "satrap: quota of prefix {:?} exceeded: {would_be} of at most {max} {}",
            String::from_utf8_lossy(prefix),
            match limit {
                QuotaLimit::Bytes => "bytes",
                QuotaLimit::Keys => "keys",
            }
        ),
        Refusal::Full(what) => format!("satrap: no room for more {what}"),
        Refusal::StaleRecovery => {
            "satrap: recovery is not ahead of the ring's revisions and epochs".to_owned()
        }
        etcds => etcd(etcds).1.to_owned(),
    }
}

/// The code of a refusal, and etcd's text; empty if etcd has no such refusal.
///
/// One table, longer than a function should be: the match breaks when a variant is added.
fn etcd(refusal: &Refusal) -> (Code, &'static str) {
    use Code::{
        Aborted, DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange,
        ResourceExhausted, Unauthenticated, Unknown,
    };
    match refusal {
        Refusal::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
        Refusal::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
        Refusal::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
        Refusal::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
        Refusal::TooManyOps => (InvalidArgument, "etcdserver: too many operations in txn request"),
        Refusal::DuplicateKey => {
            (InvalidArgument, "etcdserver: duplicate key given in txn request")
        }
        Refusal::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
        Refusal::Compacted { .. } => {
            (OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        }
        Refusal::FutureRevision { .. } => {
            (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Refusal::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Refusal::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
        Refusal::RequestTooLarge => (InvalidArgument, "etcdserver: request is too large"),
        Refusal::TooManyRequests => (ResourceExhausted, "etcdserver: too many requests"),
        Refusal::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
        Refusal::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
        Refusal::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
        Refusal::RootUserNotExist => (FailedPrecondition, "etcdserver: root user does not exist"),
        Refusal::RootRoleNotExist => {
            (FailedPrecondition, "etcdserver: root user does not have root role")
        }
        Refusal::UserAlreadyExists => (FailedPrecondition, "etcdserver: user name already exists"),
        Refusal::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
        Refusal::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        Refusal::RoleAlreadyExists => (FailedPrecondition, "etcdserver: role name already exists"),
        Refusal::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        Refusal::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
        Refusal::AuthFailed => {
            (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
        }
        Refusal::NoPasswordUser => {
            (Unknown, "auth: authentication failed, password was given for no password user")
        }
        Refusal::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
        Refusal::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
        Refusal::RoleNotGranted => {
            (FailedPrecondition, "etcdserver: role is not granted to the user")
        }
        Refusal::PermissionNotGranted => {
            (FailedPrecondition, "etcdserver: permission is not granted to the role")
        }
        Refusal::AuthNotEnabled => {
            (FailedPrecondition, "etcdserver: authentication is not enabled")
        }
        Refusal::InvalidAuthToken => (Unauthenticated, "etcdserver: invalid auth token"),
        Refusal::InvalidAuthMgmt => (InvalidArgument, "etcdserver: invalid auth management"),
        Refusal::AuthOldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
        Refusal::MemberExists => (FailedPrecondition, "etcdserver: member ID already exist"),
        Refusal::PeerUrlExists => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
        // etcd answers with code Unknown here.
        Refusal::MemberNotEnoughStarted => {
            (Unknown, "etcdserver: re-configuration failed due to not enough started members")
        }
        Refusal::MemberBadUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
        Refusal::MemberNotFound => (NotFound, "etcdserver: member not found"),
        Refusal::MemberNotLearner => {
            (FailedPrecondition, "etcdserver: can only promote a learner member")
        }
        Refusal::LearnerNotReady => (
            FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        Refusal::TooManyLearners => {
            (FailedPrecondition, "etcdserver: too many learner members in cluster")
        }
        Refusal::NotSupportedForLearner => {
            (FailedPrecondition, "etcdserver: rpc not supported for learner")
        }
        Refusal::BadLeaderTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
        Refusal::Conflict { .. } => (Aborted, ""),
        Refusal::QuotaNotFound => (
            NotFound,
            "satrap: this prefix has no quota of its own; list the quotas to see which have",
        ),
        Refusal::RoleHeld { .. } | Refusal::StaleToken { .. } | Refusal::StaleRecovery => {
            (FailedPrecondition, "")
        }
        Refusal::TokensExhausted | Refusal::PrefixQuota { .. } | Refusal::Full(_) => {
            (ResourceExhausted, "")
        }
    }
}
