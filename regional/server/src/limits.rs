//! Every bound on what peers, edges and operators can make a member hold.

use std::time::Duration;

use satrap_certify::limits::{CHANGE_BYTES_MAX, UPDATE_BYTES_MAX};
use satrap_host::{
    charges::{CallLimits, REQUESTS, SUBMIT_FLAT_BYTES},
    mtls::FOREIGN_SCOPES,
};
use satrap_pressure::{Quota, Rate};

/// One `RingFrame` on the wire; longer messages are split over a stream.
pub const RING_FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Pieces that a longer message is split into; small, so that a stream shares its connection.
pub const RING_CHUNK_BYTES: usize = 512 * 1024;
/// One command in the log: an update for a whole realm, and its envelope.
pub const COMMAND_BYTES_MAX: usize = UPDATE_BYTES_MAX + 1024;
/// Entries of one append request together, unless a single one is longer.
pub const APPEND_BATCH_BYTES: usize = 1024 * 1024;
/// One append request, reassembled.
pub const APPEND_BYTES_MAX: usize = COMMAND_BYTES_MAX + APPEND_BATCH_BYTES + 64 * 1024;
/// Operations that wait for the log writer; beyond these, openraft waits.
pub const WRITER_QUEUE_OPS_MAX: usize = 1024;
/// One group commit. A longer single operation still goes in alone.
pub const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The log is compacted beyond this, so it, the tail in memory and the time to restart are bounded.
pub const LOG_BYTES_MAX: usize = 16 * 1024 * 1024;
/// As [`LOG_BYTES_MAX`], for many small entries, unless an operator chooses.
pub const LOG_ENTRIES_MAX: u64 = 4_096;
/// What an operator may choose: with fewer, a member that blinked needs a snapshot; more than this
/// take long to read at a restart.
pub const LOG_ENTRIES: std::ops::RangeInclusive<u64> = 16..=1_000_000;
/// What stays in the log after a compaction, so that a member that blinked needs no snapshot. Of the
/// entries, a quarter stays.
pub const LOG_KEEP_BYTES: usize = 4 * 1024 * 1024;

/// Clients' proposals in one entry; what waits beyond these goes into the next.
pub const BATCH_PROPOSALS_MAX: usize = 8_192;
/// As [`BATCH_PROPOSALS_MAX`], in bytes. One larger proposal still goes in alone.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Entries handed in whose fate is not known yet. One gives the largest entries and the least work
/// for each; two hide half of a round trip between zones.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 2;
/// Calls that wait in each class between the services and the ring.
pub const CALLS_MAX: usize = 16_384;
/// Operations on the ring as a whole that run at the same time.
pub const ADMIN_CALLS_MAX: usize = 16;
/// When a proposal or a read is given up; below the services' own patience.
pub const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(6);

/// Members of one ring: more of them only make every commit slower.
pub const MEMBERS_MAX: usize = 7;
/// A learner that lacks at most this many entries gets its vote.
pub const LEARNER_LAG_MAX: u64 = 64;
/// Chunks of a snapshot that wait for a client to read them.
pub const SNAPSHOT_CHUNKS_MAX: usize = 8;
/// Between scheduled snapshots: each reads the whole state and rebuilds it once.
pub const SNAPSHOT_INTERVAL_S: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 3600;
/// Scheduled snapshots that stay.
pub const SNAPSHOTS_KEPT_MAX: usize = 10_000;
/// How long a defragmentation waits for whoever reads the state as it was, and how often it looks.
pub const DEFRAGMENT_PATIENCE: Duration = Duration::from_secs(30);
/// See [`DEFRAGMENT_PATIENCE`].
pub const DEFRAGMENT_PAUSE: Duration = Duration::from_millis(50);
/// Upstream validators in the configuration.
pub const VALIDATORS_MAX: usize = satrap_certify::limits::VALIDATORS_MAX;

/// Every so many entries, each member takes the digest of its keyspace, to be compared.
pub const DIGEST_EVERY_ENTRIES: u64 = 64;
/// Digests that are kept for members that lag.
pub const DIGESTS_MAX: usize = 64;
/// Compacted versions that are dropped from memory at once, under the lock that writes wait for: a third
/// of a millisecond, as `kv_figures` of the core prints.
pub const MEMORY_RECLAIM_VERSIONS: usize = 1_000;
/// How often in a checkpoint: 200 000 versions a second, twice what a stream of puts was seen to write.
pub const MEMORY_RECLAIM_PIECES: usize = 100;
/// Between two pieces, so that whoever waits for the lock gets it.
pub const MEMORY_RECLAIM_BREATH: Duration = Duration::from_micros(100);
/// Rows on disk that are compared with their digests each minute: a gigabyte in about an hour.
pub const DISK_SCRUB_BYTES: usize = 16 * 1024 * 1024;
/// History on disk that is read again at once to drop what was compacted.
pub const DISK_RECLAIM_BYTES: usize = 4 * 1024 * 1024;
/// How often in a checkpoint: faster than a ring writes, and nothing waits for it but checkpoints.
pub const DISK_RECLAIM_PIECES: usize = 8;

/// One message from a follower: a position that names every bundle there can be, or a report.
pub const FOLLOW_REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// `Follow` streams of this region's edges: as many as it has room for reports.
pub const OWN_FOLLOWERS: Quota = Quota { group_max: REPORTS_MAX, holder_max: 4 };
/// `Follow` streams of another region's edges and members, or of the operators. No scope can use the
/// streams of another.
pub const FOREIGN_FOLLOWERS: Quota = Quota { group_max: 256, holder_max: 4 };
/// All of them, of as many scopes as a listener keeps room for.
pub const FOLLOWERS_MAX: usize =
    OWN_FOLLOWERS.group_max + FOREIGN_SCOPES * FOREIGN_FOLLOWERS.group_max;

/// Edges whose newest report is kept.
pub const REPORTS_MAX: usize = 20_000;
/// Bytes of reports in one status reply, which must stay below the common 4 MiB message limit.
pub const STATUS_REPORT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Names of connected edges in one status reply.
pub const STATUS_EDGES_MAX: usize = 8_192;
/// A status reply of another member.
pub const STATUS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a member waits for another one's status.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// A submit waits for a decision: three message delays, some rounds, and a validator that is away.
pub const SUBMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// A forwarded change and its envelope.
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

const _: () = assert!(RING_CHUNK_BYTES < RING_FRAME_BYTES_MAX);
/// A group that is not full takes one more proposal, and a follower hands it to the leader as it is.
const _: () = assert!(
    BATCH_BYTES_MAX + *satrap_regional_api::limits::REQUEST_BYTES.end() + 64 * 1024
        <= RING_FRAME_BYTES_MAX
);
const _: () = assert!(REQUESTS.group_max * SUBMIT_BYTES_MAX <= 50 * 1024 * 1024);
const _: () = assert!(FOLLOWERS_MAX == 28_192);
const _: () = assert!(SUBMIT_RATE.burst as usize > SUBMIT_BYTES_MAX + SUBMIT_FLAT_BYTES);
const _: () = assert!(READS.rate.burst as usize > STATUS_BYTES_MAX);
const _: () = assert!(LOG_KEEP_BYTES < LOG_BYTES_MAX);

/// One mebibyte, in which sizes on disk are configured.
pub const MIB: u64 = 1024 * 1024;
/// Sizes of a segment of the log: one holds the largest entry of most rings, and is allocated whole.
pub const LOG_SEGMENT_MIB: std::ops::RangeInclusive<u64> = 1..=1024;
/// More would only hold space back.
pub const RESERVE_MIB_MAX: u64 = 4 * 1024;
