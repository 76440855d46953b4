//! The client listener: decides who may connect, for how long, and how much one connection may hold.
//!
//! ```text
//!   accept ─▶ TLS, first bytes (time and number limited) ─┬─▶ HTTP/2   ─▶ calls by path
//!                                                         └─▶ HTTP/1.1 ─▶ JSON gateway
//! ```
//!
//! Raft peers have a listener and a thread of their own, so whatever happens here cannot cause an
//! election.
//!
//! # Invariants
//!
//! - **L1** Calls in plaintext are served to this host only. What [`Monitoring`] serves is no call.
//! - **L2** The accept loop never ends, and a client that stalls before its first request holds one
//!   bounded slot for a bounded time.
//! - **L3** Every connection ends: asked to after an age, cut after a grace.
//!
//! # Deliberately absent
//!
//! Limits per address or name: fleets sit behind shared addresses, and everything of one cluster
//! uses one certificate. What one connection may do is limited instead, and how many there may be.

mod bridge;
mod connection;
mod dispatch;
mod gateway_link;
mod http1;
mod metered;
mod monitoring;
mod rate;
mod replay;
mod streams;

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
use crate::limits::{
    ACCEPT_PAUSE, CONNECTION_GRACE, CONNECTIONS_MAX, GENERIC_STREAM_BYTES, HANDSHAKE_TIMEOUT,
    HANDSHAKES_PENDING_MAX,
};
use crate::peer::Peer;
use crate::watch::watches;
use connection::{Lifetime, Serving};
pub use gateway_link::Link;
pub use monitoring::Monitoring;
pub use rate::ConnectionRate;
use replay::{Protocol, Replay};
pub use streams::Place;
use streams::Streams;

/// How a connection is protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// By TLS; the config decides whether clients need a certificate.
    Tls(Arc<rustls::ServerConfig>),
    /// Not at all; see L1.
    Plaintext,
}

/// What a TLS config for [`Security::Tls`] must offer.
pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// L1.
    #[error("{0} can be reached from other hosts, so it needs TLS")]
    NeedsTls(SocketAddr),
    /// From the operating system.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// Why a listener ended before it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the listener for clients cannot serve on, because {0} ended; the log says why")]
