//! The client listener: decides who may connect, for how long, and how much one connection may hold.
//!
//! ```text
//!   accept ─▶ TLS, first bytes (time and number limited) ─┬─▶ HTTP/2   ─▶ calls by path
//!                                                         └─▶ HTTP/1.1 ─▶ JSON gateway, probes, metrics
//! ```
//!
//! Raft peers have a listener and a thread of their own, so whatever happens here cannot cause an
//! election.
//!
//! # Invariants
//!
//! - **LISTEN-1** Without TLS, the listener serves calls on loopback addresses only. The [`Monitoring`] listener is
//!   plaintext on any address and serves no calls.
//! - **LISTEN-2** The accept loop never ends, and a client that stalls before its first request holds one of a
//!   bounded number of slots, for a bounded time.
//! - **LISTEN-3** Every client connection ends: after `CONNECTION_AGE_MAX` the client is asked to leave, and after
//!   `CONNECTION_GRACE` the connection is closed.
//!
//! # Deliberately absent
//!
//! Limits per client address or certificate name: many clients share one address behind NAT, and all clients of
//! one cluster share one certificate. Each connection has limits instead, and so has the number of connections.

mod body;
mod connection;
mod dispatch;
mod http1;
mod metered;
mod monitoring;
mod replay;
mod serving;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;

use crate::api::Api;
use crate::gateway::{self, Gateway};
use crate::grpc::{ConnectionRate, Streams};
use crate::limits::{
    ACCEPT_PAUSE, CONNECTION_GRACE, CONNECTIONS_MAX, GENERIC_STREAM_BYTES, HANDSHAKE_TIMEOUT,
    HANDSHAKES_PENDING_MAX,
};
use crate::peer::Peer;
use crate::watch::watches;
use connection::Lifetime;
pub use monitoring::Monitoring;
use replay::{Protocol, Replay};
use serving::Serving;

/// How a connection is protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// By TLS; the config decides whether clients need a certificate.
    Tls(Arc<rustls::ServerConfig>),
    /// Not protected; loopback addresses only (LISTEN-1).
    Plaintext,
}

/// The protocols that a TLS config for [`Security::Tls`] must offer.
pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Without TLS, this member listens on loopback addresses only (LISTEN-1).
    #[error("{0} can be reached from other hosts, so it needs TLS")]
    NeedsTls(SocketAddr),
    /// The operating system refused to bind the address, for example because it is in use.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// Why the client listener ended before it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client listener stopped, because {0} ended unexpectedly; this process exits, and the log above \
     shows the cause"
)]
pub struct Ended(&'static str);

/// The bound client listener.
#[derive(Debug)]
pub struct ClientListener {
    tcp: TcpListener,
    security: Security,
}

impl ClientListener {
    /// Binds `address`.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub async fn bind(address: SocketAddr, security: Security) -> Result<Self, BindError> {
        if matches!(security, Security::Plaintext) && !address.ip().is_loopback() {
            return Err(BindError::NeedsTls(address));
        }
        let tcp = TcpListener::bind(address).await.map_err(|e| BindError::Io(address, e))?;
        Ok(Self { tcp, security })
    }

    /// The bound address; tells the port after binding port 0.
    ///
    /// # Errors
    ///
    /// From the operating system.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `shutdown` completes, then waits up to [`CONNECTION_GRACE`] for open connections to end.
    ///
    /// # Errors
    ///
    /// [`Ended`] if a critical task ended. [`Api::client_listener_ended`] is true from then on.
    pub async fn serve(
        self,
        api: Arc<Api>,
        routes: Routes,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Ended> {
        let (stopping, stopped) = watch::channel(false);
        let (link, reconnector) = gateway::link::link();
        let gateway = Gateway::new(api.clone(), link);
        let (watches, watching) = watches(api.clone());
        let mut stop_watching = stopped.clone();
        // An error means that the sender is gone, which also means to stop.
        let stop = async move { _ = stop_watching.wait_for(|stopped| *stopped).await };
        let (streams, peer) = (Streams::new(api.stream_bytes), Arc::default());
        let rate = ConnectionRate::new(api.connection_rate);
        let answers = api.backend.forward_answers();
        let stopped_link = stopped.clone();
        let serving =
            Serving { api: api.clone(), routes, gateway, watches, streams, rate, peer, stopped };
        let gateway_serving = serving.clone();
        let serve_gateway =
            move |io| connection::serve(io, gateway_serving.clone(), Lifetime::Process);
        let (mut tasks, mut critical) = (JoinSet::new(), CriticalTasks::default());
        critical.spawn("the answer forwarder", answers);
        critical.spawn("the watch loop", watching.run(stop));
        critical
            .spawn("the JSON gateway's connection", reconnector.run(serve_gateway, stopped_link));
        let ended = tokio::select! {
            () = self.accept(&serving, &mut tasks) => Ok(()),
            () = shutdown => Ok(()),
            ended = critical.first_end() => Err(ended),
        };
        if let Err(ended) = ended {
            api.end_client_listener();
            tracing::error!("{ended}");
        }
        stopping.send_replace(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if timeout(CONNECTION_GRACE, drained).await.is_err() {
            tracing::warn!(
                connections = tasks.len(),
                "closing client connections that are still open after the grace period"
            );
        }
        ended
    }

    /// LISTEN-2: never completes.
    async fn accept(&self, serving: &Serving, tasks: &mut JoinSet<()>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut pending = Pending::new(HANDSHAKES_PENDING_MAX);
        loop {
            let tcp = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                // Reap finished tasks here, or the set would grow without bound.
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            let tcp = match tcp {
                Ok((tcp, _)) => tcp,
                // The client gave up while it waited in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the client listener cannot accept connections; it retries after a pause"
                    );
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = connections.clone().try_acquire_owned() else {
                tracing::debug!("refused a connection: the limit of connections is reached");
                continue;
            };
            let (security, serving) = (self.security.clone(), serving.clone());
            let evicted = pending.push();
            tasks.spawn(async move {
                let client = tokio::select! {
                    client = timeout(HANDSHAKE_TIMEOUT, handshake(tcp, security)) => client,
                    _ = evicted => {
                        return tracing::debug!(
                            "closed a connection in its handshake: too many handshakes are pending, and it \
                             was the oldest"
                        );
                    }
                };
                match client {
                    Ok(Ok(client)) => client.serve(serving).await,
                    // At debug, because any unauthenticated client can cause it at will.
                    Ok(Err(error)) => tracing::debug!(%error, "closed a connection: its handshake failed"),
                    Err(_elapsed) => tracing::debug!("closed a connection: its handshake timed out"),
                }
                drop(slot);
            });
        }
    }
}

/// Tasks without which the listener cannot serve.
#[derive(Default)]
struct CriticalTasks {
    tasks: JoinSet<()>,
    names: Vec<(task::Id, &'static str)>,
}

impl CriticalTasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.push((self.tasks.spawn(task).id(), name));
    }

    /// Completes when the first of them has returned or panicked.
    async fn first_end(&mut self) -> Ended {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(panic)) => panic.id(),
            None => std::future::pending().await,
        };
        let name = self.names.iter().find(|(known, _)| *known == id).map(|(_, name)| *name);
        Ended(name.expect("BUG: a task was spawned without a name"))
    }
}

