//! FRAME-5, FRAME-6, STREAMS-5: answers that clients ask for and do not read.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use h2::Reason;
use satrap_pressure::Rate;
use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_proto::v3electionpb as epb;
use satrap_ring_api::api::Api;
use satrap_ring_api::front::Security;
use satrap_ring_api::grpc::{self, LongAnswers};
use satrap_ring_api::limits::{GENERIC_STREAM_BYTES, REFUSALS_UNREAD_MAX, STREAM_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::common::solo;
use crate::harness::{Begun, Member, Raw};
use crate::kv::{put, range};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Long answers, each on another way.
const LONG: [&str; 3] = [RANGE, "/etcdserverpb.KV/RangeStream", LEADER];
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const LEADER: &str = "/v3electionpb.Election/Leader";
const VALUE_BYTES: usize = 1_400_000;

/// Of real time, until a test has failed.
const LONG_ENOUGH: Duration = Duration::from_secs(60);

/// Lets this much time pass. After each step these clients make a round trip in real time, so their
/// connections are there to answer pings. The answer has no data, for clients without a window.
async fn pass<const N: usize>(time: Duration, mut clients: [&mut Raw; N]) {
    const STEP: Duration = Duration::from_secs(2);
    for _ in 0..time.div_duration_f64(STEP) as u32 {
        tokio::time::pause();
        tokio::time::advance(STEP).await;
        tokio::time::resume();
        for client in &mut clients {
            let error = client.call("/etcdserverpb.KV/Nope", &[], Bytes::new()).await.unwrap_err();
            assert_eq!(error.code(), Code::Unimplemented);
        }
    }
}

async fn ask(raw: &mut Raw, path: &str, message: &impl prost::Message) -> Begun {
    let mut call = raw.begin(path, &[]).await;
    call.requests.send_data(grpc::frame(message), true).unwrap();
    call
}

/// The value of the first line of the metrics that begins with `name` and has `label`.
async fn figure(member: &Member, name: &str, label: &str) -> usize {
    let metrics = member.http("GET /metrics", "").await.body;
    let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(label));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

async fn begun_ranges(member: &Member) -> usize {
    figure(member, "grpc_server_started_total", "grpc_method=\"Range\"").await
}

async fn begin_watch(raw: &mut Raw, key: &'static str) -> Begun {
    let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut call = raw.begin(WATCH, &[]).await;
    call.requests.send_data(grpc::frame(&create), false).unwrap();
    call
}

fn refused() -> (Code, &'static str) {
    (Code::ResourceExhausted, "etcdserver: too many requests")
}

/// FRAME-5, FRAME-6: as many answers are encoded as the budget has room for. The clients of those must read them in
/// time, so others get their turn.
#[tokio::test]
async fn answers_that_are_not_read_are_bounded_and_end() {
    const CALLS: usize = 12;
    let mut api = Api::new(solo::start().0);
    api.long_answers = LongAnswers::of(3 * VALUE_BYTES + 64 * 1024);
    let answers = api.long_answers.clone();
    let all_bytes = answers.available_bytes();
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    member.raw().await.ask(PUT, &put("k", "v".repeat(VALUE_BYTES))).await.unwrap();
    let mut deaf = member.raw_with_window(0).await;
    // The clock of the ring does not jump, so it must not be asked.
    let request = pb::RangeRequest { serializable: true, ..range("k", "") };
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        calls.push(ask(&mut deaf, RANGE, &request).await);
    }
    let is_taken = async {
        while begun_ranges(&member).await < CALLS || answers.available_bytes() >= VALUE_BYTES {}
    };
    timeout(LONG_ENOUGH, is_taken).await.expect("the budget is taken");
    let mut other = member.raw().await;
    other.ask(PUT, &put("a", "c")).await.expect("a short answer waits for no long one");

    // They have their turn in the order in which they asked, three at a time.
    let honest = ask(&mut other, RANGE, &request).await;
    pass(Duration::from_secs(CALLS as u64 / 3 * 36), [&mut deaf, &mut other]).await;
    let honest = timeout(LONG_ENOUGH, honest.outcome()).await;
    assert!(honest.expect("the others were reset").unwrap().len() > VALUE_BYTES);
    for call in calls {
        let (_requests, mut answer) = call.started().await;
        let error = timeout(LONG_ENOUGH, answer.data()).await.expect("it was reset");
        assert_eq!(error.unwrap().unwrap_err().reason(), Some(Reason::ENHANCE_YOUR_CALM));
    }
    assert_eq!(answers.available_bytes(), all_bytes, "all of it came back");
}

