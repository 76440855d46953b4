//! What a member counts, as Prometheus reads it. `interop/run metrics` has the same checked by
//! Prometheus' own library, and compares with etcd.

use std::collections::BTreeMap;

use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::kv_client::KvClient;
use satrap_proto::etcdserverpb::watch_client::WatchClient;
use satrap_regional_core::quota::QuotaRequest;
use satrap_regional_core::{Caller, Request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

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

    // Whoever gives a stream up, in both directions, has canceled it.
    drop((open, watch));
    let canceled = handled("Canceled", watched, "Watch", "bidi_stream");
    while figures(&member).await.get(&canceled) != Some(&1.0) {}
}

/// Rules warn at 95 % of the quota, so the two must be comparable.
#[tokio::test]
async fn a_full_ring_is_as_large_as_its_quota() {
    let member = Member::start().await;
    let total = Request::Quota(QuotaRequest::Total { bytes_max: 1_000_000 });
    member.backend.propose(Caller::default(), total).await.unwrap().reply.unwrap();
    let mut kv = KvClient::new(member.channel().await);
    let refused = loop {
        if let Err(status) = kv.put(put("k", "x".repeat(10_000))).await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let seen = figures(&member).await;
    let size = seen["etcd_mvcc_db_total_size_in_bytes"];
    assert!((950_000.0..=1_000_000.0).contains(&size), "{size}");
    assert_eq!(seen["etcd_mvcc_db_total_size_in_use_in_bytes"], size, "no reason to defragment");
}

/// What `promtool check metrics` asks of names.
#[tokio::test]
async fn figures_are_named_by_the_rules() {
    let member = Member::start().await;
    KvClient::new(member.channel().await).put(put("k", "v")).await.unwrap();
    let text = member.http("GET /metrics", "").await.body;
    let kinds: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for (name, kind) in &kinds {
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
