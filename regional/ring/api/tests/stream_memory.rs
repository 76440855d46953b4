//! STREAMS-5: what an open stream counts for is what it takes. In a program of its own: memory is that of a process.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

#[allow(dead_code, reason = "each test binary uses its share of it")]
mod common;
#[allow(dead_code, reason = "each test binary uses its share of it")]
#[path = "front/harness.rs"]
mod harness;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_ring_api::grpc;
use satrap_ring_api::limits::STREAM_BYTES;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use harness::{Member, Raw};

const STREAMS: usize = 10_000;
/// Tells the test below which member to open streams on.
const MEMBER: &str = "SATRAP_TEST_STREAMS_ON";

/// The client of the test below, in a process of its own so that its memory does not count.
#[tokio::test]
async fn a_client_with_many_watches() {
    #[expect(clippy::disallowed_methods, reason = "the test below says so to its own client")]
    let Ok(address) = std::env::var(MEMBER) else { return };
    let (mut raw, connection) = Raw::over(TcpStream::connect(address).await.unwrap()).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let create = grpc::frame(&create);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = raw.begin("/etcdserverpb.Watch/Watch", &[]).await;
        stream.requests.send_data(create.clone(), false).unwrap();
        streams.push(stream.started().await);
    }
    println!("\nopened");
    std::io::stdin().lines().for_each(drop);
}

#[tokio::test]
async fn an_idle_watch_stream_takes_no_more_than_it_counts_for() {
    let member = Member::start().await;
    let before = resident_bytes();
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_client_with_many_watches", "--nocapture"])
        .env(MEMBER, member.address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let (opened, all_opened) = oneshot::channel();
    let reader = std::thread::spawn(move || {
        let found = lines.any(|line| line.unwrap() == "opened");
        opened.send(found).unwrap();
        // It says how it ended, and must not find the pipe closed.
        lines.for_each(drop);
    });
    let all_opened = all_opened.await.unwrap();
    let each = (resident_bytes() - before) / STREAMS;
    drop(client.stdin.take());
    // The client ends with its input, and the member must serve it until then.
    let ended = tokio::task::spawn_blocking(move || client.wait()).await.unwrap().unwrap();
    reader.join().unwrap();
    assert!(all_opened && ended.success(), "the client failed");
    println!("a stream with one watch takes {each} bytes");
    assert!(each <= STREAM_BYTES, "{each} bytes");
}

/// Of this process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}