/// FRAME-6, on each way on which answers are sent.
#[tokio::test]
async fn a_long_answer_that_is_not_read_ends_its_stream() {
    let mut member = Member::start().await;
    let key = "election/1";
    member.raw().await.ask(PUT, &put(key, "v".repeat(VALUE_BYTES))).await.unwrap();
    let mut deaf = member.raw_with_window(1000).await;
    let mut calls = Vec::new();
    for path in LONG {
        let call = match path {
            LEADER => ask(&mut deaf, path, &epb::LeaderRequest { name: "election".into() }).await,
            path => ask(&mut deaf, path, &range(key, "")).await,
        };
        calls.push((path, call));
    }
    let mut started = Vec::new();
    for (path, call) in calls {
        started.push((path, call.started().await));
    }
    pass(Duration::from_secs(40), [&mut deaf]).await;
    for (path, (_requests, mut answer)) in started {
        let ended = async { while answer.data().await.is_some_and(|data| data.is_ok()) {} };
        timeout(LONG_ENOUGH, ended).await.unwrap_or_else(|_| panic!("{path} was not reset"));
    }
}

/// FRAME-6: streams that wait for something to say, also those whose clients have no window.
#[tokio::test]
async fn a_stream_that_has_nothing_to_say_stays() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    let (_requests, mut watch) = begin_watch(&mut raw, "k").await.started().await;
    watch.data().await.expect("the watch was created").unwrap();
    let mut deaf = member.raw_with_window(0).await;
    let (_requests_too, mut unread) = begin_watch(&mut deaf, "k").await.started().await;
    let mut short = ask(&mut deaf, RANGE, &range("k", "")).await.started().await.1;
    pass(Duration::from_secs(600), [&mut raw, &mut deaf]).await;
    for quiet in [&mut watch, &mut unread, &mut short] {
        assert!(quiet.data().now_or_never().is_none(), "it has nothing to say, or no window");
    }
    raw.ask(PUT, &put("k", "w")).await.unwrap();
    watch.data().await.expect("it goes on").unwrap();
}

/// STREAMS-5, FRAME-5: answers that HTTP/2 holds because the client does not read its socket.
#[tokio::test]
async fn a_stream_counts_until_its_end_is_written() {
    const CALLS: usize = 2_000;
    const ANSWER_BYTES: usize = 60_000;
    /// Both sockets' buffers hold some of it.
    const KERNEL_BYTES_MAX: usize = 8 << 20;
    let mut api = Api::new(solo::start().0);
    api.stream_bytes.connection_max = 4 << 20;
    let connection_max = api.stream_bytes.connection_max;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let (mut raw, reads) = member.raw_that_may_stop_reading().await;
    raw.ask(PUT, &put("k", "v".repeat(ANSWER_BYTES))).await.unwrap();
    reads.send_replace(false);
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        calls.push(ask(&mut raw, RANGE, &range("k", "")).await);
    }
    let all_begun = async { while begun_ranges(&member).await < CALLS {} };
    timeout(LONG_ENOUGH, all_begun).await.expect("the member reads requests all the time");
    let mut answered = 0;
    reads.send_replace(true);
    for call in calls {
        match call.outcome().await {
            Ok(answer) => answered += answer.len(),
            Err(error) => assert_eq!((error.code(), error.message()), refused()),
        }
    }
    assert!(answered > 0);
    assert!(answered <= connection_max + KERNEL_BYTES_MAX, "{answered} bytes were held");
    raw.ask(RANGE, &range("k", "")).await.expect("all of it came back");
}

