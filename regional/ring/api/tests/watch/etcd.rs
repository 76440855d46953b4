//! `etcdserverpb.Watch`.

use std::time::Duration;

use bytes::Bytes;
use satrap_proto::etcdserverpb::watch_client::WatchClient;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use satrap_ring_api::limits::WatchSettings;
use satrap_ring_core::Request;
use satrap_ring_core::kv::request::PutRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::harness::Member;
use crate::script::{self, key};

/// Every answer, field by field, is what etcd answers to the same script (see `script.rs`). 000-33,
/// 000-53.
#[tokio::test]
async fn answers_are_those_of_etcd() {
    let member = Member::start().await;
    let log = script::run(member.connect().await).await;
    let expected = include_str!("etcd.txt");
    assert_eq!(log, expected, "\n--- ring:\n{log}\n--- etcd:\n{expected}");
    member.stop().await;
}

struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watch {
    async fn open(member: &Member, creates: Vec<WatchCreateRequest>) -> Self {
        let (requests, stream) = mpsc::channel(creates.len() + 8);
        for create in creates {
            let request_union = Some(RequestUnion::CreateRequest(create));
            requests.send(WatchRequest { request_union }).await.unwrap();
        }
        let mut client =
            WatchClient::new(member.connect().await).max_decoding_message_size(64 << 20);
        let responses = client.watch(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(30), self.responses.message());
        next.await.expect("in time").unwrap().expect("the stream goes on")
    }
}

async fn put(member: &Member, key: &str, value: Bytes) {
    let put = PutRequest::of(key.to_owned(), value);
    let applied = member.backend.propose(Default::default(), Request::Put(put)).await.unwrap();
    applied.reply.unwrap();
}

/// 000-03: many watchers of one key, over many streams and on one, each get every event once.
#[tokio::test]
async fn every_watcher_gets_every_event_once() {
    let member = Member::start().await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut watch = Watch::open(&member, vec![key("a"); 100]).await;
        for watch_id in 0..100 {
            let created = watch.next().await;
            assert!(created.created && created.watch_id == watch_id);
        }
        streams.push(watch);
    }
    for n in 0..3_u8 {
        put(&member, "a", vec![n].into()).await;
    }
    for watch in &mut streams {
        let mut told = vec![Vec::new(); 100];
        for _ in 0..300 {
            let response = watch.next().await;
            let kv = response.events[0].kv.as_ref().unwrap();
            assert_eq!(response.header.unwrap().revision, kv.mod_revision);
            told[response.watch_id as usize].push(kv.value[0]);
        }
        assert!(told.iter().all(|values| *values == [0, 1, 2]));
    }
    member.stop().await;
}

/// WATCHSTREAM-1: a client that reads nothing while 64 MB happen delays no other, and misses nothing when it
/// reads at last.
#[tokio::test]
async fn a_client_that_does_not_read_waits_alone() {
    let member = Member::start().await;
    let mut slow = Watch::open(&member, vec![key("a")]).await;
    let mut fast = Watch::open(&member, vec![key("a")]).await;
    assert!(slow.next().await.created && fast.next().await.created);
    for n in 0..64_u8 {
        put(&member, "a", vec![n; 1 << 20].into()).await;
        let told = fast.next().await;
        assert_eq!(told.events[0].kv.as_ref().unwrap().value[0], n);
    }
    let mut expected = 0..64_u8;
    while !expected.is_empty() {
        for event in slow.next().await.events {
            assert_eq!(event.kv.unwrap().value[0], expected.next().unwrap());
        }
    }
    member.stop().await;
}

/// A watch with progress notifications gets them while nothing happens, and never instead of events.
#[tokio::test]
async fn progress_comes_by_itself() {
    let settings =
        WatchSettings { progress_interval: Duration::from_millis(100), ..WatchSettings::default() };
    let member = Member::with(settings).await;
    let quiet = WatchCreateRequest { progress_notify: true, ..key("a") };
    let mut watch = Watch::open(&member, vec![quiet, key("b")]).await;
    watch.next().await;
    watch.next().await;
    put(&member, "elsewhere", "1".into()).await;
    let mut last = 0;
    while last < 2 {
        let progress = watch.next().await;
        assert!(progress.events.is_empty());
        assert_eq!(progress.watch_id, 0);
        let revision = progress.header.unwrap().revision;
        assert!(revision >= last);
        last = revision;
    }
    member.stop().await;
}

/// A stream outlives the client's last request and ends when the member stops, with a reason.
#[tokio::test]
async fn streams_end_with_the_member() {
    let member = Member::start().await;
    let mut watch = Watch::open(&member, vec![key("a")]).await;
    assert!(watch.next().await.created);
    drop(watch.requests);
    put(&member, "a", "1".into()).await;
    let told = tokio::time::timeout(Duration::from_secs(30), watch.responses.message()).await;
    assert_eq!(told.unwrap().unwrap().unwrap().events.len(), 1);
    let stopped = tokio::join!(member.stop(), watch.responses.message()).1;
    assert_eq!(stopped.unwrap_err().code(), Code::Unavailable);
}

/// A client that only asks, and never reads the answers, stops being asked for more.
#[tokio::test]
async fn a_flood_of_requests_is_held_back() {
    let member = Member::start().await;
    let mut watch = Watch::open(&member, vec![key("a")]).await;
    assert!(watch.next().await.created);
    let refused = script::range(&"z".repeat(1_000), "a");
    let mut sent = 0;
    loop {
        let request_union = Some(RequestUnion::CreateRequest(refused.clone()));
        let send = watch.requests.send(WatchRequest { request_union });
        match tokio::time::timeout(Duration::from_secs(1), send).await {
            Ok(sending) => sending.expect("the stream goes on"),
            Err(_held_back) => break,
        }
        sent += 1;
        assert!(sent < 200_000, "everything is taken");
    }
    put(&member, "a", "1".into()).await;
    let mut answers = 0;
    while answers < sent {
        answers += usize::from(watch.next().await.created);
    }
    member.stop().await;
}
