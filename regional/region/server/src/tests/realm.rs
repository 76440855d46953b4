//! A realm whose validators are played by the test: real keys, real blocks, real certificates.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use satrap_certify::{
    Action, BundleName, Change, Commit, Genesis, Governance, Interest, Label, Operator, Policy,
    Position, PublicKey, Publish, Replica, SignedChange, Timestamp, Update, ValidatorInfo,
    governance::{Class, ClassKind},
    keys::sign,
    names::ChainId,
};
use satrap_global_core::Ledger;
use satrap_merkle::{BundleTree, Key};
use satrap_runtime::clock;

pub const CHAIN: &str = "test-realm";
pub const REGION: &str = "eu";
/// So short that a test sees several of them pass without a checkpoint.
pub const HEARTBEAT: Duration = Duration::from_millis(400);
const VALIDATORS: u8 = 4;

pub fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// The validators, and everything they have decided.
pub struct Realm {
    pub genesis: Arc<Genesis>,
    keys: Vec<SigningKey>,
    operator: SigningKey,
    ledger: Ledger,
    replica: Replica,
}

impl Realm {
    pub fn new() -> Self {
        Self::at(clock::now() - 1_000_000_000)
    }

    /// A realm that began at `time`.
    pub fn at(time: u64) -> Self {
        let keys: Vec<_> = (1..=VALIDATORS).map(signing_key).collect();
        let operator = signing_key(100);
        let validators = keys.iter().zip(1..).map(|(key, n)| ValidatorInfo {
            name: label(&format!("v{n}")),
            public: PublicKey::of(key),
            power: 1,
            jurisdiction: label("nowhere"),
            url: format!("https://127.0.0.1:{n}"),
        });
        let public = PublicKey::of(&operator);
        let class = Class::new("", 1, ClassKind::Opaque);
        let governance = Governance {
            version: 0,
            approvals: 1,
            operators: BTreeMap::from([(public, Operator { public, principal: label("op") })]),
            classes: BTreeMap::from([(String::new(), class)]),
            region_keys: BTreeMap::new(),
            validators: validators.collect(),
            retired_version: 0,
            accounts: [0; 32],
        };
        let policy = Policy {
            heartbeat: HEARTBEAT,
            trusting_period: Duration::from_secs(3_600),
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 10,
        };
        let time = Timestamp(time);
        let chain = ChainId::new(CHAIN).unwrap();
        let genesis = Arc::new(Genesis::new(&chain, time, policy, governance).unwrap());
        let ledger = Ledger::genesis(&genesis);
        let replica = Replica::genesis(&genesis, Interest::Everything);
        Self { genesis, keys, operator, ledger, replica }
    }

    /// Decides a block that sets one key of one bundle.
    pub fn publish(&mut self, bundle: &str, key: &str, value: &[u8]) {
        let name = BundleName::new(bundle).unwrap();
        let version = self.ledger.heads().get(&name).map_or(0, |head| head.version);
        let from = self.ledger.content(&name).cloned().unwrap_or_default();
        let mut to: BundleTree = from.clone();
        to.insert(&Key::new(key.as_bytes()).unwrap(), value.into());
        let publish = Publish::between(name, version, &from, &to);
        let change = Change::new(self.genesis.realm(), Action::Publish(publish));
        let mut change = SignedChange::unsigned(change);
        change.approve(&self.operator);
        self.ledger.check(&change).unwrap();
        self.decide(&[change]);
    }

    /// Decides a block without changes.
    pub fn heartbeat(&mut self) {
        self.decide(&[]);
    }

    fn decide(&mut self, changes: &[SignedChange]) {
        let now = Timestamp(clock::now().max(self.ledger.last_time().0 + 1));
        let proposer = self.ledger.validators().validators()[0].address();
        let block = self.ledger.build(proposer, now, changes);
        let mut commit = Commit { round: 0, signatures: Vec::new() };
        let bytes = commit.sign_bytes(self.genesis.realm(), &block.checkpoint);
        for validator in self.ledger.validators().validators() {
            let key = self.keys.iter().find(|key| PublicKey::of(key) == validator.public).unwrap();
            commit.signatures.push(Some(sign(key, &bytes)));
        }
        let update = self.ledger.apply(&block, &commit).unwrap();
        let advance = self.replica.verify(&update, now).unwrap();
        self.replica.advance(advance);
    }

    pub fn height(&self) -> u64 {
        self.replica.height()
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The answer of a validator to a follower at `position`.
    pub fn update_for(&self, position: &Position) -> Option<Update> {
        self.replica.answer(position).unwrap().map(|answer| answer.update)
    }
}

/// An update with one content value altered: everything else still verifies.
pub fn tampered(mut update: Update) -> Update {
    update.contents[0].puts[0].1 = Arc::from(&b"evil"[..]);
    update
}
