//! The limits on the memory, streams and requests that edges, operators and validators can cause at a
//! region member.

use std::time::Duration;

use satrap_certify::limits::{CHANGE_BYTES_MAX, UPDATE_BYTES_MAX};
use satrap_identity::{
    charges::{CallLimits, REQUESTS, SUBMIT_FLAT_BYTES},
    mtls::FOREIGN_SCOPES,
};
use satrap_pressure::{Quota, Rate};

/// Maximum number of validators in the configuration.
pub const VALIDATORS_MAX: usize = satrap_certify::limits::VALIDATORS_MAX;

/// The number of threads that serve edges and operators: that of the machine's cores, within these
/// bounds. At least two, so that one long answer does not stop all others.
pub const CLIENT_WORKERS: std::ops::RangeInclusive<usize> = 2..=8;

/// Maximum size of a message from a follower: a position that names the most bundles there can be, or
/// a report.
pub const FOLLOW_REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// `Follow` streams of this region's edges: as many as edges can have stored reports.
pub const OWN_FOLLOWERS: Quota = Quota { group_max: REPORTS_MAX, holder_max: 4 };
/// `Follow` streams of another region's edges and members, or of the operators. No scope can use the
/// streams of another.
pub const FOREIGN_FOLLOWERS: Quota = Quota { group_max: 256, holder_max: 4 };
/// All of them, of as many scopes as a listener keeps room for.
pub const FOLLOWERS_MAX: usize =
    OWN_FOLLOWERS.group_max + FOREIGN_SCOPES * FOREIGN_FOLLOWERS.group_max;

/// Maximum number of this region's edges whose reports are stored.
pub const REPORTS_MAX: usize = 20_000;
/// The same for each other region: as many of its edges as can follow this member at one time. With
/// the largest reports they take 32 MiB.
pub const FOREIGN_REPORTS_MAX: usize = FOREIGN_FOLLOWERS.group_max;
/// Bytes of reports in one status reply. The reply must stay below gRPC's usual limit of 4 MiB.
pub const STATUS_REPORT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Names of connected edges in one status reply.
pub const STATUS_EDGES_MAX: usize = 8_192;
/// A status reply of another member.
pub const STATUS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Time limit of a member's request for the status of another one.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit of a submission, which waits for a decision of the validators: three message delays,
/// some rounds, and an unreachable proposer.
pub const SUBMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of a forwarded change with its envelope.
pub const SUBMIT_BYTES_MAX: usize = CHANGE_BYTES_MAX + 1024;
/// Bytes that one payer may have forwarded. The validators charge the whole region, so an operator
/// gets a quarter of that in the long run.
pub const SUBMIT_RATE: Rate = Rate { burst: 2 * 1024 * 1024, per_s: 128 * 1024 };
/// Submissions that are being forwarded: each holds its bytes until it is decided.
pub const SUBMITS_AT_ONCE: Quota = Quota { group_max: 32, holder_max: 8 };
/// `Status` and `Governance`. A reply has at most [`STATUS_BYTES_MAX`], so a scope can make this
/// member hold 64 MiB of them; each asks the other members too.
pub const READS: CallLimits = CallLimits {
    at_once: Quota { group_max: 16, holder_max: 4 },
    rate: Rate { burst: 8 * 1024 * 1024, per_s: 4 * 1024 * 1024 },
    flat_bytes: 4 * 1024,
};

/// An update for a whole realm and its envelope fit an entry of the ring's log.
const _: () = assert!(UPDATE_BYTES_MAX + 1024 <= satrap_ring_raft::limits::COMMAND_BYTES_MAX);
const _: () = assert!(REQUESTS.group_max * SUBMIT_BYTES_MAX <= 50 * 1024 * 1024);
const _: () = assert!(FOLLOWERS_MAX == 28_192);
const _: () = assert!(SUBMIT_RATE.burst as usize > SUBMIT_BYTES_MAX + SUBMIT_FLAT_BYTES);
const _: () = assert!(READS.rate.burst as usize > STATUS_BYTES_MAX);
