//! The worst that each message can make its receiver compute, measured in verified signatures of the
//! same run, so that the machine does not matter. `docs/costs.md` holds what this prints.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{hint::black_box, sync::Arc, time::Duration};

use satrap_certify::{
    Action, BundleName, Delta, Digest, Interest, Key, Position, Publish, Replica, SignedChange,
    Update,
    keys::{self, PublicKey},
    limits::{
        BLOCK_CHANGES_BYTES_MAX, BUNDLE_BYTES_MAX, CHANGE_BYTES_MAX, EDGE_UPDATE_BYTES_MAX,
        INTEREST_MAX,
    },
    update::HistoryUpdate,
};
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_sim::{SimRealm, realm::key};

/// How long one kind of message is tried, and how often between two looks at the clock.
const SPAN: Duration = Duration::from_millis(100);
const ROUNDS: u32 = 10;

/// Time on this thread alone: other tests of this machine do not count.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = cpu();
    black_box(work());
    cpu() - start
}

/// The time of one verified signature: the unit of all costs.
fn unit() -> Duration {
    const ROUNDS: u32 = 2_000;
    let (signer, message) = (key("unit"), [7; 120]);
    let (public, signature) = (PublicKey::of(&signer), keys::sign(&signer, &message));
    timed(|| (0..ROUNDS).for_each(|_| assert!(public.verifies(&message, &signature)))) / ROUNDS
}

