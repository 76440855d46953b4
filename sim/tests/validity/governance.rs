//! V12 to V16: operators, region keys and validators.

use satrap_certify::{
    GovernanceAct, Label, Operator, PublicKey, ValidatorInfo,
    limits::{GOVERNANCE_ITEMS_MAX, VALIDATORS_MAX},
};
use satrap_sim::{SimRealm, realm::key};

use crate::{apply, realm, rule, state, validator};

fn operator(name: &str) -> Operator {
    Operator { public: PublicKey::of(&key(name)), principal: Label::new(name).unwrap() }
}

fn act_rule(realm: &SimRealm, act: GovernanceAct) -> Result<(), &'static str> {
    rule(realm, &realm.govern(act))
}

#[test]
fn v12_enough_principals_stay_to_approve_any_change() {
    let mut realm = realm();
    let public = |realm: &SimRealm, i: usize| PublicKey::of(&realm.operators[i]);
    let carol = public(&realm, 2);
    let change = realm.govern(GovernanceAct::RevokeOperator(carol));
    realm.decide(&[change]).unwrap();
    realm.operators.truncate(2);
    // Two are left, two are needed: the limit. One less and the realm could never change again.
    for i in [0, 1] {
        let revoke = GovernanceAct::RevokeOperator(public(&realm, i));
        assert_eq!(act_rule(&realm, revoke), Err("V12"));
    }
    // A second key of a principal that stays may go.
    let second = Operator { principal: Label::new("alice").unwrap(), ..operator("alice-2") };
    let change = realm.govern(GovernanceAct::AuthorizeOperator(second.clone()));
    realm.decide(&[change]).unwrap();
    assert_eq!(act_rule(&realm, GovernanceAct::RevokeOperator(second.public)), Ok(()));
}

#[test]
fn v13_only_what_is_authorized_can_be_revoked() {
    let mut realm = realm();
    let (eu, us) = (Label::new("eu").unwrap(), Label::new("us").unwrap());
    let [one, two] = ["one", "two"].map(|name| PublicKey::of(&key(name)));
    assert_eq!(act_rule(&realm, GovernanceAct::RevokeOperator(one)), Err("V13"));
    let revoke = |region: &Label, key| GovernanceAct::RevokeRegionKey(region.clone(), key);
    assert_eq!(act_rule(&realm, revoke(&eu, one)), Err("V13"));
    let change = realm.govern(GovernanceAct::AuthorizeRegionKey(eu.clone(), one));
    realm.decide(&[change]).unwrap();
    assert_eq!(act_rule(&realm, revoke(&eu, two)), Err("V13"), "another key");
    assert_eq!(act_rule(&realm, revoke(&us, one)), Err("V13"), "another region's");
    let root = realm.ledger.governance().root();
    let change = realm.govern(revoke(&eu, one));
    realm.decide(&[change]).unwrap();
    assert_ne!(realm.ledger.governance().root(), root);
    assert!(realm.ledger.governance().region_keys.is_empty(), "no region without a key is left");
}

#[test]
fn v14_only_new_usable_keys_are_authorized() {
    let mut realm = realm();
    let alice = realm.ledger.governance().operators.values().next().unwrap().clone();
    assert_eq!(act_rule(&realm, GovernanceAct::AuthorizeOperator(alice.clone())), Err("V14"));
    let renamed = Operator { principal: Label::new("mallory").unwrap(), ..alice };
    assert_eq!(act_rule(&realm, GovernanceAct::AuthorizeOperator(renamed)), Err("V14"));
    // The neutral element, a point of small order, under which anyone can sign; and a second
    // spelling (y + p) of another point.
    let mut weak = [0; 32];
    weak[0] = 1;
    let respelled = [0xFF; 32];
    assert!(ed25519_dalek::VerifyingKey::from_bytes(&respelled).is_ok(), "dalek takes it");
    for unusable in [weak, respelled] {
        let public = PublicKey(unusable);
        let weak = Operator { public, ..operator("weak") };
        assert_eq!(act_rule(&realm, GovernanceAct::AuthorizeOperator(weak)), Err("V14"));
        let act = GovernanceAct::AuthorizeRegionKey(Label::new("eu").unwrap(), public);
        assert_eq!(act_rule(&realm, act), Err("V14"));
    }
    let act = GovernanceAct::AuthorizeRegionKey(Label::new("eu").unwrap(), operator("eu").public);
    let change = realm.govern(act.clone());
    realm.decide(&[change]).unwrap();
    assert_eq!(act_rule(&realm, act), Err("V14"));
}

