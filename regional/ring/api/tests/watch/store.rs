//! `satrap.v1.StoreWatch`: a mirror that fell behind compaction is brought up to date.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use satrap_merkle::keyset::{Answer, Keyset, Mirror, Node, Verdict};
use satrap_proto::v1 as pb;
use satrap_proto::v1::store_watch_client::StoreWatchClient;
use satrap_proto::v1::store_watch_request::Step as Ask;
use satrap_proto::v1::store_watch_response::Step;
use satrap_ring_api::limits::WatchSettings;
use satrap_ring_core::Request;
use satrap_ring_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_ring_core::kv::request::{DeleteRangeRequest, KeyRange, PutRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::Member;

type Content = BTreeMap<Bytes, (i64, Bytes)>;

/// A client with a copy of everything under `k/`.
struct Client {
    content: Content,
    requests: mpsc::Sender<pb::StoreWatchRequest>,
    responses: Streaming<pb::StoreWatchResponse>,
    keys: Vec<Bytes>,
    mirror: Option<Mirror>,
    through: i64,
    resyncs: Vec<(i64, i64)>,
    sent_nodes: usize,
    received_kvs: usize,
}

fn opening(start_revision: i64, resync: bool) -> pb::WatchOpen {
    let (key, range_end) = (Bytes::from_static(b"k/"), Bytes::from_static(b"k0"));
    pb::WatchOpen { key, range_end, start_revision, epoch: 0, prev_kv: false, resync }
}

impl Client {
    async fn open(member: &Member, content: Content, open: pb::WatchOpen) -> Self {
        let (requests, stream) = mpsc::channel(8);
        let first = pb::StoreWatchRequest { step: Some(Ask::Open(open)) };
        requests.send(first).await.unwrap();
        let mut client = StoreWatchClient::new(member.connect().await);
        let responses = client.watch(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self {
            content,
            requests,
            responses,
            keys: Vec::new(),
            mirror: None,
            through: 0,
            resyncs: Vec::new(),
            sent_nodes: 0,
            received_kvs: 0,
        }
    }

    /// Follows the server until everything up to `revision` is here.
    async fn follow_to(&mut self, revision: i64) {
        while self.through < revision {
            let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message());
            let response = next.await.expect("in time").unwrap().expect("the stream goes on");
            let header = response.header.unwrap();
            assert_eq!((header.cluster_id, header.member_id), (0xc1, 0xa1));
            self.take(response.step.expect("every response has a step")).await;
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Opened(_) => {}
            Step::Events(events) => {
                assert!(events.complete_through >= self.through);
                self.through = events.complete_through;
                for event in events.events {
                    let kv = event.kv.unwrap();
                    match kv.version {
                        0 => _ = self.content.remove(&kv.key),
                        _ => _ = self.content.insert(kv.key, (kv.mod_revision, kv.value)),
                    }
                }
            }
            Step::Resync(required) => {
                self.resyncs.push((required.compact_revision, required.current_revision));
                let mut set = Keyset::new();
                self.keys = self.content.keys().cloned().collect();
                self.content.iter().for_each(|(key, (revision, _))| set.add(key, *revision));
                let mirror = Mirror::new(set);
                let answer = mirror.start();
                self.mirror = Some(mirror);
                self.answer(answer).await;
            }
            Step::Verdict(verdict) => {
                let nodes = |nodes: Vec<pb::MirrorNode>| {
                    nodes.iter().map(|n| Node::new(n.prefix, n.level).unwrap()).collect()
                };
                let verdict = Verdict {
                    descend: nodes(verdict.descend),
                    list: nodes(verdict.list),
                    clear: nodes(verdict.clear),
                    gone: verdict.gone.iter().map(|hash| hash[..].try_into().unwrap()).collect(),
                    ..Verdict::default()
                };
                let instructions = self.mirror.as_ref().unwrap().follow(&verdict);
                for place in instructions.forget {
                    self.content.remove(&self.keys[place]).expect("forgotten once");
                }
                if let Some(answer) = instructions.answer {
                    self.answer(answer).await;
                }
            }
            Step::Put(put) => {
                for kv in put.kvs {
                    self.received_kvs += 1;
                    self.content.insert(kv.key, (kv.mod_revision, kv.value));
                }
            }
            Step::Done(done) => self.through = done.revision,
        }
    }

    async fn answer(&mut self, answer: Answer) {
        let node = |node: Node| Some(pb::MirrorNode { prefix: node.prefix(), level: node.level() });
        self.sent_nodes += answer.summaries.len() + answer.lists.len();
        let summaries = answer.summaries.into_iter().map(|summary| pb::NodeSummary {
            node: node(summary.node),
            keys: summary.keys,
            digest: summary.digest.to_vec().into(),
        });
        let lists = answer.lists.into_iter().map(|(of, entries)| pb::NodeEntries {
            node: node(of),
            entries: entries
                .into_iter()
                .map(|entry| pb::MirrorEntry {
                    key_hash: entry.hash.to_vec().into(),
                    mod_revision: entry.revision,
                })
                .collect(),
        });
        let answer = pb::MirrorAnswer { summaries: summaries.collect(), lists: lists.collect() };
        let request = pb::StoreWatchRequest { step: Some(Ask::Answer(answer)) };
        self.requests.send(request).await.unwrap();
    }
}

async fn apply(member: &Member, request: Request) {
    let applied = member.backend.propose(Default::default(), request).await.unwrap();
    applied.reply.unwrap();
}

async fn put(member: &Member, key: &str, value: &str) {
    apply(member, Request::Put(PutRequest::of(key.to_owned(), value.to_owned()))).await;
}

async fn delete(member: &Member, key: &str) {
    let range = KeyRange { start: key.to_owned().into(), end: Bytes::new() };
    apply(member, Request::DeleteRange(DeleteRangeRequest { range, prev_kv: false })).await;
}

fn revision(member: &Member) -> i64 {
    member.backend.inspect(|keyspace| keyspace.store().revision())
}

/// The keys of the ring under `k/`.
fn truth(member: &Member) -> Content {
    member.backend.inspect(|keyspace| {
        let keys = (0..5_000).map(|n| format!("k/{n:04}"));
        let held = keys.filter_map(|key| keyspace.store().get(key.as_bytes()));
        held.map(|kv| (kv.key_bytes(), (kv.mod_revision, kv.value_bytes()))).collect()
    })
}

/// 000-39, 000-63: a mirror behind compaction gets a resync with only what differs, deleted keys
/// among it, and then every later event.
#[tokio::test]
async fn a_mirror_behind_compaction_gets_the_difference() {
    let member = Member::start().await;
    for n in 0..2_000 {
        put(&member, &format!("k/{n:04}"), "old").await;
    }
    let seen = revision(&member);
    let copy = truth(&member);
    for n in [3, 500, 1_999] {
        put(&member, &format!("k/{n:04}"), "new").await;
    }
    for n in [7, 8] {
        delete(&member, &format!("k/{n:04}")).await;
    }
    put(&member, "k/3000", "born").await;
    put(&member, "elsewhere", "of no interest").await;
    let now = revision(&member);
    apply(&member, Request::Compact { revision: now }).await;

    let mut client = Client::open(&member, copy, opening(seen + 1, true)).await;
    client.follow_to(now).await;
    assert_eq!(client.content, truth(&member));
    assert_eq!(client.resyncs, [(now, now)]);
    assert_eq!(client.received_kvs, 4);
    assert!(client.sent_nodes <= 256 + 6 * 17, "{}", client.sent_nodes);

    put(&member, "k/0007", "again").await;
    delete(&member, "k/3000").await;
    client.follow_to(revision(&member)).await;
    assert_eq!(client.content, truth(&member));
    assert_eq!(client.resyncs.len(), 1);
    member.stop().await;
}

/// Without having asked for it, a client gets the error, and one that is not behind gets events.
#[tokio::test]
async fn a_client_that_does_not_ask_for_resync_is_refused() {
    let member = Member::start().await;
    for n in 0..5 {
        put(&member, &format!("k/{n:04}"), "v").await;
    }
    apply(&member, Request::Compact { revision: 4 }).await;
    let mut behind = Client::open(&member, Content::new(), opening(3, false)).await;
    let status = end_of(&mut behind).await;
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(status.message(), "etcdserver: mvcc: required revision has been compacted");
    let mut level = Client::open(&member, Content::new(), opening(4, false)).await;
    level.follow_to(6).await;
    assert_eq!(level.content.len(), 3);
    member.stop().await;
}

/// A mirror that knows nothing, and a ring that has nothing.
#[tokio::test]
async fn empty_mirrors_and_empty_rings() {
    let member = Member::start().await;
    for n in 0..300 {
        put(&member, &format!("k/{n:04}"), "v").await;
    }
    let now = revision(&member);
    apply(&member, Request::Compact { revision: now }).await;
    let mut client = Client::open(&member, Content::new(), opening(1, true)).await;
    client.follow_to(now).await;
    assert_eq!(client.content, truth(&member));
    let copy = client.content.clone();
    for n in 0..300 {
        delete(&member, &format!("k/{n:04}")).await;
    }
    apply(&member, Request::Compact { revision: revision(&member) }).await;
    let mut client = Client::open(&member, copy, opening(now + 1, true)).await;
    client.follow_to(revision(&member)).await;
    assert!(client.content.is_empty());
    assert_eq!(client.received_kvs, 0);
    member.stop().await;
}

/// A resync reads keys, so a corrupt member ends it at the next step. Live watches go on.
#[tokio::test]
async fn a_corrupt_member_completes_no_mirror() {
    const TTL_S: i64 = 60;
    let member = Member::start().await;
    for n in 0..300 {
        put(&member, &format!("k/{n:04}"), "v").await;
    }
    let (lease, leased) = (7, "k/0300");
    apply(&member, Request::LeaseGrant { id: lease, ttl_s: TTL_S }).await;
    let put = PutRequest { lease, ..PutRequest::of(leased.to_owned(), "v".to_owned()) };
    apply(&member, Request::Put(put)).await;
    let now = revision(&member);
    apply(&member, Request::Compact { revision: now }).await;
    let mut live = Client::open(&member, Content::new(), opening(now, true)).await;
    live.follow_to(now).await;
    assert!(live.content.contains_key(leased.as_bytes()));
    let mut behind = Client::open(&member, Content::new(), opening(1, true)).await;
    while behind.resyncs.is_empty() {
        let response = behind.responses.message().await.unwrap().expect("the stream goes on");
        // The resync has begun, and the member has nothing to compare with yet.
        if let Some(Step::Resync(required)) = response.step {
            behind.resyncs.push((required.compact_revision, required.current_revision));
        }
    }
    let alarm =
        AlarmMember { kind: AlarmKind::Corrupt, member: member.backend.identity().member_id };
    apply(&member, Request::Alarm(AlarmRequest::Activate(alarm))).await;
    let answer = Mirror::new(Keyset::new()).start();
    behind.answer(answer).await;
    let status = end_of(&mut behind).await;
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
    assert_eq!(behind.received_kvs, 0);
    // While CORRUPT is raised, keys change only by leases that expire.
    member.levers.ahead_ms.store(2 * 1_000 * TTL_S as u64, Relaxed);
    live.follow_to(now + 1).await;
    assert!(!live.content.contains_key(leased.as_bytes()), "the live watch goes on");
    member.stop().await;
}

/// A client that talks nonsense, or nothing, is cut off and holds no turn.
#[tokio::test]
async fn a_confused_or_silent_mirror_is_cut_off() {
    let settings =
        WatchSettings { resync_answer_max: Duration::from_millis(50), ..WatchSettings::default() };
    let member = Member::with(settings).await;
    for n in 0..5 {
        put(&member, &format!("k/{n:04}"), "v").await;
    }
    apply(&member, Request::Compact { revision: 6 }).await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(Client::open(&member, Content::new(), opening(2, true)).await);
    }
    for client in &mut silent {
        assert_eq!(end_of(client).await.code(), Code::DeadlineExceeded);
    }
    member.stop().await;
    // Time does not end this one.
    let member = Member::start().await;
    for n in 0..5 {
        put(&member, &format!("k/{n:04}"), "v").await;
    }
    apply(&member, Request::Compact { revision: 6 }).await;
    let mut confused = Client::open(&member, Content::new(), opening(2, true)).await;
    let summaries = vec![pb::NodeSummary { node: None, keys: 1, digest: Bytes::new() }];
    let answer = pb::MirrorAnswer { summaries, lists: Vec::new() };
    let request = pb::StoreWatchRequest { step: Some(Ask::Answer(answer)) };
    confused.requests.send(request).await.unwrap();
    assert_eq!(end_of(&mut confused).await.code(), Code::InvalidArgument);
    member.stop().await;
}

async fn end_of(client: &mut Client) -> Status {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), client.responses.message());
        match next.await.expect("the stream ends") {
            Ok(response) => assert!(response.is_some(), "ended without a status"),
            Err(status) => return status,
        }
    }
}
