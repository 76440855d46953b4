//! An honest quorum: it decides, idles, changes its members and catches up.

use std::time::Duration;

use satrap_certify::{Commit, Interest, Replica, Timestamp};
use satrap_global_node::{
    guard::Step,
    limits::SNAPSHOT_HEIGHTS,
    malachite::{Frame, context::Value},
    store::Storage as _,
};

use crate::{
    realm::{START, address, genesis, govern, info, operator, publish, publish_after},
    world::{Corruption, World},
};

const HOUR: Duration = Duration::from_secs(3_600);
const ALL: [u8; 4] = [0, 1, 2, 3];

/// Decides one block per change, submitted at node `n % 4`.
fn decide(world: &mut World, first: u64, count: u64) {
    for n in first..first + count {
        let change = publish(&world.genesis, n);
        world.submit(u8::try_from(n % 4).unwrap(), change, n);
        assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&n)), "change {n}");
        assert!(world.answers[&n].is_ok(), "{:?}", world.answers[&n]);
    }
}

#[test]
fn a_change_submitted_anywhere_is_decided_everywhere() {
    let mut world = World::new(genesis(4, 100, HOUR), 4, 1);
    world.start_all();
    decide(&mut world, 0, 20);
    let top = world.height(3);
    assert!(world.run(Duration::from_secs(5), |w| w.all_at(&ALL, top)));
    assert_eq!(world.oracle.decided.len() as u64, 20, "one block per change");
    assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0));
    let receipt = world.answers[&7].clone().unwrap();
    assert_eq!((receipt.height, receipt.version), (8, 1));
    assert_eq!(receipt.block, world.oracle.decided[&8]);
}

/// ADMIT-2: a publisher sends the next version to the validator that decided the last one, while the next
/// leader may still be deciding it.
#[test]
fn a_leader_that_is_a_height_behind_proposes_the_next_version() {
    let mut world = World::new(genesis(4, 100, HOUR), 4, 5);
    world.start_all();
    for expected in 0..100 {
        let (to, asked) = (u8::try_from(expected % 4).unwrap(), world.now);
        world.submit(to, publish_after(&world.genesis, expected), expected);
        assert!(world.run(HOUR, |w| w.answers.contains_key(&expected)));
        let took = world.now - asked;
        // A round without a proposal takes longer.
        assert!(took < Duration::from_millis(400), "version {}: {took:?}", expected + 1);
        assert!(world.answers[&expected].is_ok(), "{:?}", world.answers[&expected]);
        // The validator that answers next is one that has decided this one.
        assert!(
            world.run(HOUR, |w| w.height(u8::try_from((expected + 1) % 4).unwrap()) > expected)
        );
    }
}

#[test]
fn a_change_that_breaks_a_rule_is_answered_with_it() {
    let mut world = World::new(genesis(4, 100, HOUR), 4, 2);
    world.start_all();
    decide(&mut world, 0, 1);
    assert!(world.run(Duration::from_secs(5), |w| w.all_at(&ALL, 1)), "all have decided it");
    world.submit(1, publish(&world.genesis, 0), 100);
    world.run(Duration::from_secs(2), |w| w.answers.contains_key(&100));
    let refusal = world.answers[&100].clone().unwrap_err();
    assert!(refusal.to_string().starts_with("V4: `test/0` is at version 1"), "{refusal}");
}

#[test]
fn two_changes_of_one_bundle_are_answered_by_the_one_that_won() {
    let mut world = World::new(genesis(4, 100, HOUR), 4, 3);
    world.start_all();
    let (mine, mut theirs) = (publish(&world.genesis, 5), publish(&world.genesis, 6));
    // The other author chose the same bundle.
    if let satrap_certify::Action::Publish(p) = &mut theirs.change.action {
        p.bundle = satrap_certify::BundleName::new("test/5").unwrap();
    }
    theirs.approve(&operator());
    world.submit(0, mine, 1);
    world.submit(2, theirs, 2);
    assert!(world.run(Duration::from_secs(10), |w| w.answers.len() == 2));
    let won = world.answers.values().filter(|a| a.is_ok()).count();
    assert_eq!(won, 1, "{:?}", world.answers);
}

#[test]
fn an_idle_quorum_makes_only_heartbeats() {
    let mut world = World::new(genesis(4, 100, Duration::from_secs(10)), 4, 4);
    world.start_all();
    world.run(Duration::from_secs(100), |_| false);
    // The first is due ten seconds after the genesis; each takes a few messages.
    assert!((9..=10).contains(&world.height(0)), "{} blocks", world.height(0));
    assert!(!world.has_said(0, 5, 1, Step::Prevote), "no round was wasted");
}

#[test]
fn a_dead_leader_is_replaced_and_stays_replaced() {
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 5);
    world.start_all();
    decide(&mut world, 0, 4);
    let leader = world.store(0).decided(4).unwrap().unwrap().0.checkpoint.proposer;
    let leader = (0..4).find(|n| address(*n) == leader).unwrap();
    world.nodes[leader as usize].connected = false;
    let alive: Vec<u8> = ALL.into_iter().filter(|n| *n != leader).collect();
    let before = world.now;
    world.submit(alive[0], publish(&world.genesis, 50), 50);
    assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&50)));
    let first = world.now - before;
    let before = world.now;
    world.submit(alive[0], publish(&world.genesis, 51), 51);
    assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&51)));
    let second = world.now - before;
    assert!(first > Duration::from_millis(500), "the first change pays a timeout: {first:?}");
    assert!(second < Duration::from_millis(200), "the next does not: {second:?}");
}

#[test]
fn losing_and_reordering_a_fifth_of_all_messages_costs_time_only() {
    for seed in 10..13 {
        let mut world = World::new(genesis(4, 7, HOUR), 4, seed);
        world.loss_percent = 20;
        world.delay_ms_max = 150;
        world.start_all();
        decide(&mut world, 0, 15);
        assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0), "{seed}");
    }
}

