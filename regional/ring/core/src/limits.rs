//! The limits on the entries of the log and on the content of the keyspace.
//!
//! A decoder checks one of these before it allocates. They are wider than the limits for clients:
//! the API enforces the operator's tighter limits and answers with etcd's errors, while an entry
//! beyond these limits comes from a broken or hostile member.

/// Proposals in one batch.
pub const BATCH_PROPOSALS_MAX: usize = 16_384;
/// A key, an end of a range, a prefix.
pub const KEY_BYTES_MAX: usize = 64 * 1024;
/// One value. etcd's default limit on a whole request is 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Comparisons, or operations of one branch, of one transaction. etcd's default is 128.
pub const TXN_OPS_MAX: usize = 4_096;
/// Transactions inside a transaction; bounds the decoder's stack.
pub const TXN_DEPTH_MAX: usize = 16;
/// Keys that one transaction may visit: in ranges, comparisons and deletions together. Every member executes it
/// on the thread of its heartbeats.
pub const TXN_KEYS_MAX: usize = 500_000;
/// Bytes that the ranges of one transaction find and its comparisons compare, so that its response fits the
/// memory for answers.
pub const TXN_READ_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Names of users, roles, holders and members.
pub const NAME_BYTES_MAX: usize = 1_024;
/// A password hash in the PHC or bcrypt text form.
pub const PASSWORD_HASH_BYTES_MAX: usize = 1_024;
/// Permissions of one role.
pub const ROLE_PERMISSIONS_MAX: usize = 4_096;
/// Users, and roles of the auth store.
pub const AUTH_ITEMS_MAX: usize = 100_000;
/// Valid bearer tokens of one user; a further one replaces the oldest.
pub const USER_TOKENS_MAX: usize = 1_024;
/// Longest life of a bearer token.
pub const TOKEN_TTL_S_MAX: u64 = 30 * 24 * 3600;
/// Fenced roles that ever had a holder. They are never removed, because their counters must
/// continue.
pub const FENCED_ROLES_MAX: usize = 1_000_000;
/// Prefixes with a quota of their own.
pub const QUOTAS_MAX: usize = 4_096;
/// The length of such a prefix; short enough that all of them fit into one response.
pub const QUOTA_PREFIX_BYTES_MAX: usize = 512;
/// Members with an alarm, times kinds of alarms.
pub const ALARMS_MAX: usize = 1_024;
/// Recovery records to keep; each is the work of an operator.
pub const RECOVERIES_MAX: usize = 1_024;
/// Members that an operator may trust, or give up, in one recovery.
pub const RECOVERY_MEMBERS_MAX: usize = 64;
/// A signature or reason in a recovery record.
pub const RECOVERY_TEXT_BYTES_MAX: usize = 4_096;

/// Shortest life of a lease: etcd's with its default election timeout.
pub const LEASE_TTL_S_MIN: i64 = 2;
/// Longest life of a lease: etcd's.
pub const LEASE_TTL_S_MAX: i64 = 9_000_000_000;
/// Leases: no quota counts them, and granting one needs no permission on any key. Each takes 70 bytes.
pub const LEASES_MAX: usize = 2_000_000;
/// Leases that one batch may end, so that a million due at once cannot stall the ring. Requests
/// treat a due lease as ended already.
pub const BATCH_EXPIRIES_MAX: usize = 500;
/// Keys deleted by the expiries of one batch, after the first lease.
pub const BATCH_EXPIRED_KEYS_MAX: usize = 10_000;
/// Expired tokens that one batch may remove.
pub const BATCH_TOKEN_EXPIRIES_MAX: usize = 1_000;

/// The bytes charged for granting a lease: etcd's figure.
pub const LEASE_OVERHEAD_BYTES: u64 = 64;

/// Outstanding invitations.
pub const INVITATIONS_MAX: usize = 16;
/// Members whose attributes are kept; removing a member removes them.
pub const PUBLISHED_MAX: usize = 64;
/// Addresses of one member.
pub const MEMBER_URLS_MAX: usize = 16;
/// One address.
pub const URL_BYTES_MAX: usize = 2_048;