/// WATCHSTREAM-1: when a stream ends, its queue is dropped, so what its client still reads is what HTTP/2 held.
#[tokio::test]
async fn http2_holds_one_chunk_of_events_for_a_stream() {
    const STREAMS: usize = 200;
    const EVENTS: usize = 20;
    const EVENT_BYTES: usize = 10_000;
    const CHUNK_BYTES_MAX: usize = 16 * 1024;
    /// Of the sockets.
    const KERNEL_BYTES_MAX: usize = 8 << 20;
    const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";
    let mut member = Member::start().await;
    let (mut raw, reads) = member.raw_that_may_stop_reading().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let (requests, mut events) = begin_watch(&mut raw, "k").await.started().await;
        events.data().await.expect("the watch was created").unwrap();
        streams.push((requests, events));
    }
    let mut other = member.raw().await;
    reads.send_replace(false);
    let (_requests, mut told) = begin_watch(&mut other, "k").await.started().await;
    told.data().await.expect("the watch was created").unwrap();
    for _ in 0..EVENTS {
        other.ask(PUT, &put("k", "v".repeat(EVENT_BYTES))).await.unwrap();
        let mut event_bytes = 0;
        while event_bytes < EVENT_BYTES {
            let bytes = told.data().await.expect("an event").unwrap().len();
            told.flow_control().release_capacity(bytes).unwrap();
            event_bytes += bytes;
        }
    }
    for (requests, _) in &mut streams {
        // No message, so the member ends the stream.
        requests.send_data(vec![9; 5].into(), true).unwrap();
    }
    let all_end = async { while figure(&member, WATCHERS, "").await != 1 {} };
    timeout(LONG_ENOUGH, all_end).await.expect("all but one end");
    reads.send_replace(true);
    let mut held_bytes = 0;
    for (_requests, mut events) in streams {
        while let Some(Ok(data)) = events.data().await {
            held_bytes += data.len();
        }
    }
    let bytes_max = STREAMS * CHUNK_BYTES_MAX + KERNEL_BYTES_MAX;
    assert!(bytes_max < STREAMS * EVENTS * EVENT_BYTES);
    assert!(held_bytes <= bytes_max, "{held_bytes} bytes");
}

/// STREAMS-5: refusals hold no place, so there may only be so many that a client has not read.
#[tokio::test]
async fn a_connection_that_does_not_read_refusals_is_cut() {
    /// The sockets hold some 25 bytes of each refusal, in at most 4 MiB.
    const KERNEL_REFUSALS_MAX: usize = 200_000;
    let mut api = Api::new(solo::start().0);
    api.connection_rate = Rate { per_s: 0, burst: 1 };
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    // A client that reads gets as many as it asks for.
    for _ in 0..=REFUSALS_UNREAD_MAX {
        let error = raw.ask(PUT, &put("k", "v")).await.unwrap_err();
        assert_eq!((error.code(), error.message()), refused());
    }
    let mut deaf = TcpStream::connect(member.address).await.unwrap();
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let cut = async {
        for n in 0..KERNEL_REFUSALS_MAX + REFUSALS_UNREAD_MAX {
            if deaf.write_all(&whole_request(2 * n as u32 + 1)).await.is_err() {
                return;
            }
        }
        panic!("the connection goes on");
    };
    timeout(LONG_ENOUGH, cut).await.expect("the connection was cut");
}

/// A frame of HTTP/2 that is all of a request.
fn whole_request(stream: u32) -> Vec<u8> {
    // POST, http, and the path and content type as literals.
    let mut headers = vec![0x83, 0x86, 0x04, PUT.len() as u8];
    headers.extend_from_slice(PUT.as_bytes());
    headers.extend_from_slice(b"\x0f\x10\x10application/grpc");
    let end_of_stream_and_headers = 0x05;
    let mut frame = vec![0, 0, headers.len() as u8, 0x01, end_of_stream_and_headers];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&headers);
    frame
}

