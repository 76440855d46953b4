//! The in-process HTTP/2 connection by which the JSON gateway calls the gRPC services of its own member.
//!
//! A JSON request so passes the same paths, checks and limits as any other. The connection has no client certificate,
//! so no JSON client acts in the name of this member.
//!
//! # Invariants
//!
//! - **LISTEN-10** No client of the gateway can end the connection that all of them share. If it ends nevertheless,
//!   calls in flight fail as unavailable, and later ones get another connection.

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join;
use futures::stream::FuturesUnordered;
use h2::client::SendRequest;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::grpc::{Gone, PREFIX_BYTES};
use crate::limits::{
    FRAME_BYTES_MAX, GATEWAY_ANSWER_WINDOW_BYTES, GATEWAY_CALLS_MAX, GATEWAY_LINK_AGE,
    HEADER_LIST_BYTES_MAX, SMALL_FRAME_BYTES,
};

/// The capacity of the pipe between the two ends, per direction.
const PIPE_BYTES: usize = 256 * 1024;

/// The budget of `h2` for small frames that allows every frame that fits into windows of this size. Each frame carries
/// a message or a part of a long one, so it has at least the bytes of a prefix, except the last one of a window.
pub(crate) fn small_frames_budget(window_bytes: u32) -> usize {
    let frames_max = window_bytes as usize / PREFIX_BYTES + 1;
    SMALL_FRAME_BYTES * frames_max * GATEWAY_CALLS_MAX as usize
}

/// The gateway's handle to the connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Link(watch::Receiver<Option<SendRequest<Bytes>>>);

impl Link {
    /// Waits for a connection that takes one more call.
    ///
    /// # Errors
    ///
    /// [`Gone`] if the process stops.
    pub(crate) async fn ready(&self) -> Result<SendRequest<Bytes>, Gone> {
        let mut links = self.0.clone();
        loop {
            let link = links.wait_for(Option::is_some).await.map_err(|_| Gone)?.clone();
            if let Some(link) = link
                && let Ok(ready) = link.ready().await
            {
                return Ok(ready);
            }
            links.changed().await.map_err(|_| Gone)?;
        }
    }
}

/// Connects a [`Link`], and connects it again when the connection ends.
#[derive(Debug)]
pub(crate) struct Reconnector(watch::Sender<Option<SendRequest<Bytes>>>);

/// A link that is connected once its reconnector runs.
pub(crate) fn link() -> (Link, Reconnector) {
    let (connected, link) = watch::channel(None);
    (Link(link), Reconnector(connected))
}

