//! The members that have a leader, on rings of real processes: every member of a quorum, also of
//! one, and no member of a minority. These tests need root, and a quick run leaves them out.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod program;

use std::{sync::Arc, thread, time::Duration};

use satrap_histories::{
    cluster::Store as _,
    nemesis::{Nemesis, answered},
    net::{Node, Rule, address},
    run::start,
    satrap::Satrap,
    session::Dialer,
    shared::Shared,
};
use satrap_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use satrap_runtime::{clock::monotonic, runtime::current_thread};
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, Streaming};

use self::program::{PROGRAM, alone};

const ELECTION_MS: u32 = 1_000;
/// Reaching it is a failure.
const WAIT: Duration = Duration::from_secs(60);
/// For so long a member alone must keep its leader.
const WATCHED: Duration = Duration::from_millis(8 * ELECTION_MS as u64);
const PAUSE: Duration = Duration::from_millis(50);

/// A watch that ends when its member has no leader.
struct Watch {
    answers: Streaming<WatchResponse>,
    /// The stream lives as long as the side that asks.
    _requests: mpsc::Sender<WatchRequest>,
}

impl Watch {
    async fn open(dialer: &Dialer, url: &str) -> Self {
        let (requests, asked) = mpsc::channel(1);
        let create = WatchCreateRequest { key: b"key".to_vec().into(), ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await.unwrap();
        let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
        let mut request = Request::new(asked);
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let channel = dialer.connect(url).await.unwrap();
        let mut answers = WatchClient::new(channel).watch(request).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().unwrap().created);
        Self { answers, _requests: requests }
    }

    /// How it ends; `None` if it goes on for `span`.
    async fn end(&mut self, span: Duration) -> Option<Status> {
        let end = async {
            loop {
                match self.answers.message().await {
                    Ok(Some(answer)) if !answer.canceled => {}
                    Ok(Some(answer)) => return Status::unavailable(answer.cancel_reason),
                    Ok(None) => return Status::ok("it ended"),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(span, end).await.ok()
    }
}

/// Runs `test` in a ring of three, in the namespace of its clients.
fn in_a_ring(test: impl FnOnce(&mut Nemesis, &Dialer) + Send) {
    let Some(_alone) = alone() else { return };
    let ring = Box::new(Satrap::new(&PROGRAM, ELECTION_MS).unwrap());
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            let dialer = Dialer::new(ring.credentials()).unwrap();
            let mut nemesis = start(ring, &Arc::new(Shared::new(dialer.clone())), 1).unwrap();
            test(&mut nemesis, &dialer);
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn until(what: &str, span: Duration, mut happened: impl FnMut() -> bool) -> Duration {
    let started = monotonic();
    while !happened() {
        assert!((monotonic() - started) < span, "{what}: not within {span:?}");
        thread::sleep(PAUSE);
    }
    monotonic() - started
}

/// The leader's number as the member in `slot` sees it, zero for none.
fn leader_of(nemesis: &Nemesis, slot: usize) -> Option<u64> {
    nemesis.admin.status(&nemesis.cluster.client_url(slot)).map(|status| status.leader)
}

/// Adds the member of the spare slot, and waits until it votes.
fn grow(nemesis: &mut Nemesis, through: usize) {
    let slot = nemesis.cluster.spare().unwrap();
    let url = nemesis.cluster.client_url(through);
    let peer_url = nemesis.cluster.store().peer_url(&address(slot));
    assert!(nemesis.admin.add_learner(&url, peer_url.clone()));
    nemesis.cluster.activate(slot);
    nemesis.cluster.run(slot).unwrap();
    until("a fourth member that votes", WAIT, || {
        let members = nemesis.admin.members(&url).unwrap_or_default();
        let new = members.into_iter().find(|member| member.peer_urls.contains(&peer_url));
        new.is_some_and(|new| !new.learner)
    });
}

/// A follower that was cut off together with its leader has no quorum either.
#[test]
fn no_half_of_a_ring_has_a_leader() {
    in_a_ring(|nemesis, dialer| {
        let leader = nemesis.await_leader().unwrap();
        grow(nemesis, leader);
        let leader = nemesis.await_leader().unwrap();
        let pair = [leader, nemesis.cluster.active().into_iter().find(|s| *s != leader).unwrap()];
        let others: Vec<_> =
            nemesis.cluster.active().into_iter().filter(|slot| !pair.contains(slot)).collect();
        let runtime = current_thread().unwrap();
        let mut watches: Vec<_> = pair
            .iter()
            .map(|slot| runtime.block_on(Watch::open(dialer, &nemesis.cluster.client_url(*slot))))
            .collect();
        for (one, other) in pair.iter().flat_map(|one| others.iter().map(move |o| (*one, *o))) {
            let (one, other) = (Node::Member(one), Node::Member(other));
            nemesis.cluster.network.set_both(one, other, Rule::Cut).unwrap();
        }
        let cut = monotonic();
        for watch in &mut watches {
            let end = runtime.block_on(watch.end(WAIT)).expect("a watch that wants a leader ends");
            assert_eq!(end.code(), Code::Unavailable, "{end:?}");
        }
        until("no leader on both sides", WAIT, || {
            nemesis.cluster.active().iter().all(|slot| leader_of(nemesis, *slot) == Some(0))
        });
        println!("two of four knew that they have no leader after {:?}", monotonic() - cut);
        nemesis.cluster.network.heal().unwrap();
        until("a leader for all", WAIT, || {
            let leaders = nemesis.cluster.active().into_iter().map(|s| leader_of(nemesis, s));
            let leaders: Vec<_> = leaders.collect();
            leaders[0].is_some_and(|leader| leader != 0) && leaders.iter().all(|l| *l == leaders[0])
        });
    });
}

/// One voter is its own quorum.
#[test]
fn a_ring_that_shrank_to_one_member_keeps_its_leader() {
    in_a_ring(|nemesis, dialer| {
        let leader = nemesis.await_leader().unwrap();
        let url = nemesis.cluster.client_url(leader);
        let own_url = nemesis.cluster.store().peer_url(&address(leader));
        for slot in nemesis.cluster.active().into_iter().filter(|slot| *slot != leader) {
            nemesis.cluster.expect_exit(slot);
            let peer_url = nemesis.cluster.store().peer_url(&address(slot));
            until("a removal", WAIT, || {
                let members = nemesis.admin.members(&url);
                let there = members.map(|members| {
                    members.into_iter().find(|member| member.peer_urls.contains(&peer_url))
                });
                match there {
                    None => false,
                    Some(None) => true,
                    Some(Some(member)) => nemesis.admin.remove(&url, member.id),
                }
            });
        }
        let members = answered("list its members", || nemesis.admin.members(&url)).unwrap();
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].peer_urls, [own_url]);
        let runtime = current_thread().unwrap();
        let mut watch = runtime.block_on(Watch::open(dialer, &url));
        let ended = runtime.block_on(watch.end(WATCHED));
        assert!(ended.is_none(), "a watch that wants a leader ended: {ended:?}");
        let status = answered("say its status", || nemesis.admin.status(&url)).unwrap();
        assert_eq!(status.leader, members[0].id);
        assert!(status.errors.is_empty(), "{:?}", status.errors);
    });
}