/// A bounded queue of connections in their handshake, oldest first. An honest client stays in it for a round trip
/// or two. So when the queue is full, the oldest connection is evicted: it is the one that stalls (LISTEN-2).
struct Pending {
    max: usize,
    connections: VecDeque<oneshot::Sender<Infallible>>,
}

impl Pending {
    fn new(max: usize) -> Self {
        Self { max, connections: VecDeque::new() }
    }

    /// Adds a connection, and evicts the oldest if the queue is full. The receiver completes on eviction.
    fn push(&mut self) -> oneshot::Receiver<Infallible> {
        if self.connections.len() >= self.max {
            self.connections.retain(|pending| !pending.is_closed());
        }
        if self.connections.len() >= self.max {
            self.connections.pop_front();
        }
        let (keep, evicted) = oneshot::channel();
        self.connections.push_back(keep);
        evicted
    }
}

/// A connection whose first bytes have arrived.
enum Client {
    Plain(Replay<TcpStream>, Protocol),
    Tls(Box<Replay<tokio_rustls::server::TlsStream<TcpStream>>>, Protocol, Peer),
}

impl Client {
    async fn serve(self, serving: Serving) {
        match self {
            Self::Plain(io, Protocol::Http2) => {
                connection::serve(io, serving, Lifetime::Bounded).await
            }
            Self::Plain(io, Protocol::Http1) => serve_http1(io, serving).await,
            Self::Tls(io, protocol, peer) => {
                let serving = Serving { peer: Arc::new(peer), ..serving };
                match protocol {
                    Protocol::Http2 => connection::serve(*io, serving, Lifetime::Bounded).await,
                    Protocol::Http1 => serve_http1(*io, serving).await,
                }
            }
        }
    }
}

/// Serves an HTTP/1.1 connection: the JSON gateway, health probes and metrics.
async fn serve_http1<T: AsyncRead + AsyncWrite + Unpin>(io: T, serving: Serving) {
    let Serving { api, gateway, streams, stopped, .. } = serving;
    let (gateway, streams) = (gateway.connection(), streams.connection());
    let answer = move |request: Request<Incoming>| {
        let (gateway, long) = (gateway.clone(), api.long_answers.clone());
        let reservation = streams.open(GENERIC_STREAM_BYTES, request.headers());
        async move {
            let response = match reservation {
                Ok(reservation) => gateway.handle(request, reservation).await,
                Err(_) => gateway::refused(),
            };
            body::charge_long_frames(response, long)
        }
    };
    http1::serve(io, stopped, answer).await;
}

/// Accepts TLS, if the listener has it, and reads the first bytes, which tell the protocol.
async fn handshake(tcp: TcpStream, security: Security) -> io::Result<Client> {
    tcp.set_nodelay(true)?;
    match security {
        Security::Plaintext => {
            let (io, protocol) = Replay::read_start(tcp).await?;
            Ok(Client::Plain(io, protocol))
        }
        Security::Tls(config) => {
            let tls = TlsAcceptor::from(config).accept(tcp).await?;
            let peer = Peer { common_name: common_name(tls.get_ref().1) };
            let (io, protocol) = Replay::read_start(tls).await?;
            Ok(Client::Tls(Box::new(io), protocol, peer))
        }
    }
}

/// The common name in the client's certificate, if the client sent one. The TLS handshake verified it.
fn common_name(connection: &rustls::ServerConnection) -> Option<Arc<str>> {
    let leaf = connection.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| Arc::from(name))
}
