//! Hundreds of crashes at random points between durable operations and between sends: no validator
//! contradicts itself, and the quorum goes on. Controls without log and guard do contradict themselves.

use std::time::Duration;

use satrap_global_node::store::Storage as _;

use crate::{
    realm::{genesis, publish},
    world::World,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// Runs `heights` blocks while every node keeps crashing; returns the world afterwards.
fn storm(seed: u64, heights: u64, crashes: u64, amnesia: bool) -> World {
    let mut world = World::new(genesis(4, 9, HOUR), 4, seed);
    world.crash_within = 40;
    world.crash_budget = crashes;
    world.nodes.iter_mut().for_each(|node| node.amnesia = amnesia);
    run(world, heights)
}

/// Submits changes until `heights` blocks are decided.
fn run(mut world: World, heights: u64) -> World {
    world.start_all();
    let mut n = 0;
    let end = world.now + Duration::from_secs(4_000);
    while world.oracle.decided.len() < usize::try_from(heights).unwrap() && world.now < end {
        let to = u8::try_from(world.rng.below(4)).unwrap();
        // Waiters die with their node; the oracle counts blocks.
        world.submit(to, publish(&world.genesis, n), n);
        world.run(Duration::from_millis(400), |_| false);
        n += 1;
    }
    world
}

#[test]
fn hundreds_of_crashes_and_not_one_equivocation() {
    let (mut crashes, mut replayed, mut messages) = (0, 0, 0);
    for seed in 0..4 {
        let mut world = storm(seed, 60, 150, false);
        assert_eq!(world.oracle.equivocations, 0, "seed {seed}");
        assert_eq!(world.oracle.contradictory_signatures, 0, "seed {seed}");
        assert_eq!(world.oracle.disagreements, 0, "seed {seed}");
        assert!(world.oracle.decided.len() >= 60, "seed {seed}: the quorum stalled");
        // When the power stays on, all nodes arrive at the same state.
        world.crash_budget = 0;
        let top = *world.oracle.decided.keys().last().unwrap();
        assert!(
            world.run(Duration::from_secs(120), |w| w.all_at(&[0, 1, 2, 3], top)),
            "seed {seed}: {:?}",
            (0..4).map(|n| world.height(n)).collect::<Vec<_>>()
        );
        for height in 1..=top {
            let blocks: Vec<_> = (0..4).map(|n| world.store(n).decided(height).unwrap()).collect();
            let ids =
                blocks.iter().map(|b| b.as_ref().unwrap().0.checkpoint.id(world.genesis.realm()));
            let ids: std::collections::BTreeSet<_> = ids.collect();
            assert_eq!(ids.len(), 1, "seed {seed}, height {height}");
        }
        crashes += world.crashes;
        replayed += world.nodes.iter().map(|n| n.replayed).sum::<u64>();
        messages += world.oracle.messages;
    }
    assert!(crashes >= 500, "only {crashes} crashes");
    assert!(replayed >= 500, "only {replayed} log entries were replayed");
    println!("{crashes} crashes, {replayed} log entries replayed, {messages} signed messages");
}

/// Negative control: the same storm with a log that forgets and a guard that is lost each time.
#[test]
fn without_log_and_guard_the_same_storm_equivocates() {
    let equivocations: u64 = (0..4)
        .map(|seed| {
            let world = storm(seed, 30, 150, true);
            world.oracle.equivocations
        })
        .sum();
    assert!(equivocations > 0, "the oracle would not have noticed a broken log");
}

/// The guard alone: one validator loses its log at every crash, but not the last-sign file. It
/// has then forgotten its lock, so it abstains until the quorum has left that height behind.
#[test]
fn with_the_guard_alone_a_validator_abstains_rather_than_equivocate() {
    let mut crashes = 0;
    for seed in 0..4 {
        let mut world = World::new(genesis(4, 9, HOUR), 4, seed);
        // The other three must be up together for the quorum to move, so crashes are rarer here.
        world.crash_within = 150;
        world.crash_budget = 80;
        world.nodes[0].loses_log = true;
        world.start_all();
        for n in 0..120 {
            let to = u8::try_from(world.rng.below(4)).unwrap();
            world.submit(to, publish(&world.genesis, n), n);
            world.run(Duration::from_millis(300), |_| false);
        }
        assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0), "{seed}");
        let top = *world.oracle.decided.keys().last().unwrap();
        assert!(top >= 20, "seed {seed}: only {top} heights");
        crashes += world.crashes;
    }
    assert!(crashes >= 100, "only {crashes} crashes");
}

/// The log alone: the last-sign file is lost at every crash, the log is not.
#[test]
fn with_the_log_alone_nothing_is_contradicted_either() {
    for seed in 0..2 {
        let mut world = World::new(genesis(4, 9, HOUR), 4, seed);
        world.crash_within = 40;
        world.crash_budget = 100;
        world.nodes.iter_mut().for_each(|node| node.loses_guard = true);
        world.start_all();
        for n in 0..80 {
            let to = u8::try_from(world.rng.below(4)).unwrap();
            world.submit(to, publish(&world.genesis, n), n);
            world.run(Duration::from_millis(300), |_| false);
        }
        assert!(world.crashes >= 60, "only {} crashes", world.crashes);
        assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0), "{seed}");
    }
}

/// Signers answer late, also after a restart, what was requested before it.
fn slow_signers(seed: u64, loses_guard: bool) -> World {
    let mut world = World::new(genesis(4, 9, HOUR), 4, seed);
    world.crash_within = 40;
    world.crash_budget = 100;
    for node in &mut world.nodes {
        node.signing.spread = Duration::from_millis(700);
        node.loses_guard = loses_guard;
    }
    run(world, 25)
}

#[test]
fn late_signatures_and_crashes_make_no_contradiction() {
    let mut crashes = 0;
    for (seed, loses_guard) in [(0, false), (1, false), (2, false), (3, true), (4, true)] {
        let world = slow_signers(seed, loses_guard);
        let oracle = &world.oracle;
        assert_eq!((oracle.equivocations, oracle.disagreements), (0, 0), "seed {seed}");
        assert_eq!(oracle.contradictory_signatures, 0, "seed {seed}");
        assert!(oracle.decided.len() >= 25, "seed {seed}: the quorum stalled");
        let made: u64 = world.nodes.iter().map(|node| node.signing.made).sum();
        assert!(made > oracle.decided.len() as u64 * 6, "seed {seed}: {made} signatures");
        crashes += world.crashes;
    }
    assert!(crashes >= 300, "only {crashes} crashes");
}

/// Negative control: with a log and a guard that forget, late signatures do contradict each other.
#[test]
fn without_log_and_guard_late_signatures_contradict_each_other() {
    let contradictions: u64 = (0..4)
        .map(|seed| {
            let mut world = World::new(genesis(4, 9, HOUR), 4, seed);
            world.crash_within = 40;
            world.crash_budget = 100;
            for node in &mut world.nodes {
                node.signing.spread = Duration::from_millis(700);
                node.amnesia = true;
            }
            run(world, 15).oracle.contradictory_signatures
        })
        .sum();
    assert!(contradictions > 0, "the oracle would not have noticed a broken journal");
}
