//! FRAME-3: messages that clients begin and do not end.

use std::time::Duration;

use bytes::Bytes;
use satrap_proto::etcdserverpb as pb;
use satrap_ring_api::api::Api;
use satrap_ring_api::front::Security;
use satrap_ring_api::grpc;
use satrap_ring_api::limits::{LONG_MESSAGES_BYTES_MAX, STREAM_BYTES};
use tokio::time::timeout;
use tonic::Code;

use crate::common::solo;
use crate::harness::Member;
use crate::kv::put;

const PUT: &str = "/etcdserverpb.KV/Put";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
/// A call for each way on which messages are read.
const PATHS: [&str; 6] = [
    PUT,
    GRANT,
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Watch/Watch",
    "/satrap.v1.Store/PutStream",
    "/v3electionpb.Election/Campaign",
];
const GZIP: [(&str, &str); 1] = [("grpc-encoding", "gzip")];

/// The prefix of a message, compressed or not.
fn prefix(flag: u8, bytes: u32) -> Bytes {
    [&[flag][..], &bytes.to_be_bytes()].concat().into()
}

/// Five bytes took two megabytes of what all clients share, for as long as the client liked.
#[tokio::test]
async fn a_prefix_takes_nothing_from_others() {
    let api = Api::new(solo::start().0);
    let budget = api.long_messages.clone();
    let all = budget.available_permits();
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    let mut calls = Vec::new();
    for path in PATHS {
        for prefix in [prefix(1, 60_000), prefix(1, 2_000_000), prefix(0, 2_000_000)] {
            let mut call = raw.begin(path, &GZIP).await;
            call.requests.send_data(prefix, false).unwrap();
            calls.push(call);
        }
    }
    // All of one connection is read in order.
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    assert_eq!(budget.available_permits(), all);
}

/// The bytes that have arrived of a message count, and are given back.
#[tokio::test]
async fn what_has_arrived_of_a_message_counts_for_its_stream() {
    let mut api = Api::new(solo::start().0);
    api.stream_bytes.connection_max = 2 * (STREAM_BYTES + 1024) + 40 * 1024;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    for path in [PUT, GRANT] {
        // Within the bound: ten frames of a kilobyte take up to twice that while they are collected.
        let mut call = raw.begin(path, &[]).await;
        call.requests.send_data(prefix(0, 60_000), false).unwrap();
        for _ in 0..10 {
            call.requests.send_data(vec![0; 1024].into(), false).unwrap();
        }
        raw.ask(PUT, &put("k", "v".repeat(8 * 1024))).await.expect("there is room for both");
        // Over it.
        call.requests.send_data(vec![0; 48 * 1024].into(), false).unwrap();
        let error = call.outcome().await.unwrap_err();
        let expected = (Code::ResourceExhausted, "etcdserver: too many requests");
        assert_eq!((error.code(), error.message()), expected, "{path}");
    }
    for _ in 0..2 {
        raw.ask(PUT, &put("k", "v".repeat(30 * 1024))).await.expect("it came back");
    }
}

/// A long message whose start has come waits for the budget, and gives it back when it is answered.
#[tokio::test]
async fn a_long_message_counts_for_the_budget_once_its_start_has_come() {
    let api = Api::new(solo::start().0);
    let budget = api.long_messages.clone();
    let all = budget.available_permits();
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    let body = grpc::frame(&put("k", "v".repeat(1_000_000)));
    let held = budget.clone().acquire_many_owned(all as u32).await.unwrap();
    let call = raw.call(PUT, &[], body);
    tokio::pin!(call);
    let mut other = member.raw().await;
    let short = put("a", "short");
    tokio::select! {
        biased;
        answer = &mut call => panic!("answered without room: {answer:?}"),
        answer = other.ask(PUT, &short) => {
            answer.expect("needs no room");
        }
    }
    drop(held);
    call.await.expect("there is room");
    assert_eq!(budget.available_permits(), all);
    assert_eq!(all, LONG_MESSAGES_BYTES_MAX / grpc::BUDGET_UNIT_BYTES);
}

/// The clock jumps from deadline to deadline while nothing else is to be done.
#[tokio::test]
async fn a_message_that_has_begun_must_come() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let mut calls = Vec::new();
    for path in PATHS {
        for body in [prefix(0, 100), prefix(1, 60_000), Bytes::from_static(&[0, 0])] {
            let mut call = raw.begin(path, &GZIP).await;
            call.requests.send_data(body.clone(), false).unwrap();
            calls.push((path, body, call));
        }
    }
    let mut watch = raw.begin("/etcdserverpb.Watch/Watch", &[]).await;
    watch.requests.send_data(grpc::frame(&pb::WatchRequest::default()), false).unwrap();
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    tokio::time::pause();
    for (path, body, call) in calls {
        let outcome = timeout(Duration::from_secs(18), call.outcome()).await;
        let error = outcome.unwrap_or_else(|_| panic!("{path} waits for the rest of {body:?}"));
        assert_eq!(error.unwrap_err().code(), Code::DeadlineExceeded, "{path} {body:?}");
    }
    tokio::time::resume();
    raw.ask(PUT, &put("k", "v")).await.expect("the connection is as good as before");
}