/// Cuts off validator 3 for 60 blocks; returns how long it needs to catch up.
fn catch_up(seed: u64, corrupt: Option<Corruption>) -> Duration {
    let mut world = World::new(genesis(4, 100, HOUR), 4, seed);
    world.nodes[0].corrupt = corrupt;
    world.start_all();
    decide(&mut world, 0, 2);
    world.nodes[3].connected = false;
    for n in 100..160 {
        world.submit(1, publish(&world.genesis, n), n);
        assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&n)));
    }
    let top = world.height(1);
    assert!(world.height(3) <= top - 60);
    world.nodes[3].connected = true;
    let before = world.now;
    assert!(world.run(Duration::from_secs(300), |w| w.height(3) >= top));
    assert_eq!(world.oracle.disagreements, 0);
    world.now - before
}

#[test]
fn a_validator_that_was_cut_off_catches_up_by_sync() {
    let took = catch_up(20, None);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// The peer whose name sorts first votes as it should, claims every height, and delivers none.
#[test]
fn a_peer_that_claims_every_height_and_delivers_none_at_most_doubles_a_catch_up() {
    type Answer = fn(u64, Option<(Value, Commit)>) -> Vec<Frame>;
    let lies: [(&str, Answer); 3] = [
        ("nothing", |_, _| Vec::new()),
        ("an empty answer", |height, _| vec![Frame::SyncResponse(height, None)]),
        ("a junk certificate", |height, held| {
            let held = held.map(|(value, commit)| {
                let signatures = vec![Some([7; 64]); commit.signatures.len()];
                (value, Commit { signatures, ..commit })
            });
            vec![Frame::SyncResponse(height, held)]
        }),
    ];
    let honest = catch_up(20, None);
    for (name, answer) in lies {
        let took = catch_up(
            20,
            Some(Box::new(move |_, _, frame| match frame {
                Frame::Status(_) => vec![Frame::Status(u64::MAX)],
                Frame::SyncResponse(height, held) => answer(height, held),
                frame => vec![frame],
            })),
        );
        println!("{name}: {took:?}, without a liar {honest:?}");
        assert!(took < 2 * honest, "{name}: {took:?}, without a liar {honest:?}");
    }
}

#[test]
fn validators_join_and_leave_and_a_process_outside_the_set_follows() {
    let mut world = World::new(genesis(4, 5, HOUR), 5, 30);
    world.start_all();
    decide(&mut world, 0, 3);
    assert!(world.run(Duration::from_secs(5), |w| w.height(4) >= 3), "v4 follows");
    let four = world.genesis.governance.validators.clone();
    let mut five = four.clone();
    five.push(info(4));
    world.submit(0, govern(&world.genesis, 0, five), 900);
    assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&900)));
    world.answers[&900].clone().unwrap();
    decide(&mut world, 10, 6);
    let voted = (5..11).any(|height| world.has_said(4, height, 0, Step::Precommit));
    assert!(voted, "the new validator votes");
    // Five need four votes: the old four can go on without it, and so can any four.
    world.nodes[1].connected = false;
    world.submit(0, publish(&world.genesis, 77), 77);
    assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&77)));
    world.nodes[1].connected = true;
    world.submit(2, govern(&world.genesis, 1, four), 901);
    assert!(world.run(Duration::from_secs(30), |w| w.answers.contains_key(&901)));
    world.answers[&901].clone().unwrap();
    let top = world.height(2);
    decide(&mut world, 20, 6);
    assert!(!world.has_said(4, top + 3, 0, Step::Prevote), "a former validator is silent");
    assert!(world.run(Duration::from_secs(20), |w| w.all_at(&[0, 1, 2, 3, 4], top + 6)));
    assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0));
}

#[test]
fn a_restart_continues_from_snapshot_and_blocks() {
    let mut world = World::new(genesis(4, 100, HOUR), 4, 40);
    world.start_all();
    decide(&mut world, 0, SNAPSHOT_HEIGHTS + 5);
    let top = world.height(0);
    assert!(world.run(Duration::from_secs(5), |w| w.all_at(&ALL, top)));
    let before = world.nodes[1].engine.as_ref().unwrap().ledger().snapshot();
    for n in ALL {
        world.nodes[n as usize].engine = None;
        world.start(n);
    }
    let engine = world.nodes[1].engine.as_ref().unwrap();
    assert_eq!(engine.ledger().snapshot(), before);
    assert_eq!(engine.replica().height(), top);
    // A follower that knows only the genesis verifies the updates that it serves.
    let follower = Replica::genesis(&world.genesis, Interest::Everything);
    let update = engine.replica().answer(&follower.position()).unwrap().unwrap().update;
    let now = Timestamp(START.plus(world.now).0);
    assert_eq!(follower.verify(&update, now).unwrap().height(), top);
    decide(&mut world, 500, 3);
}

/// A clock judges what strangers say, not what this process decided or holds in its own store.
#[test]
fn a_realm_that_was_down_for_longer_than_the_trusting_period_goes_on() {
    let mut world = World::new(genesis(4, 100, HOUR), 4, 41);
    world.start_all();
    decide(&mut world, 0, 3);
    for days in [400, 800] {
        for n in ALL {
            world.nodes[n as usize].engine = None;
        }
        world.now += Duration::from_secs(days * 86_400);
        for n in ALL {
            world.start(n);
        }
        let top = world.height(0);
        assert!(top >= 3, "restored {top} heights");
        decide(&mut world, days, 3);
        assert!(world.run(Duration::from_secs(5), |w| w.all_at(&ALL, top + 3)));
    }
    assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0));
}