#[test]
fn v14_there_is_room_for_so_many_keys_and_no_more() {
    let realm = realm();
    let mut full = state(&realm.ledger);
    let governance = std::sync::Arc::make_mut(&mut full.governance);
    for i in governance.operators.len()..GOVERNANCE_ITEMS_MAX - 1 {
        let operator = operator(&format!("operator-{i}"));
        governance.operators.insert(operator.public, operator);
    }
    // A region takes a place, and each of its keys one.
    let keys = (0..GOVERNANCE_ITEMS_MAX - 2).map(|i| PublicKey::of(&key(&format!("eu-{i}"))));
    let eu = Label::new("eu").unwrap();
    governance.region_keys.insert(eu.clone(), keys.collect());
    for (last, one_more) in [
        (
            GovernanceAct::AuthorizeOperator(operator("last")),
            GovernanceAct::AuthorizeOperator(operator("one-more")),
        ),
        (
            GovernanceAct::AuthorizeRegionKey(eu.clone(), operator("last").public),
            GovernanceAct::AuthorizeRegionKey(eu.clone(), operator("one-more").public),
        ),
    ] {
        let govern = |version, act| realm.approved(satrap_certify::Action::Govern(version, act));
        let version = full.governance.version;
        assert_eq!(apply(&realm, &mut full, &govern(version, last)), Ok(()));
        assert_eq!(apply(&realm, &mut full, &govern(version + 1, one_more)), Err("V14"));
        assert_eq!(full.governance.version, version + 1, "a refused change leaves no trace");
    }
}

fn set_rule(realm: &SimRealm, validators: Vec<ValidatorInfo>) -> Result<(), &'static str> {
    act_rule(realm, GovernanceAct::SetValidators(validators))
}

#[test]
fn v15_validators_must_form_a_set_with_distinct_names() {
    let realm = realm();
    let present = realm.ledger.governance().validators.clone();
    let with = |extra: ValidatorInfo| present.iter().cloned().chain([extra]).collect::<Vec<_>>();
    assert_eq!(set_rule(&realm, with(validator("v4", 1))), Ok(()));
    assert_eq!(set_rule(&realm, Vec::new()), Err("V15"));
    assert_eq!(set_rule(&realm, with(validator("v4", 0))), Err("V15"), "no power");
    assert_eq!(set_rule(&realm, with(validator("v4", u64::MAX))), Err("V15"), "overflow");
    let twin = ValidatorInfo { public: present[0].public, ..validator("v4", 1) };
    assert_eq!(set_rule(&realm, with(twin)), Err("V15"), "one key, two votes");
    let namesake = ValidatorInfo { name: present[0].name.clone(), ..validator("v4", 1) };
    assert_eq!(set_rule(&realm, with(namesake)), Err("V15"), "two keys behind one SPIFFE id");
    let unusable = ValidatorInfo { public: PublicKey([0xFF; 32]), ..validator("v4", 1) };
    assert_eq!(set_rule(&realm, with(unusable)), Err("V15"));
}

#[test]
fn v15_a_set_holds_so_many_validators_and_no_more() {
    let mut realm = SimRealm::new("validity", VALIDATORS_MAX - 1);
    let change = realm.add_validator("last");
    assert_eq!(rule(&realm, &change), Ok(()));
    realm.decide(&[change]).unwrap();
    assert_eq!(realm.ledger.validators().len(), VALIDATORS_MAX);
    let change = realm.add_validator("one-more");
    assert_eq!(rule(&realm, &change), Err("V15"));
}

#[test]
fn v16_at_most_a_third_of_the_power_moves_in_one_block() {
    let realm = SimRealm::new("validity", 6);
    let present = realm.ledger.governance().validators.clone();
    let keep = |n: usize| present[..n].to_vec();
    // Two of six may go, come, or change places; three may not.
    assert_eq!(set_rule(&realm, keep(4)), Ok(()));
    assert_eq!(set_rule(&realm, keep(3)), Err("V16"));
    let joined = |kept: usize, new: usize| {
        let new = (0..new).map(|i| validator(&format!("w{i}"), 1));
        keep(kept).into_iter().chain(new).collect::<Vec<_>>()
    };
    assert_eq!(set_rule(&realm, joined(6, 2)), Ok(()));
    assert_eq!(set_rule(&realm, joined(6, 3)), Err("V16"));
    assert_eq!(set_rule(&realm, joined(5, 1)), Ok(()), "one goes, one comes: both count");
    assert_eq!(set_rule(&realm, joined(5, 2)), Err("V16"));
    // The power of one that stays moves too.
    let raised = |power| {
        let mut validators = present.clone();
        validators[0].power = power;
        validators
    };
    assert_eq!(set_rule(&realm, raised(3)), Ok(()));
    assert_eq!(set_rule(&realm, raised(4)), Err("V16"));
}

#[test]
fn v16_holds_for_all_changes_of_one_block_together() {
    let mut realm = SimRealm::new("validity", 4);
    let first = realm.add_validator("v4");
    let mut validators = realm.ledger.governance().validators.clone();
    validators.push(validator("v4", 1));
    validators.push(validator("v5", 1));
    let act = GovernanceAct::SetValidators(validators);
    let second = realm.approved(satrap_certify::Action::Govern(1, act));
    // One step at a time, one block after the other, both are fine.
    let mut stepwise = state(&realm.ledger);
    assert_eq!(apply(&realm, &mut stepwise, &first), Ok(()));
    assert_eq!(apply(&realm, &mut stepwise, &second), Err("V16"));
    let proposer = realm.ledger.validators().addresses()[0];
    let block = realm.ledger.build(
        proposer,
        realm.now.plus(core::time::Duration::from_secs(1)),
        [&first, &second],
    );
    assert_eq!(block.changes, std::slice::from_ref(&first));
    realm.decide(&[first]).unwrap();
    assert_eq!(rule(&realm, &second), Ok(()));
}
