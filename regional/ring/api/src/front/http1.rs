//! Serves one HTTP/1.1 connection, for the JSON gateway, health probes and metrics. Age and time for headers are limited
//! as on HTTP/2.
//!
//! # Invariants
//!
//! - **LISTEN-7** A connection ends if its client reads nothing for [`ANSWER_TIMEOUT`] while the member has
//!   something to write: HTTP/1.1 has no pings, and unread answers hold memory.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use crate::gateway::GatewayBody;
use crate::limits::{
    ANSWER_TIMEOUT, CONNECTION_AGE_MAX, CONNECTION_GRACE, HANDSHAKE_TIMEOUT,
    HTTP1_BUFFER_BYTES_MAX, HTTP1_HEADERS_MAX,
};

/// Serves one connection to its end; `stopped` becomes true when the process stops.
pub(super) async fn serve<T, A>(
    io: T,
    mut stopped: watch::Receiver<bool>,
    answer: impl Fn(Request<Incoming>) -> A,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    A: Future<Output = Response<GatewayBody>>,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX)
        .max_headers(HTTP1_HEADERS_MAX);
    let io = TokioIo::new(Reader { io, late: None });
    let mut connection = pin!(builder.serve_connection(io, service));
    let asked = async {
        tokio::select! {
            () = sleep(CONNECTION_AGE_MAX) => {}
            // An error means that the sender is gone, which also means to stop.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = asked => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = sleep(CONNECTION_GRACE) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}

/// A connection whose client must read (LISTEN-7).
struct Reader<T> {
    io: T,
    /// The deadline of a write that waits.
    late: Option<Pin<Box<Sleep>>>,
}

impl<T> Reader<T> {
    fn poll_late<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(ANSWER_TIMEOUT)));
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Reader<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Reader<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.poll_late(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.poll_late(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.poll_late(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
