//! Each limit at its bound and one over it, with clients that no library would let you write.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use satrap_pressure::Rate;
use satrap_proto::etcdserverpb::request_op::Request as Op;
use satrap_proto::etcdserverpb::{self as pb};
use satrap_ring_api::api::Api;
use satrap_ring_api::front::{BindError, ClientListener, Security};
use satrap_ring_api::grpc;
use satrap_ring_api::limits::{
    CONNECTION_STREAMS_BYTES_MAX, REQUEST_BYTES_MAX, REQUEST_OVERHEAD_BYTES_MAX, RequestLimits,
    STREAM_BYTES, TXN_DEPTH_MAX, TXN_ELEMENTS_MAX, TXN_OPS_MAX,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::common::solo;
use crate::harness::Member;
use crate::kv::put;

const PUT: &str = "/etcdserverpb.KV/Put";
/// With few headers, rounded up to the kilobyte in which they are counted.
const STREAM_WITH_HEADERS_BYTES: usize = STREAM_BYTES + 1024;
const TXN: &str = "/etcdserverpb.KV/Txn";

/// A put whose message has exactly this many bytes.
pub fn put_of(bytes: usize) -> pb::PutRequest {
    let mut request = put("k", "");
    // The bytes besides the value are as many with a value of a few bytes less.
    request.value = vec![b'v'; bytes - 16].into();
    let rest = request.encoded_len() - request.value.len();
    request.value = vec![b'v'; bytes - rest].into();
    assert_eq!(request.encoded_len(), bytes);
    request
}

/// The longest message that a member takes. etcd bounds the entry that it makes of it: a header of a
/// number, whose first two bytes are the last two of the member's id, and the message.
pub fn message_bytes_max(member: &Member) -> usize {
    let id = member.backend.identity().member_id;
    let number_bytes = match id & 0xffff {
        0x8000.. => 10,
        0x0100.. => 9,
        0x0002.. => 8,
        _ => 7,
    };
    // Tag and length of the header, tag of the number; tag and length of the message.
    REQUEST_BYTES_MAX - (2 + 1) - (1 + number_bytes) - (1 + 3)
}

#[tokio::test]
async fn the_size_of_a_request_is_bounded_twice() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let entry_max = message_bytes_max(&member);
    raw.ask(PUT, &put_of(entry_max)).await.unwrap();
    let transport_max = REQUEST_BYTES_MAX + REQUEST_OVERHEAD_BYTES_MAX;
    for bytes in [entry_max + 1, REQUEST_BYTES_MAX, transport_max] {
        let error = raw.ask(PUT, &put_of(bytes)).await.unwrap_err();
        let expected = (Code::InvalidArgument, "etcdserver: request is too large");
        assert_eq!((error.code(), error.message()), expected, "{bytes}");
    }
    let error = raw.ask(PUT, &put_of(transport_max + 1)).await.unwrap_err();
    let text = "grpc: received message larger than max (2097153 vs. 2097152)";
    assert_eq!((error.code(), error.message()), (Code::ResourceExhausted, text));
}

