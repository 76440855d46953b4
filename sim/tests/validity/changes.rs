//! V1 to V7 and V11: who may change what, and from which version.

use satrap_certify::{Action, Change, GovernanceAct, Operator, PublicKey, SignedChange};
use satrap_merkle::codec::Canonical as _;
use satrap_sim::{SimRealm, realm::key};

use crate::{CONFIG, altered, bundle, name_key, realm, rule};

#[test]
fn v1_a_change_signed_for_another_realm_is_refused() {
    let realm = realm();
    let change = realm.publish(CONFIG, &[("a", "1")]);
    assert_eq!(rule(&realm, &change), Ok(()));
    // The same chain id and the same operators, but another genesis.
    let twin = SimRealm::new("validity", 5);
    assert_eq!(twin.operators[0].to_bytes(), realm.operators[0].to_bytes());
    assert_eq!(rule(&twin, &change), Err("V1"));
    // Relabelling it for the twin breaks the approvals.
    let mut relabelled = change;
    relabelled.change.genesis_hash = *twin.genesis.realm().genesis_hash();
    assert_eq!(rule(&twin, &relabelled), Err("V3"));
}

#[test]
fn v2_a_bundle_that_no_class_covers_is_refused() {
    let realm = realm();
    for (name, expected) in
        [("config/a", Ok(())), ("configs/a", Err("V2")), ("other", Err("V2")), ("pki", Err("V2"))]
    {
        assert_eq!(rule(&realm, &realm.publish(name, &[("a", "1")])), expected, "{name}");
    }
}

/// A publish under `config/` (one approval) or `pki/` (two) with the approvals of `keys`.
fn approved_by(
    realm: &SimRealm,
    change: &SignedChange,
    keys: &[&ed25519_dalek::SigningKey],
) -> Result<(), &'static str> {
    let mut signed = SignedChange::unsigned(change.change.clone());
    keys.iter().for_each(|key| signed.approve(key));
    rule(realm, &signed)
}

#[test]
fn v3_as_many_distinct_principals_must_approve_as_the_class_says() {
    let realm = realm();
    let [alice, bob, carol] = [0, 1, 2].map(|i| &realm.operators[i]);
    let one = realm.publish(CONFIG, &[("a", "1")]);
    assert_eq!(approved_by(&realm, &one, &[]), Err("V3"));
    assert_eq!(approved_by(&realm, &one, &[bob]), Ok(()));

    let two = realm.govern(GovernanceAct::AuthorizeRegionKey(
        satrap_certify::Label::new("eu").unwrap(),
        PublicKey::of(&key("eu")),
    ));
    assert_eq!(approved_by(&realm, &two, &[alice]), Err("V3"));
    assert_eq!(approved_by(&realm, &two, &[alice, alice]), Err("V3"), "one signer, twice");
    assert_eq!(approved_by(&realm, &two, &[alice, carol]), Ok(()));
    assert_eq!(approved_by(&realm, &two, &[alice, bob, carol]), Ok(()));
}

#[test]
fn v3_two_keys_of_one_principal_count_once() {
    let mut realm = realm();
    let second = key("alice's other key");
    let public = PublicKey::of(&second);
    let principal = satrap_certify::Label::new("alice").unwrap();
    let change = realm.govern(GovernanceAct::AuthorizeOperator(Operator { public, principal }));
    realm.decide(&[change]).unwrap();
    let change = realm.govern(GovernanceAct::RevokeOperator(public));
    let [alice, bob] = [0, 1].map(|i| &realm.operators[i]);
    assert_eq!(approved_by(&realm, &change, &[alice, &second]), Err("V3"), "self-approval");
    assert_eq!(approved_by(&realm, &change, &[&second, bob]), Ok(()), "either key speaks for her");
}

#[test]
fn v3_an_approval_holds_for_one_change_and_one_known_key_only() {
    let realm = realm();
    let [alice, bob] = [0, 1].map(|i| &realm.operators[i]);
    let honest = realm.publish(CONFIG, &[("a", "1")]);
    // The change is edited after it was approved.
    let edited = SignedChange {
        change: realm.publish(CONFIG, &[("a", "2")]).change,
        approvals: honest.approvals.clone(),
    };
    assert_eq!(rule(&realm, &edited), Err("V3"));
    // An unknown key adds nothing, and is refused even beside enough known ones: since every
    // validator would verify it for nothing.
    let stranger = key("stranger");
    assert_eq!(approved_by(&realm, &honest, &[&stranger]), Err("V3"));
    assert_eq!(approved_by(&realm, &honest, &[alice, &stranger]), Err("V3"));
    // One bad signature spoils the change, at any place.
    for place in 0..honest.approvals.len() {
        let mut bad = honest.clone();
        bad.approvals[place].signature[40] ^= 1;
        assert_eq!(rule(&realm, &bad), Err("V3"));
    }
    // A signature in the name of another.
    let mut swapped = SignedChange::unsigned(honest.change.clone());
    swapped.approve(alice);
    swapped.approvals[0].operator = PublicKey::of(bob);
    assert_eq!(rule(&realm, &swapped), Err("V3"));
}