impl Reconnector {
    /// Connects the link to `serve`, and again when the connection has ended or is [`GATEWAY_LINK_AGE`] old. Returns
    /// once `stopped` is true and all connections have ended.
    pub(crate) async fn run<S: Future<Output = ()>>(
        self,
        serve: impl Fn(DuplexStream) -> S,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut connections = FuturesUnordered::new();
        for newest in 0_u64.. {
            let (ours, link, driver) = match connect().await {
                Ok(connected) => connected,
                Err(error) => {
                    return tracing::error!(%error, "BUG: the HTTP/2 handshake over an in-process pipe failed");
                }
            };
            let served = serve(ours);
            connections.push(async move {
                join(served, driver).await;
                newest
            });
            // The earlier connection ends with the last of its calls.
            self.0.send_replace(Some(link));
            let old = sleep(GATEWAY_LINK_AGE);
            tokio::select! {
                () = ended(&mut connections, newest) => {}
                () = old => {}
                // An error means that the client listener is gone, which is the same.
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
        }
        // A call that begins now fails, instead of waiting for a connection.
        self.0.send_replace(None);
        drop(self.0);
        while connections.next().await.is_some() {}
    }
}

/// Drives all connections until the one with this number has ended.
async fn ended(connections: &mut FuturesUnordered<impl Future<Output = u64>>, newest: u64) {
    while let Some(number) = connections.next().await {
        if number == newest {
            return;
        }
    }
}

/// Makes a connection: the end to serve, the gateway's handle to the other end, and the future that drives it.
async fn connect()
-> Result<(DuplexStream, SendRequest<Bytes>, impl Future<Output = ()> + Send), h2::Error> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(GATEWAY_ANSWER_WINDOW_BYTES)
        .initial_connection_window_size(GATEWAY_ANSWER_WINDOW_BYTES * GATEWAY_CALLS_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .data_frame_budget(small_frames_budget(GATEWAY_ANSWER_WINDOW_BYTES))
        // Answers to cancelled calls still arrive for a while. Each would count as an error.
        .max_local_error_reset_streams(None)
        .enable_push(false);
    let (link, connection) = builder.handshake(theirs).await?;
    let driver = async move {
        if let Err(error) = connection.await {
            tracing::warn!(
                %error,
                "the JSON gateway lost the connection to its services; its calls fail, and it connects again"
            );
        }
    };
    Ok((ours, link, driver))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use http::{Request, Response};
    use tokio::sync::oneshot;
    use tokio::time::{Duration, timeout};

    use super::*;

    /// Makes one call and returns its outcome.
    async fn call(link: &Link) -> Result<(), h2::Error> {
        let mut link = timeout(Duration::from_secs(30), link.ready()).await.unwrap().unwrap();
        let request = Request::get("http://test/").body(()).unwrap();
        let (response, _) = link.send_request(request, true)?;
        response.await.map(drop)
    }

    /// Takes one call and breaks off.
    async fn break_off(io: DuplexStream) {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let call: Result<(Request<_>, h2::server::SendResponse<Bytes>), _> =
            connection.accept().await.unwrap();
        drop((call, connection));
    }

    /// Answers calls.
    async fn answer(io: DuplexStream) {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::new(), true).unwrap();
        }
    }

    /// LISTEN-10. Regression: the end of this connection ended the listener, and with it all clients of the member.
    #[tokio::test]
    async fn a_link_that_broke_is_connected_again() {
        let (link, reconnector) = link();
        let (stop, stopped) = watch::channel(false);
        let first = Cell::new(true);
        let serve = |io| {
            let first = first.replace(false);
            async move { if first { break_off(io).await } else { answer(io).await } }
        };
        let calls = async {
            call(&link).await.expect_err("the call was under way");
            for _ in 0..2 {
                call(&link).await.expect("another connection takes it");
            }
            stop.send_replace(true);
        };
        let all = async { tokio::join!(reconnector.run(serve, stopped), calls) };
        timeout(Duration::from_secs(30), all).await.expect("it stops");
        assert_eq!(link.ready().await.unwrap_err(), Gone);
    }

    /// A connection is replaced before it has used all stream ids of HTTP/2, and long calls on it must not end.
    #[tokio::test(start_paused = true)]
    async fn an_old_link_is_replaced_and_its_calls_go_on() {
        let (link, reconnector) = link();
        let (_stop, stopped) = watch::channel(false);
        let (answer_first, wanted) = oneshot::channel::<()>();
        let (connections, wanted) = (Cell::new(0), Cell::new(Some(wanted)));
        let serve = |io| {
            connections.set(connections.get() + 1);
            let wanted = wanted.take();
            async move {
                if let Some(wanted) = wanted {
                    let mut connection = h2::server::handshake(io).await.unwrap();
                    let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                    tokio::select! {
                        _ = wanted => {}
                        _ = connection.accept() => panic!("it has one call"),
                    }
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    body.send_data(Bytes::new(), true).unwrap();
                    assert!(connection.accept().await.is_none(), "it ends with its call");
                } else {
                    answer(io).await;
                }
            }
        };
        let calls = async {
            let long = call(&link);
            let later = async {
                sleep(GATEWAY_LINK_AGE + Duration::from_secs(1)).await;
                call(&link).await.expect("a new connection takes it");
                assert_eq!(connections.get(), 2);
                answer_first.send(()).expect("the first connection is there");
            };
            let (long, ()) = tokio::join!(long, later);
            long.expect("an answer to the call on the old connection");
        };
        tokio::select! {
            () = reconnector.run(serve, stopped) => panic!("it goes on"),
            () = calls => {}
        }
    }
}
