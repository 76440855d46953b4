//! What watch streams may make the loop hold or do; what watches may is in
//! [`satrap_regional_core::watch::limits`].

/// Streams that were accepted and not yet looked at.
pub const STREAMS_WAITING_MAX: usize = 1_024;
/// Requests of one stream that are taken before others have a turn.
pub const REQUESTS_AT_ONCE: usize = 64;
/// While this waits for a client, its requests are left unread.
pub const ANSWERS_WAITING_BYTES_MAX: usize = 1 << 20;
/// Mirrors that are compared at a time: one of a million keys takes about 50 MB meanwhile.
pub const RESYNCS_MAX: usize = 4;
/// What an operator may choose between two words of how far a watch is, in seconds.
pub const PROGRESS_INTERVAL_S: std::ops::RangeInclusive<u64> = 1..=24 * 3600;