#[test]
fn v3_a_repeated_approval_does_not_decode() {
    let realm = realm();
    let mut twice = realm.publish(CONFIG, &[("a", "1")]);
    twice.approvals.insert(0, twice.approvals[0].clone());
    assert!(SignedChange::from_canonical(&twice.to_canonical()).is_err(), "E1: ascending by key");
}

#[test]
fn v4_a_publish_applies_to_the_version_it_was_made_for() {
    let mut realm = realm();
    let first = realm.publish(CONFIG, &[("a", "1")]);
    let rival = realm.publish(CONFIG, &[("a", "2")]);
    realm.decide(std::slice::from_ref(&first)).unwrap();
    assert_eq!(rule(&realm, &first), Err("V4"), "replayed");
    assert_eq!(rule(&realm, &rival), Err("V4"), "lost the race");
    let next = realm.publish(CONFIG, &[("a", "2")]);
    assert_eq!(rule(&realm, &next), Ok(()));
    for version in [0, 2, u64::MAX] {
        let other = altered(&realm, &next, |p| p.expect_version = version);
        assert_eq!(rule(&realm, &other), Err("V4"), "version {version}");
    }
    // Back to old content is a new version, and the old change stays unusable.
    realm.decide(&[next]).unwrap();
    let back = realm.publish(CONFIG, &[("a", "1")]);
    realm.decide(&[back]).unwrap();
    assert_eq!(realm.ledger.heads()[&bundle(CONFIG)].version, 3);
    assert_eq!(rule(&realm, &first), Err("V4"));
}

#[test]
fn v5_a_publish_changes_something() {
    let mut realm = realm();
    let empty = realm.publish(CONFIG, &[]);
    assert_eq!(rule(&realm, &empty), Err("V5"), "an empty bundle is what there is already");
    let change = realm.publish(CONFIG, &[("a", "1")]);
    realm.decide(&[change]).unwrap();
    let same = realm.publish(CONFIG, &[("a", "1")]);
    assert_eq!(rule(&realm, &same), Err("V5"));
    let put = (name_key("a"), std::sync::Arc::from(&b"1"[..]));
    let again = altered(&realm, &same, |p| p.puts.push(put));
    assert_eq!(rule(&realm, &again), Err("V5"), "a put of the present value");
}

#[test]
fn v6_only_keys_that_are_there_are_deleted() {
    let mut realm = realm();
    let change = realm.publish(CONFIG, &[("a", "1"), ("b", "1")]);
    realm.decide(&[change]).unwrap();
    let change = realm.publish(CONFIG, &[("a", "1")]);
    assert_eq!(rule(&realm, &change), Ok(()));
    let ghost = altered(&realm, &change, |p| p.deletes.push(name_key("c")));
    assert_eq!(rule(&realm, &ghost), Err("V6"));
}

#[test]
fn v7_the_signed_root_is_the_root_that_results() {
    let realm = realm();
    let change = realm.publish(CONFIG, &[("a", "1")]);
    let wrong = altered(&realm, &change, |p| p.root[31] ^= 1);
    assert_eq!(rule(&realm, &wrong), Err("V7"));
    let sneaked = altered(&realm, &change, |p| {
        p.puts.push((name_key("b"), std::sync::Arc::from(&b"2"[..])));
    });
    assert_eq!(rule(&realm, &sneaked), Err("V7"));
}

#[test]
fn v11_a_governance_change_cannot_be_replayed() {
    let mut realm = realm();
    let public = PublicKey::of(&key("dave"));
    let principal = satrap_certify::Label::new("dave").unwrap();
    let authorize = realm.govern(GovernanceAct::AuthorizeOperator(Operator { public, principal }));
    realm.decide(std::slice::from_ref(&authorize)).unwrap();
    let revoke = realm.govern(GovernanceAct::RevokeOperator(public));
    realm.decide(&[revoke]).unwrap();
    // The revoked key does not come back by playing the old approvals again.
    assert_eq!(rule(&realm, &authorize), Err("V11"));
    let Action::Govern(version, act) = &authorize.change.action else { panic!() };
    assert_eq!(*version, 0);
    let mut moved = authorize.clone();
    moved.change = Change::new(realm.genesis.realm(), Action::Govern(2, act.clone()));
    assert_eq!(rule(&realm, &moved), Err("V3"), "the approvals cover the version");
    let early = realm.approved(Action::Govern(3, act.clone()));
    assert_eq!(rule(&realm, &early), Err("V11"), "nor can it wait for its turn");
}
