//! The connection on which the JSON gateway is a client of its own process.
//!
//! A request that came as JSON is then treated like any other: the same paths, checks and limits.
//! It carries no certificate, so no client can borrow this member's.
//!
//! # Invariants
//!
//! - **L10** No client of the gateway can end the connection that all share. If it ends nevertheless,
//!   calls under way fail as unavailable, and the next ones get another connection.

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

/// What may wait between the two ends.
const PIPE_BYTES: usize = 256 * 1024;

/// For all frames that windows of so many bytes let through: each carries a message or a part of a long
/// one, so it has the bytes of a prefix, but for one at the end of a window.
pub(super) fn small_frames_budget(window_bytes: u32) -> usize {
    let frames_max = window_bytes as usize / PREFIX_BYTES + 1;
    SMALL_FRAME_BYTES * frames_max * GATEWAY_CALLS_MAX as usize
}

/// How the gateway calls services. Clones lead to the same ones.
#[derive(Clone, Debug)]
pub struct Link(watch::Receiver<Option<SendRequest<Bytes>>>);

impl Link {
    /// A connection that takes one more call, as soon as there is one.
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

/// Keeps a [`Link`] connected.
#[derive(Debug)]
pub(super) struct Keeper(watch::Sender<Option<SendRequest<Bytes>>>);

/// A link that is connected once its keeper runs.
pub(super) fn link() -> (Link, Keeper) {
    let (keeper, link) = watch::channel(None);
    (Link(link), Keeper(keeper))
}

impl Keeper {
    /// Connects the link to what `serve` serves, and anew when a connection has ended or is old. Returns
    /// once `stopped` is true and its connections have ended.
    pub(super) async fn run<S: Future<Output = ()>>(
        self,
        serve: impl Fn(DuplexStream) -> S,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut connections = FuturesUnordered::new();
        for newest in 0_u64.. {
            let (ours, link, carrier) = match connect().await {
                Ok(connected) => connected,
                Err(error) => return tracing::error!(%error, "BUG: a pipe does not carry HTTP/2"),
            };
            let served = serve(ours);
            connections.push(async move {
                join(served, carrier).await;
                newest
            });
            // An earlier one ends with the last of its calls.
            self.0.send_replace(Some(link));
            let old = sleep(GATEWAY_LINK_AGE);
            tokio::select! {
                () = ended(&mut connections, newest) => {}
                () = old => {}
                // An error means that the front is gone, which is the same.
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
        }
        // A call that begins now fails, instead of waiting for a connection.
        self.0.send_replace(None);
        drop(self.0);
        while connections.next().await.is_some() {}
    }
}

/// Carries connections until this one has ended.
async fn ended(connections: &mut FuturesUnordered<impl Future<Output = u64>>, newest: u64) {
    while let Some(number) = connections.next().await {
        if number == newest {
            return;
        }
    }
}

/// The end to serve, the gateway's handle to the other, and what must run for that to work.
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
        // Answers to calls that were given up arrive for a while, and each counts as an error otherwise.
        .max_local_error_reset_streams(None)
        .enable_push(false);
    let (link, connection) = builder.handshake(theirs).await?;
    let carrier = async move {
        if let Err(error) = connection.await {
            tracing::warn!(
                %error,
                "the JSON gateway lost the connection to its services; its calls fail, and it connects again"
            );
        }
    };
    Ok((ours, link, carrier))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use http::{Request, Response};
    use tokio::sync::oneshot;
    use tokio::time::{Duration, timeout};

    use super::*;

    /// Calls and says what became of it.
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

    /// L10: it ended the listener, and with it all clients of the member.
    #[tokio::test]
    async fn a_link_that_broke_is_connected_again() {
        let (link, keeper) = link();
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
        let all = async { tokio::join!(keeper.run(serve, stopped), calls) };
        timeout(Duration::from_secs(30), all).await.expect("it stops");
        assert_eq!(link.ready().await.unwrap_err(), Gone);
    }

    /// The numbers of HTTP/2 would be used up at last, and calls that go on for long must not end by that.
    #[tokio::test(start_paused = true)]
    async fn an_old_link_is_replaced_and_its_calls_go_on() {
        let (link, keeper) = link();
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
            () = keeper.run(serve, stopped) => panic!("it goes on"),
            () = calls => {}
        }
    }
}
