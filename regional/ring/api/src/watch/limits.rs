//! Limits on the memory and work of watch streams. The limits of single watches are in
//! [`satrap_ring_core::watch::limits`].

/// Streams that wait for the watch loop to take them.
pub const STREAMS_WAITING_MAX: usize = 1_024;
/// Requests of one stream that are taken before other streams have their turn.
pub const REQUESTS_AT_ONCE: usize = 64;
/// While more bytes than this wait for a client to read them, its requests are left unread.
pub const ANSWERS_WAITING_BYTES_MAX: usize = 1 << 20;
/// Resyncs at a time: one of a million keys takes about 50 MB.
pub const RESYNCS_MAX: usize = 4;
/// The intervals of progress notifications that an operator may set, in seconds.
pub const PROGRESS_INTERVAL_S: std::ops::RangeInclusive<u64> = 1..=24 * 3600;
