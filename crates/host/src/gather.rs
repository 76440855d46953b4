//! Puts small writes together, so that frames of HTTP/2 that are ready together leave together.
//!
//! The HTTP/2 library writes a frame by itself as soon as its payload is worth a vectored write,
//! which is 256 bytes: a connection with eight answers of that size then pays for eight system calls.
//! Over a stream without vectored writes it gathers frames of less than 1 KiB itself. Larger ones it
//! hands over in two pieces; those are put together here.
//!
//! # Invariants
//!
//! - **G1** What is held leaves before what came after it, and at every flush.
//! - **G2** At most [`HELD_BYTES_MAX`] are held.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A write of more than this goes through at once; the library's own buffer is as large.
pub const HELD_BYTES_MAX: usize = 16 * 1024;

/// A stream whose small writes wait for what follows or for a flush.
#[derive(Debug)]
pub struct Gather<S> {
    io: S,
    held: BytesMut,
}

impl<S> Gather<S> {
    /// Nothing is held.
    pub fn new(io: S) -> Self {
        Self { io, held: BytesMut::new() }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes what is held and then `bytes`; how much of `bytes` was written.
    fn poll_through(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let slices = [IoSlice::new(&self.held), IoSlice::new(bytes)];
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?;
            let of_held = written.min(self.held.len());
            self.held.advance(of_held);
            if self.held.is_empty() && (written > of_held || bytes.is_empty()) {
                // Idle connections hold no memory.
                self.held = BytesMut::new();
                return Poll::Ready(Ok(written - of_held));
            }
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.held.is_empty() {
            true => Poll::Ready(Ok(())),
            false => self.poll_through(cx, &[]).map_ok(drop),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.held.is_empty() && bytes.len() <= HELD_BYTES_MAX {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_through(cx, bytes)
    }

    /// Says no, so that the library gathers small frames itself.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Takes a few bytes per write, and remembers how many writes there were.
    struct Narrow {
        taken: Vec<u8>,
        writes: usize,
        at_once: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let len = bytes.len().min(self.at_once);
            self.taken.extend_from_slice(&bytes[..len]);
            self.writes += 1;
            Poll::Ready(Ok(len))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn bytes_keep_their_order_however_little_is_taken_at_once() {
        for at_once in [1, 7, HELD_BYTES_MAX, usize::MAX] {
            let mut gather = Gather::new(Narrow { taken: Vec::new(), writes: 0, at_once });
            let mut expected = Vec::new();
            for (n, len) in [(1, 9), (2, 20_000), (3, 1), (4, 3), (5, HELD_BYTES_MAX)] {
                gather.write_all(&vec![n; len]).await.unwrap();
                expected.extend(vec![n; len]);
            }
            gather.flush().await.unwrap();
            assert_eq!(gather.io.taken, expected, "{at_once} at once");
        }
    }

    #[tokio::test]
    async fn small_writes_wait_for_a_flush_and_leave_nothing_behind() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut gather = Gather::new(near);
        gather.write_all(b"held").await.unwrap();
        assert_eq!(&*gather.held, b"held");
        gather.flush().await.unwrap();
        assert_eq!(gather.held.capacity(), 0);
        let mut read = [0; 4];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"held");
        gather.write_all(b"last").await.unwrap();
        gather.shutdown().await.unwrap();
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"last");
    }
}
