//! Limits on the memory and work that one client, and all clients together, may cause on this member.

use std::time::Duration;

use satrap_pressure::Rate;

/// The default limit on the size of a request, as in etcd: 1.5 MiB. As in etcd it limits the Raft entry that the
/// request becomes.
pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;
/// The bytes by which a message may exceed that limit before gRPC refuses it, as in etcd: so the refusal is etcd's and
/// not that of gRPC.
pub const REQUEST_OVERHEAD_BYTES_MAX: usize = 512 * 1024;
/// The values that an operator may set. A request and its headers, forwarded to another member, must fit into one
/// frame.
pub const REQUEST_BYTES: std::ops::RangeInclusive<usize> = 1024..=6 * 1024 * 1024;
/// The size of a request without keys and values: leases, members, users, watches.
pub const SMALL_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The default limit on the operations of one list of a transaction, as in etcd.
pub const TXN_OPS_MAX: usize = 128;
/// The values that an operator may set.
pub const TXN_OPS: std::ops::RangeInclusive<usize> = 1..=satrap_ring_core::limits::TXN_OPS_MAX;
/// Elements of all lists of a transaction, including the transactions nested in it.
pub const TXN_ELEMENTS_MAX: usize = 16 * 1024;
/// Depth of nested transactions.
pub const TXN_DEPTH_MAX: usize = 16;

/// Puts of one message of `PutStream`.
pub const STREAM_PUTS_MAX: usize = 4096;
/// Messages of one `PutStream` that may wait for the ring. No more are read meanwhile.
pub const STREAM_MESSAGES_IN_FLIGHT_MAX: usize = 16;

/// Keys that a read visits before it releases the lock for writers; well below a millisecond.
pub const READ_KEYS_AT_ONCE: usize = 2000;
/// Bytes that a read collects before it releases the lock; also the size of a part of a streamed range.
pub const READ_BYTES_AT_ONCE: usize = 1024 * 1024;
/// How often a read restarts because its revision was compacted meanwhile, before it holds the lock to its end.
pub const READ_RESTARTS_MAX: usize = 2;

/// Keys of a page if the client gives no limit.
pub const PAGE_KEYS_DEFAULT: usize = 1000;
/// The most keys of a page.
pub const PAGE_KEYS_MAX: usize = 10_000;
/// A page ends after this many bytes of keys and values. The default limit of gRPC clients is 4 MiB.
pub const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The length of the names of fenced roles and of their holders.
pub const ROLE_NAME_BYTES_MAX: usize = satrap_ring_core::limits::NAME_BYTES_MAX;

/// Calls of one priority that may wait for the ring.
pub const QUEUE_CALLS_MAX: usize = 16 * 1024;

