//! Three members, and who gets the requests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

use satrap_client::Ring;
use satrap_client::update::update;
use satrap_ring_api::backend::{
    Applied, Backend, Call, MemberIdentity, Publisher, ReadPoint, RingView, Served, Unavailable,
};
use satrap_ring_core::{AppliedState, Batch, Command, Entry, Outcome, RingTime};
use satrap_runtime::clock;
use tokio::task::JoinSet;

use crate::harness::Member;

/// One of three members that share a state. They do not elect: the test says who leads.
struct One {
    member: Member,
    publisher: Publisher,
    asked: Arc<AtomicU64>,
    away: Arc<AtomicBool>,
}

struct Trio {
    members: Vec<One>,
    serving: JoinSet<()>,
}

const IDS: [u64; 3] = [10, 11, 12];

impl Trio {
    async fn start() -> Self {
        let state = Arc::<RwLock<AppliedState>>::default();
        let (mut members, mut serving) = (Vec::new(), JoinSet::new());
        for member_id in IDS {
            let identity = MemberIdentity { cluster_id: 1, member_id, name: member_id.to_string() };
            let (backend, ring) = Backend::new(identity, state.clone(), 64);
            let member = Member::serve(backend).await;
            let (asked, away) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
            let mut calls = ring.calls;
            let (state, counted, gone) = (state.clone(), asked.clone(), away.clone());
            serving.spawn(async move {
                while let Some(call) = calls.recv().await {
                    counted.fetch_add(1, Relaxed);
                    answer(call, &state, gone.load(Relaxed));
                }
            });
            members.push(One { member, publisher: ring.publisher, asked, away });
        }
        Self { members, serving }
    }

    /// Sets the leader and term that each member reports; a leader of zero is none.
    fn believe(&self, beliefs: [(u64, u64); 3]) {
        for (one, (leader, term)) in self.members.iter().zip(beliefs) {
            let fresh_at = Some(clock::monotonic());
            one.publisher.ring(RingView { leader, term, fresh_at, ..RingView::default() });
        }
    }

    async fn ring(&self) -> Ring {
        let mut members = Vec::new();
        for one in &self.members {
            members.push(one.member.ring().await);
        }
        Ring::of(members)
    }

    /// How much each was asked since the last call.
    fn asked(&self) -> [u64; 3] {
        [0, 1, 2].map(|at| self.members[at].asked.swap(0, Relaxed))
    }

    async fn stop(mut self) {
        for one in self.members {
            one.member.stop().await;
        }
        self.serving.shutdown().await;
    }
}

fn answer(call: Call, state: &RwLock<AppliedState>, away: bool) {
    let term = 1;
    match call {
        Call::Propose { reply, .. } if away => _ = reply.send(Err(Unavailable::NoLeader)),
        Call::Read { reply, .. } if away => _ = reply.send(Err(Unavailable::NoLeader)),
        Call::Propose { proposal, reply } => {
            let batch = Batch { time: RingTime(1), proposals: vec![proposal] };
            let entry = Entry::Command(Ok(Command::Batch(batch)));
            let Outcome::Batch(mut replies) = state.write().unwrap().apply(entry) else {
                panic!("a batch has replies");
            };
            _ = reply.send(Ok(Applied { reply: replies.remove(0), term }));
        }
        Call::Read { reply, .. } => {
            let point = ReadPoint { served: Served::Quorum, stale_ms_max: Some(0), term };
            _ = reply.send(Ok(point));
        }
        Call::ProposeMany { .. } | Call::Admin { .. } => panic!("{call:?}"),
    }
}

async fn write(ring: &Ring) -> bool {
    update(ring, "k", |_| Some("v".into())).await.is_ok()
}

#[tokio::test]
async fn requests_go_to_the_leader_and_elsewhere_once_it_is_away() {
    let trio = Trio::start().await;
    trio.believe([(12, 5), (12, 5), (12, 5)]);
    let ring = trio.ring().await;
    for _ in 0..5 {
        assert!(write(&ring).await);
    }
    let [first, second, leader] = trio.asked();
    assert_eq!((first, second), (0, 0), "every read and write to the leader");
    assert_eq!(leader, 10);

    // It loses the others, and goes on believing in itself for a while.
    trio.members[2].away.store(true, Relaxed);
    trio.believe([(11, 6), (11, 6), (12, 5)]);
    assert!(!write(&ring).await, "one that may have been done is not carried again");
    assert_eq!(trio.asked(), [0, 0, 1]);
    assert!(write(&ring).await);
    assert_eq!(trio.asked(), [0, 2, 0]);

    // No member leads: the next request goes to a member that answers, and none is asked for ever.
    trio.members.iter().for_each(|one| one.away.store(true, Relaxed));
    trio.believe([(0, 6), (0, 6), (0, 6)]);
    for _ in 0..3 {
        assert!(!write(&ring).await);
    }
    trio.members[0].away.store(false, Relaxed);
    trio.believe([(10, 7), (0, 6), (0, 6)]);
    assert!(write(&ring).await);
    trio.stop().await;
}

#[tokio::test]
async fn a_member_that_is_gone_is_one_failure() {
    let mut trio = Trio::start().await;
    trio.believe([(10, 5), (10, 5), (10, 5)]);
    let ring = trio.ring().await;
    assert!(write(&ring).await);
    assert_eq!(trio.asked(), [2, 0, 0]);
    trio.members.remove(0).member.stop().await;
    for (one, leader) in trio.members.iter().zip([11, 11]) {
        one.publisher.ring(RingView { leader, term: 6, ..RingView::default() });
    }
    assert!(!write(&ring).await);
    assert!(write(&ring).await, "the next goes to who leads now");
    let asked: Vec<_> = trio.members.iter().map(|one| one.asked.load(Relaxed)).collect();
    assert_eq!(asked, [2, 0]);
    trio.stop().await;
}
