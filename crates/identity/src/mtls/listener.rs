//! The accept loop: turns sockets into authenticated streams, within limits (MTLS-3, MTLS-4, MTLS-6).
//!
//! ```text
//!   accept ─▶ silent ── first byte ─▶ handshaking ── proved its name ─▶ greeting ── HTTP/2 ─▶ served
//!             the oldest gives way     the oldest gives way              counted in the slots
//! ```
//!
//! A socket is accepted as soon as it arrives. Strangers compete with strangers only: a pool that is
//! full drops the connection that has made no progress for longest, and an honest client is never
//! that one, because it sends its ClientHello at once. A peer that proved its name leaves both pools.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::aging::Aging;
use super::limits::{
    ACCEPT_PAUSE, BACKLOG_MAX, FIRST_BYTE_TIMEOUT, HANDSHAKES_PENDING_MAX, SILENT_PENDING_MAX,
};
use super::slots::{Slot, Slots};
use super::verifier::{agreed_on_h2, server_config};
use super::{Credentials, Limits, PeerIdentity, PeerRule};
use crate::pki;
use satrap_runtime::coalesce::Coalesce;

/// A listening socket. As a stream of [`PeerStream`] it never ends and never fails.
pub struct Listener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    limits: Limits,
    slots: Slots,
    silent: Pool<TcpStream>,
    handshaking: Pool<Authenticated>,
    greeting: JoinSet<io::Result<PeerStream>>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// A connection whose peer proved its name, and the slot it takes from then on.
struct Authenticated {
    tls: TlsStream<TcpStream>,
    peer: PeerIdentity,
    slot: Slot,
}

/// One authenticated connection.
pub struct PeerStream {
    tls: Aging<Coalesce<TlsStream<TcpStream>>>,
    peer: PeerIdentity,
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
        let own_scope = credentials.current().id.scope();
        Ok(Self {
            tcp: listen(address)?,
            acceptor: TlsAcceptor::from(Arc::new(server_config(credentials, rule))),
            slots: Slots::new(&limits, own_scope),
            limits,
            silent: Pool::new(SILENT_PENDING_MAX),
            handshaking: Pool::new(HANDSHAKES_PENDING_MAX),
            greeting: JoinSet::new(),
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

    /// Accepts a connection that waits in the kernel; whether there was one.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.tcp.poll_accept(cx)) {
                Ok((tcp, _)) => {
                    self.silent.spawn(FIRST_BYTE_TIMEOUT, async move {
                        tcp.set_nodelay(true)?;
                        tcp.readable().await?;
                        Ok(tcp)
                    });
                    return Poll::Ready(());
                }
                // The peer gave up while it waited in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the listener cannot accept connections; it retries after a pause"
                    );
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }

    /// Moves one connection into its next stage, of those farthest ahead; whether there was one.
    fn poll_stages(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Poll::Ready(authenticated) = self.handshaking.poll_next(cx) {
            let limits = self.limits.clone();
            self.greeting.spawn(async move {
                timeout(limits.handshake_timeout, greeting(authenticated, &limits)).await?
            });
            return Poll::Ready(());
        }
        if let Poll::Ready(tcp) = self.silent.poll_next(cx) {
            let handshake = handshake(tcp, self.acceptor.clone(), self.slots.clone());
            self.handshaking.spawn(self.limits.handshake_timeout, handshake);
            return Poll::Ready(());
        }
        self.poll_accept(cx)
    }
}

impl Stream for Listener {
    type Item = Result<PeerStream, io::Error>;

    /// The stage that is farthest ahead comes first. The runtime lets a task do so much at a time
    /// before everything looks pending to it; strangers that arrive without end must not use that
    /// up.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.greeting.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Ok(stream)))) => return Poll::Ready(Some(Ok(stream))),
                Poll::Ready(Some(Ok(Err(error)))) => refused(&error),
                Poll::Ready(Some(Err(error))) => {
                    tracing::error!(%error, "the wait for a peer's first request panicked");
                }
                // Pending means that the socket and every stage that is not empty hold our waker.
                Poll::Ready(None) | Poll::Pending => ready!(self.poll_stages(cx)),
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart takes its port back from connections that linger in the kernel.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG_MAX)
}

/// At debug, because a stranger decides how often this happens.
fn refused(error: &io::Error) {
    tracing::debug!(%error, "refused a connection");
}

