//! Rules C1 to B7 against a sender that may lie in every field.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::time::Duration;

use satrap_certify::{
    BundleName, Interest, Position, Rejection, Replica, Snapshot, Timestamp, Update,
    limits::EDGE_UPDATE_BYTES_MAX,
    update::{Delta, HistoryUpdate},
};
use satrap_lies::{Lie, Truth};
use satrap_merkle::codec::Canonical as _;
use satrap_sim::SimRealm;

/// The signatures of a commit, one place per validator.
type Places = Vec<Option<[u8; 64]>>;

const BUNDLE: &str = "config/routing";

fn bundle() -> BundleName {
    BundleName::new(BUNDLE).unwrap()
}

fn edge(realm: &SimRealm) -> Replica {
    Replica::genesis(&realm.genesis, Interest::Bundles(vec![bundle()]))
}

fn relay(realm: &SimRealm) -> Replica {
    Replica::genesis(&realm.genesis, Interest::Everything)
}

fn follow(replica: &mut Replica, update: &Update, now: Timestamp) -> Result<(), Rejection> {
    let advance = replica.verify(update, now)?;
    replica.advance(advance);
    Ok(())
}

/// Decides a publish of `entries` and lets `relay` follow.
fn publish(realm: &mut SimRealm, relay: &mut Replica, entries: &[(&str, &str)]) {
    let change = realm.publish(BUNDLE, entries);
    let update = realm.decide(&[change]).unwrap();
    follow(relay, &update, realm.now).unwrap();
}

/// A realm with two versions, its relay, and an edge that holds the first.
fn two_versions() -> (SimRealm, Replica, Replica) {
    let mut realm = SimRealm::new("test", 4);
    let (mut relay, mut edge) = (relay(&realm), edge(&realm));
    publish(&mut realm, &mut relay, &[("a", "1"), ("b", "1"), ("c", "1")]);
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    follow(&mut edge, &update, realm.now).unwrap();
    publish(&mut realm, &mut relay, &[("a", "2"), ("b", "1"), ("c", "2"), ("d", "2")]);
    (realm, relay, edge)
}

#[test]
fn a_follower_gets_only_what_changed_and_ends_with_the_certified_root() {
    let (realm, relay, mut edge) = two_versions();
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    assert_eq!(update.contents[0].puts.len(), 3, "a, c, d changed; b did not");
    assert!(update.to_canonical().len() < EDGE_UPDATE_BYTES_MAX);
    follow(&mut edge, &update, realm.now).unwrap();
    assert_eq!(edge.heads()[&bundle()].version, 2);
    assert_eq!(edge.content(&bundle()).unwrap().root(), edge.heads()[&bundle()].root);
    assert_eq!(relay.answer(&edge.position()).unwrap(), None, "nothing newer");
}

#[test]
fn a_heartbeat_moves_time_and_sends_no_content() {
    let (mut realm, mut relay, mut edge) = two_versions();
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    follow(&mut edge, &update, realm.now).unwrap();
    let heartbeat = realm.decide(&[]).unwrap();
    follow(&mut relay, &heartbeat, realm.now).unwrap();
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    assert!(update.heads.is_none() && update.contents.is_empty());
    assert!(update.to_canonical().len() < 1_000);
    follow(&mut edge, &update, realm.now).unwrap();
    assert_eq!(edge.certified_time(), realm.now);
}

