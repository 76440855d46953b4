//! Updates that a follower refuses although more than two thirds of the validators signed them: a
//! quorum can stop the realm or publish anything, but it cannot make a follower go back, fork or exceed
//! its limits (rules H1, D1, D2, B1, B2, B7, and R1 for reports).

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::time::Duration;

use satrap_certify::{
    BundleName, Head, Interest, PublicKey, Rejection, Replica, Report, Step, Timestamp, Update,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, STEPS_MAX},
    replica::directory_of,
    update::{Delta, HistoryUpdate},
};
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_sim::{SimRealm, realm::key};

fn bundle(name: &str) -> BundleName {
    BundleName::new(name).unwrap()
}

fn rule(result: Result<impl Sized, Rejection>) -> Result<(), &'static str> {
    result.map(drop).map_err(|e| e.rule())
}

/// A realm at height 2 with `config/a` and `config/b` at version 2, and an edge that holds both.
struct World {
    realm: SimRealm,
    relay: Replica,
    edge: Replica,
}

fn world() -> World {
    let mut realm = SimRealm::new("quorum", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let names = ["config/a", "config/b"].map(bundle).to_vec();
    let mut edge = Replica::genesis(&realm.genesis, Interest::Bundles(names));
    for value in ["1", "2"] {
        let changes = ["config/a", "config/b"].map(|name| realm.publish(name, &[("k", value)]));
        let update = realm.decide(&changes).unwrap();
        let advance = relay.verify(&update, realm.now).unwrap();
        relay.advance(advance);
    }
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    let advance = edge.verify(&update, realm.now).unwrap();
    edge.advance(advance);
    World { realm, relay, edge }
}

impl World {
    /// The update that the edge would get for the next, empty block.
    fn heartbeat(&mut self) -> Update {
        let update = self.realm.decide(&[]).unwrap();
        let advance = self.relay.verify(&update, self.realm.now).unwrap();
        self.relay.advance(advance);
        self.relay.answer(&self.edge.position()).unwrap().unwrap().update
    }

    /// `update` with these heads in the directory, signed by all validators.
    fn certify(&self, mut update: Update, heads: &[Head]) -> Update {
        let directory = directory_of(heads.iter());
        let step = update.steps.last_mut().unwrap();
        step.checkpoint.commitments.directory_root = directory.root();
        step.checkpoint.commitments.directory_size = directory.size();
        self.sign(step);
        update.heads = Some(directory.prove_all());
        update
    }

    fn sign(&self, step: &mut Step) {
        step.commit = self.realm.commit_in(self.realm.genesis.realm(), &step.checkpoint, 4);
    }

    fn heads(&self) -> Vec<Head> {
        self.edge.heads().values().cloned().collect()
    }

    fn verdict(&self, update: &Update) -> Result<(), &'static str> {
        rule(self.edge.verify(update, self.realm.now))
    }
}

#[test]
fn b1_no_bundle_goes_back_inside_a_newer_directory_even_after_it_was_retired() {
    let mut world = world();
    let update = world.heartbeat();
    let mut heads = world.heads();
    // The control: the same heads, signed again, are no news.
    assert_eq!(world.verdict(&world.certify(update.clone(), &heads)), Ok(()));
    heads[1].version = 1;
    assert_eq!(world.verdict(&world.certify(update.clone(), &heads)), Err("B1"));
    // A bundle that is proven absent was retired. Its floor stays: nothing older comes back.
    heads.pop();
    let retired = world.certify(update.clone(), &heads);
    let advance = world.edge.verify(&retired, world.realm.now).unwrap();
    world.edge.advance(advance);
    assert_eq!(world.edge.content(&bundle("config/b")), None);
    let resumed = Replica::resume(
        &world.realm.genesis,
        Interest::Bundles(["config/a", "config/b"].map(bundle).to_vec()),
        world.edge.memory(),
        Default::default(),
    )
    .unwrap();
    let update = world.heartbeat();
    let old = Head { version: 1, ..resumed.memory().floors[&bundle("config/b")].clone() };
    heads.push(old);
    let revived = world.certify(update, &heads);
    assert_eq!(world.verdict(&revived), Err("B1"), "older than what was retired");
    assert_eq!(rule(resumed.verify(&revived, world.realm.now)), Err("B1"), "also after a restart");
}

