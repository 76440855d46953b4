//! One HTTP/1.1 connection: JSON, health checks, metrics. Its limits are those of HTTP/2 where they
//! have a meaning here.

use std::convert::Infallible;
use std::pin::pin;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use super::connection::Serving;
use crate::limits::{
    CONNECTION_AGE_MAX, CONNECTION_GRACE, HANDSHAKE_TIMEOUT, HTTP1_BUFFER_BYTES_MAX,
    HTTP1_HEADERS_MAX,
};

/// Serves one connection to its end.
pub(super) async fn serve<T>(io: T, serving: Serving)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Serving { gateway, mut stopped, .. } = serving;
    let service = service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(gateway.handle(request).await) }
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
