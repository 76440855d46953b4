//! How much watching one member puts up with.

/// Watchers of one member. Each costs about 200 bytes, so this bounds them to about 100 MB.
pub const WATCHERS_MAX: usize = 500_000;
/// Watch ids in use on one stream: live watchers, and canceled ones whose id the client still holds.
pub const STREAM_WATCHERS_MAX: usize = 200_000;
/// What may wait for a client before its watchers stop being told and read from the log later. A
/// revision is never split, so one revision may exceed it.
pub const STREAM_BUFFER_BYTES_MAX: usize = 4 << 20;
/// Events that may wait for a client.
pub const STREAM_BUFFER_EVENTS_MAX: usize = 10_000;
/// Counted for every event at least, so that the byte limit implies the event limit.
pub const EVENT_COST_MIN: usize = STREAM_BUFFER_BYTES_MAX / STREAM_BUFFER_EVENTS_MAX + 1;
/// What may wait for all clients together. Beyond it, a stream gets more only when it has nothing
/// waiting: many slow clients must not add up to what one may not do.
pub const BUFFERS_BYTES_MAX: usize = 256 << 20;
/// Distinct revisions in one response of a watcher that catches up: etcd's figure.
pub const RESPONSE_REVISIONS_MAX: usize = 1_000;
/// A response of a watcher that catches up ends at the first revision past this.
pub const RESPONSE_BYTES_MAX: usize = STREAM_BUFFER_BYTES_MAX;
/// Events looked at in one step of catching up, so that a step takes about a millisecond.
pub const STEP_EVENTS_MAX: usize = 4_096;
/// Watchers of single keys that catch up in one step.
pub const STEP_WATCHERS_MAX: usize = 512;
/// Responses produced for new revisions in one step; one revision may exceed it.
pub const STEP_RESPONSES_MAX: usize = 20_000;
/// Watchers this close behind the newest revision need not wait for those further behind.
pub const NEAR_REVISIONS: i64 = 1_024;
