//! What a client, and all clients together, may make this member hold or do.

use std::time::Duration;

use crate::api::Rate;

/// The longest request unless the operator chooses, as etcd's default: 1.5 MiB. As in etcd it bounds the
/// entry that the request becomes.
pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;
/// What the transport takes beyond that, so that the refusal is etcd's and not the transport's: etcd
/// has the same slack.
pub const REQUEST_OVERHEAD_BYTES_MAX: usize = 512 * 1024;
/// What the operator may choose: what one member hands to another, with what goes along, must fit into
/// one frame.
pub const REQUEST_BYTES: std::ops::RangeInclusive<usize> = 1024..=6 * 1024 * 1024;
/// Requests that carry no keys: leases, members, users, watches.
pub const SMALL_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Operations of one list of a transaction unless the operator chooses, as etcd's default.
pub const TXN_OPS_MAX: usize = 128;
/// What the operator may choose.
pub const TXN_OPS: std::ops::RangeInclusive<usize> = 1..=satrap_regional_core::limits::TXN_OPS_MAX;
/// Elements of all lists of a transaction and those inside it together.
pub const TXN_ELEMENTS_MAX: usize = 16 * 1024;
/// Transactions inside one another.
pub const TXN_DEPTH_MAX: usize = 16;

/// Puts of one message of a bulk write.
pub const STREAM_PUTS_MAX: usize = 4096;
/// Messages of one bulk write that may wait for the ring; reading stops meanwhile.
pub const STREAM_MESSAGES_IN_FLIGHT_MAX: usize = 16;

/// Keys that a read looks at before it lets writers in; well below a millisecond.
pub const READ_KEYS_AT_ONCE: usize = 2000;
/// Bytes that a read finds before it lets writers in; also the size of a part of a streamed range.
pub const READ_BYTES_AT_ONCE: usize = 1024 * 1024;
/// How often a read starts anew because its revision was compacted under it, before it holds the
/// lock to the end.
pub const READ_RESTARTS_MAX: usize = 2;

/// Keys of a page whose size the client leaves to us.
pub const PAGE_KEYS_DEFAULT: usize = 1000;
/// Keys of a page.
pub const PAGE_KEYS_MAX: usize = 10_000;
/// A page ends after this many bytes of keys and values; clients' default limit is 4 MiB.
pub const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Names of fenced roles and their holders.
pub const ROLE_NAME_BYTES_MAX: usize = satrap_regional_core::limits::NAME_BYTES_MAX;

/// Calls of one priority that may wait for the ring.
pub const QUEUE_CALLS_MAX: usize = 16 * 1024;

