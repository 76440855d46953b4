//! The JSON gateway and the probes. The expected answers were recorded from etcd 3.7.3, with ids and times
//! replaced.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::Member;

/// Answers without their header's ids.
fn masked(body: &str) -> Value {
    let mut value: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"));
    if let Some(header) = value.pointer_mut("/header").and_then(Value::as_object_mut) {
        for name in ["cluster_id", "member_id", "raft_term"] {
            let id = header.remove(name).unwrap_or_else(|| panic!("no {name} in {body}"));
            assert!(id.is_string(), "64-bit numbers are strings");
        }
    }
    value
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Path, body, status, answer.
const SCRIPT: [(&str, &str, u16, &str); 22] = [
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#, 200, r#"{"header":{"revision":"2"}}"#),
    (
        "kv/range",
        r#"{"key":"Zm9v"}"#,
        200,
        r#"{"header":{"revision":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}"#,
    ),
    // Both spellings of names, numbers with and without quotes, enums by name and number.
    (
        "kv/range",
        r#"{"key":"Zm9v","countOnly":true}"#,
        200,
        r#"{"header":{"revision":"2"},"count":"1"}"#,
    ),
    (
        "kv/range",
        r#"{"key":"Zm9v","count_only":true,"limit":"5","revision":2}"#,
        200,
        r#"{"header":{"revision":"2"},"count":"1"}"#,
    ),
    (
        "kv/range",
        r#"{"key":"Zm9v","count_only":true,"sort_order":"DESCEND","sort_target":1}"#,
        200,
        r#"{"header":{"revision":"2"},"count":"1"}"#,
    ),
    // Unknown names are passed over; base64 may be of either alphabet and without padding.
    (
        "kv/range",
        r#"{"key":"Zm9v","count_only":true,"bogus":1}"#,
        200,
        r#"{"header":{"revision":"2"},"count":"1"}"#,
    ),
    ("kv/range", r#"{"key":"YQ"}"#, 200, r#"{"header":{"revision":"2"}}"#),
    ("kv/range", r#"{"key":"__-_"}"#, 200, r#"{"header":{"revision":"2"}}"#),
    (
        "kv/range",
        r#"{"key":"Zm9v","revision":"99"}"#,
        400,
        r#"{"code":11,"message":"etcdserver: mvcc: required revision is a future revision"}"#,
    ),
    ("kv/range", "{}", 400, r#"{"code":3,"message":"etcdserver: key is not provided"}"#),
    ("kv/range", "", 400, r#"{"code":3,"message":"etcdserver: key is not provided"}"#),
    (
        "kv/txn",
        r#"{"compare":[{"target":"VERSION","key":"Zm9v","version":"1","result":"EQUAL"}],"success":[{"requestRange":{"key":"Zm9v"}},{"request_put":{"key":"YQ==","value":"Yg=="}}]}"#,
        200,
        r#"{"header":{"revision":"3"},"succeeded":true,"responses":[{"response_range":{"header":{"revision":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}},{"response_put":{"header":{"revision":"3"}}}]}"#,
    ),
    (
        "kv/deleterange",
        r#"{"key":"Zm9v","prev_kv":true}"#,
        200,
        r#"{"header":{"revision":"4"},"deleted":"1","prev_kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}]}"#,
    ),
    (
        "kv/compaction",
        r#"{"revision":"100"}"#,
        400,
        r#"{"code":11,"message":"etcdserver: mvcc: required revision is a future revision"}"#,
    ),
    (
        "lease/grant",
        r#"{"TTL":"100","ID":"5"}"#,
        200,
        r#"{"header":{"revision":"4"},"ID":"5","TTL":"100"}"#,
    ),
    ("lease/leases", "{}", 200, r#"{"header":{"revision":"4"},"leases":[{"ID":"5"}]}"#),
    ("kv/lease/leases", "{}", 200, r#"{"header":{"revision":"4"},"leases":[{"ID":"5"}]}"#),
    (
        "lease/revoke",
        r#"{"ID":77}"#,
        404,
        r#"{"code":5,"message":"etcdserver: requested lease not found"}"#,
    ),
    ("kv/lease/revoke", r#"{"ID":5}"#, 200, r#"{"header":{"revision":"4"}}"#),
    ("auth/status", "{}", 200, r#"{"header":{"revision":"4"},"authRevision":"1"}"#),
    (
        "auth/authenticate",
        r#"{"name":"x","password":"y"}"#,
        400,
        r#"{"code":9,"message":"etcdserver: authentication is not enabled"}"#,
    ),
    ("kv/nope", "{}", 404, r#"{"code":5,"message":"Not Found"}"#),
];

#[tokio::test]
async fn calls_as_json_are_answered_as_by_etcd() {
    let member = Member::start().await;
    for (path, body, status, expected) in SCRIPT {
        let answer = member.http(&format!("POST /v3/{path}"), body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        assert_eq!(answer.content_type, "application/json");
        assert_eq!(masked(&answer.body), json(expected), "{path} {body}");
    }
    let answer = member.http("GET /v3/kv/range", "").await;
    assert_eq!(answer.status, 501);
    assert_eq!(json(&answer.body), json(r#"{"code":12,"message":"Method Not Allowed"}"#));
    for body in ["xx", r#"{"key":"a b"}"#, r#"{"key":"YQ==","limit":"x"}"#, r#"{"key":"YQ=="} x"#] {
        let answer = member.http("POST /v3/kv/range", body).await;
        assert_eq!((answer.status, &json(&answer.body)["code"]), (400, &3.into()), "{body}");
    }
    member.stop().await;
}

/// Path, body, status, answer: what etcd has not.
const STORE_SCRIPT: [(&str, &str, u16, &str); 12] = [
    (
        "kv/put-if-revision",
        r#"{"key":"Zm9v","value":"YmFy"}"#,
        200,
        r#"{"header":{"revision":"2"},"written":true,"mod_revision":"2"}"#,
    ),
    (
        "kv/put-if-revision",
        r#"{"key":"Zm9v","value":"YmF6","want_value":true}"#,
        200,
        r#"{"header":{"revision":"2"},"mod_revision":"2","value":"YmFy"}"#,
    ),
    (
        "kv/put-sequential",
        r#"{"prefix":"cS8=","value":"YQ=="}"#,
        200,
        r#"{"header":{"revision":"3"},"key":"cS8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDM="}"#,
    ),
    (
        "kv/get",
        r#"{"key":"Zm9v","mode":"READ_MODE_LEASE"}"#,
        200,
        r#"{"header":{"revision":"3"},"served":{"mode":"READ_MODE_LEASE"},"kv":{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}}"#,
    ),
    (
        "kv/list",
        r#"{"key":"AA==","range_end":"AA==","limit":1,"keys_only":true}"#,
        200,
        r#"{"header":{"revision":"3"},"served":{},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1"}],"list_revision":"3"}"#,
    ),
    (
        "role/status",
        r#"{"role":"writer"}"#,
        200,
        r#"{"header":{"revision":"3"},"served":{},"token":{}}"#,
    ),
    ("role/renew", r#"{"role":"writer","token":{"counter":1}}"#, 400, ""),
    (
        "quota/set",
        r#"{"prefix":"cS8=","keys_max":"1"}"#,
        200,
        r#"{"header":{"revision":"3"},"quota":{"prefix":"cS8=","keys_max":"1","bytes":"30","keys":"1"}}"#,
    ),
    ("kv/put-sequential", r#"{"prefix":"cS8=","value":"YQ=="}"#, 429, ""),
    ("quota/remove", r#"{"prefix":"cS8="}"#, 200, r#"{"header":{"revision":"3"}}"#),
    ("quota/remove", r#"{"prefix":"cS8="}"#, 404, ""),
    ("kv/nope", "{}", 404, r#"{"code":5,"message":"Not Found"}"#),
];

#[tokio::test]
async fn what_etcd_has_not_is_there_as_json_too() {
    let member = Member::start().await;
    let mut wrong = String::new();
    for (path, body, status, expected) in STORE_SCRIPT {
        let answer = member.http(&format!("POST /v1/{path}"), body).await;
        let mut got = masked(&answer.body);
        if let Some(page) = got.as_object_mut() {
            page.remove("next_page_token");
        }
        if answer.status != status || !(expected.is_empty() || got == json(expected)) {
            wrong += &format!("{path} {body}: {} {got}\n", answer.status);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let granted = member.http("POST /v1/role/grant", r#"{"role":"w","holder":"me","ttl_s":"9"}"#);
    let granted = masked(&granted.await.body);
    assert_eq!((&granted["granted"], &granted["holder"]), (&true.into(), &"me".into()));
    let body = r#"{"puts":[{"key":"YQ=="},{"key":"Yg=="}]} {"puts":[{"key":""}]}"#;
    let streamed = member.http("POST /v1/kv/put-stream", body).await;
    let counted = |line: &str| json(line)["result"]["puts"].as_str().unwrap().parse::<u64>();
    let puts = streamed.body.lines().map(|line| counted(line).unwrap()).sum::<u64>();
    assert_eq!((streamed.status, puts), (200, 3), "{}", streamed.body);
    member.stop().await;
}

#[tokio::test]
async fn a_stream_of_requests_gets_a_stream_of_answers() {
    let member = Member::start().await;
    member.http("POST /v3/lease/grant", r#"{"TTL":"100","ID":"5"}"#).await;
    let answer = member.http("POST /v3/lease/keepalive", r#"{"ID":5} {"ID":"5"}{"ID":9}"#).await;
    assert_eq!(answer.status, 200);
    let lines: Vec<_> =
        answer.body.lines().map(|line| masked(&json(line)["result"].to_string())).collect();
    let expected = [
        r#"{"header":{"revision":"1"},"ID":"5","TTL":"100"}"#,
        r#"{"header":{"revision":"1"},"ID":"5","TTL":"100"}"#,
        r#"{"header":{"revision":"1"},"ID":"9"}"#,
    ];
    assert_eq!(lines, expected.map(json));
    member.stop().await;
}

/// A watch's requests come when the client likes, and its answers do not wait for their end.
#[tokio::test]
async fn a_watch_goes_on_while_its_request_is_open() {
    let member = Member::start().await;
    let mut tcp = TcpStream::connect(member.address).await.unwrap();
    let head = "POST /v3/watch HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
    tcp.write_all(head.as_bytes()).await.unwrap();
    // The request comes in two pieces, cut in the middle of a string.
    for piece in [r#"{"create_request":{"key":"Z"#, r#"m9v"}}"#] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        tcp.write_all(chunk.as_bytes()).await.unwrap();
    }
    let mut lines = BufReader::new(tcp).lines();
    let mut next = async || loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if line.starts_with('{') {
            return masked(&json(&line)["result"].to_string());
        }
    };
    assert_eq!(next().await, json(r#"{"header":{"revision":"1"},"created":true}"#));
    member.http("POST /v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    let event = r#"{"header":{"revision":"2"},"events":[{"kv":{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}}]}"#;
    assert_eq!(next().await, json(event));
}

#[tokio::test]
async fn probes_are_answered_as_by_etcd() {
    let member = Member::start().await;
    for (request, status, body) in [
        ("GET /health", 200, r#"{"health":"true","reason":""}"#),
        ("GET /health?serializable=true", 200, r#"{"health":"true","reason":""}"#),
        ("PUT /health", 405, "Method Not Allowed\n"),
        ("GET /livez", 200, "ok\n"),
        ("GET /readyz", 200, "ok\n"),
        (
            "GET /readyz?verbose",
            200,
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
        ),
        (
            "GET /readyz?verbose&exclude=non_learner&exclude=linearizable_read",
            200,
            "[+]data_corruption ok\n[+]serializable_read ok\nok\n",
        ),
        ("GET /livez/serializable_read", 200, "ok\n"),
        ("GET /livez/nope", 404, "404 page not found\n"),
        ("GET /", 404, "404 page not found\n"),
        ("GET /version", 200, r#"{"etcdserver":"3.7.0","etcdcluster":"3.7.0","storage":"3.7.0"}"#),
    ] {
        let answer = member.http(request, "").await;
        assert_eq!((answer.status, &answer.body[..]), (status, body), "{request}");
    }
    let metrics = member.http("GET /metrics", "").await.body;
    assert!(metrics.contains("\netcd_server_has_leader 1\n"), "{metrics}");
    let resident = metrics.lines().find_map(|l| l.strip_prefix("process_resident_memory_bytes "));
    assert!(resident.unwrap().parse::<u64>().unwrap() > 1 << 20, "{metrics}");
    member.stop().await;
}

#[tokio::test]
async fn a_ring_without_a_leader_is_not_healthy() {
    let (member, _ring) = Member::stalled(1).await;
    let answer = member.http("GET /health", "").await;
    assert_eq!(answer.status, 503);
    assert_eq!(json(&answer.body), json(r#"{"health":"false","reason":"RAFT NO LEADER"}"#));
    let answer = member.http("GET /livez", "").await;
    assert_eq!(answer.status, 200, "the process itself is well");
}

/// Tools find the calls of clients, and none that belong on other listeners.
#[tokio::test]
async fn reflection_and_health_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let member = Member::start().await;
    let request = HealthCheckRequest::default();
    let health = HealthClient::new(member.channel().await).check(request).await.unwrap();
    assert_eq!(health.into_inner().status, 1, "SERVING");
    let stranger = HealthCheckRequest { service: "etcdserverpb.KV".to_owned() };
    let mut client = HealthClient::new(member.channel().await);
    let error = client.check(stranger.clone()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (tonic::Code::NotFound, "unknown service"));
    let mut statuses = client.watch(stranger).await.unwrap().into_inner();
    assert_eq!(statuses.message().await.unwrap().unwrap().status, 3, "SERVICE_UNKNOWN");

    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut reflection = ServerReflectionClient::new(member.channel().await);
    let requests = tokio_stream::iter([list]);
    let mut answers = reflection.server_reflection_info(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"etcdserverpb.KV") && names.contains(&"satrap.v1.Store"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    assert!(!names.contains(&"satrap.v1.Ring"), "{names:?}");
}

/// etcd answers at the name that its paths had before 3.4, too.
#[tokio::test]
async fn the_old_paths_lead_where_the_new_ones_do() {
    let member = Member::start().await;
    let put = r#"{"key":"Zm9v","value":"YmFy"}"#;
    let answer = member.http("POST /v3beta/kv/put", put).await;
    assert_eq!(
        (answer.status, masked(&answer.body)),
        (200, json(r#"{"header":{"revision":"2"}}"#))
    );
    let answer = member.http("POST /v3beta/kv/nope", "{}").await;
    assert_eq!((answer.status, answer.content_type.as_str()), (404, "application/json"));
}
