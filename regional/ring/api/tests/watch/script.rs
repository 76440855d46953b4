//! The script of a client and its output; the same against the ring and against etcd.
//!
//! `etcd.txt` is what etcd 3.7.3 answered to exactly this, fresh, with fields that differ by
//! member left out.

use std::fmt::Write as _;
use std::time::Duration;

use satrap_proto::etcdserverpb::kv_client::KvClient;
use satrap_proto::etcdserverpb::request_op::Request as Op;
use satrap_proto::etcdserverpb::watch_client::WatchClient;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Script {
    kv: KvClient<Channel>,
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    pub log: String,
}

impl Script {
    pub async fn start(channel: Channel) -> Self {
        let (requests, stream) = mpsc::channel(64);
        // etcd ignores it.
        requests.send(WatchRequest { request_union: None }).await.unwrap();
        let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        // It sends no headers before it has something to say.
        let first = RequestUnion::CreateRequest(key("warm-up"));
        requests.send(WatchRequest { request_union: Some(first) }).await.unwrap();
        let responses = client.watch(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let mut script =
            Self { kv: KvClient::new(channel), requests, responses, log: String::new() };
        script.expect(1).await;
        script
    }

    pub async fn ask(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn create(&mut self, create: WatchCreateRequest, answers: usize) {
        self.note(&format!(
            "> create {} {} start {}",
            create.key.escape_ascii(),
            create.range_end.escape_ascii(),
            create.start_revision
        ));
        self.ask(RequestUnion::CreateRequest(create)).await;
        self.expect(answers).await;
    }

    async fn cancel(&mut self, watch_id: i64, answers: usize) {
        self.note(&format!("> cancel {watch_id}"));
        self.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
        self.expect(answers).await;
    }

    async fn progress(&mut self, answers: usize) {
        self.note("> progress");
        self.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        self.expect(answers).await;
    }

    pub async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>, answers: usize) {
        self.note(&format!("> put {key}"));
        let (key, value) = (key.as_bytes().to_vec().into(), value.into().into());
        self.kv.put(PutRequest { key, value, ..Default::default() }).await.unwrap();
        self.expect(answers).await;
    }

    async fn delete(&mut self, key: &str, end: &str, answers: usize) {
        self.note(&format!("> delete {key} {end}"));
        self.kv.delete_range(deletion(key, end)).await.unwrap();
        self.expect(answers).await;
    }

    async fn txn(&mut self, operations: Vec<Op>, answers: usize) {
        self.note("> txn");
        let success = operations.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
        self.kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
        self.expect(answers).await;
    }

    async fn compact(&mut self, revision: i64) {
        self.note(&format!("> compact {revision}"));
        self.kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
    }

    fn note(&mut self, line: &str) {
        self.log.push_str(line);
        self.log.push('\n');
    }

    /// Takes so many responses. Watches get theirs in no particular order, so the lines are sorted.
    async fn expect(&mut self, answers: usize) {
        let mut lines = Vec::new();
        for _ in 0..answers {
            let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
            let next = next.unwrap_or_else(|_| panic!("no answer; so far:\n{}", self.log));
            lines.push(show(&next.unwrap().expect("the stream goes on")));
        }
        lines.sort();
        lines.iter().for_each(|line| self.note(line));
    }
}

fn show(response: &WatchResponse) -> String {
    let header = response.header.expect("every response has one");
    let mut line = format!("  watch {} at {}", response.watch_id, header.revision);
    let flags = [
        (response.created, " created"),
        (response.canceled, " canceled"),
        (response.fragment, " fragment"),
    ];
    flags.iter().filter(|(set, _)| *set).for_each(|(_, name)| line.push_str(name));
    if response.compact_revision != 0 {
        write!(line, " compacted {}", response.compact_revision).unwrap();
    }
    if !response.cancel_reason.is_empty() {
        write!(line, " because {:?}", response.cancel_reason).unwrap();
    }
    for event in &response.events {
        let kv = event.kv.as_ref().expect("every event has one");
        write!(
            line,
            "\n    {:?} {} = {} bytes, created {}, modified {}, version {}",
            event.r#type(),
            kv.key.escape_ascii(),
            kv.value.len(),
            kv.create_revision,
            kv.mod_revision,
            kv.version
        )
        .unwrap();
        if let Some(prev) = &event.prev_kv {
            write!(line, ", before {}", prev.value.escape_ascii()).unwrap();
        }
    }
    line
}

pub fn key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.as_bytes().to_vec().into(), ..Default::default() }
}

pub fn range(start: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { range_end: end.as_bytes().to_vec().into(), ..key(start) }
}

