//! V8 and V25: how much a bundle, a realm and a block may hold.

use std::{sync::Arc, time::Duration};

use satrap_certify::{
    Action, BundleName, Change, Class, ClassKind, GovernanceAct, Head, Key, Label, Operator,
    PublicKey, Publish, SignedChange,
    limits::{
        APPROVALS_MAX, BLOCK_APPROVALS_MAX, BLOCK_CHANGES_BYTES_MAX, BLOCK_CHANGES_MAX,
        BLOCK_NODES_MAX, BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, HEADS_MAX, REALM_BYTES_MAX,
        REALM_ENTRIES_MAX,
    },
};
use satrap_global_core::state::{Cost, State};
use satrap_merkle::{BundleTree, bundle::KEY_BYTES_MAX, codec::Canonical as _};
use satrap_sim::SimRealm;

use crate::{CONFIG, apply, bundle, name_key, realm, rule, setting, state, tree};

/// Puts `content` into `state` as version 1 of `name`.
pub fn hold(state: &mut State, name: &BundleName, content: BundleTree) {
    hold_as(state, name, content, "alice");
}

/// A bundle of one entry that `owner` created.
pub fn hold_tiny(state: &mut State, name: &str, owner: &str) {
    let content = tree([("k".to_owned(), b"v".to_vec())].into_iter());
    hold_as(state, &bundle(name), content, owner);
}

fn hold_as(state: &mut State, name: &BundleName, content: BundleTree, owner: &str) {
    let head = Head {
        name: name.clone(),
        version: 1,
        root: content.root(),
        entries: content.len() as u64,
        bytes: content.bytes(),
        height: 1,
    };
    let class = state.governance.class_of(name).unwrap().clone();
    state.hold(head, content, &class, &Label::new(owner).unwrap());
}

/// A publish that puts one more entry into `name` as `state` holds it.
pub fn put(
    realm: &SimRealm,
    state: &State,
    name: &BundleName,
    key: &str,
    bytes: usize,
) -> SignedChange {
    let from = state.contents.get(name).cloned().unwrap_or_default();
    let mut to = from.clone();
    to.insert(&name_key(key), Arc::from(vec![b'x'; bytes]));
    let version = state.heads.get(name).map_or(0, |head| head.version);
    realm.approved(Action::Publish(Publish::between(name.clone(), version, &from, &to)))
}

/// A tree of exactly `bytes`, in entries of a megabyte.
pub fn tree_of_bytes(bytes: u64) -> BundleTree {
    let mut left = bytes as usize;
    let entries = std::iter::from_fn(|| {
        let entry = left.min(1 << 20);
        left -= entry;
        (entry > 0).then_some(entry)
    });
    let entries: Vec<_> = entries.collect();
    let named = entries.into_iter().enumerate();
    tree(named.map(|(i, entry)| (format!("{i:04}"), vec![b'y'; entry - 4])))
}

#[test]
fn v8_a_bundle_holds_so_many_entries_and_no_more() {
    let realm = realm();
    let mut state = state(&realm.ledger);
    let name = bundle(CONFIG);
    let entries = (0..BUNDLE_ENTRIES_MAX - 1).map(|i| (format!("{i:08}"), Vec::new()));
    hold(&mut state, &name, tree(entries));
    let change = put(&realm, &state, &name, "last", 0);
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
    assert_eq!(state.heads[&name].entries, BUNDLE_ENTRIES_MAX as u64);
    let change = put(&realm, &state, &name, "one more", 0);
    assert_eq!(apply(&realm, &mut state, &change), Err("V8"));
    assert_eq!(state.heads[&name].version, 2, "a refused change leaves no trace");
}

#[test]
fn v8_a_bundle_holds_so_many_bytes_and_no_more() {
    let realm = realm();
    let mut state = state(&realm.ledger);
    let name = bundle(CONFIG);
    hold(&mut state, &name, tree_of_bytes(BUNDLE_BYTES_MAX - 1_000));
    let change = put(&realm, &state, &name, "last", 1_001 - "last".len());
    assert_eq!(apply(&realm, &mut state, &change), Err("V8"));
    let change = put(&realm, &state, &name, "last", 1_000 - "last".len());
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
    assert_eq!(state.heads[&name].bytes, BUNDLE_BYTES_MAX);
}

/// A realm whose trust roots may take more than is reserved for them, so that its own limits are
/// reached before those of its classes.
fn wide() -> SimRealm {
    let mut pki = Class::new("pki/", 2, ClassKind::X509Trust);
    pki.quota.bundles_max = 512;
    pki.quota.bytes_max = 2 * BUNDLE_BYTES_MAX;
    SimRealm::with_classes("wide", 4, &[pki, Class::new("config/", 1, ClassKind::Opaque)])
}