#[test]
fn every_lie_of_a_region_is_refused_by_its_rule() {
    let (realm, relay, edge) = two_versions();
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    let mut old_relay = satrap_certify::Replica::genesis(&realm.genesis, Interest::Everything);
    let mut replay = satrap_global_core::Ledger::genesis(&realm.genesis);
    let (block, commit) = &realm.blocks[0];
    let first = replay.apply(block, commit).unwrap();
    follow(&mut old_relay, &first, realm.now).unwrap();
    let fresh = self::edge(&realm).position();
    let old = old_relay.answer(&fresh).unwrap().unwrap().update;
    let truth = Truth {
        realm: realm.genesis.realm(),
        update: &update,
        old: &old,
        bundle: &bundle(),
        whole: &Delta::whole(bundle(), relay.content(&bundle()).unwrap()),
        old_whole: &Delta::whole(bundle(), old_relay.content(&bundle()).unwrap()),
    };
    for lie in Lie::ALL {
        let bytes = lie.tell(truth, EDGE_UPDATE_BYTES_MAX);
        // WIRE-1 and WIRE-2 are the session's rules, on bytes; the rest must decode and be refused.
        match lie {
            Lie::Oversized => assert!(bytes.len() > EDGE_UPDATE_BYTES_MAX),
            Lie::Garbage => assert!(Update::from_canonical(&bytes).is_err()),
            _ => {
                let lied = Update::from_canonical(&bytes).unwrap();
                let refusal = edge.verify(&lied, realm.now).map(drop).unwrap_err();
                assert!(lie.refused_by().contains(&refusal.rule()), "{lie:?}: {refusal}");
            }
        }
    }
    // And the truth is still accepted after all of that.
    edge.verify(&update, realm.now).map(drop).unwrap();
}

#[test]
fn a_region_that_holds_back_a_head_or_content_is_caught() {
    let (realm, relay, edge) = two_versions();
    let honest = relay.answer(&edge.position()).unwrap().unwrap().update;
    let rule = |alter: &dyn Fn(&mut Update)| {
        let mut update = honest.clone();
        alter(&mut update);
        edge.verify(&update, realm.now).map(drop).unwrap_err().rule()
    };
    assert_eq!(rule(&|u| u.heads = None), "D1");
    assert_eq!(rule(&|u| u.contents.push(u.contents[0].clone())), "B6");
    assert_eq!(rule(&|u| u.contents[0].base = 7), "B3");
    assert_eq!(rule(&|u| u.steps.clear()), "H1", "the history of a block that is not certified");
    assert_eq!(rule(&|u| u.history = None), "H1", "heads without the history they are in");
    assert_eq!(rule(&|u| u.genesis_hash = [9; 32]), "C1");
    assert_eq!(rule(&|u| u.history = Some(HistoryUpdate::Leaves(vec![]))), "H1");
    assert_eq!(rule(&|u| u.history = Some(HistoryUpdate::Proof(Default::default()))), "H1");
    let alter = |u: &mut Update, f: &dyn Fn(&mut satrap_certify::Checkpoint)| {
        f(&mut u.steps[0].checkpoint);
    };
    // Any change of the checkpoint breaks the signatures over it.
    assert_eq!(rule(&|u| alter(u, &|c| c.commitments.directory_root[0] ^= 1)), "C6");
    assert_eq!(rule(&|u| alter(u, &|c| c.commitments.history_size += 1)), "C6");
    assert_eq!(rule(&|u| alter(u, &|c| c.proposer.0[0] ^= 1)), "C6");
    assert_eq!(rule(&|u| u.steps[0].commit.round += 1), "C6");
}

#[test]
fn a_commit_needs_more_than_two_thirds_of_distinct_valid_signatures() {
    let (realm, relay, edge) = two_versions();
    let honest = relay.answer(&edge.position()).unwrap().unwrap().update;
    let signatures = &honest.steps[0].commit.signatures;
    assert_eq!(signatures.iter().flatten().count(), 3, "2f+1 of 4");
    let rule = |alter: &dyn Fn(&mut Places)| {
        let mut update = honest.clone();
        alter(&mut update.steps[0].commit.signatures);
        edge.verify(&update, realm.now).map(drop).map_err(|e| e.rule())
    };
    assert_eq!(rule(&|_| ()), Ok(()));
    // 2f signatures.
    assert_eq!(rule(&|s| s[0] = None), Err("C5"));
    // One signer twice.
    assert_eq!(rule(&|s| s[0] = s[1]), Err("C6"));
    // Each signature corrupted in turn: a loop that checks one of them n times would pass.
    for place in 0..3 {
        assert_eq!(rule(&|s| s[place].as_mut().unwrap()[63] ^= 1), Err("C6"));
    }
    // Garbage on top of a quorum.
    assert_eq!(rule(&|s| s[3] = Some([7; 64])), Err("C6"));
    assert_eq!(rule(&|s| s.push(None)), Err("C5"));
}

