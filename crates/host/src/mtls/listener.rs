//! The accept loop: turns sockets into authenticated streams, within limits (M3, M4).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::limits::{ACCEPT_PAUSE, HANDSHAKES_PENDING_MAX};
use super::verifier::{agreed_on_h2, server_config};
use super::{Credentials, Limits, PeerIdentity, PeerRule};
use crate::gather::Gather;
use crate::pki::{self, SpiffeId};

/// A listening socket. As a stream of [`PeerStream`] it never ends and never fails.
pub struct Listener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    limits: Limits,
    slots: Slots,
    handshakes: JoinSet<Result<PeerStream, io::Error>>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// One authenticated connection.
pub struct PeerStream {
    tls: Gather<TlsStream<TcpStream>>,
    peer: PeerIdentity,
    /// M4: nothing is read after this.
    end: Pin<Box<Sleep>>,
    _slot: Slot,
}

impl Listener {
    /// Binds `address` and admits whom `rule` admits.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        credentials: Credentials,
        rule: PeerRule,
        limits: Limits,
    ) -> io::Result<Self> {
        Ok(Self {
            tcp: TcpListener::bind(address).await?,
            acceptor: TlsAcceptor::from(Arc::new(server_config(credentials, rule))),
            slots: Slots::new(&limits),
            limits,
            handshakes: JoinSet::new(),
            pause: None,
        })
    }

    /// The bound address; tells the port after binding port 0.
    ///
    /// # Errors
    ///
    /// From the operating system.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Starts handshakes for waiting connections, as many as there is room for.
    fn poll_accept(&mut self, cx: &mut Context<'_>) {
        while self.handshakes.len() < HANDSHAKES_PENDING_MAX {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.pause = None;
            }
            match self.tcp.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((tcp, _))) => {
                    let (acceptor, slots) = (self.acceptor.clone(), self.slots.clone());
                    let limits = self.limits.clone();
                    self.handshakes.spawn(async move {
                        timeout(limits.handshake_timeout, handshake(tcp, &acceptor, slots, &limits))
                            .await?
                    });
                }
                // The peer gave up while it waited in the backlog.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "cannot accept connections; pausing");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

impl Stream for Listener {
    type Item = Result<PeerStream, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.poll_accept(cx);
            // Pending below means that either the socket or a handshake holds our waker.
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Ok(stream)))) => return Poll::Ready(Some(Ok(stream))),
                Poll::Ready(Some(Ok(Err(error)))) => {
                    // At debug, because a stranger decides how often this happens.
                    tracing::debug!(%error, "refused a connection");
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::error!(%error, "a handshake panicked");
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    slots: Slots,
    limits: &Limits,
) -> io::Result<PeerStream> {
    tcp.set_nodelay(true)?;
    let mut tls = acceptor.accept(tcp).await?;
    let connection = tls.get_ref().1;
    if !agreed_on_h2(connection) {
        return Err(io::Error::other("the peer does not speak HTTP/2"));
    }
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.expect("the config demands a client certificate");
    let peer = pki::read_leaf(leaf).expect("the verifier has read this certificate");
    let slot = slots.take(&peer.id)?;
    // An authenticated peer that then stays silent has no HTTP/2 timer yet.
    if tls.fill_buf().await?.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let end = Box::pin(sleep(limits.connection_age_max + limits.connection_grace));
    Ok(PeerStream { tls: Gather::new(tls), peer, end, _slot: slot })
}

/// Counts connections, in total and per name.
#[derive(Clone)]
struct Slots {
    taken: Arc<Mutex<Taken>>,
    connections_max: usize,
    connections_per_identity_max: usize,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_id: HashMap<Arc<SpiffeId>, usize>,
}

struct Slot {
    taken: Arc<Mutex<Taken>>,
    id: Arc<SpiffeId>,
}

impl Slots {
    fn new(limits: &Limits) -> Self {
        Self {
            taken: Arc::default(),
            connections_max: limits.connections_max,
            connections_per_identity_max: limits.connections_per_identity_max,
        }
    }

    fn take(&self, id: &Arc<SpiffeId>) -> io::Result<Slot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.connections_max {
            return Err(io::Error::other("too many connections"));
        }
        let of_peer = taken.by_id.entry(id.clone()).or_default();
        if *of_peer >= self.connections_per_identity_max {
            return Err(io::Error::other(format!("too many connections of {id}")));
        }
        *of_peer += 1;
        taken.total += 1;
        Ok(Slot { taken: self.taken.clone(), id: id.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some(of_peer) = taken.by_id.get_mut(&self.id) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.by_id.remove(&self.id);
            }
        }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
