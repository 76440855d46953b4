//! The monitoring listener: metrics and health probes, in plaintext on any address, as etcd's
//! `--listen-metrics-urls`.
//!
//! Monitoring systems have no client certificate of the ring and must not need one. They learn how many keys there
//! are, but no key and no value: the listener serves no calls.
//!
//! # Invariants
//!
//! - **LISTEN-6** A connection is for one request. When there are too many connections, the oldest is closed, so
//!   clients that do not send or do not read keep no other client out.
//! - **LISTEN-8** A connection ends within [`MONITORING_AGE_MAX`], and an answer is taken within
//!   [`MONITORING_ANSWER_TIMEOUT`].
//! - **LISTEN-9** Metrics are collected at most once per [`MONITORING_FIGURES_AGE`], however many clients ask,
//!   because clients of the ring wait while they are collected.

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

/// The bound monitoring listener.
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
        // Connections are dropped at shutdown: a client can ask for its figures again.
        let (_stopping, stopped) = watch::channel(false);
        let mut pending = Pending::new(MONITORING_CONNECTIONS_MAX);
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
                    tracing::warn!(
                        %error,
                        "the monitoring listener cannot accept connections; it retries after a pause"
                    );
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let evicted = pending.push();
            let served = serve(tcp, api.clone(), figures.clone(), stopped.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = served => {}
                    _ = evicted => tracing::debug!(
                        "closed a monitoring connection: there are too many, and it was the oldest"
                    ),
                    () = sleep(MONITORING_AGE_MAX) => {
                        tracing::debug!("closed a monitoring connection: its request and answer took too long");
                    }
                }
            });
        }
    }
}

/// Serves one connection, for one request.
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
        () = too_slow => {
            tracing::debug!("closed a monitoring connection: its client did not read its answer in time");
        }
    }
}

/// The text of `/metrics`, and when it was made (LISTEN-9).
#[derive(Debug, Default)]
struct Figures(Mutex<Option<(Instant, Bytes)>>);

impl Figures {
    fn text(&self, api: &Api) -> Bytes {
        // The value is only ever replaced as a whole, so it is valid even after a panic.
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
