//! The limits on all that this crate stores on disk or accepts from a peer.

/// One segment of the log.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// A segment holds its head and at least one record of a useful size.
pub const SEGMENT_BYTES_MIN: u64 = 128 * 1024;
/// Recycled segments that wait for use; more would only hold space.
pub const SPARES_MAX: usize = 2;

/// A member's name.
pub const NAME_BYTES_MAX: usize = 255;
/// An encoded vote.
pub const VOTE_BYTES_MAX: usize = 1024;
/// An encoded log id, with whatever else its writer keeps beside it.
pub const MARK_BYTES_MAX: usize = 4 * 1024;

/// Written at once when a range of a file is cleared.
pub const ZERO_BYTES: usize = 1024 * 1024;

/// Freed when the disk is full, so that compaction has room to work in.
pub const RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Below this the ring must stop taking writes: two segments and a large checkpoint still fit.
pub const SPACE_LOW_BYTES: u64 = 256 * 1024 * 1024;

/// One history row. The engine allocates powers of two, so a row with its key, its digest and the
/// engine's page header stays just below one.
pub const CHUNK_BYTES: usize = 64 * 1024 - 512;
/// Smaller history rows are merged with their neighbors.
pub const CHUNK_SMALL_BYTES: usize = CHUNK_BYTES / 2;
/// One version with its key: etcd's largest request is 1.5 MiB by default, configured up to this.
pub const VERSION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The name of a page.
pub const PAGE_NAME_BYTES_MAX: usize = 255;
/// One page.
pub const PAGE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// The applied mark with the membership beside it.
pub const APPLIED_BYTES_MAX: usize = 64 * 1024;
/// Page cache of the database. It can be small, because reads are served from memory.
pub const STATE_CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Room that the engine needs beside the content of a checkpoint.
pub const CHECKPOINT_SPARE_BYTES: u64 = 16 * 1024 * 1024;

/// One frame of a snapshot stream, with its envelope.
pub const FRAME_BYTES_MAX: usize = 512 * 1024;
/// Received frames become durable together, after this much.
pub const RECEIVE_SYNC_BYTES: usize = 8 * 1024 * 1024;
/// A row as it travels: table, key and value with their lengths.
pub const ROW_BYTES_MAX: usize = PAGE_BYTES_MAX + 1024;

const _: () = assert!(VERSION_BYTES_MAX < PAGE_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < RECEIVE_SYNC_BYTES);
const _: () = assert!((SEGMENT_BYTES_MIN as usize) > 2 * (VOTE_BYTES_MAX + 2 * MARK_BYTES_MAX));