#[test]
fn b2_one_version_has_one_root() {
    let mut world = world();
    let update = world.heartbeat();
    let mut heads = world.heads();
    heads[0].root[0] ^= 1;
    assert_eq!(world.verdict(&world.certify(update, &heads)), Err("B2"));
}

#[test]
fn b7_a_head_over_the_limits_is_refused_before_its_content_is_built() {
    let mut world = world();
    let update = world.heartbeat();
    let offer = |bytes, entries| {
        let mut heads = world.heads();
        heads[0] = Head { version: 3, bytes, entries, ..heads[0].clone() };
        let mut update = world.certify(update.clone(), &heads);
        update.contents = vec![Delta::whole(bundle("config/a"), &BundleTree::default())];
        world.verdict(&update)
    };
    let entries_max = BUNDLE_ENTRIES_MAX as u64;
    assert_eq!(offer(BUNDLE_BYTES_MAX + 1, 1), Err("B7"));
    assert_eq!(offer(1, entries_max + 1), Err("B7"));
    // At the limit it is judged by its content, which is another.
    assert_eq!(offer(BUNDLE_BYTES_MAX, entries_max), Err("B4"));
}

#[test]
fn h1_the_history_cannot_be_rewritten_or_shortened() {
    let mut world = world();
    let update = world.heartbeat();
    let offer = |alter: &dyn Fn(&mut Update)| {
        let mut update = update.clone();
        alter(&mut update);
        world.sign(update.steps.last_mut().unwrap());
        world.verdict(&update)
    };
    assert_eq!(offer(&|_| ()), Ok(()));
    fn commitments(update: &mut Update) -> &mut satrap_certify::Commitments {
        &mut update.steps.last_mut().unwrap().checkpoint.commitments
    }
    assert_eq!(offer(&|u| commitments(u).history_root[0] ^= 1), Err("H1"), "another past");
    assert_eq!(offer(&|u| commitments(u).history_size -= 1), Err("H1"), "a shorter past");
    assert_eq!(offer(&|u| commitments(u).history_size += 1), Err("H1"), "not a continuation");
    // A relay recomputes the root from the leaves it is sent.
    let fresh = Replica::genesis(&world.realm.genesis, Interest::Everything);
    let mut update = world.relay.answer(&fresh.position()).unwrap().unwrap().update;
    assert_eq!(rule(fresh.verify(&update, world.realm.now)), Ok(()));
    let Some(HistoryUpdate::Leaves(leaves)) = &mut update.history else {
        panic!("relays get leaves")
    };
    leaves[0][0] ^= 1;
    assert_eq!(rule(fresh.verify(&update, world.realm.now)), Err("H1"));
}

#[test]
fn d1_d2_heads_are_the_certified_directory_and_none_is_left_open() {
    let mut world = world();
    let change = world.realm.publish("config/z", &[("k", "1")]);
    let update = world.realm.decide(&[change]).unwrap();
    let advance = world.relay.verify(&update, world.realm.now).unwrap();
    world.relay.advance(advance);
    let mut update = world.relay.answer(&world.edge.position()).unwrap().unwrap().update;
    assert_eq!(world.verdict(&update), Ok(()));
    // A true proof of other heads says nothing about those that were asked for.
    let directory = directory_of(world.relay.heads().values());
    update.heads = Some(directory.prove(&["config/z"]));
    assert_eq!(world.verdict(&update), Err("D2"));
    update.heads = Some(directory.prove(&["config/a", "config/z"]));
    assert_eq!(world.verdict(&update), Err("D2"), "config/b is left open");
    // A directory without it, so that it would be proven absent, has another root.
    let others = world.relay.heads().values().filter(|head| head.name != bundle("config/b"));
    update.heads = Some(directory_of(others).prove_all());
    assert_eq!(world.verdict(&update), Err("D1"));
}