#[test]
fn rollback_future_and_expired_trust_are_refused() {
    let (realm, relay, mut edge) = two_versions();
    let fresh = self::edge(&realm);
    let honest = relay.answer(&edge.position()).unwrap().unwrap().update;
    let rule = |now| edge.verify(&honest, now).map(drop).map_err(|e| e.rule());
    let drift = realm.genesis.policy.clock_drift;
    assert_eq!(rule(Timestamp(realm.now.0 - drift.as_nanos() as u64)), Ok(()));
    assert_eq!(rule(Timestamp(realm.now.0 - drift.as_nanos() as u64 - 1)), Err("C9"));
    let period = realm.genesis.policy.trusting_period;
    assert_eq!(rule(edge.certified_time().plus(period)), Ok(()));
    assert_eq!(rule(edge.certified_time().plus(period + Duration::from_nanos(1))), Err("C8"));

    // The answer for an edge that holds nothing is a rollback for one that is ahead.
    follow(&mut edge, &honest, realm.now).unwrap();
    let whole = relay.answer(&fresh.position()).unwrap().unwrap().update;
    let refusal = edge.verify(&whole, realm.now).map(drop).unwrap_err();
    assert_eq!(refusal.rule(), "C2");
}

#[test]
fn an_edge_that_is_provisioned_late_starts_from_a_vouched_certificate() {
    let (mut realm, mut relay, _) = two_versions();
    // The realm lives on; its genesis is older than the trusting period of its first validators.
    for _ in 0..2 {
        realm.now = realm.now.plus(realm.genesis.policy.trusting_period / 2);
        let heartbeat = realm.decide(&[]).unwrap();
        follow(&mut relay, &heartbeat, realm.now).unwrap();
    }
    let fresh = edge(&realm);
    let offered = relay.answer(&fresh.position()).unwrap().unwrap().update;
    assert_eq!(fresh.verify(&offered, realm.now).map(drop).unwrap_err().rule(), "C8");
    // `satrap get --certificate` writes that very update; signatures are still checked.
    let interest = Interest::Bundles(vec![bundle()]);
    let vouched = Snapshot(offered.clone());
    let mut provisioned = Replica::restore(&realm.genesis, interest.clone(), &vouched).unwrap();
    let mut forged = offered.clone();
    forged.contents[0].puts[0].1 = b"evil".as_slice().into();
    let forged = Snapshot(forged);
    assert_eq!(Replica::restore(&realm.genesis, interest, &forged).unwrap_err().rule(), "B4");
    let heartbeat = realm.decide(&[]).unwrap();
    follow(&mut relay, &heartbeat, realm.now).unwrap();
    let next = relay.answer(&provisioned.position()).unwrap().unwrap().update;
    follow(&mut provisioned, &next, realm.now).unwrap();
}

#[test]
fn two_certified_blocks_at_one_height_are_a_conflict() {
    let mut realm = SimRealm::new("test", 4);
    let mut fork = SimRealm::new("test", 4);
    let mut edge = edge(&realm);
    let mut relays = (relay(&realm), relay(&fork));
    publish(&mut realm, &mut relays.0, &[("a", "1")]);
    publish(&mut fork, &mut relays.1, &[("a", "2")]);
    let fresh = edge.position();
    let (one, two) = (relays.0.answer(&fresh), relays.1.answer(&fresh));
    follow(&mut edge, &one.unwrap().unwrap().update, realm.now).unwrap();
    let mut two = two.unwrap().unwrap().update;
    assert_eq!(edge.verify(&two, realm.now).map(drop).unwrap_err().rule(), "C3");
    // A region cannot accuse the validators with a block they did not sign.
    two.steps[0].checkpoint.commitments.directory_root[0] ^= 1;
    assert_eq!(edge.verify(&two, realm.now).map(drop).unwrap_err().rule(), "C6");
}

