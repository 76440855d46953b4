//! A stream that ends at an age, whatever its peer does (MTLS-4).
//!
//! Both ends of a connection count. The peer whose CA is not trusted any more, or whose certificate
//! has expired, may be the server, and a hostile server never asks its clients to end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A stream of which nothing is read beyond an age.
pub(super) struct Aging<S> {
    io: S,
    end: Pin<Box<Sleep>>,
}

impl<S> Aging<S> {
    /// `io`, which ends when `age` has passed from now on.
    pub(super) fn new(io: S, age: Duration) -> Self {
        Self { io, end: Box::pin(sleep(age)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Aging<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Aging<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
