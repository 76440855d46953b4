//! The limits on the memory and disk that peers and clients can make a ring member use.

use std::time::Duration;

/// One `RingFrame` on the wire; longer messages are split over a stream.
pub const RING_FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Pieces that a longer message is split into; small, so that a stream shares its connection.
pub const RING_CHUNK_BYTES: usize = 512 * 1024;
/// One command in the log.
pub const COMMAND_BYTES_MAX: usize = 48 * 1024 * 1024 + 1024;
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
/// The values that an operator may choose. With fewer entries, a member that was away briefly needs
/// a snapshot; more entries take long to read at a restart.
pub const LOG_ENTRIES: std::ops::RangeInclusive<u64> = 16..=1_000_000;
/// Bytes that stay in the log after a compaction, so that a member that was away briefly needs no
/// snapshot.
/// entries, a quarter stays.
pub const LOG_KEEP_BYTES: usize = 4 * 1024 * 1024;

/// Clients' proposals in one entry; further ones go into the next.
pub const BATCH_PROPOSALS_MAX: usize = 8_192;
/// As [`BATCH_PROPOSALS_MAX`], in bytes. One larger proposal still goes in alone.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Entries in progress. One gives the largest entries and the least work for each; two hide half of
/// a round trip between zones.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 2;
/// The time that a commit index may wait for entries to the same follower: longer than one client takes
/// between two writes in a zone, and short beside what a watch of a follower is used to.
pub const COMMIT_DELAY: Duration = Duration::from_millis(1);
/// Calls that may wait in each class between the services and the ring.
pub const CALLS_MAX: usize = 16_384;
/// Membership and maintenance requests that run at the same time; one more is refused.
pub const ADMIN_CALLS_MAX: usize = 16;
/// Time limit of a proposal or a read; below the services' own time limits.
pub const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(6);

/// Between two heartbeats to a follower that completes no quorum: a busy leader then spares it most of
/// those that only reads cause, and a read that needs it is late by no more.
pub const HEARTBEAT_SPACING: Duration = Duration::from_millis(2);

/// Members of one ring; more of them only make every commit slower.
pub const MEMBERS_MAX: usize = 7;
/// A learner is promoted once it lacks at most this many entries.
pub const LEARNER_LAG_MAX: u64 = 64;
/// Chunks of a snapshot that may wait for the client to read them.
pub const SNAPSHOT_CHUNKS_MAX: usize = 8;
/// Seconds between scheduled snapshots: each reads the whole state and rebuilds it once.
pub const SNAPSHOT_INTERVAL_S: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 3600;
/// Scheduled snapshots to keep.
pub const SNAPSHOTS_KEPT_MAX: usize = 10_000;
/// The time that a defragmentation waits for readers of the old state.
pub const DEFRAGMENT_PATIENCE: Duration = Duration::from_secs(30);
/// The time between its attempts.
pub const DEFRAGMENT_PAUSE: Duration = Duration::from_millis(50);
/// Each member records the digest of its keyspace once in this many entries, for comparison.
pub const DIGEST_EVERY_ENTRIES: u64 = 64;
/// Digests kept for members that lag.
pub const DIGESTS_MAX: usize = 64;
/// Compacted versions to drop from memory at once, under the lock that writes wait for: a third of
/// a millisecond, as `kv_figures` of the core prints.
pub const MEMORY_RECLAIM_VERSIONS: usize = 1_000;
/// Pieces per checkpoint: 200 000 versions a second, twice the rate measured for a stream of puts.
pub const MEMORY_RECLAIM_PIECES: usize = 100;
/// Pause between two pieces, so that writers that wait for the lock get it.
pub const MEMORY_RECLAIM_BREATH: Duration = Duration::from_micros(100);
/// Bytes of rows on disk to compare with their digests each minute: a gigabyte in about an hour.
pub const DISK_SCRUB_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of history on disk to rewrite at once, to drop compacted versions.
pub const DISK_RECLAIM_BYTES: usize = 4 * 1024 * 1024;
/// Pieces per checkpoint: faster than a ring writes; only checkpoints wait for it.
pub const DISK_RECLAIM_PIECES: usize = 8;

/// One mebibyte, in which sizes on disk are configured.
pub const MIB: u64 = 1024 * 1024;
/// Sizes of a log segment: one segment holds the largest entry of most rings, and is allocated
/// whole.
pub const LOG_SEGMENT_MIB: std::ops::RangeInclusive<u64> = 1..=1024;
/// A larger reserve would only waste space.
pub const RESERVE_MIB_MAX: u64 = 4 * 1024;

const _: () = assert!(RING_CHUNK_BYTES < RING_FRAME_BYTES_MAX);
/// A group that is not full accepts one more proposal, and a follower forwards it to the leader as
/// it is.
const _: () = assert!(
    BATCH_BYTES_MAX + *satrap_ring_api::limits::REQUEST_BYTES.end() + 64 * 1024
        <= RING_FRAME_BYTES_MAX
);
const _: () = assert!(LOG_KEEP_BYTES < LOG_BYTES_MAX);
