//! Detects by its first bytes whether a connection is HTTP/2 or HTTP/1.1, and lets the server read these bytes again.
//!
//! ALPN does not suffice: plaintext connections have none, and some clients of the JSON gateway do not use it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The first bytes of HTTP/2; no method of HTTP/1.1 shares its first three bytes.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DECISIVE_BYTES: usize = 3;
const START_BYTES_MAX: usize = 1024;

/// The protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// gRPC.
    Http2,
    /// JSON, health checks.
    Http1,
}

/// A connection whose first bytes were read, and are read again first.
#[derive(Debug)]
pub(super) struct Replay<S> {
    start: Bytes,
    io: S,
}

impl<S: AsyncRead + Unpin> Replay<S> {
    /// Reads until the protocol is clear.
    pub(super) async fn read_start(mut io: S) -> io::Result<(Self, Protocol)> {
        let mut start = BytesMut::with_capacity(START_BYTES_MAX);
        while start.len() < DECISIVE_BYTES && PREFACE.starts_with(&start) {
            if io.read_buf(&mut start).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let decisive = &start[..start.len().min(DECISIVE_BYTES)];
        let protocol =
            if PREFACE.starts_with(decisive) { Protocol::Http2 } else { Protocol::Http1 };
        Ok((Self { start: start.freeze(), io }, protocol))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.start.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let len = self.start.len().min(buffer.remaining());
        buffer.put_slice(&self.start[..len]);
        self.start.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