#[test]
fn v8_a_realm_holds_so_many_bytes_and_no_more() {
    let realm = wide();
    let mut state = state(&realm.ledger);
    for i in 0..2 {
        hold(&mut state, &bundle(&format!("pki/{i}")), tree_of_bytes(BUNDLE_BYTES_MAX));
    }
    for i in 3..REALM_BYTES_MAX / BUNDLE_BYTES_MAX {
        hold(&mut state, &bundle(&format!("config/{i}")), tree_of_bytes(BUNDLE_BYTES_MAX));
    }
    // All bundles but the last are full, so what that one lacks is what the realm lacks.
    let name = bundle("config/last");
    hold(&mut state, &name, tree_of_bytes(BUNDLE_BYTES_MAX - 1_000));
    let change = put(&realm, &state, &name, "last", 1_000 - "last".len());
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
    let change = put(&realm, &state, &bundle("config/new"), "k", 0);
    assert_eq!(apply(&realm, &mut state, &change), Err("V8"));
}

/// A tree of so many entries, with keys of five bytes.
pub fn tree_of_entries(entries: usize) -> BundleTree {
    tree((0..entries).map(|i| (format!("{i:05}"), Vec::new())))
}

#[test]
fn v8_a_realm_holds_so_many_entries_and_no_more() {
    let realm = wide();
    let mut state = state(&realm.ledger);
    hold(&mut state, &bundle("pki/a"), tree_of_entries(REALM_ENTRIES_MAX / 4));
    hold(&mut state, &bundle("config/a"), tree_of_entries(BUNDLE_ENTRIES_MAX));
    let left = REALM_ENTRIES_MAX - REALM_ENTRIES_MAX / 4 - BUNDLE_ENTRIES_MAX;
    let name = bundle("config/last");
    hold(&mut state, &name, tree_of_entries(left - 1));
    let change = put(&realm, &state, &name, "last", 1);
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
    let change = put(&realm, &state, &name, "one more", 1);
    assert_eq!(apply(&realm, &mut state, &change), Err("V8"));
    // A bundle that exists can still change, and shrink.
    let change = put(&realm, &state, &name, "last", 2);
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
}

#[test]
fn v8_a_realm_holds_so_many_bundles_and_no_more() {
    let realm = wide();
    let mut state = state(&realm.ledger);
    for i in 0..HEADS_MAX - 1 {
        let prefix = if i < 512 { "pki" } else { "config" };
        hold_tiny(&mut state, &format!("{prefix}/{i}"), ["alice", "bob", "carol"][i % 3]);
    }
    let change = put(&realm, &state, &bundle("config/last"), "k", 1);
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
    let change = put(&realm, &state, &bundle("config/one-more"), "k", 1);
    assert_eq!(apply(&realm, &mut state, &change), Err("V8"));
    // Existing content can still change.
    let change = put(&realm, &state, &bundle("config/last"), "k", 2);
    assert_eq!(apply(&realm, &mut state, &change), Ok(()));
}

/// A publish with one approval whose canonical encoding has exactly `bytes`.
fn change_of_bytes(realm: &SimRealm, bytes: usize) -> SignedChange {
    let of = |filling: usize| {
        let from = BundleTree::default();
        let mut to = from.clone();
        // Values stay below their own limit.
        for (i, value) in vec![b'z'; filling].chunks(200 * 1024).enumerate() {
            to.insert(&name_key(&format!("{i:04}")), Arc::from(value));
        }
        let publish = Publish::between(bundle(CONFIG), 0, &from, &to);
        let change = Change::new(realm.genesis.realm(), Action::Publish(publish));
        let mut signed = SignedChange::unsigned(change);
        signed.approve(&realm.operators[0]);
        signed
    };
    let start = bytes - 2_000;
    let change = of(start + bytes - of(start).to_canonical().len());
    assert_eq!(change.to_canonical().len(), bytes);
    change
}

#[test]
fn v25_the_changes_of_a_block_have_so_many_bytes_and_no_more() {
    let mut realm = realm();
    let fits = change_of_bytes(&realm, BLOCK_CHANGES_BYTES_MAX);
    let exceeds = change_of_bytes(&realm, BLOCK_CHANGES_BYTES_MAX + 1);
    assert_eq!(rule(&realm, &exceeds), Err("V25"));
    let proposer = realm.ledger.validators().addresses()[0];
    let time = realm.now.plus(Duration::from_secs(1));
    assert!(realm.ledger.build(proposer, time, [&exceeds]).changes.is_empty());
    // A block that is full has no room for the smallest change.
    let small = realm.publish("config/small", &[("a", "1")]);
    let mut block = realm.ledger.build(proposer, time, [&fits, &small]);
    assert_eq!(block.changes.len(), 1);
    realm.ledger.validate(&block).unwrap();
    block.changes.push(small);
    assert_eq!(realm.ledger.validate(&block).unwrap_err().rule(), "V25");
    realm.decide(&[fits]).unwrap();
}

