//! The realm that the tests share: keys of validators and an operator, a genesis, and signed changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use satrap_certify::{
    Action, Address, BundleName, ChainId, Change, Class, ClassKind, Genesis, Governance,
    GovernanceAct, Key, Label, Operator, Policy, PublicKey, Publish, SignedChange, Timestamp,
    ValidatorInfo,
};
use satrap_merkle::BundleTree;

/// The genesis time.
pub const START: Timestamp = Timestamp(1_800_000_000_000_000_000);

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n + 1; 32])
}

pub fn operator() -> SigningKey {
    SigningKey::from_bytes(&[200; 32])
}

pub fn name(n: u8) -> Label {
    Label::new(&format!("v{n}")).unwrap()
}

pub fn address(n: u8) -> Address {
    PublicKey::of(&key(n)).address()
}

pub fn info(n: u8) -> ValidatorInfo {
    ValidatorInfo {
        name: name(n),
        public: PublicKey::of(&key(n)),
        power: 1,
        jurisdiction: Label::new("eu").unwrap(),
        url: format!("https://v{n}.invalid:1"),
    }
}

pub fn genesis(validators: u8, rotation: u64, heartbeat: Duration) -> Genesis {
    let public = PublicKey::of(&operator());
    let operator = Operator { public, principal: Label::new("alice").unwrap() };
    let class = Class::new("", 1, ClassKind::Opaque);
    let governance = Governance {
        version: 0,
        approvals: 1,
        operators: [(public, operator)].into(),
        classes: [(String::new(), class)].into(),
        region_keys: BTreeMap::new(),
        validators: (0..validators).map(info).collect(),
        retired_version: 0,
        accounts: [0; 32],
    };
    let policy = Policy {
        heartbeat,
        trusting_period: Duration::from_secs(90 * 86_400),
        clock_drift: Duration::from_secs(10),
        leader_rotation_heights: rotation,
    };
    Genesis::new(&ChainId::new("test").unwrap(), START, policy, governance).unwrap()
}

/// Creates bundle `test/<n>`.
/// Creates the bundle `test/n`.
pub fn publish(genesis: &Genesis, n: u64) -> SignedChange {
    publish_between(genesis, &format!("test/{n}"), 0, (&BundleTree::default(), &tree(n)))
}

/// Makes version `expected + 1` of one bundle.
pub fn publish_after(genesis: &Genesis, expected: u64) -> SignedChange {
    let from = if expected == 0 { BundleTree::default() } else { tree(expected - 1) };
    publish_between(genesis, "test/one", expected, (&from, &tree(expected)))
}

fn tree(n: u64) -> BundleTree {
    let mut tree = BundleTree::default();
    tree.insert(&Key::new(b"key").unwrap(), Arc::from(n.to_be_bytes().as_slice()));
    tree
}

fn publish_between(
    genesis: &Genesis,
    bundle: &str,
    expected: u64,
    (from, to): (&BundleTree, &BundleTree),
) -> SignedChange {
    let bundle = BundleName::new(bundle).unwrap();
    signed(genesis, Action::Publish(Publish::between(bundle, expected, from, to)))
}

pub fn govern(genesis: &Genesis, version: u64, validators: Vec<ValidatorInfo>) -> SignedChange {
    signed(genesis, Action::Govern(version, GovernanceAct::SetValidators(validators)))
}

pub fn signed(genesis: &Genesis, action: Action) -> SignedChange {
    let mut change = SignedChange::unsigned(Change::new(genesis.realm(), action));
    change.approve(&operator());
    change
}