/// Keys that share long prefixes: each is one step deeper in the tree than the one before.
fn deep_keys() -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    for length in 0..511 {
        for last in 1..=14_u8 {
            let mut bytes = vec![b'a'; length];
            bytes.push(b'a' ^ last);
            bytes.resize(512, b'z');
            keys.push(Key::new(&bytes).unwrap());
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

fn bundle() -> BundleName {
    BundleName::new("config/deep").unwrap()
}

fn tree(keys: &[Key], value: &[u8]) -> BundleTree {
    let entries: Vec<_> = keys.iter().map(|k| (k.clone(), Arc::<[u8]>::from(value))).collect();
    BundleTree::from_sorted(&entries).unwrap()
}

/// A change of `from` to `to`, signed for another root than it makes.
fn wrong(realm: &SimRealm, version: u64, from: &BundleTree, to: &BundleTree) -> SignedChange {
    let mut publish = Publish::between(bundle(), version, from, to);
    publish.root = [9; 32];
    realm.approved(Action::Publish(publish))
}

/// A realm whose deepest bundle is as large as one may be, and its relay.
fn world() -> (SimRealm, Replica, Vec<Key>) {
    let mut realm = SimRealm::new("costs", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let keys: Vec<_> = deep_keys().into_iter().take(7_000).collect();
    let parts = keys.len().div_ceil(1_300);
    let mut before = BundleTree::default();
    for part in 0..parts {
        // Spread over the depth, so that every part is deep.
        let held = keys.iter().enumerate().filter(|(n, _)| n % parts <= part);
        let held: Vec<_> = held.map(|(_, key)| key.clone()).collect();
        let after = tree(&held, b"1");
        let publish = Publish::between(bundle(), part as u64, &before, &after);
        let change = realm.approved(Action::Publish(publish));
        let update = realm.decide(&[change]).unwrap();
        let advance = relay.verify(&update, realm.now).unwrap();
        relay.advance(advance);
        before = after;
    }
    assert!(before.bytes() <= BUNDLE_BYTES_MAX && before.len() > 6_000, "{before:?}");
    (realm, relay, keys)
}

struct Costs(Duration, Vec<String>);

impl Costs {
    /// Prints what `work` took, and holds it against `units_max`.
    fn hold(&mut self, what: &str, bytes: usize, units_max: u32, work: impl Fn()) {
        // Often enough for a clock that ticks every few milliseconds. The first run pays for cold
        // caches, which a flood does not.
        work();
        let (mut spent, mut rounds) = (Duration::ZERO, 0);
        while spent < SPAN {
            spent += timed(|| (0..ROUNDS).for_each(|_| work()));
            rounds += ROUNDS;
        }
        let took = spent / rounds;
        let units = took.as_nanos() / self.0.as_nanos().max(1);
        println!("{what:60} {bytes:>9} bytes {units:>6} units {took:>10.2?} (at most {units_max})");
        if units > u128::from(units_max) {
            self.1.push(format!("{what}: {units} units, at most {units_max}"));
        }
    }
}

#[test]
fn each_measured_message_costs_less_than_its_bound() {
    let (realm, relay, keys) = world();
    let mut costs = Costs(unit(), Vec::new());
    let held = relay.content(&bundle()).unwrap();
    let version = relay.heads()[&bundle()].version;
    let head_root = relay.heads()[&bundle()].root;

    // An operator's key: the largest change of the deepest bundle, refused for its root (V7).
    let changed: Vec<_> = keys.iter().step_by(5).cloned().collect();
    let mut after = held.clone();
    changed.iter().for_each(|key| drop(after.insert(key, Arc::from(&b"2"[..]))));
    let change = wrong(&realm, version, held, &after);
    let bytes = change.to_canonical().len();
    assert!((CHANGE_BYTES_MAX * 9 / 10..=CHANGE_BYTES_MAX).contains(&bytes), "{bytes}");
    costs.hold("operator: change with a wrong root", bytes, 500, || {
        assert_eq!(realm.ledger.check(&change).unwrap_err().rule(), "V7");
    });
    // Decoding comes before any of it.
    let encoded = change.to_canonical();
    costs.hold("operator: change, decoded", bytes, 60, || {
        drop(SignedChange::from_canonical(&encoded).unwrap());
    });

    // A validator: a block with that change made valid, proposed with a wrong root.
    let publish = Publish::between(bundle(), version, held, &after);
    let valid = realm.approved(Action::Publish(publish));
    let proposer = realm.ledger.validators().addresses()[0];
    let mut block = realm.ledger.build(proposer, realm.now.plus(Duration::from_secs(1)), [&valid]);
    assert_eq!(block.changes.len(), 1);
    block.checkpoint.commitments.directory_root[0] ^= 1;
    let bytes = block.to_canonical().len();
    assert!(bytes <= BLOCK_CHANGES_BYTES_MAX + 4_096);
    costs.hold("validator: block with a wrong root", bytes, 600, || {
        assert_eq!(realm.ledger.validate(&block).unwrap_err().rule(), "V24");
    });

    // A region: the largest lie about the deepest bundle, to an edge that holds it.
    let interest = Interest::Bundles(vec![bundle()]);
    let mut edge = Replica::genesis(&realm.genesis, interest.clone());
    while let Some(answer) = relay.answer(&edge.position()).unwrap() {
        let advance = edge.verify(&answer.update, realm.now).unwrap();
        edge.advance(advance);
    }
    let mut ahead = realm.ledger.clone();
    let block = ahead.build(proposer, realm.now.plus(Duration::from_secs(1)), [&valid]);
    let commit = realm.commit(&block, realm.quorum());
    let mut newer = relay.clone();
    let update = ahead.apply(&block, &commit).unwrap();
    let now = realm.now.plus(Duration::from_secs(2));
    let advance = newer.verify(&update, now).unwrap();
    newer.advance(advance);
    let mut lie = newer.answer(&edge.position()).unwrap().unwrap().update;
    let puts = keys.iter().map(|key| (key.clone(), Arc::<[u8]>::from(&b"3"[..])));
    lie.contents =
        vec![Delta { bundle: bundle(), base: version, puts: puts.collect(), deletes: vec![] }];
    let encoded = lie.to_canonical();
    assert!(encoded.len() <= EDGE_UPDATE_BYTES_MAX && encoded.len() > 2 * 1024 * 1024);
    costs.hold("region: lie about a whole bundle, to an edge", encoded.len(), 1_200, || {
        let lie = Update::from_canonical(&encoded).unwrap();
        assert_eq!(edge.verify(&lie, now).map(drop).unwrap_err().rule(), "B4");
    });
    let lied = Update { history: Some(HistoryUpdate::Proof(Default::default())), ..lie };
    costs.hold("region: lie about the history, to an edge", encoded.len(), 30, || {
        assert_eq!(edge.verify(&lied, now).map(drop).unwrap_err().rule(), "H1");
    });

    // An edge: a position that names as much as it may, all of it made up.
    let name = |n: usize| BundleName::new(&format!("config/{n:04}")).unwrap();
    let names: Vec<_> = (0..INTEREST_MAX - 1).map(name).chain([bundle()]).collect();
    let made_up: Digest = [3; 32];
    let position = Position {
        genesis_hash: *realm.genesis.realm().genesis_hash(),
        height: 0,
        directory_root: made_up,
        history_size: 0,
        held: names.iter().map(|name| (name.clone(), 1, made_up)).collect(),
        interest: Interest::Bundles(names),
    };
    let bytes = position.to_canonical();
    costs.hold("edge: position of its own making, answered", bytes.len(), 300, || {
        let position = Position::from_canonical(&bytes).unwrap();
        let answer = newer.answer(&position).unwrap().unwrap();
        assert!(answer.update.to_canonical().len() <= EDGE_UPDATE_BYTES_MAX);
    });
    // A region's member: everything from the genesis.
    let position = Replica::genesis(&realm.genesis, Interest::Everything).position();
    let bytes = position.to_canonical();
    costs.hold("member: position at the genesis, answered", bytes.len(), 200, || {
        let answer = newer.answer(&position).unwrap().unwrap();
        black_box(answer.update.to_canonical());
    });
    let held = (0..4_096).map(|n| (name(n), 1, head_root)).collect();
    let position = Position { interest: Interest::Everything, held, ..position };
    let bytes = position.to_canonical();
    costs.hold("member: position with 4 096 bundles, answered", bytes.len(), 200, || {
        let position = Position::from_canonical(&bytes).unwrap();
        black_box(newer.answer(&position).unwrap());
    });
    assert!(costs.1.is_empty(), "{:#?}", costs.1);
}
