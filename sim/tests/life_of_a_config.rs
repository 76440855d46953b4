//! The life of a config, executed: on its way from an operator to the workload of an edge.
//!
//! Read this beside ARCHITECTURE.md, which lists the same files in the same order. Everything here
//! is the production core; only networks and disks are replaced by function calls.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use bytes::Bytes;
use satrap_certify::{BundleName, Commit, Interest, Replica, Report, Timestamp, Update, keys};
use satrap_edge_core::{Acceptor, Active, Candidate, Effect, Event, Kept, kept::Versions};
use satrap_global_core::Ledger;
use satrap_merkle::codec::Canonical as _;
use satrap_region_core::{Adopt, CertifiedReplica, state_setup};
use satrap_ring_core::{AppliedState, Command, Entry, Outcome};
use satrap_sim::SimRealm;

const BUNDLE: &str = "config/routing";

/// Runs `acceptor` until nothing is in flight, with a workload that takes everything.
fn settle(acceptor: &mut Acceptor, mut effect: Effect, now: Timestamp) -> Vec<u64> {
    let mut activated = Vec::new();
    loop {
        let event = match effect {
            Effect::Wait => return activated,
            Effect::Stage(_) => Event::Staged,
            Effect::Activate(Candidate { version, content, .. }) => {
                assert_eq!(content.root(), version.root);
                activated.push(version.version);
                Event::Activated
            }
        };
        effect = acceptor.step(now, event).unwrap();
    }
}

