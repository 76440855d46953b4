//! Runs hundreds of seeds, and proves that the checks find injected bugs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{join_all, select},
};
use openraft::ChangeMembers;
use openraft::storage::RaftLogReader as _;
use satrap_ring_api::backend::{AdminReply, AdminRequest, Unavailable};
use satrap_ring_core::{
    Caller, Refusal, Request,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
    kv::PutRequest,
};
use satrap_ring_storage::sim::Survival;
use tokio::time::{sleep, timeout};

use super::{Report, bug::Bug, checks::Checks, heal, members, run, runtime, world::World};
use crate::{
    limits::{ADMIN_CALLS_MAX, DEFRAGMENT_PAUSE},
    types::MemberName,
};

/// A number from the environment, with which a developer repeats one run.
#[expect(
    clippy::disallowed_methods,
    reason = "a test takes its seed from the developer who repeats it"
)]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn explain(report: &Report) -> String {
    let seed = report.seed;
    format!(
        "{}\n{}\nseed {seed}: RING_SEED={seed} cargo test -p satrap-ring-raft --lib \
         sim::tests::one_seed -- --nocapture",
        report.trace,
        report.broken.as_deref().unwrap_or("nothing is broken"),
    )
}

/// `RING_SEED=N`, optionally with `RING_SEEDS=COUNT`.
#[test]
fn one_seed() {
    let first = from_environment("RING_SEED").unwrap_or(1);
    let count = from_environment("RING_SEEDS").unwrap_or(1);
    let mut broken = Vec::new();
    for seed in first..first + count {
        let report = run(seed, None);
        let Report { fingerprint, operations, faults, simulated, .. } = &report;
        println!("{seed}: {fingerprint:?} {operations:?} {faults} {simulated:?}");
        if report.broken.is_some() {
            if count == 1 {
                panic!("{}", explain(&report));
            }
            println!("{seed}: {:?}", report.broken);
            broken.push(seed);
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
}

/// Runs `test` in a ring of three members that has a leader.
fn in_a_ring(test: impl AsyncFnOnce(&Arc<World>, &mut Checks)) {
    runtime().block_on(async {
        let world = World::new(1, 3, None);
        let mut checks = Checks::default();
        world.founders().iter().for_each(|name| world.boot(name));
        heal(&world, None, &mut checks).await.unwrap();
        test(&world, &mut checks).await;
    });
}

/// Waits until `happened` returns true; checks every millisecond.
async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    for _ in 0..60_000 {
        if happened().await {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}: not within a minute");
}

fn has_entries(world: &World, name: &MemberName) -> bool {
    let running = world.running();
    running.iter().any(|(running, live)| running == name && !live.ring.node.nodes().is_empty())
}

/// FOUNDING-3 of `founding`: both write the same entry, and the election decides between them.
#[test]
fn two_members_found_a_ring_at_once() {
    runtime().block_on(async {
        let world = World::new(3, 3, None);
        let [m1, m2, m3] = world.founders().try_into().unwrap();
        world.net().cut.extend([(m1.clone(), m2.clone()), (m2.clone(), m1.clone())]);
        [&m1, &m2, &m3].into_iter().for_each(|name| world.boot(name));
        until("both found", async || has_entries(&world, &m1) && has_entries(&world, &m2)).await;
        let leads =
            |name| world.running().iter().any(|(n, live)| n == name && live.ring.node.leads());
        assert!(!leads(&m3), "neither has its entry from the other");
        world.net().cut.clear();
        heal(&world, None, &mut Checks::default()).await.unwrap();
    });
}

/// A founder that is gone for good after a vote for it does not hold up the others.
#[test]
fn a_vote_for_a_founder_that_is_gone_is_no_ring() {
    runtime().block_on(async {
        let world = World::new(3, 3, None);
        let [m1, m2, m3] = world.founders().try_into().unwrap();
        [&m1, &m2].into_iter().for_each(|name| world.boot(name));
        let voted = async || {
            let running = world.running();
            let Some((_, live)) = running.iter().find(|(name, _)| *name == m2) else {
                return false;
            };
            live.log.clone().read_vote().await.unwrap().is_some()
        };
        until("a vote", voted).await;
        world.crash(&m1, Survival::None).await;
        assert!(!has_entries(&world, &m2), "no entry has reached it");
        world.boot(&m3);
        until("a leader", async || world.running().iter().any(|(_, live)| live.ring.node.leads()))
            .await;
    });
}

/// A defragmentation waits for a snapshot in progress, and fails only if that takes too long.
#[test]
fn a_defragmentation_waits_for_readers_of_the_state() {
    in_a_ring(async |world, _| {
        let running = world.running();
        let (name, live) = running.first().unwrap();
        let backend = world.backend(name).unwrap();
        live.ring.checkpoints.complete().unwrap();
        let reader = live.ring.checkpoints.state().reader().unwrap().unwrap();
        let refused = backend.admin(AdminRequest::Defragment).await.unwrap_err();
        assert_eq!(refused, Unavailable::TooManyRequests.into());
        let read = async move {
            tokio::time::sleep(DEFRAGMENT_PAUSE * 3).await;
            drop(reader);
        };
        let (done, ()) = futures::join!(backend.admin(AdminRequest::Defragment), read);
        assert!(matches!(done, Ok(AdminReply::Done)));
    });
}

/// Its snapshot would be restored as the state of a ring, or push out a good one.
#[test]
fn a_corrupt_member_makes_no_snapshot() {
    in_a_ring(async |world, _| {
        let running = world.running();
        let (corrupt, live) = running.first().unwrap();
        let (other, _) = running.last().unwrap();
        let [corrupt, other] = [corrupt, other].map(|name| world.backend(name).unwrap());
        let member = live.ring.node.own_id().unwrap();
        let alarm = AlarmRequest::Activate(AlarmMember { kind: AlarmKind::Corrupt, member });
        let raised = corrupt.propose(Caller::default(), Request::Alarm(alarm)).await;
        raised.unwrap().reply.unwrap();
        let refused = corrupt.admin(AdminRequest::Snapshot).await.unwrap_err();
        assert_eq!(refused, Refusal::Corrupt.into());
        let made = other.admin(AdminRequest::Snapshot).await;
        assert!(matches!(made, Ok(AdminReply::Snapshot(_))));
    });
}

/// Sixteen requests of an operator that waited kept the member from taking any call of clients.
#[test]
fn operators_that_wait_hold_up_no_client() {
    in_a_ring(async |world, _| {
        let running = world.running();
        let (name, live) = running.first().unwrap();
        let backend = world.backend(name).unwrap();
        live.ring.checkpoints.complete().unwrap();
        let reader = live.ring.checkpoints.state().reader().unwrap().unwrap();
        let waits = (0..ADMIN_CALLS_MAX).map(|_| backend.admin(AdminRequest::Defragment));
        let mut waits = Box::pin(join_all(waits));
        assert!((&mut waits).now_or_never().is_none(), "they wait for the reader");
        let refused = backend.admin(AdminRequest::Defragment).await.unwrap_err();
        assert_eq!(refused, Unavailable::TooManyRequests.into());
        let put = Request::Put(PutRequest::of("k", "v"));
        let put = timeout(Duration::from_secs(1), backend.propose(Caller::default(), put)).await;
        put.expect("a put does not wait for them").unwrap().reply.unwrap();
        drop(reader);
        assert!(waits.await.iter().all(Result::is_ok));
    });
}

/// CHANGES-6 of `changes`: the leader died between the two halves of a membership change.
#[test]
fn an_incomplete_removal_is_completed_by_the_next_leader() {
    in_a_ring(async |world, checks| {
        let running = world.running();
        let (_, leader) = running.iter().find(|(_, live)| live.ring.node.leads()).unwrap();
        let (gone, _) = running.iter().find(|(_, live)| !live.ring.node.leads()).unwrap();
        let raft = &leader.ring.node.raft;
        let removed = ChangeMembers::RemoveVoters([gone.clone()].into());
        let half = raft.wait(None);
        let half = half.metrics(|m| m.membership_config.get_joint_config().len() > 1, "half done");
        let whole = raft.change_membership(removed, false);
        select(Box::pin(half), Box::pin(whole)).await;
        heal(world, None, checks).await.unwrap();
        let members = members(world).unwrap();
        assert!(members.len() == 2 && members.iter().all(|(name, _)| name != gone), "{members:?}");
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..satrap_effort::count("runs that are repeated", 5, 20) {
        let (one, other) = (run(seed, None), run(seed, None));
        assert_eq!(one.fingerprint, other.fingerprint, "seed {seed}");
    }
}

#[test]
fn every_bug_is_found() {
    for bug in Bug::ALL {
        let found = (0..60).map(|seed| run(seed, Some(bug))).find(|report| report.broken.is_some());
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: seed {}: {}", found.seed, found.broken.unwrap());
    }
}

#[test]
fn storms_pass() {
    let count = from_environment("RING_SEEDS");
    let count = count.unwrap_or_else(|| satrap_effort::count("simulated storms", 50, 250));
    let next = AtomicU64::new(0);
    let broken = thread::scope(|scope| {
        let work = || {
            let seeds = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
            let mut reports = seeds.take_while(|seed| *seed < count).map(|seed| run(seed, None));
            reports.find(|report| report.broken.is_some())
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).next()
    });
    if let Some(report) = broken {
        panic!("{}", explain(&report));
    }
}