pub struct Ended(&'static str);

/// A bound listener.
#[derive(Debug)]
pub struct Front {
    tcp: TcpListener,
    security: Security,
}

impl Front {
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

    /// Serves until `shutdown` completes, then lets requests end for a while.
    ///
    /// # Errors
    ///
    /// [`Ended`] if something broke without which it cannot serve. [`Api::front_ended`] is true from then
    /// on.
    pub async fn serve(
        self,
        api: Arc<Api>,
        routes: Routes,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Ended> {
        let (stopping, stopped) = watch::channel(false);
        let (link, keeper) = gateway_link::link();
        let gateway = Gateway::new(api.clone(), link);
        let (watches, watching) =
            watches(api.backend.clone(), api.watching, api.meters.watchers.clone());
        let mut stop_watching = stopped.clone();
        // An error means that whoever could stop us is gone, which is the same.
        let stop = async move { _ = stop_watching.wait_for(|stopped| *stopped).await };
        let (streams, peer) = (Streams::new(api.stream_bytes), Arc::default());
        let rate = ConnectionRate::new(api.connection_rate);
        let answers = api.backend.carry_answers();
        let stopped_link = stopped.clone();
        let serving =
            Serving { api: api.clone(), routes, gateway, watches, streams, rate, peer, stopped };
        let of_gateway = serving.clone();
        let serve_gateway = move |io| connection::serve(io, of_gateway.clone(), Lifetime::Process);
        let (mut tasks, mut vital) = (JoinSet::new(), Vital::default());
        vital.spawn("the loop that hands out answers", answers);
        vital.spawn("the loop that carries watches", watching.run(stop));
        vital.spawn("the JSON gateway's connection", keeper.run(serve_gateway, stopped_link));
        let ended = tokio::select! {
            () = self.accept(&serving, &mut tasks) => Ok(()),
            () = shutdown => Ok(()),
            ended = vital.first_end() => Err(ended),
        };
        if let Err(ended) = ended {
            api.end_front();
            tracing::error!("{ended}");
        }
        stopping.send_replace(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if timeout(CONNECTION_GRACE, drained).await.is_err() {
            tracing::warn!(connections = tasks.len(), "cut connections that did not end in time");
        }
        ended
    }

    /// L2: never completes.
    async fn accept(&self, serving: &Serving, tasks: &mut JoinSet<()>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut pending = Pending::of(HANDSHAKES_PENDING_MAX);
        loop {
            let tcp = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                // Ended connections are forgotten as they end.
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            let tcp = match tcp {
                Ok((tcp, _)) => tcp,
                // The client gave up while it waited in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; pausing");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = connections.clone().try_acquire_owned() else {
                tracing::debug!("refused a connection: too many");
                continue;
            };
            let (security, serving) = (self.security.clone(), serving.clone());
            let gives_way = pending.enter();
            tasks.spawn(async move {
                let welcome = tokio::select! {
                    welcome = timeout(HANDSHAKE_TIMEOUT, welcome(tcp, security)) => welcome,
                    _ = gives_way => return tracing::debug!("refused a connection: it gave way"),
                };
                match welcome {
                    Ok(Ok(client)) => client.serve(serving).await,
                    // At debug, because a stranger decides how often this happens.
                    Ok(Err(error)) => tracing::debug!(%error, "refused a connection"),
                    Err(_elapsed) => tracing::debug!("refused a connection: too slow"),
                }
                drop(slot);
            });
        }
    }
}

/// Tasks that run for as long as the listener serves.
#[derive(Default)]
struct Vital {
    tasks: JoinSet<()>,
    names: Vec<(task::Id, &'static str)>,
}

impl Vital {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.push((self.tasks.spawn(task).id(), name));
    }

    /// Completes when one of them has returned or panicked.
    async fn first_end(&mut self) -> Ended {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(panic)) => panic.id(),
            None => std::future::pending().await,
        };
        let name = self.names.iter().find(|(known, _)| *known == id).map(|(_, name)| *name);
        Ended(name.expect("the names of all tasks are there"))
    }
}

/// Connections of which only so many may be there, oldest first. An honest client is among them for a
/// round trip or two, so the oldest is the one that does not get on (L2).
struct Pending {
    max: usize,
    connections: VecDeque<oneshot::Sender<Infallible>>,
}

impl Pending {
    fn of(max: usize) -> Self {
        Self { max, connections: VecDeque::new() }
    }

    /// Takes one more. The receiver ends when the connection has to give way.
    fn enter(&mut self) -> oneshot::Receiver<Infallible> {
        if self.connections.len() >= self.max {
            self.connections.retain(|pending| !pending.is_closed());
        }
        if self.connections.len() >= self.max {
            self.connections.pop_front();
        }
        let (keep, gives_way) = oneshot::channel();
        self.connections.push_back(keep);
        gives_way
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
            Self::Plain(io, Protocol::Http1) => json(io, serving).await,
            Self::Tls(io, protocol, peer) => {
                let serving = Serving { peer: Arc::new(peer), ..serving };
                match protocol {
                    Protocol::Http2 => connection::serve(*io, serving, Lifetime::Bounded).await,
                    Protocol::Http1 => json(*io, serving).await,
                }
            }
        }
    }
}

/// What comes in HTTP/1.1 is for the gateway.
async fn json<T: AsyncRead + AsyncWrite + Unpin>(io: T, serving: Serving) {
    let Serving { api, gateway, streams, stopped, .. } = serving;
    let (gateway, streams) = (gateway.connection(), streams.connection());
    let answer = move |request: Request<Incoming>| {
        let (gateway, long) = (gateway.clone(), api.long_answers.clone());
        let place = streams.open(GENERIC_STREAM_BYTES, request.headers());
        async move {
            let response = match place {
                Ok(place) => gateway.handle(request, place).await,
                Err(_) => gateway::refused(),
            };
            bridge::counted(response, long)
        }
    };
    http1::serve(io, stopped, answer).await;
}

async fn welcome(tcp: TcpStream, security: Security) -> io::Result<Client> {
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

/// Of the client certificate, which the TLS config has verified if there is one.
fn common_name(connection: &rustls::ServerConnection) -> Option<Arc<str>> {
    let leaf = connection.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| Arc::from(name))
}
