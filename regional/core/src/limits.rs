//! Every bound on what an entry of the log, and what the keyspace, may hold.
//!
//! A decoder compares with one of these before it allocates. They are wider than what a client may
//! send: the rim enforces the operator's tighter limits and answers in etcd's words, while an entry
//! beyond these comes from a broken or hostile member.

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
/// Names of users, roles, holders and members.
pub const NAME_BYTES_MAX: usize = 1_024;
/// A password hash in the PHC or bcrypt text form.
pub const PASSWORD_HASH_BYTES_MAX: usize = 1_024;
/// Permissions of one role.
pub const ROLE_PERMISSIONS_MAX: usize = 4_096;
/// Users, and roles of the auth store.
pub const AUTH_ITEMS_MAX: usize = 100_000;
/// Bearer tokens of one user that are valid at the same time; the oldest gives way.
pub const USER_TOKENS_MAX: usize = 1_024;
/// Longest life of a bearer token.
pub const TOKEN_TTL_S_MAX: u64 = 30 * 24 * 3600;
/// Fenced roles that ever had a holder. They are never forgotten, for their counters must go on.
pub const FENCED_ROLES_MAX: usize = 1_000_000;
/// Prefixes with a quota of their own.
pub const QUOTAS_MAX: usize = 4_096;
/// Such a prefix; short enough that all of them fit into one answer.
pub const QUOTA_PREFIX_BYTES_MAX: usize = 512;
/// Members with an alarm, times kinds of alarms.
pub const ALARMS_MAX: usize = 1_024;
/// Recoveries remembered; each is the work of an operator.
pub const RECOVERIES_MAX: usize = 1_024;
/// Members an operator may trust, or lists as lost, in one recovery.
pub const RECOVERY_MEMBERS_MAX: usize = 64;
/// A signature or reason in a recovery record.
pub const RECOVERY_TEXT_BYTES_MAX: usize = 4_096;

/// Shortest life of a lease: etcd's with its default election timeout.
pub const LEASE_TTL_S_MIN: i64 = 2;
/// Longest life of a lease: etcd's.
pub const LEASE_TTL_S_MAX: i64 = 9_000_000_000;
/// Leases that one batch may expire, so that a million at once cannot stall the ring. A lease that
/// is due and waits for its turn is already dead to everyone who asks.
pub const BATCH_EXPIRIES_MAX: usize = 500;
/// Keys deleted by the expiries of one batch, after the first lease.
pub const BATCH_EXPIRED_KEYS_MAX: usize = 10_000;
/// Tokens that one batch may forget because they are past their time.
pub const BATCH_TOKEN_EXPIRIES_MAX: usize = 1_000;

/// What granting a lease is charged: etcd's figure.
pub const LEASE_OVERHEAD_BYTES: u64 = 64;

/// Members that are expected at the same time.
pub const INVITATIONS_MAX: usize = 16;
/// Members whose attributes are kept; removed ones are forgotten.
pub const PUBLISHED_MAX: usize = 64;
/// Addresses of one member.
pub const MEMBER_URLS_MAX: usize = 16;
/// One address.
pub const URL_BYTES_MAX: usize = 2_048;