fn deletion(key: &str, end: &str) -> DeleteRangeRequest {
    let (key, range_end) = (key.as_bytes().to_vec().into(), end.as_bytes().to_vec().into());
    DeleteRangeRequest { key, range_end, ..Default::default() }
}

fn putting(key: &str) -> Op {
    let key = key.as_bytes().to_vec().into();
    Op::RequestPut(PutRequest { key, value: "t".into(), ..Default::default() })
}

/// Everything, on one stream of a fresh member.
pub async fn run(channel: Channel) -> String {
    let mut script = Script::start(channel).await;
    ids_and_refusals(&mut script).await;
    events(&mut script).await;
    history(&mut script).await;
    progress(&mut script).await;
    fragments(&mut script).await;
    script.log
}

async fn ids_and_refusals(script: &mut Script) {
    script.create(key("a"), 1).await;
    script.create(WatchCreateRequest { watch_id: 7, ..key("b") }, 1).await;
    script.create(WatchCreateRequest { watch_id: 7, ..key("c") }, 1).await;
    script.create(WatchCreateRequest { watch_id: 3, ..key("d") }, 1).await;
    script.create(key("d"), 1).await;
    script.create(key("d"), 1).await;
    script.create(range("z", "a"), 1).await;
    script.create(range("a", "a"), 1).await;
    script.create(WatchCreateRequest { start_revision: -1, ..key("a") }, 1).await;
    script.cancel(99, 0).await;
    script.cancel(7, 1).await;
    script.cancel(7, 0).await;
    script.create(WatchCreateRequest { watch_id: 7, ..key("e") }, 1).await;
    script.create(WatchCreateRequest { watch_id: -5, ..key("f") }, 1).await;
    script.cancel(-5, 1).await;
    script.create(key(""), 1).await;
}

async fn events(script: &mut Script) {
    script.put("a", "1", 1).await;
    script.put("d", "1", 3).await;
    script.put("a", "2", 1).await;
    script.delete("a", "", 1).await;
    script.delete("a", "", 0).await;
    script.create(WatchCreateRequest { prev_kv: true, ..range("p", "q") }, 1).await;
    script.create(WatchCreateRequest { filters: vec![0], ..range("p", "q") }, 1).await;
    script.create(WatchCreateRequest { filters: vec![1], ..range("p", "\0") }, 1).await;
    script.create(WatchCreateRequest { filters: vec![0, 1], ..range("p", "\0") }, 1).await;
    script.put("p1", "x", 2).await;
    script.put("p1", "y", 2).await;
    script.put("p2", "y", 2).await;
    script
        .txn(vec![putting("p1"), putting("p9"), Op::RequestDeleteRange(deletion("p2", ""))], 3)
        .await;
    script.delete("p", "q", 2).await;
    script.put("r", "1", 1).await;
}

async fn history(script: &mut Script) {
    let from = |start_revision, create| WatchCreateRequest { start_revision, ..create };
    script.create(from(1, range("\0", "\0")), 2).await;
    script.create(from(2, WatchCreateRequest { prev_kv: true, ..key("a") }), 2).await;
    script.create(from(4, key("a")), 2).await;
    script.create(from(100, key("a")), 1).await;
    script.compact(5).await;
    script.create(from(4, WatchCreateRequest { watch_id: 40, ..key("a") }), 2).await;
    script.create(from(5, key("a")), 2).await;
    script.create(from(5, WatchCreateRequest { prev_kv: true, ..range("a", "q") }), 2).await;
    script.create(WatchCreateRequest { watch_id: 40, ..key("a") }, 1).await;
    script.cancel(40, 1).await;
    script.cancel(40, 0).await;
}

async fn progress(script: &mut Script) {
    // One watch starts in the future, so no progress of all watches can be sent.
    script.progress(0).await;
    for id in 1..30 {
        script.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
    }
    script.note("> cancel all");
    script.expect(CANCELED).await;
    script.progress(1).await;
    script.put("nobody", "1", 0).await;
    script.progress(1).await;
    script.cancel(0, 1).await;
    script.progress(0).await;
    script.create(WatchCreateRequest { watch_id: 50, ..key("s") }, 1).await;
    script.progress(1).await;
}

/// Watches left open by the parts before, with ids from 1 to 29.
const CANCELED: usize = 16;

async fn fragments(script: &mut Script) {
    script.create(WatchCreateRequest { fragment: true, ..range("big", "bih") }, 1).await;
    for n in 0..5 {
        script.put(&format!("big{n}"), vec![7; 700_000], 1).await;
    }
    let start_revision = BIG_FROM;
    let all = WatchCreateRequest { start_revision, fragment: true, ..range("big", "bih") };
    script.create(all, 4).await;
}

/// Revision of the first of the large values.
const BIG_FROM: i64 = 13;
