//! Clients of the JSON gateway that do not read, or ask for all of it, beside one that is honest.

use std::sync::Arc;
use std::time::Duration;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::StatusCode;
use satrap_ring_api::api::Api;
use satrap_ring_api::front::{ClientListener, Monitoring, Security};
use satrap_ring_api::limits::{GATEWAY_CONNECTION_CALLS_MAX, STREAM_BYTES};
use satrap_ring_api::{introspect, services};
use satrap_runtime::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::solo;
use crate::harness::Member;
use crate::kv::put;

const PUT: &str = "/etcdserverpb.KV/Put";
const WATCH: &str = r#"{"create_request":{"key":"aw=="}}"#;
const RANGE: &str = r#"{"key":"aw==","serializable":true}"#;

/// Lines of an answer, as its client reads them.
struct Lines {
    body: RecvStream,
    read: Vec<u8>,
}

impl Lines {
    fn of(body: RecvStream) -> Self {
        Self { body, read: Vec::new() }
    }

    async fn next(&mut self) -> String {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return String::from_utf8(line).unwrap();
            }
            let data = self.body.data().await.expect("the answer goes on").unwrap();
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.read.extend_from_slice(&data);
        }
    }
}

/// LISTEN-10: events that clients do not read wait on the gateway's own connection, as many small frames.
#[tokio::test]
async fn watchers_that_read_nothing_end_no_listener() {
    const WATCHES: usize = 1_000;
    const PUTS: usize = 400;
    let mut member = Member::start().await;
    let mut watches = Vec::new();
    for _ in 0..2 {
        let mut raw = member.raw_with_window(100).await;
        for _ in 0..WATCHES {
            watches.push(raw.json("/v3/watch", WATCH).await);
        }
    }
    let mut answers = Vec::new();
    for (response, requests) in watches {
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        answers.push((response.into_body(), requests));
    }
    let mut raw = member.raw().await;
    for _ in 0..PUTS {
        raw.ask(PUT, &put("k", "v")).await.unwrap();
    }
    let answer = member.http("POST /v3/kv/range", RANGE).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // One that reads after all gets every event.
    let (body, _requests) = answers.swap_remove(0);
    let mut lines = Lines::of(body);
    let created = lines.next().await;
    assert!(created.contains("\"created\":true"), "{created}");
    let mut events = 0;
    while events < PUTS {
        let line = lines.next().await;
        assert!(line.starts_with("{\"result\":"), "{line}");
        events += line.matches("\"kv\":").count();
    }
}

/// LISTEN-10: the same the other way: requests that a service does not read.
#[tokio::test]
async fn requests_that_nothing_reads_end_no_listener() {
    const CALLS: usize = 8;
    const RENEWALS: usize = 60_000;
    // No renewal is answered, so the service reads no more of them.
    let (mut member, _ring) = Member::stalled(16 * 1024).await;
    let mut raw = member.raw().await;
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        let renewals = "{}".repeat(RENEWALS);
        calls.push(raw.json("/v3/lease/keepalive", &renewals).await);
    }
    for _ in 0..20 {
        let answer = member.http("POST /v3/kv/range", RANGE);
        let answer = timeout(Duration::from_secs(30), answer).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

/// One client with all calls of the gateway would leave none for others.
#[tokio::test]
async fn a_connection_has_a_quarter_of_the_gateway() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let mut calls = Vec::new();
    for _ in 0..GATEWAY_CONNECTION_CALLS_MAX {
        let (response, requests) = raw.json("/v3/watch", WATCH).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        calls.push((response.into_body(), requests));
    }
    let (refused, _requests) = raw.json("/v3/watch", WATCH).await;
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let (other, _requests) = member.raw().await.json("/v3/watch", WATCH).await;
    assert_eq!(other.await.unwrap().status(), StatusCode::OK);
    // Calls that ended make room.
    calls.pop();
    let room = async {
        loop {
            let (response, _requests) = raw.json("/v3/watch", WATCH).await;
            if response.await.unwrap().status() == StatusCode::OK {
                return;
            }
        }
    };
    timeout(Duration::from_secs(30), room).await.expect("a call that ended makes room");
}

/// All of an answer.
async fn whole(response: ResponseFuture) -> (StatusCode, String) {
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.extend_from_slice(&data);
    }
    (head.status, String::from_utf8(text).unwrap())
}