#[test]
fn c11_an_update_has_so_many_steps_and_no_more() {
    let mut realm = SimRealm::new("quorum", 4);
    let edge = Replica::genesis(&realm.genesis, Interest::Bundles(Vec::new()));
    let steps: Vec<_> = (0..=STEPS_MAX).map(|_| realm.certify(&[]).step()).collect();
    let relay_of = |steps: &[Step]| Update {
        genesis_hash: *realm.genesis.realm().genesis_hash(),
        steps: steps.to_vec(),
        history: Some(HistoryUpdate::Proof(Default::default())),
        heads: Some(directory_of([].into_iter()).prove_all()),
        contents: Vec::new(),
    };
    assert_eq!(rule(edge.verify(&relay_of(&steps[..STEPS_MAX]), realm.now)), Ok(()));
    let long = relay_of(&steps);
    assert_eq!(rule(edge.verify(&long, realm.now)), Err("C11"));
    assert!(Update::from_canonical(&long.to_canonical()).is_err(), "E2: nor does it decode");
    assert_eq!(rule(edge.verify(&relay_of(&[]), realm.now)), Err("C11"));
}

#[test]
fn r1_a_report_holds_for_one_realm_one_edge_and_one_content() {
    let World { realm, .. } = world();
    let (identity, other) = (key("edge-1"), key("edge-2"));
    let report = Report {
        genesis_hash: *realm.genesis.realm().genesis_hash(),
        region: "eu".parse().unwrap(),
        edge: "edge-1".parse().unwrap(),
        time: realm.now,
        started: realm.now,
        height: 2,
        certified_time: realm.now,
        running: vec![(bundle("config/a"), 2, [7; 32])],
        failed: Vec::new(),
        refusals: vec![("B4".to_owned(), 1)],
    };
    let signed = report.sign(&identity, vec![1, 2, 3]);
    let genesis_hash = realm.genesis.realm().genesis_hash();
    let (public, stranger) = (PublicKey::of(&identity), PublicKey::of(&other));
    assert_eq!(rule(signed.verify(genesis_hash, &public, realm.now)), Ok(()));
    assert_eq!(rule(signed.verify(&[9; 32], &public, realm.now)), Err("R1"), "another realm's");
    assert_eq!(
        rule(signed.verify(genesis_hash, &stranger, realm.now)),
        Err("R1"),
        "another edge's"
    );
    let alterations: [fn(&mut Report); 7] = [
        |r| r.time = r.time.plus(Duration::from_nanos(1)),
        |r| r.edge = "edge-2".parse().unwrap(),
        |r| r.height += 1,
        |r| r.running[0].1 = 3,
        |r| r.failed = r.running.clone(),
        |r| r.started = r.started.plus(Duration::from_nanos(1)),
        |r| r.refusals.clear(),
    ];
    for alter in alterations {
        let mut altered = signed.clone();
        alter(&mut altered.report);
        assert_eq!(rule(altered.verify(genesis_hash, &public, realm.now)), Err("R1"));
    }
    assert!(signed.report.certified_time > Timestamp(0));
}

#[test]
fn r2_a_report_of_the_future_or_from_before_its_process_started_is_refused() {
    let World { realm, .. } = world();
    let identity = key("edge-1");
    let latest = realm.now.plus(realm.genesis.policy.clock_drift);
    let judged = |time: Timestamp, started: Timestamp| {
        let report = Report {
            genesis_hash: *realm.genesis.realm().genesis_hash(),
            region: "eu".parse().unwrap(),
            edge: "edge-1".parse().unwrap(),
            time,
            started,
            height: 2,
            certified_time: realm.now,
            running: Vec::new(),
            failed: Vec::new(),
            refusals: Vec::new(),
        };
        let signed = report.sign(&identity, Vec::new());
        rule(signed.verify(realm.genesis.realm().genesis_hash(), &PublicKey::of(&identity), latest))
    };
    assert_eq!(judged(latest, latest), Ok(()), "at both limits");
    assert_eq!(judged(latest.plus(Duration::from_nanos(1)), realm.now), Err("R2"));
    assert_eq!(judged(Timestamp::MAX, realm.now), Err("R2"));
    assert_eq!(judged(realm.now, realm.now.plus(Duration::from_nanos(1))), Err("R2"));
}
