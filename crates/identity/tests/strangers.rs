//! How much a stranger without any certificate, and a CA that mints names, can take from others.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use common::{ask, authority, bundle, credentials, leaf, run, serve, who};
use satrap_identity::mtls::{
    Credentials, HANDSHAKES_PENDING_MAX, Limits, PeerRule, SILENT_PENDING_MAX, connect,
};
use satrap_identity::pki::Authority;
use satrap_runtime::{clock, runtime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

const MEMBER: &str = "spiffe://c/region/a/member/m";
const EDGE: &str = "spiffe://c/region/a/edge/e";
const STRANGERS: usize = 3_000;
/// Before a stranger that was dropped comes back: together up to 6 000 connections per second.
const STRANGER_PAUSE: Duration = Duration::from_millis(500);
/// Honest connections that are timed, one after the other.
const CONNECTS: usize = 100;
/// A handshake among strangers may take this many times as long as without them, because the attack
/// takes processor time from both sides. Waiting for a place took a thousand times as long.
const SLOWDOWN_MAX: u32 = 40;
/// A TLS record that announces a ClientHello of 512 bytes, and its first bytes.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// One flood at a time: open files are counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Connects, says `first_words` and nothing else, and comes back once it was dropped.
async fn stranger(address: SocketAddr, first_words: &'static [u8], connected: Arc<Semaphore>) {
    loop {
        let Ok(mut socket) = TcpStream::connect(address).await else { continue };
        connected.add_permits(1);
        // The server may have dropped it already.
        if socket.write_all(first_words).await.is_ok() {
            drop(socket.read(&mut [0]).await);
        }
        sleep(STRANGER_PAUSE).await;
    }
}

/// Strangers on a thread of their own, which ends with this value.
struct Strangers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Strangers {
    /// Returns once all are connected.
    async fn come(address: SocketAddr, first_words: &'static [u8]) -> Self {
        let connected = Arc::new(Semaphore::new(0));
        let (stop, stopped) = oneshot::channel();
        let counted = connected.clone();
        let thread = thread::spawn(move || {
            runtime::current_thread().unwrap().block_on(async {
                let mut all = JoinSet::new();
                for _ in 0..STRANGERS {
                    all.spawn(stranger(address, first_words, counted.clone()));
                }
                drop(stopped.await);
            });
        });
        let all = u32::try_from(STRANGERS).unwrap();
        connected.acquire_many(all).await.unwrap().forget();
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The 99th percentile of connecting and asking.
async fn connect_p99(url: &str, edge: &Credentials) -> Duration {
    let mut times = Vec::new();
    for _ in 0..CONNECTS {
        let started = clock::monotonic();
        ask(url, edge, PeerRule::AnyMember).await.unwrap();
        times.push(clock::monotonic() - started);
    }
    times.sort();
    times[CONNECTS * 99 / 100 - 1]
}

fn connect_among(first_words: &'static [u8]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let server_home = credentials(&leaf(&region, MEMBER), &trust);
    let edge = credentials(&leaf(&region, EDGE), &trust);
    run(async |group| {
        let server = serve(&group, &server_home, PeerRule::Edge("a".into()), Limits::EDGES).await;
        let quiet = connect_p99(&server.url, &edge).await;
        let before = open_files();
        let strangers = Strangers::come(server.address, first_words).await;
        let flooded = connect_p99(&server.url, &edge).await;
        println!("p99 of a connect: {quiet:?} alone, {flooded:?} among {STRANGERS} strangers");
        assert!(flooded <= quiet * SLOWDOWN_MAX, "{quiet:?} alone, {flooded:?} among strangers");
        let held = open_files().saturating_sub(before + STRANGERS);
        // The places of both pools, and the honest client's sockets that were not closed yet.
        let held_max = SILENT_PENDING_MAX + HANDSHAKES_PENDING_MAX + CONNECTS;
        assert!(held <= held_max, "the server holds {held} sockets of strangers");
        drop(strangers);
        ask(&server.url, &edge, PeerRule::AnyMember).await.unwrap();
    });
}

#[test]
fn idle_strangers_slow_a_connect_by_a_bounded_factor() {
    connect_among(b"");
}

#[test]
fn strangers_with_half_a_client_hello_slow_a_connect_by_a_bounded_factor() {
    connect_among(HALF_A_HELLO);
}

#[test]
fn a_ca_that_mints_names_takes_the_share_of_its_scope_and_no_more() {
    let (a, b) = (authority("spiffe://c/region/a"), authority("spiffe://c/region/b"));
    let (d, operators) = (authority("spiffe://c/region/d"), authority("spiffe://c/operator"));
    let trust = bundle(&[&a, &b, &d, &operators]);
    let home = credentials(&leaf(&a, MEMBER), &trust);
    let limits = Limits {
        connections_max: 7,
        connections_per_scope_max: 2,
        connections_own_scope_max: 3,
        ..Limits::EDGES
    };
    let rule = PeerRule::AnyOf(vec![
        PeerRule::AnyMember,
        PeerRule::Operator,
        PeerRule::Edge("a".into()),
        PeerRule::Edge("b".into()),
    ]);
    run(async |group| {
        let server = serve(&group, &home, rule, limits).await;
        let open = async |authority: &Authority, id: &str| {
            let home = credentials(&leaf(authority, id), &trust);
            let channel = connect(&server.url, &home, PeerRule::AnyMember).await.unwrap();
            who(channel.clone()).await.map(|_| channel)
        };
        let _m = open(&b, "spiffe://c/region/b/member/m").await.unwrap();
        let _e = open(&b, "spiffe://c/region/b/edge/e").await.unwrap();
        for minted in ["spiffe://c/region/b/member/x", "spiffe://c/region/b/edge/x"] {
            assert!(open(&b, minted).await.is_err(), "{minted} is over the share of region b");
        }
        let _d = open(&d, "spiffe://c/region/d/member/m").await.unwrap();
        let _o = open(&operators, "spiffe://c/operator/o").await.unwrap();
        let mut own = Vec::new();
        for edge in ["e1", "e2", "e3"] {
            own.push(open(&a, &format!("spiffe://c/region/a/edge/{edge}")).await.unwrap());
        }
        assert!(open(&a, "spiffe://c/region/a/edge/e4").await.is_err(), "over the own share");
    });
}