#[tokio::test]
async fn an_operator_chooses_how_large_requests_may_be() {
    let mut api = Api::new(solo::start().0);
    api.requests = RequestLimits { bytes_max: 3 * 1024 * 1024, txn_ops_max: 200 };
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    raw.ask(PUT, &put_of(2 * REQUEST_BYTES_MAX - 30)).await.unwrap();
    let error = raw.ask(PUT, &put_of(2 * REQUEST_BYTES_MAX)).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: request is too large");
    let error = raw.ask(PUT, &put_of(3 * 1024 * 1024 + 512 * 1024 + 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    let flat = |count| pb::TxnRequest { success: puts(count), ..Default::default() };
    raw.ask(TXN, &flat(200)).await.unwrap();
    let error = raw.ask(TXN, &flat(201)).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: too many operations in txn request");
}

/// FRAME-1: the prefix alone decides.
#[tokio::test]
async fn a_length_of_four_gigabytes_reserves_nothing() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let prefix = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
    let error = raw.call(PUT, &[], prefix).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn messages_that_are_no_messages_are_refused() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    for (body, code) in [
        (&[1, 0, 0, 0, 0][..], Code::Internal),
        (&[2, 0, 0, 0, 0], Code::Internal),
        (&[0, 0, 0, 0, 9, 1], Code::Internal),
        (&[0, 0], Code::Internal),
        (&[], Code::Internal),
        (&[0, 0, 0, 0, 2, 0x0a, 0x7f], Code::Internal),
    ] {
        let error = raw.call(PUT, &[], Bytes::copy_from_slice(body)).await.unwrap_err();
        assert_eq!(error.code(), code, "{body:?}: {error}");
    }
    let error = raw.call("/etcdserverpb.KV/Nope", &[], Bytes::new()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    raw.ask(PUT, &put("k", "v")).await.expect("the connection is as good as before");
}

fn puts(count: usize) -> Vec<pb::RequestOp> {
    let op = |n: usize| Op::RequestPut(put(n.to_string(), ""));
    (0..count).map(|n| pb::RequestOp { request: Some(op(n)) }).collect()
}

fn nested(depth: usize) -> pb::TxnRequest {
    let mut txn = pb::TxnRequest { success: puts(1), ..Default::default() };
    for _ in 1..depth {
        let op = pb::RequestOp { request: Some(Op::RequestTxn(txn)) };
        txn = pb::TxnRequest { success: vec![op], ..Default::default() };
    }
    txn
}

#[tokio::test]
async fn the_operations_of_a_transaction_are_bounded() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let flat = |count| pb::TxnRequest { success: puts(count), ..Default::default() };
    raw.ask(TXN, &flat(TXN_OPS_MAX)).await.unwrap();
    raw.ask(TXN, &nested(TXN_DEPTH_MAX)).await.unwrap();
    for request in [flat(TXN_OPS_MAX + 1), nested(TXN_DEPTH_MAX + 1)] {
        let error = raw.ask(TXN, &request).await.unwrap_err();
        let expected = (Code::InvalidArgument, "etcdserver: too many operations in txn request");
        assert_eq!((error.code(), error.message()), expected);
    }
}

/// PRESCAN-1: two bytes on the wire each, two hundred in memory. The bytes after them would not decode, so an
/// answer about their number was given without decoding.
#[tokio::test]
async fn a_bomb_of_empty_operations_is_not_decoded() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let mut body = BytesMut::new();
    let bytes = 2 * (TXN_ELEMENTS_MAX + 1) + 1;
    body.put_u8(0);
    body.put_u32(bytes as u32);
    for _ in 0..=TXN_ELEMENTS_MAX {
        body.put_slice(&[0x12, 0]);
    }
    body.put_u8(0xff);
    let error = raw.call(TXN, &[], body.freeze()).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: too many operations in txn request");
}

/// STREAMS-4: jetcd opens a stream for every watch. One over the bound is refused, all others go on.
#[tokio::test]
async fn a_stream_over_the_bound_is_refused_and_holds_up_no_other() {
    let mut api = Api::new(solo::start().0);
    api.stream_bytes.connection_max = 4 * STREAM_WITH_HEADERS_BYTES;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let channel = member.channel().await;
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    let open = async || {
        let mut client = pb::watch_client::WatchClient::new(channel.clone());
        let (open, requests) = mpsc::channel::<pb::WatchRequest>(1);
        let stream = client.watch(ReceiverStream::new(requests)).await?;
        // The client lets go of a stream when both of its directions are dropped.
        Ok::<_, Status>((open, stream.into_inner()))
    };
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(open().await.unwrap());
    }
    kv.put(put("k", "v")).await.expect("there is room for one more");
    streams.push(open().await.unwrap());
    for error in [open().await.unwrap_err(), kv.put(put("k", "v")).await.unwrap_err()] {
        let expected = (Code::ResourceExhausted, "etcdserver: too many requests");
        assert_eq!((error.code(), error.message()), expected);
    }
    member.raw().await.ask(PUT, &put("k", "v")).await.expect("another connection has room");
    streams.pop();
    let room = async {
        while let Err(error) = kv.put(put("k", "v")).await {
            assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        }
    };
    timeout(Duration::from_secs(30), room).await.expect("a stream that ended makes room");
}