#[test]
fn one_config_travels_from_an_operator_to_an_edge() {
    // The genesis is the only root of trust.
    let realm = SimRealm::new("life", 4);
    let genesis = &realm.genesis;
    let now = realm.now.plus(Duration::from_secs(1));

    // 1. An operator signs a change: certify/src/change.rs.
    let change = realm.publish(BUNDLE, &[("routes.json", "{\"to\": \"blue\"}")]);
    let sent = change.to_canonical();

    // 2. A region forwards it, every validator receives it and admits it to its mempool:
    //    global-bft/core/src/state.rs.
    let validators: Vec<Ledger> = (0..4).map(|_| Ledger::genesis(genesis)).collect();
    let received = satrap_certify::SignedChange::from_canonical(&sent).unwrap();
    for ledger in &validators {
        ledger.check(&received).unwrap();
    }

    // 3. The proposer builds a block, every validator re-derives it before it votes:
    //    global-bft/core/src/ledger.rs.
    let proposer = validators[0].validators().addresses()[0];
    let block = validators[0].build(proposer, now, [&received]);
    assert_eq!(block.changes.len(), 1);
    validators.iter().for_each(|ledger| ledger.validate(&block).unwrap());

    // 4. Three of four precommits decide: certify/src/vote.rs, certify/src/commit.rs.
    let set = validators[0].validators();
    let mut commit = Commit { round: 0, signatures: vec![None; set.len()] };
    let bytes = commit.sign_bytes(genesis.realm(), &block.checkpoint);
    for (place, validator) in set.validators().iter().enumerate().take(3) {
        let key = &realm.validator_keys[&validator.public];
        commit.signatures[place] = Some(keys::sign(key, &bytes));
    }
    let mut updates = Vec::new();
    for mut ledger in validators {
        updates.push(ledger.apply(&block, &commit).unwrap());
        assert_eq!(ledger.height(), 1);
    }
    assert!(updates.iter().all(|update| *update == updates[0]), "one decision, one update");

    // A validator serves it from a replica that verified it as every follower does:
    // certify/src/replica.rs.
    let mut validator = Replica::genesis(genesis, Interest::Everything);
    let advance = validator.verify(&updates[0], now).unwrap();
    validator.advance(advance);

    // 5. The ring's leader follows, verifies and proposes; every member verifies again:
    //    regional/region/core/src/replica.rs, regional/ring/core/src/applied.rs.
    let state = state_setup(genesis);
    let mut members: Vec<_> = (0..3).map(|_| AppliedState::new(&state)).collect();
    let leader = CertifiedReplica::of(members[0].extensions()).replica();
    let update = validator.answer(&leader.position()).unwrap().unwrap().update;
    leader.verify(&update, now).map(drop).unwrap();
    let entry = Bytes::from(Adopt { now, update }.command());
    let snapshots: BTreeSet<Vec<u8>> = members
        .iter_mut()
        .map(|member| {
            let outcome = member.apply(Entry::Command(Command::decode(&entry)));
            assert_eq!(outcome, Outcome::Extension(1));
            CertifiedReplica::of(member.extensions()).snapshot()
        })
        .collect();
    assert_eq!(snapshots.len(), 1, "members hold the same verified replica");

    // 6. The edge sends its position and gets the head, its proof and the content:
    //    edge-agent/core/src/pull.rs, certify/src/replica/serve.rs.
    let bundle = BundleName::new(BUNDLE).unwrap();
    let interest = Interest::Bundles(vec![bundle.clone()]);
    let replica = Replica::genesis(genesis, interest.clone());
    let mut edge = Acceptor::new(replica, BTreeMap::new(), BTreeSet::new());
    assert!(matches!(edge.resume(&Versions::new(), &BTreeMap::new()), Effect::Wait));
    let member = CertifiedReplica::of(members[1].extensions()).served();
    let update = member.answer(&edge.position()).unwrap().unwrap().update;

    // 7. It verifies, stores, activates: edge-agent/core/src/accept.rs.
    let wire = update.to_canonical();
    let update = Update::from_canonical(&wire).unwrap();
    let effect = edge.step(now, Event::Offered(Box::new(update))).unwrap();
    let Effect::Stage(staged) = &effect else { panic!("a verified offer is staged first") };
    let mut disk = Kept::new(genesis);
    disk.staged(staged);
    assert_eq!(settle(&mut edge, effect, now), [1]);
    let running = edge.active()[&bundle];
    disk.activated(&bundle, running);

    // And reports what it runs, signed with its identity key: certify/src/report.rs.
    let identity = satrap_sim::realm::key("edge-1");
    let report = Report {
        genesis_hash: *genesis.realm().genesis_hash(),
        region: "eu".parse().unwrap(),
        edge: "edge-1".parse().unwrap(),
        time: now,
        started: now,
        height: edge.replica().height(),
        certified_time: edge.replica().certified_time(),
        running: vec![(bundle.clone(), running.version, running.root)],
        failed: Vec::new(),
        refusals: Vec::new(),
    };
    let signed = report.sign(&identity, Vec::new());
    let public = satrap_certify::PublicKey::of(&identity);
    signed.verify(genesis.realm().genesis_hash(), &public, now).unwrap();

    // With every server gone, a restart goes on from what the edge verified itself, and comes up
    // with the same config: edge-agent/core/src/kept.rs.
    let disk = Kept::unseal(&disk.seal()).unwrap();
    let contents =
        BTreeMap::from([(bundle.clone(), edge.replica().content(&bundle).unwrap().clone())]);
    let replica = Replica::resume(genesis, interest, disk.memory, contents).unwrap();
    let mut restarted = Acceptor::new(replica, disk.active, disk.quarantine);
    assert!(
        matches!(restarted.resume(&disk.ready, &BTreeMap::new()), Effect::Wait),
        "nothing is left to do"
    );
    let (before, after) = (edge.position(), restarted.position());
    assert_eq!(
        (after.height, after.history_size, after.held),
        (1, before.history_size, before.held)
    );
}

/// An edge that holds version 1, and the update to version 2.
fn edge_at_one() -> (SimRealm, Acceptor, Update, BundleName) {
    let mut realm = SimRealm::new("life", 4);
    let bundle = BundleName::new(BUNDLE).unwrap();
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let replica = Replica::genesis(&realm.genesis, Interest::Bundles(vec![bundle.clone()]));
    let mut edge = Acceptor::new(replica, BTreeMap::new(), BTreeSet::new());
    let mut offer = None;
    for value in ["one", "two"] {
        let change = realm.publish(BUNDLE, &[("key", value)]);
        let update = realm.decide(&[change]).unwrap();
        let advance = relay.verify(&update, realm.now).unwrap();
        relay.advance(advance);
        let update = relay.answer(&edge.position()).unwrap().unwrap().update;
        if value == "one" {
            let effect = edge.step(realm.now, Event::Offered(Box::new(update))).unwrap();
            assert_eq!(settle(&mut edge, effect, realm.now), [1]);
        } else {
            offer = Some(update);
        }
    }
    (realm, edge, offer.unwrap(), bundle)
}

