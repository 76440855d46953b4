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

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderValue, header};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{BindError, Pending, http1};
use crate::api::Api;
use crate::gateway::probes;
use crate::limits::{ACCEPT_PAUSE, MONITORING_CONNECTIONS_MAX};

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
        let mut connections = JoinSet::new();
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
            let (api, stopped) = (api.clone(), stopped.clone());
            connections.spawn(async move {
                let answer = move |request: http::Request<hyper::body::Incoming>| {
                    let api = api.clone();
                    async move {
                        let mut answer =
                            probes::answer(&api, request.method(), request.uri()).await;
                        let close = HeaderValue::from_static("close");
                        answer.headers_mut().insert(header::CONNECTION, close);
                        answer
                    }
                };
                tokio::select! {
                    () = http1::serve(tcp, stopped, answer) => {}
                    _ = gives_way => tracing::debug!("a connection of monitoring gave way"),
                }
            });
        }
    }
}