/// Lease renewals of one stream that may wait for the ring. No more are read meanwhile.
pub const STREAM_RENEWALS_IN_FLIGHT_MAX: usize = 1024;
/// Passwords that are hashed or verified at a time: each takes megabytes of memory and a thread.
pub const PASSWORDS_AT_ONCE_MAX: usize = 2;
/// Passwords that may wait for that. Login attempts beyond this are refused.
pub const PASSWORDS_WAITING_MAX: usize = 64;
/// The longest password. Hashing takes time in proportion, if only a little.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Clients that may wait for a lock or a leadership on this member.
pub const CONTENDERS_MAX: usize = 16 * 1024;
/// Clients that may observe an election on this member. Each reads the event log on its own.
pub const OBSERVERS_MAX: usize = 1024;
/// Revisions that are searched under one lock for the deletions that clients wait for.
pub const DELETIONS_REVISIONS_AT_ONCE: usize = 1024;
/// One message of a snapshot; etcd clients take less than 4 MiB.
pub const SNAPSHOT_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Connections of all clients together.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Memory that a stream reserves besides its headers and messages, if it is a watch or a call that is served without
/// the tonic stack.
pub const STREAM_BYTES: usize = 4 * 1024;
/// Memory that a stream of the tonic stack reserves, and one of the JSON gateway. Measured: an idle lease keep-alive
/// stream takes 14.4 KiB.
pub const GENERIC_STREAM_BYTES: usize = 16 * 1024;
/// Memory that the open requests and streams of all connections may reserve: enough for 131 072 of them with few
/// headers.
pub const STREAMS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// The share of that memory that one connection may reserve. etcd clients use one connection for a whole process, and
/// some open a stream for every watch.
pub const CONNECTION_STREAMS_BYTES_MAX: usize = STREAMS_BYTES_MAX / 2;
/// `SETTINGS_MAX_CONCURRENT_STREAMS`. Clients queue requests without an error when they reach it, so it is out of
/// reach: a stream over [`CONNECTION_STREAMS_BYTES_MAX`] is refused before. Only a client that does not read its
/// refusals reaches it.
pub const STREAMS_ANNOUNCED_MAX: u32 = 128 * 1024;
/// The bytes that `h2` counts for a small DATA frame besides its content, until it is read.
pub const SMALL_FRAME_BYTES: usize = 256;
/// The bytes that `h2` may count for unread small frames of one connection: one frame for each stream. Beyond that `h2`
/// closes the connection. Its default, half the window, would allow only 2 000 watches.
pub const SMALL_FRAMES_BUDGET: usize = SMALL_FRAME_BYTES * STREAMS_ANNOUNCED_MAX as usize;
/// Calls of the JSON gateway at a time. They share one in-process connection.
pub const GATEWAY_CALLS_MAX: u32 = 4096;
/// Calls of the JSON gateway at a time from one client connection.
pub const GATEWAY_CONNECTION_CALLS_MAX: u32 = GATEWAY_CALLS_MAX / 4;
/// The flow-control window of one gateway call towards the service. Small, because every five bytes can be a message
/// that takes [`SMALL_FRAME_BYTES`].
pub const GATEWAY_REQUEST_WINDOW_BYTES: u32 = 4 * 1024;
/// The flow-control window of one gateway call for its answers.
pub const GATEWAY_ANSWER_WINDOW_BYTES: u32 = FRAME_BYTES_MAX;
/// The age at which the gateway's connection is replaced, because HTTP/2 has 2^30 stream ids per connection. Calls in
/// flight stay on the old one.
pub const GATEWAY_LINK_AGE: Duration = Duration::from_hours(1);
/// The rate of requests of one connection. It is more than one core can answer, so it only stops a flood from taking
/// the time of all other connections.
pub const CONNECTION_RATE: Rate = Rate { per_s: 100_000, burst: 100_000 };
/// Decompressed bytes that count as one request of [`CONNECTION_RATE`], so 50 MB/s of one connection. A few compressed
/// kilobytes can be megabytes that take milliseconds to decompress.
pub const INFLATED_BYTES_PER_REQUEST: usize = 512;
/// From accept to the first bytes of HTTP.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections in their handshake. Beyond these, the oldest is closed.
pub const HANDSHAKES_PENDING_MAX: usize = 512;
/// The pause after an error of `accept` such as "too many open files", so that the loop does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The size of the headers of one request; usual ones take a few hundred bytes. Bounds CONTINUATION floods too.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Largest HTTP/2 frame.
pub const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// The flow-control window of one request.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The flow-control window of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of one stream that `h2` may buffer for sending.
pub const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Requests that were reset before this member accepted them (the "rapid reset" attack).
pub const PENDING_ACCEPT_RESETS_MAX: usize = 20;
/// Streams that this member reset because of the client's errors (the "made you reset" attack).
pub const LOCAL_ERROR_RESETS_MAX: usize = 256;
/// How long the one message of a request may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of the long messages of all requests together (FRAME-3).
pub const LONG_MESSAGES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of the answers above 64 KiB that clients have not read, of all requests together (FRAME-5).
pub const LONG_ANSWERS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long a client may take to read an answer of more than 64 KiB; see [`ANSWER_BYTES_PER_S_MIN`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The client has one more second for each of these bytes.
pub const ANSWER_BYTES_PER_S_MIN: usize = 1024 * 1024;
/// Refusals of streams that a client has not read. Beyond that its connection is closed. `h2` remembers as many reset
/// streams, whose late frames would otherwise count as errors.
pub const REFUSALS_UNREAD_MAX: usize = 4096;
/// Long reads, which take more than one step, at a time.
pub const LONG_READS_MAX: usize = 16;
/// Monitoring connections. Beyond these, the oldest is closed.
pub const MONITORING_CONNECTIONS_MAX: usize = 64;
/// From accept to the end of a monitoring connection: its request, an answer that may wait for the ring, and
/// [`MONITORING_ANSWER_TIMEOUT`].
pub const MONITORING_AGE_MAX: Duration = Duration::from_secs(30);
/// How long a monitoring client may take to read its answer.
pub const MONITORING_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The age up to which collected metrics are served again.
pub const MONITORING_FIGURES_AGE: Duration = Duration::from_secs(1);
/// The size of the head of an HTTP/1.1 request.
pub const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Headers of an HTTP/1.1 request.
pub const HTTP1_HEADERS_MAX: usize = 64;
/// The factor by which a JSON body may be longer than its message: base64 is a third longer, names and quotes add
/// more.
pub const GATEWAY_BODY_PER_MESSAGE: usize = 2;
/// Objects, arrays and commas of one JSON message: eight for each of [`TXN_ELEMENTS_MAX`] elements, where an operation
/// has about five. Decoded, each may take some hundred bytes.
pub const JSON_ELEMENTS_MAX: usize = 8 * TXN_ELEMENTS_MAX;
/// The size of a message that the gateway converts to JSON.
pub const GATEWAY_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The interval of keepalive pings.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long a client may take to answer a ping.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The age at which a client is asked to leave, so that its certificate is verified again.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_hours(12);
/// How long the connection may take to end after that.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(60);

/// A response with all quotas fits into 4 MiB, the default limit of clients; 64 bytes are for numbers and tags.
const _: () = {
    use satrap_ring_core::limits::{QUOTA_PREFIX_BYTES_MAX, QUOTAS_MAX};
    assert!((QUOTAS_MAX + 1) * (QUOTA_PREFIX_BYTES_MAX + 64) < 4 * 1024 * 1024);
};
const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(CONNECTION_STREAMS_BYTES_MAX / STREAM_BYTES < STREAMS_ANNOUNCED_MAX as usize);
const _: () = assert!(STREAM_BYTES <= GENERIC_STREAM_BYTES);
// The gateway's own connection is never closed for unread refusals.
const _: () = assert!(GATEWAY_CALLS_MAX as usize <= REFUSALS_UNREAD_MAX);
const _: () =
    assert!(GATEWAY_CALLS_MAX as usize <= CONNECTION_STREAMS_BYTES_MAX / GENERIC_STREAM_BYTES / 2);
const _: () = assert!(FRAME_BYTES_MAX <= STREAM_WINDOW_BYTES);
const _: () = assert!(TXN_OPS_MAX <= *TXN_OPS.end() && *TXN_OPS.end() <= TXN_ELEMENTS_MAX);
const _: () = assert!(TXN_DEPTH_MAX <= satrap_ring_core::limits::TXN_DEPTH_MAX);
const _: () = assert!(REQUEST_BYTES_MAX <= *REQUEST_BYTES.end());
const _: () = assert!(*REQUEST_BYTES.end() <= satrap_ring_core::limits::VALUE_BYTES_MAX);
const _: () = assert!(*REQUEST_BYTES.end() < LONG_MESSAGES_BYTES_MAX / 16);

/// The memory that open requests and streams may reserve: each [`STREAM_BYTES`] or [`GENERIC_STREAM_BYTES`], its headers,
/// and the messages that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBytes {
    /// Bytes of all connections together.
    pub all_max: usize,
    /// Bytes of one connection.
    pub connection_max: usize,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of the Raft entry that the request becomes; as etcd's `--max-request-bytes`.
    pub bytes_max: usize,
    /// Operations of one list of a transaction; as etcd's `--max-txn-ops`.
    pub txn_ops_max: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { bytes_max: REQUEST_BYTES_MAX, txn_ops_max: TXN_OPS_MAX }
    }
}

impl RequestLimits {
    /// The size of a message, in bytes. A longer one is refused before it is read.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        self.bytes_max + REQUEST_OVERHEAD_BYTES_MAX
    }
}

/// The settings of watch streams that an operator may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// The interval of progress notifications to watches that asked for them and got no event meanwhile. Up to a
    /// tenth is added, so that streams that were opened together do not all send at the same time.
    pub progress_interval: Duration,
    /// How long the ring may be without a leader before streams that require one end.
    pub leaderless_max: Duration,
    /// How long a client may take to answer a request of a resync.
    pub resync_answer_max: Duration,
    /// A response of this size is split for clients that asked for fragments. etcd uses the largest message that a
    /// client may send.
    pub fragment_bytes: usize,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            progress_interval: Duration::from_mins(10),
            leaderless_max: Duration::from_secs(3),
            resync_answer_max: Duration::from_secs(30),
            fragment_bytes: RequestLimits::default().message_bytes_max(),
        }
    }
}
