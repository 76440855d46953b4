//! The listener for monitoring, with clients that do their worst.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use satrap_ring_api::api::{Api, RingMetrics};
use satrap_ring_api::backend::{Backend, MemberIdentity, RingView};
use satrap_ring_api::front::Monitoring;
use satrap_ring_core::AppliedState;
use satrap_runtime::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::common::solo;

/// Serves until the set is dropped.
async fn serve(api: Api) -> (SocketAddr, JoinSet<()>) {
    let monitoring = Monitoring::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = monitoring.local_address().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(monitoring.serve(Arc::new(api), std::future::pending()));
    (address, serving)
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// LISTEN-8: the clock jumps from deadline to deadline while nothing else is to be done.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    // More than the system holds for a connection.
    const TEXT_BYTES: usize = 32 * 1024 * 1024;
    let mut api = Api::new(solo::start().0);
    api.ring_metrics = Some(RingMetrics(Arc::new(|| "#".repeat(TEXT_BYTES))));
    let (address, _serving) = serve(api).await;
    let mut client = ask(address, "/metrics").await;
    client.readable().await.unwrap();
    tokio::time::pause();
    sleep(Duration::from_secs(11)).await;
    tokio::time::resume();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ended = client.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(answer.len() < TEXT_BYTES, "all of the answer came");
}

/// LISTEN-8: a ring that does not answer keeps the place of no other client.
#[tokio::test]
async fn a_ring_that_does_not_answer_keeps_no_place() {
    let identity = MemberIdentity { cluster_id: 1, member_id: 2, name: "stalled".to_owned() };
    let state = Arc::<std::sync::RwLock<AppliedState>>::default();
    let (backend, mut ring) = Backend::new(identity, state, 16);
    let fresh_at = Some(clock::monotonic());
    ring.publisher.ring(RingView { leader: 9, fresh_at, ..Default::default() });
    let (address, _serving) = serve(Api::new(backend)).await;
    let mut client = ask(address, "/health").await;
    let asked = timeout(Duration::from_secs(30), ring.calls.recv()).await;
    let _never_answered = asked.expect("the ring is asked").expect("its queue is open");
    tokio::time::pause();
    let ended = timeout(Duration::from_secs(31), client.read_to_end(&mut Vec::new())).await;
    let _a_reset_is_an_end_too = ended.expect("it ends");
}

/// LISTEN-9
#[tokio::test]
async fn a_flood_makes_no_more_figures_than_one_client() {
    let made = Arc::new(AtomicU64::new(0));
    let mut api = Api::new(solo::start().0);
    let counting = made.clone();
    api.ring_metrics = Some(RingMetrics(Arc::new(move || {
        format!("texts_made_total {}\n", counting.fetch_add(1, Relaxed) + 1)
    })));
    let (address, _serving) = serve(api).await;
    let (began, mut last) = (Instant::now(), String::new());
    for _ in 0..200 {
        last.clear();
        ask(address, "/metrics").await.read_to_string(&mut last).await.unwrap();
    }
    let seconds = began.elapsed().as_secs();
    assert!(last.contains("\ntexts_made_total "), "{last}");
    assert!(made.load(Relaxed) <= seconds + 1, "{made:?} in {seconds} s");
}
