//! Hundreds of seeds, and proof that they would find something.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use futures::future::select;
use openraft::ChangeMembers;
use satrap_regional_api::backend::{AdminReply, AdminRequest, Unavailable};

use super::{Report, bug::Bug, checks::Checks, heal, members, run, runtime, world::World};
use crate::{limits::DEFRAGMENT_PAUSE, tests::realm::Realm};

/// A number from the command line of a developer, who wants to see one run again.
#[expect(clippy::disallowed_methods, reason = "a test takes its seed from whoever repeats it")]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn explain(report: &Report) -> String {
    let seed = report.seed;
    format!(
        "{}\n{}\nseed {seed}: RING_SEED={seed} cargo test -p satrap-regional-server --lib \
         raft::sim::tests::one_seed -- --nocapture",
        report.story,
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
        let Report { fingerprint, operations, blows, simulated, .. } = &report;
        println!("{seed}: {fingerprint:?} {operations:?} {blows} {simulated:?}");
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

/// Simulates three members that have a leader.
fn in_a_ring(test: impl AsyncFnOnce(&Arc<World>, &mut Checks)) {
    runtime().block_on(async {
        let world = World::new(1, 3, Realm::at(1_800_000_000).genesis, None);
        let mut checks = Checks::default();
        world.founders().iter().for_each(|name| world.boot(name));
        heal(&world, None, &mut checks).await.unwrap();
        test(&world, &mut checks).await;
    });
}

/// A snapshot on its way is no reason to refuse, unless it takes too long.
#[test]
fn a_defragmentation_waits_for_who_reads_the_state() {
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

/// H6 of `orders`: whoever was changing the members died between the two halves of it.
#[test]
fn a_removal_left_half_done_is_completed_as_it_was_meant() {
    in_a_ring(async |world, checks| {
        let running = world.running();
        let (_, leader) = running.iter().find(|(_, live)| live.ring.leads()).unwrap();
        let (gone, _) = running.iter().find(|(_, live)| !live.ring.leads()).unwrap();
        let raft = &leader.ring.raft;
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
    for seed in 0..20 {
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
    let count = from_environment("RING_SEEDS").unwrap_or(500);
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