#[test]
fn a_crash_between_staging_and_activation_restarts_what_ran_and_then_goes_on() {
    // ACCEPT-2: power is lost after the state is durable, before the workload took it.
    let (realm, mut edge, offer, bundle) = edge_at_one();
    let effect = edge.step(realm.now, Event::Offered(Box::new(offer))).unwrap();
    let Effect::Stage(staged) = effect else { panic!("staged first") };
    let mut disk = Kept::new(&realm.genesis);
    disk.active = edge.active().clone();
    disk.staged(&staged);
    let interest = Interest::Bundles(vec![bundle.clone()]);
    let content = staged.replica.content(&bundle).unwrap().clone();
    let restart = |contents| {
        let memory = disk.memory.clone();
        let replica = Replica::resume(&realm.genesis, interest.clone(), memory, contents).unwrap();
        Acceptor::new(replica, disk.active.clone(), BTreeSet::new())
    };
    let contents = BTreeMap::from([(bundle.clone(), content)]);
    let mut restarted = restart(contents.clone());
    assert_eq!(restarted.active()[&bundle].version, 1, "what ran before runs again");
    let effect = restarted.resume(&disk.ready, &contents);
    assert_eq!(settle(&mut restarted, effect, realm.now), [2]);
    // ACCEPT-6: if content was lost as well, all of it waits for a server.
    let mut restarted = restart(BTreeMap::new());
    assert!(matches!(restarted.resume(&disk.ready, &BTreeMap::new()), Effect::Wait));
    assert_eq!(restarted.active()[&bundle].version, 1);
}

#[test]
fn a_version_that_fails_here_is_quarantined_and_the_last_known_good_stays() {
    // ACCEPT-3, ACCEPT-5.
    let (mut realm, mut edge, offer, bundle) = edge_at_one();
    edge.step(realm.now, Event::Offered(Box::new(offer))).unwrap();
    let Effect::Activate(two) = edge.step(realm.now, Event::Staged).unwrap() else {
        panic!("activated after staging")
    };
    assert_eq!(two.version.version, 2);
    let effect = edge.step(realm.now, Event::ActivationFailed).unwrap();
    assert!(matches!(effect, Effect::Wait));
    assert_eq!(edge.active()[&bundle].version, 1);
    assert!(edge.quarantine().contains(&(bundle.clone(), two.version)));
    // It is verified, so it is not fetched again; and after a restart it is not tried again.
    let (replica, active) = (edge.replica().clone(), edge.active().clone());
    let mut restarted = Acceptor::new(replica, active, edge.quarantine().clone());
    let versions = restarted.replica().heads().values();
    let ready: Versions = versions.map(|h| (h.name.clone(), Active::of(h))).collect();
    let contents = BTreeMap::from([(bundle.clone(), two.content)]);
    assert!(matches!(restarted.resume(&ready, &contents), Effect::Wait));
    // The next version is.
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let mut replay = Ledger::genesis(&realm.genesis);
    let change = realm.publish(BUNDLE, &[("key", "three")]);
    realm.decide(&[change]).unwrap();
    for (block, commit) in &realm.blocks {
        let update = replay.apply(block, commit).unwrap();
        let advance = relay.verify(&update, realm.now).unwrap();
        relay.advance(advance);
    }
    let update = relay.answer(&restarted.position()).unwrap().unwrap().update;
    let effect = restarted.step(realm.now, Event::Offered(Box::new(update))).unwrap();
    assert_eq!(settle(&mut restarted, effect, realm.now), [3]);
    assert!(restarted.quarantine().is_empty());
}

#[test]
fn a_refused_offer_leaves_the_edge_as_it_was() {
    // ACCEPT-1.
    let (realm, mut edge, offer, bundle) = edge_at_one();
    let before = edge.position();
    let mut tampered = offer.clone();
    tampered.contents[0].puts[0].1 = b"evil".as_slice().into();
    let refusal = edge.step(realm.now, Event::Offered(Box::new(tampered))).unwrap_err();
    assert_eq!(refusal.rule(), "B4");
    assert!(edge.is_idle());
    assert_eq!((edge.position(), edge.active()[&bundle].version), (before, 1));
    let effect = edge.step(realm.now, Event::Offered(Box::new(offer))).unwrap();
    assert_eq!(settle(&mut edge, effect, realm.now), [2]);
}
