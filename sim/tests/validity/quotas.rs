//! V18 and V19: no class takes room that is reserved for another, and no principal a whole class.

use satrap_certify::{
    Class, ClassKind,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX},
};
use satrap_global_core::{room::OPAQUE, state::State};
use satrap_sim::SimRealm;

use crate::{
    apply, bundle,
    sizes::{hold, hold_tiny, put, tree_of_bytes, tree_of_entries},
    state,
};

fn with_quota(bundles_max: u32, bytes_max: u64) -> SimRealm {
    let mut small = Class::new("small/", 1, ClassKind::Opaque);
    small.quota.bundles_max = bundles_max;
    small.quota.bytes_max = bytes_max;
    SimRealm::with_classes("quotas", 4, &[small, Class::new("config/", 1, ClassKind::Opaque)])
}

fn put_rule(
    realm: &SimRealm,
    state: &mut State,
    name: &str,
    bytes: usize,
) -> Result<(), &'static str> {
    let change = put(realm, state, &bundle(name), "last", bytes - "last".len());
    apply(realm, state, &change)
}

#[test]
fn v18_a_class_has_so_many_bundles_and_no_more() {
    let realm = with_quota(4, 1_000);
    let mut state = state(&realm.ledger);
    for (i, owner) in ["alice", "bob", "carol"].iter().enumerate() {
        hold_tiny(&mut state, &format!("small/{i}"), owner);
    }
    assert_eq!(put_rule(&realm, &mut state, "small/last", 5), Ok(()));
    assert_eq!(put_rule(&realm, &mut state, "small/one-more", 5), Err("V18"));
    assert_eq!(put_rule(&realm, &mut state, "small/last", 6), Ok(()), "what is there may change");
    assert_eq!(put_rule(&realm, &mut state, "config/other", 5), Ok(()), "another class has room");
}

#[test]
fn v18_a_class_has_so_many_bytes_and_no_more() {
    let realm = with_quota(4, 1_000);
    let mut state = state(&realm.ledger);
    hold(&mut state, &bundle("small/a"), tree_of_bytes(900));
    assert_eq!(put_rule(&realm, &mut state, "small/b", 101), Err("V18"));
    assert_eq!(put_rule(&realm, &mut state, "small/b", 100), Ok(()));
    assert_eq!(put_rule(&realm, &mut state, "small/b", 99), Ok(()), "less is always possible");
}

/// Two opaque classes, each below its quota, and a class of trust roots that holds nothing yet.
fn two_opaque() -> SimRealm {
    SimRealm::with_classes(
        "quotas",
        4,
        &[
            Class::new("pki/", 1, ClassKind::X509Trust),
            Class::new("a/", 1, ClassKind::Opaque),
            Class::new("b/", 1, ClassKind::Opaque),
        ],
    )
}

/// Trust roots can have the room that opaque classes cannot.
fn reserved(realm: &SimRealm, state: &State) {
    let mut state = state.clone();
    let roots = put(realm, &state, &bundle("pki/roots"), "k", 0);
    assert_eq!(apply(realm, &mut state, &roots), Err("V9"), "there is room, for a certificate");
}

#[test]
fn v18_opaque_classes_leave_bytes_to_trust_roots() {
    let realm = two_opaque();
    let mut state = state(&realm.ledger);
    let bundles = OPAQUE.bytes / BUNDLE_BYTES_MAX;
    for i in 1..bundles {
        let name = bundle(&format!("{}/{i}", ["a", "b"][i as usize % 2]));
        hold(&mut state, &name, tree_of_bytes(BUNDLE_BYTES_MAX));
    }
    hold(&mut state, &bundle("a/last"), tree_of_bytes(BUNDLE_BYTES_MAX - 100));
    assert_eq!(put_rule(&realm, &mut state, "b/last", 101), Err("V18"));
    assert_eq!(put_rule(&realm, &mut state, "b/last", 100), Ok(()));
    reserved(&realm, &state);
}

#[test]
fn v18_opaque_classes_leave_entries_to_trust_roots() {
    let realm = two_opaque();
    let mut state = state(&realm.ledger);
    hold(&mut state, &bundle("a/1"), tree_of_entries(BUNDLE_ENTRIES_MAX));
    let rest = usize::try_from(OPAQUE.entries).unwrap() - BUNDLE_ENTRIES_MAX;
    hold(&mut state, &bundle("b/1"), tree_of_entries(rest - 1));
    assert_eq!(put_rule(&realm, &mut state, "b/2", 5), Ok(()));
    assert_eq!(put_rule(&realm, &mut state, "b/3", 5), Err("V18"));
    reserved(&realm, &state);
}

#[test]
fn v18_opaque_classes_leave_bundles_to_trust_roots() {
    let realm = two_opaque();
    let mut state = state(&realm.ledger);
    for i in 0..OPAQUE.heads - 1 {
        hold_tiny(&mut state, &format!("{}/{i}", ["a", "b"][i % 2]), ["alice", "bob"][i / 2 % 2]);
    }
    assert_eq!(put_rule(&realm, &mut state, "a/last", 5), Ok(()));
    assert_eq!(put_rule(&realm, &mut state, "b/one-more", 5), Err("V18"));
    reserved(&realm, &state);
}

#[test]
fn v19_a_principal_owns_half_of_a_class_and_no_more() {
    let mut realm = with_quota(5, 1_000);
    // The first in the order of keys pays and owns.
    let first = realm.operators.iter().min_by_key(|key| key.verifying_key().to_bytes()).unwrap();
    let operators = [first.clone()];
    let all = std::mem::replace(&mut realm.operators, operators.into());
    for name in ["small/a", "small/b", "small/c"] {
        let change = realm.publish(name, &[("k", "v")]);
        realm.decide(&[change]).unwrap();
    }
    let change = realm.publish("small/d", &[("k", "v")]);
    assert_eq!(crate::rule(&realm, &change), Err("V19"));
    let change = realm.publish("small/c", &[("k", "w")]);
    assert_eq!(crate::rule(&realm, &change), Ok(()), "what is there may change");
    let change = realm.publish("config/d", &[("k", "v")]);
    assert_eq!(crate::rule(&realm, &change), Ok(()), "another class has its own half");

    // Another principal owns another half, even if others change the bundle later.
    realm.operators = all.into_iter().filter(|key| *key != realm.operators[0]).collect();
    let change = realm.publish("small/d", &[("k", "v")]);
    realm.decide(&[change]).unwrap();
    let owner = realm.ledger.accounts().owner(&bundle("small/d")).cloned();
    assert_ne!(owner.as_ref(), realm.ledger.accounts().owner(&bundle("small/a")));
    let change = realm.publish("small/a", &[("k", "w")]);
    realm.decide(&[change]).unwrap();
    assert_ne!(realm.ledger.accounts().owner(&bundle("small/a")), owner.as_ref());
}
