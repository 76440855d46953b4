//! The connection on which the JSON gateway is a client of its own process.
//!
//! A request that came as JSON is then treated like any other: the same paths, checks and limits.
//! It carries no certificate, so nobody can borrow this member's.

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::DuplexStream;

use crate::limits::{FRAME_BYTES_MAX, GATEWAY_CALLS_MAX, HEADER_LIST_BYTES_MAX};

/// What may wait between the two ends.
const PIPE_BYTES: usize = 256 * 1024;
/// What one answer may have on its way.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// So that clients who do not read their answers hold up nobody but themselves.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * GATEWAY_CALLS_MAX;

/// The end to serve, the gateway's handle to the other, and what must run for that to work.
pub(super) async fn connect()
-> Result<(DuplexStream, SendRequest<Bytes>, impl Future<Output = ()> + Send), h2::Error> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .enable_push(false);
    let (link, connection) = builder.handshake(theirs).await?;
    let driver = async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "the JSON gateway lost its connection");
        }
    };
    Ok((ours, link, driver))
}
