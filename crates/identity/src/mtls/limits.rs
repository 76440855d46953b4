//! Limits on the memory and connections that one peer, and all peers together, may take of a server.
//!
//! Each HTTP/2 limit is set explicitly. The gRPC library overwrites two safe defaults of the layer
//! below with "unlimited": concurrent streams, and streams reset because of a peer's errors.

use std::time::Duration;

use tonic::transport::Server;

/// The limits of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all peers together.
    pub connections_max: usize,
    /// Connections of one name, so that one compromised peer cannot take every slot.
    pub connections_per_identity_max: usize,
    /// Connections of all names that one CA can sign, except the listener's own (MTLS-6): another
    /// region, or all operators.
    pub connections_per_scope_max: usize,
    /// Connections of the names that the CA of this listener's own name can sign (MTLS-6).
    pub connections_own_scope_max: usize,
    /// Concurrent requests on one connection.
    pub streams_per_connection_max: u32,
    /// From the first byte to a proven name, and from there to the first byte of HTTP/2 (MTLS-3).
    pub handshake_timeout: Duration,
    /// From a request's headers to the response's; a stream may go on for longer.
    pub request_timeout: Duration,
    /// When a connection is asked to end (MTLS-4).
    pub connection_age_max: Duration,
    /// How long it then may take before it is cut.
    pub connection_grace: Duration,
}

impl Limits {
    /// For a listener that serves the edges of a region.
    pub const EDGES: Self = Self {
        connections_max: 20_000,
        connections_per_identity_max: 16,
        connections_per_scope_max: 125,
        connections_own_scope_max: 16_000,
        streams_per_connection_max: 128,
        handshake_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
        connection_age_max: Duration::from_mins(30),
        connection_grace: Duration::from_secs(60),
    };
    /// For a listener that serves its equals: Raft members, or validators. Snapshots take longer
    /// than other requests, and few peers exist.
    pub const PEERS: Self = Self {
        connections_max: 256,
        connections_per_scope_max: 0,
        connections_own_scope_max: 256,
        streams_per_connection_max: 32,
        request_timeout: Duration::from_secs(60),
        ..Self::EDGES
    };

    /// Whether the listener's own scope and `scopes` others fit when each takes all it may (MTLS-6).
    #[must_use]
    pub const fn keeps_room_for(&self, scopes: usize) -> bool {
        self.connections_own_scope_max + scopes * self.connections_per_scope_max
            <= self.connections_max
    }
}

/// When a client cuts a connection that its server did not end: later than every honest server does
/// (MTLS-4).
pub(super) const CHANNEL_AGE_MAX: Duration = Duration::from_mins(32);

/// Scopes besides its own that a listener keeps room for: 31 regions and the operators. Only more
/// than so many CAs together can take the connections of others.
pub const FOREIGN_SCOPES: usize = 32;

/// Connections that wait in the kernel. When it is full, a client tries again only after a second, so
/// it outlasts a burst of strangers.
pub(super) const BACKLOG_MAX: u32 = 4_096;
/// Connections that have not sent their first byte; the oldest gives way (MTLS-3). Each takes a socket
/// and less than 1 KiB.
pub const SILENT_PENDING_MAX: usize = 1_024;
/// Connections in a TLS handshake; the oldest gives way (MTLS-3). Each takes a socket and at most
/// [`HANDSHAKE_BYTES_MAX`].
pub const HANDSHAKES_PENDING_MAX: usize = 512;
/// The TLS library buffers at most 64 KiB of a handshake message; the rest is its state.
pub const HANDSHAKE_BYTES_MAX: usize = 96 * 1024;
/// From accept to the first byte. A client sends its ClientHello as soon as it is connected.
pub(super) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);
/// After an error such as "too many open files", which would otherwise spin the accept loop.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Room for one response in flight per stream, and several streams per connection.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
pub(super) const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Our headers take a few hundred bytes; this also bounds CONTINUATION floods.
pub(super) const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Rapid reset: streams that the peer opened and reset before we accepted them.
const PENDING_ACCEPT_RESET_STREAMS_MAX: usize = 20;
/// Streams that we had to reset because of the peer's errors; made-you-reset.
pub(super) const LOCAL_ERROR_RESET_STREAMS_MAX: usize = 256;

const _: () = assert!(
    CHANNEL_AGE_MAX.as_secs()
        > Limits::EDGES.connection_age_max.as_secs() + Limits::EDGES.connection_grace.as_secs()
);
const _: () = assert!(Limits::EDGES.keeps_room_for(FOREIGN_SCOPES));
const _: () = assert!(Limits::PEERS.keeps_room_for(FOREIGN_SCOPES));
/// The memory that strangers can make a listener hold.
const _: () = assert!(HANDSHAKES_PENDING_MAX * HANDSHAKE_BYTES_MAX <= 48 * 1024 * 1024);
const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(FRAME_BYTES_MAX <= STREAM_WINDOW_BYTES);

/// A gRPC server with every limit set. Serve it with a [`super::Listener`].
///
/// The grace of MTLS-4 is enforced by the listener's streams: this library's own setting for it replaces
/// the polite request to end by a cut.
#[must_use]
pub fn server_builder(limits: &Limits) -> Server {
    Server::builder()
        .accept_http1(false)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .http2_max_pending_accept_reset_streams(Some(PENDING_ACCEPT_RESET_STREAMS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_ERROR_RESET_STREAMS_MAX))
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(Some(false))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .timeout(limits.request_timeout)
        .max_connection_age(limits.connection_age_max)
}