#[test]
fn an_edge_follows_the_validators_from_four_to_five_to_four_and_skips_between() {
    let mut realm = SimRealm::new("test", 4);
    let (mut relay, mut steady, sleeper) = (relay(&realm), edge(&realm), edge(&realm));
    let mut decide = |realm: &mut SimRealm, relay: &mut Replica, changes: &[_]| {
        let update = realm.decide(changes).unwrap();
        follow(relay, &update, realm.now).unwrap();
        let update = relay.answer(&steady.position()).unwrap().unwrap().update;
        follow(&mut steady, &update, realm.now).unwrap();
    };
    let change = realm.publish(BUNDLE, &[("a", "1")]);
    decide(&mut realm, &mut relay, &[change]);
    let change = realm.add_validator("v4");
    decide(&mut realm, &mut relay, &[change]);
    assert_eq!(realm.ledger.validators().len(), 5);
    for _ in 0..10 {
        decide(&mut realm, &mut relay, &[]);
    }
    let change = realm.remove_validator("v0");
    decide(&mut realm, &mut relay, &[change]);
    for _ in 0..10 {
        decide(&mut realm, &mut relay, &[]);
    }
    assert_eq!(realm.ledger.validators().len(), 4);
    // One that slept through everything skips over both changes in one update.
    let update = relay.answer(&sleeper.position()).unwrap().unwrap().update;
    assert_eq!(update.steps.len(), 1, "two thirds of the first set have signed the newest");
    let mut woken = sleeper.clone();
    follow(&mut woken, &update, realm.now).unwrap();
    assert_eq!(woken.height(), steady.height());
    // Without the sets, the new one is not one it knows.
    let mut gap = update.clone();
    gap.steps[0].sets.clear();
    assert_eq!(sleeper.verify(&gap, realm.now).map(drop).unwrap_err().rule(), "C4");
    // A restart from disk goes the same way.
    let interest = Interest::Bundles(vec![bundle()]);
    let restored = Replica::restore(&realm.genesis, interest, &woken.snapshot().unwrap()).unwrap();
    assert_eq!(restored.position(), woken.position());
}

#[test]
fn a_follower_far_behind_gets_one_merged_delta_or_everything() {
    let mut realm = SimRealm::new("test", 4);
    let (mut relay, mut edge) = (relay(&realm), edge(&realm));
    publish(&mut realm, &mut relay, &[("a", "0"), ("x", "0")]);
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    follow(&mut edge, &update, realm.now).unwrap();
    let behind = edge.clone();
    for version in 1..=5 {
        publish(&mut realm, &mut relay, &[("a", &version.to_string()), ("y", "0")]);
    }
    let update = relay.answer(&behind.position()).unwrap().unwrap().update;
    let delta = &update.contents[0];
    assert_eq!((delta.base, delta.puts.len(), delta.deletes.len()), (1, 2, 1));
    follow(&mut edge, &update, realm.now).unwrap();
    // A position the journal does not know is answered with the whole content.
    let forked = Position { held: vec![(bundle(), 3, [1; 32])], ..behind.position() };
    assert_eq!(relay.answer(&forked).unwrap().unwrap().update.contents[0].base, 0);
}

#[test]
fn a_bundle_that_does_not_exist_is_proven_absent() {
    let mut realm = SimRealm::new("test", 4);
    let mut relay = relay(&realm);
    let names = ["config/a", "config/routing", "config/z"].map(|n| BundleName::new(n).unwrap());
    let mut edge = Replica::genesis(
        &realm.genesis,
        Interest::Bundles(vec![names[0].clone(), names[2].clone()]),
    );
    publish(&mut realm, &mut relay, &[("a", "1")]);
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    follow(&mut edge, &update, realm.now).unwrap();
    assert!(edge.heads().is_empty());
    assert_eq!(edge.height(), 1);
}

#[test]
fn decoding_never_panics_and_reencodes_to_the_same_bytes() {
    let (_, relay, edge) = two_versions();
    let bytes = relay.answer(&edge.position()).unwrap().unwrap().update.to_canonical();
    for place in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut mutated = bytes.clone();
            mutated[place] ^= flip;
            if let Ok(update) = Update::from_canonical(&mutated) {
                assert_eq!(update.to_canonical(), mutated, "two encodings of one value");
            }
        }
        assert!(Update::from_canonical(&bytes[..place]).is_err());
    }
}
