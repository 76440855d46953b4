//! Write coalescing: frames of HTTP/2 that are ready together leave with one system call.
//!
//! The HTTP/2 library writes a frame by itself as soon as its payload is worth a vectored write,
//! which is 256 bytes: a connection with eight answers of that size then pays for eight system calls.
//! Over a stream without vectored writes it coalesces frames of less than 1 KiB itself. Larger ones it
//! hands over in two pieces; those are put together here.
//!
//! A flush, too, waits for one turn of the runtime. The library flushes the head of a request before the
//! task that sends its body has run, and acknowledges a ping before the request that came with it is
//! looked at. One turn later, both leave with one system call, and in one record of TLS. The library polls
//! a connection several times in one turn, so the runtime says when it is over, not the next poll.
//!
//! # Invariants
//!
//! - **COALESCE-1** Bytes leave in the order in which they came, and one turn after a flush at the latest.
//! - **COALESCE-2** At most [`HELD_BYTES_MAX`] are held.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::{Buf as _, BytesMut};
use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::yield_now,
};

/// A write of more than this goes through at once; the library's own buffer is as large.
pub const HELD_BYTES_MAX: usize = 16 * 1024;

/// A stream whose small writes wait for what follows or for a flush.
#[derive(Debug)]
pub struct Coalesce<S> {
    io: S,
    held: BytesMut,
    /// A flush waits for its turn.
    flushing: bool,
    turn: Arc<Turn>,
}

/// The end of the current turn of the runtime.
#[derive(Debug, Default)]
struct Turn {
    is_over: AtomicBool,
    /// The task that waits for it.
    task: AtomicWaker,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<S> Coalesce<S> {
    /// Nothing is held.
    pub fn new(io: S) -> Self {
        Self { io, held: BytesMut::new(), flushing: false, turn: Arc::default() }
    }

    /// Whether a turn of the runtime has passed since the flush began.
    fn turn_is_over(&mut self, cx: &Context<'_>) -> bool {
        self.turn.task.register(cx.waker());
        if !self.flushing {
            self.flushing = true;
            // The runtime keeps the waker of a task that yields until it has run all others that are ready.
            let waker = Waker::from(self.turn.clone());
            let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        }
        self.turn.is_over.load(Ordering::Acquire)
    }
}

impl<S: AsyncWrite + Unpin> Coalesce<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesce<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.held.len() + bytes.len() <= HELD_BYTES_MAX {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_through(cx, bytes)
    }

    /// Says no, so that the library coalesces small frames itself.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() && !self.turn_is_over(cx) {
            return Poll::Pending;
        }
        ready!(self.poll_empty(cx))?;
        self.flushing = false;
        self.turn.is_over.store(false, Ordering::Release);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesce<S> {
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
    use std::{cell::RefCell, future::poll_fn, rc::Rc};

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
            let mut coalesce = Coalesce::new(Narrow { taken: Vec::new(), writes: 0, at_once });
            let mut expected = Vec::new();
            for (n, len) in [(1, 9), (2, 20_000), (3, 1), (4, 3), (5, HELD_BYTES_MAX)] {
                coalesce.write_all(&vec![n; len]).await.unwrap();
                expected.extend(vec![n; len]);
            }
            coalesce.flush().await.unwrap();
            assert_eq!(coalesce.io.taken, expected, "{at_once} at once");
        }
    }

    #[tokio::test]
    async fn a_flush_takes_along_what_a_task_that_can_run_writes() {
        let coalesce = Coalesce::new(Narrow { taken: Vec::new(), writes: 0, at_once: usize::MAX });
        let coalesce = Rc::new(RefCell::new(coalesce));
        let head = async {
            let written =
                poll_fn(|cx| Pin::new(&mut *coalesce.borrow_mut()).poll_write(cx, b"head"));
            written.await.unwrap();
            poll_fn(|cx| Pin::new(&mut *coalesce.borrow_mut()).poll_flush(cx)).await.unwrap();
        };
        let body = async {
            let written =
                poll_fn(|cx| Pin::new(&mut *coalesce.borrow_mut()).poll_write(cx, b"body"));
            written.await.unwrap();
        };
        tokio::join!(head, body);
        let coalesce = coalesce.borrow();
        assert_eq!((coalesce.io.writes, &coalesce.io.taken[..]), (1, &b"headbody"[..]));
    }

    /// As the library polls its connection again in the same turn.
    #[tokio::test]
    async fn a_flush_that_is_polled_twice_in_one_turn_still_waits() {
        let io = Narrow { taken: Vec::new(), writes: 0, at_once: usize::MAX };
        let mut coalesce = Coalesce::new(io);
        coalesce.write_all(b"pong").await.unwrap();
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            let first = Pin::new(&mut coalesce).poll_flush(cx);
            let second = Pin::new(&mut coalesce).poll_flush(cx);
            assert_eq!((first.is_ready(), second.is_ready()), (polls == 2, polls == 2));
            second
        })
        .await
        .unwrap();
        assert_eq!((polls, &coalesce.io.taken[..]), (2, &b"pong"[..]));
    }

    #[tokio::test]
    async fn small_writes_wait_for_a_flush_and_leave_nothing_behind() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut coalesce = Coalesce::new(near);
        coalesce.write_all(b"held").await.unwrap();
        assert_eq!(&*coalesce.held, b"held");
        coalesce.flush().await.unwrap();
        assert_eq!(coalesce.held.capacity(), 0);
        let mut read = [0; 4];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"held");
        coalesce.write_all(b"last").await.unwrap();
        coalesce.shutdown().await.unwrap();
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"last");
    }
}