/// Connections in one stage, oldest first; at most `room` of them (MTLS-3).
struct Pool<T> {
    tasks: JoinSet<(u64, io::Result<T>)>,
    /// The unfinished ones, by the number they were given.
    order: VecDeque<(u64, AbortHandle)>,
    room: usize,
    numbers: u64,
}

impl<T: Send + 'static> Pool<T> {
    fn new(room: usize) -> Self {
        Self { tasks: JoinSet::new(), order: VecDeque::new(), room, numbers: 0 }
    }

    /// Adds a connection that must be done within `patience`; the oldest one makes room for it.
    fn spawn(
        &mut self,
        patience: Duration,
        stage: impl Future<Output = io::Result<T>> + Send + 'static,
    ) {
        if self.order.len() >= self.room
            && let Some((_, oldest)) = self.order.pop_front()
        {
            oldest.abort();
        }
        let number = self.numbers;
        self.numbers += 1;
        let task = self.tasks.spawn(async move {
            let done = timeout(patience, stage).await;
            (number, done.unwrap_or_else(|late| Err(late.into())))
        });
        self.order.push_back((number, task));
    }

    /// The next connection that is done with this stage; pending if there is none now.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        loop {
            match self.tasks.poll_join_next(cx) {
                Poll::Ready(Some(Ok((number, done)))) => {
                    // Numbers ascend, and none if the task was made to give way as it ended.
                    if let Ok(at) = self.order.binary_search_by_key(&number, |(n, _)| *n) {
                        self.order.remove(at);
                    }
                    match done {
                        Ok(done) => return Poll::Ready(done),
                        Err(error) => refused(&error),
                    }
                }
                // It gave way.
                Poll::Ready(Some(Err(error))) if error.is_cancelled() => {}
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
    acceptor: TlsAcceptor,
    slots: Slots,
) -> io::Result<Authenticated> {
    let tls = acceptor.accept(tcp).await?;
    let connection = tls.get_ref().1;
    if !agreed_on_h2(connection) {
        return Err(io::Error::other("the peer does not speak HTTP/2"));
    }
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.expect("the config demands a client certificate");
    let peer = pki::read_leaf(leaf).expect("the verifier has read this certificate");
    let slot = slots.take(&peer.id)?;
    Ok(Authenticated { tls, peer, slot })
}

/// Waits for the first byte of HTTP/2: a peer that stays silent has no HTTP/2 timer yet.
async fn greeting(authenticated: Authenticated, limits: &Limits) -> io::Result<PeerStream> {
    let Authenticated { mut tls, peer, slot } = authenticated;
    if tls.fill_buf().await?.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // MTLS-4
    let tls = Aging::new(Coalesce::new(tls), limits.connection_age_max + limits.connection_grace);
    Ok(PeerStream { tls, peer, _slot: slot })
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

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    async fn next<T: Send + 'static>(pool: &mut Pool<T>) -> T {
        poll_fn(|cx| pool.poll_next(cx)).await
    }

    #[tokio::test]
    async fn at_the_limit_all_stay_and_over_it_the_oldest_gives_way() {
        let mut pool = Pool::new(2);
        let (first, first_gone) = tokio::sync::oneshot::channel::<()>();
        pool.spawn(LONG, async move {
            let _held_until_it_gives_way = first;
            pending().await
        });
        let (second, told) = tokio::sync::oneshot::channel();
        pool.spawn(LONG, async move { told.await.map_err(io::Error::other) });
        assert_eq!(pool.order.len(), 2);
        pool.spawn(LONG, ready(Ok("third")));
        assert_eq!(pool.order.len(), 2, "one over the limit");
        assert_eq!(next(&mut pool).await, "third");
        assert!(first_gone.await.is_err(), "the oldest one was dropped");
        second.send("second").unwrap();
        assert_eq!(next(&mut pool).await, "second", "the newer one went on");
        assert!(pool.order.is_empty());
    }

    #[tokio::test]
    async fn a_stage_has_a_deadline() {
        let mut pool = Pool::new(2);
        pool.spawn(Duration::ZERO, pending());
        pool.spawn(LONG, async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok("in time")
        });
        assert_eq!(next(&mut pool).await, "in time");
        assert!(pool.order.is_empty(), "the late one gave up its place");
    }
}