#[test]
fn v25_a_block_has_so_many_changes_and_no_more() {
    let realm = realm();
    let publish = |i: usize| {
        let mut to = BundleTree::default();
        to.insert(&name_key("k"), Arc::from(&b"v"[..]));
        let name = bundle(&format!("config/{i}"));
        let publish = Publish::between(name, 0, &BundleTree::default(), &to);
        let change = Change::new(realm.genesis.realm(), Action::Publish(publish));
        let mut signed = SignedChange::unsigned(change);
        signed.approve(&realm.operators[0]);
        signed
    };
    let pending: Vec<_> = (0..=BLOCK_CHANGES_MAX).map(publish).collect();
    let proposer = realm.ledger.validators().addresses()[0];
    let time = realm.now.plus(Duration::from_secs(1));
    let mut block = realm.ledger.build(proposer, time, &pending);
    assert_eq!(block.changes.len(), BLOCK_CHANGES_MAX);
    realm.ledger.validate(&block).unwrap();
    block.changes.push(pending[BLOCK_CHANGES_MAX].clone());
    assert_eq!(realm.ledger.validate(&block).unwrap_err().rule(), "V25");
}

#[test]
fn v25_the_changes_of_a_block_have_so_many_approvals_and_no_more() {
    // As many operators as may sign one change.
    let mut realm = realm();
    for i in 0..APPROVALS_MAX - realm.operators.len() {
        let key = satrap_sim::realm::key(&format!("operator {i}"));
        let operator = Operator {
            public: PublicKey::of(&key),
            principal: Label::new(&format!("p{i}")).unwrap(),
        };
        let change = realm.govern(GovernanceAct::AuthorizeOperator(operator));
        realm.decide(&[change]).unwrap();
        realm.operators.push(key);
    }
    let changes = BLOCK_APPROVALS_MAX / APPROVALS_MAX;
    let pending: Vec<_> =
        (0..=changes).map(|i| realm.publish(&format!("config/{i}"), &[("k", "v")])).collect();
    let proposer = realm.ledger.validators().addresses()[0];
    let time = realm.now.plus(Duration::from_secs(1));
    let mut block = realm.ledger.build(proposer, time, &pending);
    assert_eq!(block.changes.len(), changes);
    realm.ledger.validate(&block).unwrap();
    block.changes.push(pending[changes].clone());
    assert_eq!(realm.ledger.validate(&block).unwrap_err().rule(), "V25");
}

/// Keys of 512 bytes that make each look-up walk the whole tree, as the author of a change that is
/// meant to be costly would choose them.
fn deep() -> BundleTree {
    let entries = (0..8 * KEY_BYTES_MAX).map(|bit| {
        let mut bytes = [0x55; KEY_BYTES_MAX];
        bytes[bit / 8] ^= 0x80 >> (bit % 8);
        (Key::new(&bytes).unwrap(), Arc::from(&b""[..]))
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    BundleTree::from_sorted(&entries).unwrap()
}

#[test]
fn v25_the_changes_of_a_block_cost_so_many_nodes_and_no_more() {
    let realm = realm();
    let mut state = state(&realm.ledger);
    let name = bundle(CONFIG);
    hold(&mut state, &name, deep());
    let deepest = Key::new(&[0x55; KEY_BYTES_MAX]).unwrap();
    let mut cost = Cost::default();
    let mut judged = 0;
    // The same few bytes again and again: a block would have room for hundreds of them.
    let refusal = loop {
        let from = state.contents[&name].clone();
        let mut to = from.clone();
        to.insert(&deepest, Arc::from(format!("{judged}").as_bytes()));
        let version = state.heads[&name].version;
        let publish = Publish::between(name.clone(), version, &from, &to);
        let change = realm.approved(Action::Publish(publish));
        match state.judge(&setting(&realm), &change, &mut cost) {
            Ok(effects) => drop(state.commit(effects)),
            Err(refusal) => break refusal,
        }
        judged += 1;
        assert!(cost.nodes <= BLOCK_NODES_MAX);
    };
    assert_eq!(refusal.rule(), "V25");
    assert!((16..BLOCK_CHANGES_MAX / 2).contains(&judged), "{judged} changes fit");
}
