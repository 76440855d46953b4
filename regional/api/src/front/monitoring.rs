//! The listener for monitoring: figures and health, in plaintext and from everywhere, as behind etcd's
//! `--listen-metrics-urls`.
//!
//! Monitoring has no certificate of a client of the ring, and must not need one. It hears how many keys
//! there are, and never what is in them: no call is served here.
//!
//! # Invariants
//!
//! - **L6** A connection is for one request. Beyond their number the oldest connection gives way, so
//!   clients that do not read, or do not ask, keep no other client out.
//! - **L8** A connection ends within [`MONITORING_AGE_MAX`], and an answer is taken within
//!   [`MONITORING_ANSWER_TIMEOUT`].
//! - **L9** Figures are put together at most once in [`MONITORING_FIGURES_AGE`], however many ask: clients
//!   of the ring wait meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{BindError, Pending, http1};
use crate::api::Api;
use crate::gateway::probes;
use crate::limits::{
    ACCEPT_PAUSE, MONITORING_AGE_MAX, MONITORING_ANSWER_TIMEOUT, MONITORING_CONNECTIONS_MAX,
    MONITORING_FIGURES_AGE,
};

/// A bound listener.
#[derive(Debug)]
pub struct Monitoring(TcpListener);

impl Monitoring {
    /// Binds `address`.
    ///
    /// # Errors
    ///
    /// [`BindError::Io`].
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        TcpListener::bind(address).await.map(Self).map_err(|error| BindError::Io(address, error))
    }

    /// The bound address; tells the port after binding port 0.
    ///
    /// # Errors
    ///
    /// From the operating system.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until `shutdown` completes.
    pub async fn serve(self, api: Arc<Api>, shutdown: impl Future<Output = ()>) {
        // Dropped with the connections when this ends: an answer takes no time.
        let (_stopping, stopped) = watch::channel(false);
        let mut pending = Pending::of(MONITORING_CONNECTIONS_MAX);
        let (mut connections, figures) = (JoinSet::new(), Arc::new(Figures::default()));
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => return,
                accepted = self.0.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections of monitoring; pausing");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let gives_way = pending.enter();
            let served = serve(tcp, api.clone(), figures.clone(), stopped.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = served => {}
                    _ = gives_way => tracing::debug!("a connection of monitoring gave way"),
                    () = sleep(MONITORING_AGE_MAX) => {
                        tracing::debug!("cut a connection of monitoring: too old");
                    }
                }
            });
        }
    }
}

/// One connection, for one request.
async fn serve(
    tcp: TcpStream,
    api: Arc<Api>,
    figures: Arc<Figures>,
    stopped: watch::Receiver<bool>,
) {
    let answered = Arc::new(Notify::new());
    let too_slow = {
        let answered = answered.clone();
        async move {
            answered.notified().await;
            sleep(MONITORING_ANSWER_TIMEOUT).await;
        }
    };
    let answer = move |request: Request<Incoming>| {
        let (api, figures, answered) = (api.clone(), figures.clone(), answered.clone());
        async move {
            let text = || figures.text(&api);
            let mut answer = probes::answer(&api, request.method(), request.uri(), text).await;
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
            answered.notify_one();
            answer
        }
    };
    tokio::select! {
        () = http1::serve(tcp, stopped, answer) => {}
        () = too_slow => tracing::debug!("cut a connection of monitoring: it took no answer"),
    }
}

/// The text of `/metrics`, and when it was made (L9).
#[derive(Debug, Default)]
struct Figures(Mutex<Option<(Instant, Bytes)>>);

impl Figures {
    fn text(&self, api: &Api) -> Bytes {
        // A value is replaced as a whole, so it is whole even after a panic.
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((at, text)) if at.elapsed() < MONITORING_FIGURES_AGE => text.clone(),
            _ => {
                let text = probes::metrics(api);
                *made = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}
