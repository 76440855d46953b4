//! The threads of a member: one that is busy delays no other.

use std::sync::{Arc, Barrier};

use satrap_ring_core::{Request, kv::PutRequest};

use super::{
    cluster::{Behavior, Running, World, block_on, soon},
    ring::identified,
    serving::Edge,
};

/// Threads that serve clients and are kept from doing so.
struct Blocked {
    end: Arc<Barrier>,
}

impl Blocked {
    /// Returns once `count` threads of `member` are blocked at the same time.
    fn new(member: &Running, count: usize) -> Self {
        let (begin, end) = (Arc::new(Barrier::new(count + 1)), Arc::new(Barrier::new(count + 1)));
        for _ in 0..count {
            let (begin, end) = (begin.clone(), end.clone());
            member.clients.spawn(async move {
                begin.wait();
                end.wait();
            });
        }
        begin.wait();
        Self { end }
    }

    fn release(self) {
        self.end.wait();
    }
}

/// An edge that takes all of a thread's time delays no other edge, and edges that take all of the
/// time of all of their threads delay no heartbeat and no write.
#[test]
fn busy_edges_delay_neither_other_edges_nor_the_ring() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let members: Vec<_> = configs.iter().map(Running::start_with_production_threads).collect();
    block_on(identified(&members));
    let workers = members[0].clients.metrics().num_workers();
    assert!(workers > 1, "edges are served by {workers} thread");

    let blocked = Blocked::new(&members[0], workers - 1);
    let credentials = world.credentials(World::edge("e1"));
    block_on(async {
        let mut edge = Edge::follow(&world, &members[0], &credentials).await.unwrap();
        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"1"));
        edge.wait_for_height(height).await;
    });
    blocked.release();

    let term = members[0].ring.status().term;
    let blocked: Vec<_> = members.iter().map(|member| Blocked::new(member, workers)).collect();
    block_on(async {
        for (n, member) in members.iter().enumerate() {
            let put = Request::Put(PutRequest::of(format!("k{n}"), "value"));
            soon("a write", member.ring.ask(put)).await.unwrap().unwrap();
        }
        let status = members[0].ring.status();
        assert_eq!(status.term, term, "no election: heartbeats went on");
    });
    blocked.into_iter().for_each(Blocked::release);
    members.into_iter().for_each(Running::stop);
}
