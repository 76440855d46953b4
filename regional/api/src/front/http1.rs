//! One HTTP/1.1 connection: JSON, health checks, metrics. Its limits are those of HTTP/2 where they
//! have a meaning here.

use std::convert::Infallible;
use std::pin::pin;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::gateway::GatewayBody;
use crate::limits::{
    CONNECTION_AGE_MAX, CONNECTION_GRACE, HANDSHAKE_TIMEOUT, HTTP1_BUFFER_BYTES_MAX,
    HTTP1_HEADERS_MAX,
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
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let asked = async {
        tokio::select! {
            () = sleep(CONNECTION_AGE_MAX) => {}
            // An error means that whoever could stop us is gone, which is the same.
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
        tracing::debug!(%error, "a connection broke");
    }
}
