//! Requests that clients compressed: on the calls that go straight on HTTP/2 and on those through the
//! generic stack, and what does not come out of them.

use std::io::Write;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use satrap_pressure::Rate;
use satrap_proto::etcdserverpb as pb;
use satrap_ring_api::api::Api;
use satrap_ring_api::front::Security;
use satrap_ring_api::grpc::BUDGET_UNIT_BYTES;
use satrap_ring_api::limits::INFLATED_BYTES_PER_REQUEST;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::common::solo;
use crate::harness::Member;
use crate::kv::{put, range};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const GZIP: [(&str, &str); 1] = [("grpc-encoding", "gzip")];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The prefix of a message that a client sends compressed.
fn marked(content: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(1);
    frame.put_u32(content.len() as u32);
    frame.put_slice(content);
    frame.freeze()
}

fn compressed(message: &impl Message) -> Bytes {
    marked(&gzip(&message.encode_to_vec()))
}

#[tokio::test]
async fn compressed_requests_are_answered_on_every_way() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let value = "v".repeat(100_000);
    raw.call(PUT, &GZIP, compressed(&put("k", &value))).await.unwrap();
    let grant = pb::LeaseGrantRequest { id: 7, ttl: 60 };
    let granted = raw.call(GRANT, &GZIP, compressed(&grant)).await.unwrap();
    assert_eq!(pb::LeaseGrantResponse::decode(granted).unwrap().id, 7);
    // A client that compresses may leave a message as it is.
    let plain = satrap_ring_api::grpc::frame(&range("k", ""));
    let found = raw.call(RANGE, &GZIP, plain).await.unwrap();
    let found = pb::RangeResponse::decode(found).unwrap();
    assert_eq!(found.kvs[0].value, value.as_bytes());
    let grant = pb::LeaseGrantRequest { id: 8, ttl: 60 };
    let plain = satrap_ring_api::grpc::frame(&grant);
    raw.call(GRANT, &GZIP, plain).await.unwrap();
}

/// FRAME-4: ten megabytes of zeros are ten kilobytes on the wire.
#[tokio::test]
async fn what_comes_out_of_a_message_is_bounded() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let bomb = marked(&gzip(&vec![0; 10 * 1024 * 1024]));
    assert!(bomb.len() < 20_000);
    for (path, bytes_max) in [(PUT, 2_097_152), (GRANT, 65_536)] {
        let error = raw.call(path, &GZIP, bomb.clone()).await.unwrap_err();
        let text =
            format!("grpc: received message after decompression larger than max {bytes_max}");
        assert_eq!((error.code(), error.message()), (Code::ResourceExhausted, &*text), "{path}");
    }
    raw.ask(PUT, &put("k", "v")).await.expect("the connection is as good as before");
}

/// FRAME-4: a message that is small on the wire waits for room like the large one that it becomes.
#[tokio::test]
async fn what_may_come_out_of_a_message_waits_for_room() {
    let mut api = Api::new(solo::start().0);
    let room = api.requests.message_bytes_max() / BUDGET_UNIT_BYTES;
    api.long_messages = Arc::new(Semaphore::new(room));
    let budget = api.long_messages.clone();
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    let held = budget.clone().acquire_owned().await.unwrap();
    let body = compressed(&put("k", "v"));
    let call = raw.call(PUT, &GZIP, body);
    tokio::pin!(call);
    let mut other = member.raw().await;
    let plain = put("a", "small, and not compressed");
    tokio::select! {
        biased;
        answer = &mut call => panic!("answered without room: {answer:?}"),
        answer = other.ask(PUT, &plain) => {
            answer.expect("needs no room");
        }
    }
    drop(held);
    call.await.expect("there is room");
    assert_eq!(budget.available_permits(), room, "all of it came back");
}

/// FRAME-7: bytes that come out are charged, also on a stream, which is one request.
#[tokio::test]
async fn what_comes_out_of_messages_is_charged_to_their_connection() {
    let mut api = Api::new(solo::start().0);
    let burst = (500_000 / INFLATED_BYTES_PER_REQUEST) as u32;
    api.connection_rate = Rate { per_s: 0, burst };
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let refused = (Code::ResourceExhausted, "etcdserver: too many requests");

    let mut raw = member.raw().await;
    let body = compressed(&put("k", "v".repeat(200_000)));
    let mut taken = 0;
    let error = loop {
        match raw.call(PUT, &GZIP, body.clone()).await {
            Ok(_) if taken < 10 => taken += 1,
            Ok(_) => panic!("nothing was charged"),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code(), error.message()), refused);
    assert_eq!(taken, 3, "what is left of the last request may be less than it costs");

    let mut raw = member.raw().await;
    let watch = pb::WatchCreateRequest { key: vec![b'k'; 60_000].into(), ..Default::default() };
    let union = Some(pb::watch_request::RequestUnion::CreateRequest(watch));
    let create = compressed(&pb::WatchRequest { request_union: union });
    let mut watching = raw.begin("/etcdserverpb.Watch/Watch", &GZIP).await;
    for _ in 0..20 {
        watching.requests.send_data(create.clone(), false).unwrap();
    }
    let error = watching.outcome().await.unwrap_err();
    assert_eq!((error.code(), error.message()), refused);

    // A message that breaks at its end costs as much.
    let mut raw = member.raw().await;
    let mut broken = gzip(&vec![0; 400_000]);
    *broken.last_mut().unwrap() ^= 1;
    let error = raw.call(PUT, &GZIP, marked(&broken)).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
    let error = raw.call(PUT, &GZIP, body).await.unwrap_err();
    assert_eq!((error.code(), error.message()), refused);
    member.raw().await.ask(PUT, &put("k", "v")).await.expect("another connection has its own rate");
}

#[tokio::test]
async fn messages_that_cannot_be_decompressed_are_refused() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let message = compressed(&put("k", "v"));
    for path in [PUT, GRANT] {
        for (metadata, body, code) in [
            (&[("grpc-encoding", "snappy")][..], &message[..], Code::Unimplemented),
            (&GZIP[..], &marked(b"no gzip"), Code::Internal),
            (&GZIP[..], &marked(&gzip(b"cut off")[..9]), Code::Internal),
        ] {
            let error = raw.call(path, metadata, Bytes::copy_from_slice(body)).await.unwrap_err();
            assert_eq!(error.code(), code, "{path}, {metadata:?}: {error}");
        }
    }
    for metadata in [&[][..], &[("grpc-encoding", "identity")]] {
        let error = raw.call(PUT, metadata, message.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{metadata:?}: {error}");
    }
}