/// STREAMS-5
#[tokio::test]
async fn connections_share_what_streams_may_hold() {
    let mut api = Api::new(solo::start().0);
    api.stream_bytes.all_max = 2 * STREAM_WITH_HEADERS_BYTES;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let channel = member.channel().await;
    let mut client = pb::watch_client::WatchClient::new(channel);
    let mut streams = Vec::new();
    for _ in 0..2 {
        let requests = futures::stream::pending::<pb::WatchRequest>();
        streams.push(client.watch(requests).await.unwrap());
    }
    let error = member.raw().await.ask(PUT, &put("k", "v")).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: too many requests");
}

/// The limit that HTTP/2 announces would make clients wait in silence, so they must not meet it.
#[tokio::test]
async fn more_streams_are_announced_than_a_connection_may_have() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    assert!(raw.streams_max().await > CONNECTION_STREAMS_BYTES_MAX / STREAM_BYTES);
}

/// STREAMS-4: HTTP/2's own bound on small frames would end the whole connection of a client that opens all
/// its watches at once.
#[tokio::test]
async fn ten_thousand_watches_may_be_opened_in_one_burst() {
    const WATCHES: usize = 10_000;
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    raw.ask(PUT, &put("k", "v")).await.expect("the member's settings arrived with this answer");
    let watch = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let union = Some(pb::watch_request::RequestUnion::CreateRequest(watch));
    let create = grpc::frame(&pb::WatchRequest { request_union: union });
    assert!(raw.streams_max().await > WATCHES);
    let opened = |_| raw.open("/etcdserverpb.Watch/Watch", create.clone());
    let streams: Vec<_> = (0..WATCHES).map(opened).collect();
    for (response, _open) in streams {
        let mut answers = response.await.unwrap().into_body();
        let created = answers.data().await.expect("the watch was created").unwrap();
        assert!(!created.is_empty());
    }
}

#[tokio::test]
async fn a_connection_that_floods_is_refused_and_others_are_not() {
    let mut api = Api::new(solo::start().0);
    api.connection_rate = Rate { per_s: 0, burst: 2 };
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    for _ in 0..2 {
        raw.ask(PUT, &put("k", "v")).await.unwrap();
    }
    let error = raw.ask(PUT, &put("k", "v")).await.unwrap_err();
    let expected = (Code::ResourceExhausted, "etcdserver: too many requests");
    assert_eq!((error.code(), error.message()), expected);
    member.raw().await.ask(PUT, &put("k", "v")).await.unwrap();
}

/// LISTEN-1.
#[tokio::test]
async fn plaintext_is_for_this_host_only() {
    for address in ["0.0.0.0:0", "192.0.2.1:0", "[::]:0"] {
        let refused = ClientListener::bind(address.parse().unwrap(), Security::Plaintext).await;
        assert!(matches!(refused, Err(BindError::NeedsTls(_))), "{address}");
    }
    ClientListener::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).await.unwrap();
}

/// A stop lets requests end, and then the listener is gone.
#[tokio::test]
async fn a_stop_ends_connections() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    let address = member.address;
    member.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

/// LISTEN-2: more strangers than there are places; the oldest gives way before its deadline.
#[tokio::test]
async fn strangers_that_say_nothing_keep_no_client_out() {
    const STRANGERS: usize = 700;
    let member = Member::start().await;
    let mut silent = Vec::new();
    for _ in 0..STRANGERS {
        silent.push(TcpStream::connect(member.address).await.unwrap());
    }
    let health = member.http("GET /health", "");
    let health = timeout(Duration::from_secs(4), health).await;
    assert_eq!(health.expect("an answer before the strangers' deadline").status, 200);
    // The oldest gave way.
    assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
    member.stop().await;
}

/// LISTEN-2: a client that connects and says nothing is cut off, and delays no other meanwhile.
#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let member = Member::start().await;
    let mut silent = TcpStream::connect(member.address).await.unwrap();
    let mut rest = Vec::new();
    let (cut, health) = tokio::join!(silent.read_to_end(&mut rest), member.http("GET /health", ""));
    assert_eq!(health.status, 200);
    // A reset is an end as well.
    assert!(cut.map_or(true, |bytes| bytes == 0), "{rest:?}");
    member.stop().await;
}