/// STREAMS-5: a stream counts for what it takes while nothing happens.
#[tokio::test]
async fn a_stream_counts_by_its_way() {
    let mut api = Api::new(solo::start().0);
    let (straight, generic) = (STREAM_BYTES + 1024, GENERIC_STREAM_BYTES + 1024);
    api.stream_bytes.connection_max = generic + straight;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    let keep_alive = raw.begin(KEEP_ALIVE, &[]).await;
    let refusal = raw.begin(KEEP_ALIVE, &[]).await.outcome();
    let error = timeout(LONG_ENOUGH, refusal).await.expect("an answer").unwrap_err();
    assert_eq!((error.code(), error.message()), refused());
    let watch = raw.begin(WATCH, &[]).await.started().await;
    let refusal = raw.begin(WATCH, &[]).await.outcome();
    let error = timeout(LONG_ENOUGH, refusal).await.expect("an answer").unwrap_err();
    assert_eq!((error.code(), error.message()), refused());
    drop((keep_alive, watch));
}

/// LISTEN-7: what HTTP/1.1 holds counts for the budget, and a client that does not read it loses its connection.
#[tokio::test]
async fn an_answer_in_json_that_is_not_read_ends_its_connection() {
    /// More than the buffers of both sockets hold.
    const KEYS: usize = 16;
    let api = Api::new(solo::start().0);
    let answers = api.long_answers.clone();
    let all_bytes = answers.available_bytes();
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    for key in 0..KEYS {
        raw.ask(PUT, &put(format!("k{key}"), "v".repeat(VALUE_BYTES))).await.unwrap();
    }
    let body = r#"{"key":"aw==","range_end":"bA=="}"#;
    let head = format!("POST /v3/kv/range HTTP/1.1\r\nhost: m\r\ncontent-length: {}", body.len());
    let mut tcp = TcpStream::connect(member.address).await.unwrap();
    tcp.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    tcp.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    assert!(answers.available_bytes() < all_bytes - KEYS * VALUE_BYTES, "it counts");
    pass(Duration::from_secs(40), [&mut raw]).await;
    assert_eq!(answers.available_bytes(), all_bytes, "the connection was cut");
    let mut rest = Vec::new();
    let ended = timeout(LONG_ENOUGH, tcp.read_to_end(&mut rest)).await.expect("it has an end");
    assert!(ended.is_err() || rest.len() < KEYS * VALUE_BYTES, "the answer was cut off");
}

/// STREAMS-5: the generic stack keeps the buffer of a stream's longest answer while the stream is open.
#[tokio::test]
async fn what_the_generic_stack_keeps_of_an_answer_counts() {
    let mut api = Api::new(solo::start().0);
    // Room for two streams and one answer.
    api.stream_bytes.connection_max = 2 * (GENERIC_STREAM_BYTES + 1024) + 50 * 1024;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    let symbol = MessageRequest::FileContainingSymbol("etcdserverpb.KV".to_owned());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
    let mut open = async || {
        let mut call = raw.begin(REFLECTION, &[]).await;
        call.requests.send_data(grpc::frame(&request), false).unwrap();
        let (requests, mut answer) = call.started().await;
        let mut bytes = 0;
        while bytes < 30 * 1024 {
            let data = answer.data().await.expect("the stream is open")?;
            answer.flow_control().release_capacity(data.len()).unwrap();
            bytes += data.len();
        }
        Ok::<_, h2::Error>((requests, answer))
    };
    let first = open().await.expect("there is room");
    let error = open().await.expect_err("the first has read its answer, and still counts for it");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    drop(first);
    let room = async { while open().await.is_err() {} };
    timeout(LONG_ENOUGH, room).await.expect("a stream that ended makes room");
}