/// Renewals of one stream that may wait for the ring; reading stops meanwhile.
pub const STREAM_RENEWALS_IN_FLIGHT_MAX: usize = 1024;
/// Passwords that are hashed or checked at once: each takes megabytes, and a thread of its own.
pub const PASSWORDS_AT_ONCE_MAX: usize = 2;
/// Passwords that wait for that; a flood of guesses is refused beyond this.
pub const PASSWORDS_WAITING_MAX: usize = 64;
/// The longest password. Hashing takes time in proportion, if only a little.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Clients that wait for a lock or a leadership, on this member.
pub const CONTENDERS_MAX: usize = 16 * 1024;
/// Clients that observe an election, on this member. Each reads the log on its own.
pub const OBSERVERS_MAX: usize = 1024;
/// Revisions that are looked through at once for what somebody waits for.
pub const DEPARTURES_REVISIONS_AT_ONCE: usize = 1024;
/// One message of a snapshot; clients of etcd take less than 4 MiB.
pub const SNAPSHOT_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Connections of everybody together.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Memory that a stream counts for besides its headers and messages, if it is a watch or a call that the
/// member answers straight on HTTP/2.
pub const STREAM_BYTES: usize = 4 * 1024;
/// The same of a stream that takes the way through the generic stack: of all other calls, and of JSON.
/// One that keeps leases alive takes 14.4 KiB while nothing happens.
pub const GENERIC_STREAM_BYTES: usize = 16 * 1024;
/// Memory for the requests and streams of all connections that are open at one time: 131 072 of them
/// with few headers.
pub const STREAMS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Of these, what one connection may have. Clients of etcd share one connection among everything a
/// process does, and some open a stream for every watch.
pub const CONNECTION_STREAMS_BYTES_MAX: usize = STREAMS_BYTES_MAX / 2;
/// Concurrent streams that HTTP/2 announces. Clients wait in silence when they reach it, so it is out
/// of reach: one over [`CONNECTION_STREAMS_BYTES_MAX`] is answered with a refusal. Only a client that
/// does not read its refusals meets it.
pub const STREAMS_ANNOUNCED_MAX: u32 = 128 * 1024;
/// What HTTP/2 counts a small frame of data for, less the bytes in it, until it was read.
pub const SMALL_FRAME_BYTES: usize = 256;
/// Small frames of one connection that are not read yet: each stream may open with one. The
/// connection ends beyond that, and half its window, the library's own bound, is 2 000 watches.
pub const SMALL_FRAMES_BUDGET: usize = SMALL_FRAME_BYTES * STREAMS_ANNOUNCED_MAX as usize;
/// Calls of the JSON gateway at one time. They share one connection of its own.
pub const GATEWAY_CALLS_MAX: u32 = 4096;
/// Of these, calls of one client's connection.
pub const GATEWAY_CONNECTION_CALLS_MAX: u32 = GATEWAY_CALLS_MAX / 4;
/// Bytes of one call of the gateway on their way to the service that are not read yet. Small, because
/// each can be a message of five bytes that takes [`SMALL_FRAME_BYTES`].
pub const GATEWAY_REQUEST_WINDOW_BYTES: u32 = 4 * 1024;
/// Bytes of one call of the gateway on their way back, if its client does not read.
pub const GATEWAY_ANSWER_WINDOW_BYTES: u32 = FRAME_BYTES_MAX;
/// The age at which the gateway's connection is replaced: HTTP/2 numbers 2^30 calls of one connection.
/// Calls under way stay on it.
pub const GATEWAY_LINK_AGE: Duration = Duration::from_hours(1);
/// Requests of one connection: more than one core can answer, so it only keeps a connection that
/// floods from taking the turns of all others.
pub const CONNECTION_RATE: Rate = Rate { per_s: 100_000, burst: 100_000 };
/// Bytes that come out of compressed messages and count for one request of [`CONNECTION_RATE`]: 50 MB/s
/// of one connection. A few kilobytes on the wire can be megabytes that take milliseconds.
pub const INFLATED_BYTES_PER_REQUEST: usize = 512;
/// From accept to the first bytes of HTTP.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not sent their first bytes; beyond these, the oldest gives way.
pub const HANDSHAKES_PENDING_MAX: usize = 512;
/// After an error such as "too many open files", which would otherwise spin the accept loop.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Headers of one request; ours take a few hundred bytes. Bounds CONTINUATION floods too.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Largest HTTP/2 frame.
pub const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// What one request may have on its way to us.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// What one connection may.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What one stream may have on its way out, above the socket.
pub const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Rapid reset: requests that were reset before we looked at them.
pub const PENDING_ACCEPT_RESETS_MAX: usize = 20;
/// Made-you-reset: requests we had to reset because of the client's errors.
pub const LOCAL_ERROR_RESETS_MAX: usize = 256;
/// How long the one message of a request may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// Messages that do not fit into a window, of all requests together.
pub const LONG_MESSAGES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Answers of more than 64 KiB that clients have not read yet, of all requests together.
pub const LONG_ANSWERS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long a client may take to read an answer of more than 64 KiB; see [`ANSWER_BYTES_PER_S_MIN`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A second more for each of these.
pub const ANSWER_BYTES_PER_S_MIN: usize = 1024 * 1024;
/// Refusals of streams that a client has not read; its connection is cut beyond that. HTTP/2 remembers as
/// many streams that ended before their requests came, whose frames would else count as errors.
pub const REFUSALS_UNREAD_MAX: usize = 4096;
/// Ranges of more than one step, of all requests together.
pub const LONG_READS_MAX: usize = 16;
/// Connections of monitoring; beyond these, the oldest gives way.
pub const MONITORING_CONNECTIONS_MAX: usize = 64;
/// From accept to the end of a connection of monitoring: its request, then an answer that may wait for the
/// ring, then [`MONITORING_ANSWER_TIMEOUT`].
pub const MONITORING_AGE_MAX: Duration = Duration::from_secs(30);
/// How long a client of monitoring may take to read its answer.
pub const MONITORING_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Figures for monitoring may be so old.
pub const MONITORING_FIGURES_AGE: Duration = Duration::from_secs(1);
/// What HTTP/1.1 may buffer of a request's head.
pub const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Headers of an HTTP/1.1 request.
pub const HTTP1_HEADERS_MAX: usize = 64;
/// How much longer than its message a request may be as JSON: base64 is a third longer, names and
/// quotes come on top.
pub const GATEWAY_BODY_PER_MESSAGE: usize = 2;
/// Objects, lists and commas in one message as JSON: eight for each of the most elements of a
/// transaction, of which an operation has some five. As a message each takes some hundred bytes.
pub const JSON_ELEMENTS_MAX: usize = 8 * TXN_ELEMENTS_MAX;
/// What the gateway will turn into JSON at once.
pub const GATEWAY_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Ask a silent client whether it is there.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long it may take to answer that.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// When a connection is asked to end, so that a certificate is judged again.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_hours(12);
/// How long it may then take.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(60);

/// Clients take messages of up to 4 MiB unless they are told otherwise; 64 is for numbers and tags.
const _: () = {
    use satrap_regional_core::limits::{QUOTA_PREFIX_BYTES_MAX, QUOTAS_MAX};
    assert!((QUOTAS_MAX + 1) * (QUOTA_PREFIX_BYTES_MAX + 64) < 4 * 1024 * 1024);
};
const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(CONNECTION_STREAMS_BYTES_MAX / STREAM_BYTES < STREAMS_ANNOUNCED_MAX as usize);
const _: () = assert!(STREAM_BYTES <= GENERIC_STREAM_BYTES);
// The gateway's own connection is never cut for the refusals of its calls.
const _: () = assert!(GATEWAY_CALLS_MAX as usize <= REFUSALS_UNREAD_MAX);
const _: () =
    assert!(GATEWAY_CALLS_MAX as usize <= CONNECTION_STREAMS_BYTES_MAX / GENERIC_STREAM_BYTES / 2);
const _: () = assert!(FRAME_BYTES_MAX <= STREAM_WINDOW_BYTES);
const _: () = assert!(TXN_OPS_MAX <= *TXN_OPS.end() && *TXN_OPS.end() <= TXN_ELEMENTS_MAX);
const _: () = assert!(TXN_DEPTH_MAX <= satrap_regional_core::limits::TXN_DEPTH_MAX);
const _: () = assert!(REQUEST_BYTES_MAX <= *REQUEST_BYTES.end());
const _: () = assert!(*REQUEST_BYTES.end() <= satrap_regional_core::limits::VALUE_BYTES_MAX);
const _: () = assert!(*REQUEST_BYTES.end() < LONG_MESSAGES_BYTES_MAX / 16);
