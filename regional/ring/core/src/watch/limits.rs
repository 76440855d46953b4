//! The limits on the watches of one member.

/// Watchers of one member. Each costs about 200 bytes, so this bounds them to about 100 MB.
pub const WATCHERS_MAX: usize = 500_000;
/// Watch ids in use on one stream: open watches, and canceled ones whose id the client still holds.
pub const STREAM_WATCHERS_MAX: usize = 200_000;
/// Bytes buffered for a client, beyond which its watchers are parked and later read the log. A
/// revision is never split, so one revision may exceed it.
pub const STREAM_BUFFER_BYTES_MAX: usize = 4 << 20;
/// Events buffered for a client.
pub const STREAM_BUFFER_EVENTS_MAX: usize = 10_000;
/// The minimum cost of an event, so that the byte limit implies the event limit.
pub const EVENT_COST_MIN: usize = STREAM_BUFFER_BYTES_MAX / STREAM_BUFFER_EVENTS_MAX + 1;
/// Bytes buffered for all clients together. Beyond it, a stream gets more only when its buffer is
/// empty: many slow clients must not exceed what one may not.
pub const BUFFERS_BYTES_MAX: usize = 256 << 20;
/// Distinct revisions in one response of a lagging watcher: etcd's figure.
pub const RESPONSE_REVISIONS_MAX: usize = 1_000;
/// Size at which a response of a lagging watcher ends, after the revision that reaches it.
pub const RESPONSE_BYTES_MAX: usize = STREAM_BUFFER_BYTES_MAX;
/// Events processed in one step of catching up, so that a step takes about a millisecond.
pub const STEP_EVENTS_MAX: usize = 4_096;
/// Watchers of single keys that catch up in one step.
pub const STEP_WATCHERS_MAX: usize = 512;
/// Responses produced for new revisions in one step; one revision may exceed it.
pub const STEP_RESPONSES_MAX: usize = 20_000;
/// Distance from the newest revision within which watchers do not wait for those further behind.
pub const NEAR_REVISIONS: i64 = 1_024;
