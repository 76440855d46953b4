//! The metrics of a member, as Prometheus reads them. `interop/run metrics` has the same checked by
//! Prometheus' own library, and compares with etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::kv_client::KvClient;
use satrap_proto::etcdserverpb::watch_client::WatchClient;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_ring_api::api::Api;
use satrap_ring_api::front::Monitoring;
use satrap_ring_api::limits::MONITORING_CONNECTIONS_MAX;
use satrap_ring_core::quota::QuotaRequest;
use satrap_ring_core::{Caller, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::common::solo;
use crate::harness::Member;
use crate::kv::put;

/// Figures by name and labels.
async fn figures(member: &Member) -> BTreeMap<String, f64> {
    let text = member.http("GET /metrics", "").await.body;
    let figures = text.lines().filter(|line| !line.starts_with('#'));
    let figure = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    figures.map(figure).collect()
}

fn started(service: &str, method: &str, kind: &str) -> String {
    format!(
        "grpc_server_started_total{{grpc_type=\"{kind}\",grpc_service=\"{service}\",grpc_method=\"{method}\"}}"
    )
}

fn handled(code: &str, service: &str, method: &str, kind: &str) -> String {
    format!(
        "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_type=\"{kind}\",grpc_service=\"{service}\",grpc_method=\"{method}\"}}"
    )
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let member = Member::start().await;
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    kv.put(put("k", "x".repeat(10_000))).await.unwrap();
    kv.put(put("", "no key")).await.unwrap_err();
    // Through the generic stack, once with each outcome.
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    leases.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 60 }).await.unwrap();
    leases.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 60 }).await.unwrap_err();
    let (open, requests) = mpsc::channel::<pb::WatchRequest>(1);
    let requests = ReceiverStream::new(requests);
    let watch = WatchClient::new(channel.clone()).watch(requests).await.unwrap();

    let (kv, lease, watched) = ("etcdserverpb.KV", "etcdserverpb.Lease", "etcdserverpb.Watch");
    let seen = figures(&member).await;
    for (name, expected) in [
        (started(kv, "Put", "unary"), 2.0),
        (handled("OK", kv, "Put", "unary"), 1.0),
        (handled("InvalidArgument", kv, "Put", "unary"), 1.0),
        (started(lease, "LeaseGrant", "unary"), 2.0),
        (handled("OK", lease, "LeaseGrant", "unary"), 1.0),
        (handled("FailedPrecondition", lease, "LeaseGrant", "unary"), 1.0),
        (started(watched, "Watch", "bidi_stream"), 1.0),
        (handled("OK", watched, "Watch", "bidi_stream"), 0.0),
        (started(lease, "LeaseKeepAlive", "bidi_stream"), 0.0),
        (started("satrap.v1.Store", "PutStream", "bidi_stream"), 0.0),
    ] {
        assert_eq!(seen.get(&name), Some(&expected), "{name}");
    }
    let took = "grpc_server_handling_seconds_count{grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"Put\"}";
    assert_eq!(seen[took], 2.0);
    assert!(seen["etcd_network_client_grpc_received_bytes_total"] > 10_000.0);
    assert!(seen["etcd_network_client_grpc_sent_bytes_total"] > 50.0);

    // A stream that its client gives up, in both directions, is canceled.
    drop((open, watch));
    shows(&member, &handled("Canceled", watched, "Watch", "bidi_stream"), 1.0).await;
}

/// Waits until a figure is as expected.
async fn shows(member: &Member, name: &str, expected: f64) {
    let shown = async { while figures(member).await.get(name) != Some(&expected) {} };
    let shown = timeout(Duration::from_secs(30), shown).await;
    shown.unwrap_or_else(|_| panic!("{name} does not become {expected}"));
}

/// etcd's tests of watches look at this figure as soon as they hear that a watch is there, or is gone.
#[tokio::test]
async fn open_watches_are_counted() {
    const NAME: &str = "etcd_debugging_mvcc_watcher_total";
    let member = Member::start().await;
    assert_eq!(figures(&member).await.get(NAME), Some(&0.0));
    let (requests, open) = mpsc::channel(1);
    let mut client = WatchClient::new(member.channel().await);
    let mut answers = client.watch(ReceiverStream::new(open)).await.unwrap().into_inner();
    for expected in [1.0, 2.0] {
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let create = RequestUnion::CreateRequest(create);
        requests.send(pb::WatchRequest { request_union: Some(create) }).await.unwrap();
        assert!(answers.message().await.unwrap().unwrap().created);
        assert_eq!(figures(&member).await.get(NAME), Some(&expected));
    }
    let cancel = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 });
    requests.send(pb::WatchRequest { request_union: Some(cancel) }).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().canceled);
    assert_eq!(figures(&member).await.get(NAME), Some(&1.0));
    drop((requests, answers));
    shows(&member, NAME, 0.0).await;
}

/// LISTEN-6: more strangers than there are places; the oldest gives way before its deadline.
#[tokio::test]
async fn strangers_that_say_nothing_keep_no_monitoring_out() {
    let api = Arc::new(Api::new(solo::start().0));
    let monitoring = Monitoring::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = monitoring.local_address().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(monitoring.serve(api, std::future::pending()));
    let mut silent = Vec::new();
    for _ in 0..=MONITORING_CONNECTIONS_MAX {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let ask = async {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        // To its end, which comes with the answer: one connection is for one request.
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(Duration::from_secs(4), ask).await.expect("an answer at once");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A reset is an end as well.
    let ended = timeout(Duration::from_secs(4), silent[0].read(&mut [0])).await;
    assert_eq!(ended.expect("it gives way").unwrap_or(0), 0);
}

/// Rules warn at 95 % of the quota, so the two must be comparable.
#[tokio::test]
async fn a_full_ring_is_as_large_as_its_quota() {
    let member = Member::start().await;
    let total = Request::Quota(QuotaRequest::Total { bytes_max: 1_000_000 });
    member.backend.propose(Caller::default(), total).await.unwrap().reply.unwrap();
    let mut kv = KvClient::new(member.channel().await);
    let mut refused = None;
    // Each put adds ten kilobytes of history.
    for _ in 0..=100 {
        refused = kv.put(put("k", "x".repeat(10_000))).await.err();
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("more than the quota was taken");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let seen = figures(&member).await;
    let size = seen["etcd_mvcc_db_total_size_in_bytes"];
    assert!((950_000.0..=1_000_000.0).contains(&size), "{size}");
    assert_eq!(seen["etcd_mvcc_db_total_size_in_use_in_bytes"], size, "no reason to defragment");
}

/// The rules of `promtool check metrics` for names.
#[tokio::test]
async fn figures_are_named_by_the_rules() {
    let member = Member::start().await;
    KvClient::new(member.channel().await).put(put("k", "v")).await.unwrap();
    let text = member.http("GET /metrics", "").await.body;
    let kinds: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    // `promtool` asks nothing of figures without a type.
    for (name, kind) in kinds.iter().filter(|(_, kind)| **kind != "untyped") {
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            name.strip_suffix(end).filter(|name| kinds.get(name) == Some(&"histogram"))
        });
        assert!(kinds.contains_key(of_histogram.unwrap_or(name)), "{line}");
    }
}