/// JSON-2: the clock jumps from deadline to deadline while nothing else is to be done.
#[tokio::test]
async fn json_that_has_begun_must_come() {
    let mut member = Member::start().await;
    let mut raw = member.raw().await;
    let mut calls = Vec::new();
    for path in ["/v3/kv/put", "/v3/election/observe", "/v3/watch", "/v3/lease/keepalive"] {
        calls.push((path, raw.json(path, r#"{"key":"#).await));
    }
    calls.push(("/v3/kv/range", raw.json("/v3/kv/range", "").await));
    let (quiet, _requests) = raw.json("/v3/watch", WATCH).await;
    let mut quiet = Lines::of(quiet.await.unwrap().into_body());
    assert!(quiet.next().await.contains("created"));
    // Of a watch whose next request has begun.
    let (second, mut requests) = raw.json("/v3/watch", WATCH).await;
    let mut begun = Lines::of(second.await.unwrap().into_body());
    assert!(begun.next().await.contains("created"));
    requests.send_data(" {".into(), false).unwrap();
    raw.ask(PUT, &put("other", "v")).await.unwrap();
    tokio::time::pause();
    for (path, (response, _requests)) in calls {
        let answer = timeout(Duration::from_secs(18), whole(response)).await;
        let (status, text) = answer.unwrap_or_else(|_| panic!("{path} waits for its body"));
        assert!(text.contains("\"code\":4"), "{path}: {status} {text}");
    }
    let line = timeout(Duration::from_secs(18), begun.next()).await.expect("it ends");
    assert!(line.contains("\"code\":4"), "{line}");
    tokio::time::resume();
    raw.ask(PUT, &put("k", "v")).await.unwrap();
    let line = quiet.next().await;
    assert!(line.contains("events"), "a watch may say nothing for as long as it likes: {line}");
}

/// JSON-1: what has arrived of a body counts for its stream, and comes back.
#[tokio::test]
async fn json_that_has_arrived_counts_for_its_stream() {
    let mut api = Api::new(solo::start().0);
    api.stream_bytes.connection_max = 2 * (STREAM_BYTES + 1024) + 40 * 1024;
    let mut member = Member::serve_with(api, Security::Plaintext).await;
    let mut raw = member.raw().await;
    let (fits, too_long) = ("A".repeat(20 * 1024), "A".repeat(60 * 1024));
    for path in ["/v3/kv/put", "/v3/watch"] {
        let (response, _requests) = raw.json(path, &format!("{{\"key\":\"{too_long}")).await;
        let answer = timeout(Duration::from_secs(30), whole(response)).await;
        let (status, text) = answer.unwrap_or_else(|_| panic!("{path} takes all"));
        assert!(text.contains("too many requests"), "{path}: {status} {text}");
    }
    let put = |value: &str| format!("{{\"key\":\"aw==\",\"value\":\"{value}\"}}");
    for _ in 0..3 {
        let (response, mut requests) = raw.json("/v3/kv/put", &put(&fits)).await;
        requests.send_data(Default::default(), true).unwrap();
        assert_eq!(whole(response).await.0, StatusCode::OK, "what counted came back");
        assert_eq!(member.http("POST /v3/kv/put", &put(&fits)).await.status, 200);
        assert_eq!(member.http("POST /v3/kv/put", &put(&too_long)).await.status, 429);
    }
}

/// A process without its client listener must not look healthy.
#[tokio::test]
async fn monitoring_sees_that_the_client_listener_ended() {
    let mut api = Api::new(solo::start().0);
    // The watch loop adds this to the present time and panics.
    api.watching.progress_interval = Duration::MAX;
    let api = Arc::new(api);
    let routes = services::routes(&api, services::Settings::default());
    let routes = introspect::add(routes, &Shutdown::default());
    let any = "127.0.0.1:0".parse().unwrap();
    let monitoring = Monitoring::bind(any).await.unwrap();
    let address = monitoring.local_address().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(monitoring.serve(api.clone(), std::future::pending()));
    let front = ClientListener::bind(any, Security::Plaintext).await.unwrap();
    let ended = front.serve(api, routes, std::future::pending());
    let ended = timeout(Duration::from_secs(30), ended).await.expect("it ends");
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("because the watch loop ended unexpectedly"), "{error}");
    for path in ["/health", "/livez", "/readyz"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{path}: {answer}");
        assert!(answer.contains("the client listener ended"), "{path}: {answer}");
    }
}
