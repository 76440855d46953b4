//! V27: a principal publishes a burst, and then slowly.

use std::time::Duration;

use satrap_certify::{
    Class, ClassKind, GovernanceAct, Label, PublicKey, SignedChange, Timestamp,
    limits::PUBLISH_BURST,
};
use satrap_global_core::{Ledger, Rejection};
use satrap_sim::SimRealm;

use crate::{CONFIG, bundle, rule};

const INTERVAL: Duration = Duration::from_secs(600);

/// A realm where `needed` principals approve, with operators in the order in which they pay.
fn realm(needed: u32) -> SimRealm {
    let class = |prefix| Class::new(prefix, needed, ClassKind::Opaque);
    let mut realm = SimRealm::with_classes("rates", 4, &[class("config/"), class("other/")]);
    realm.operators.sort_by_key(|key| key.verifying_key().to_bytes());
    realm
}

/// Keeps only the approvals of the operators at `places`.
fn approved_by(realm: &SimRealm, mut signed: SignedChange, places: &[usize]) -> SignedChange {
    signed.approvals.clear();
    places.iter().for_each(|place| signed.approve(&realm.operators[*place]));
    signed
}

fn next(realm: &SimRealm, n: u64, places: &[usize]) -> SignedChange {
    approved_by(realm, realm.publish(CONFIG, &[("n", &n.to_string())]), places)
}

/// Publishes as often as budgets allow within a few seconds; returns how often that was.
fn exhaust(realm: &mut SimRealm, places: &[usize]) -> u64 {
    let mut published = 0;
    loop {
        let change = next(realm, published, places);
        match realm.decide(&[change]) {
            Ok(_) => published += 1,
            Err(refusal) => {
                assert_eq!(refusal.rule(), "V27", "{refusal}");
                return published;
            }
        }
    }
}

fn retry_at(realm: &SimRealm, change: &SignedChange) -> Timestamp {
    match realm.ledger.check(change) {
        Err(Rejection::Rate { retry_at, .. }) => retry_at,
        other => panic!("expected a refusal by rate, not {other:?}"),
    }
}

#[test]
fn v27_a_principal_has_a_burst_and_then_a_rate() {
    let mut realm = realm(1);
    // A block takes a second, so that a whole burst takes long enough to earn one publish more.
    let earned = PUBLISH_BURST / INTERVAL.as_secs();
    assert_eq!(exhaust(&mut realm, &[0]), PUBLISH_BURST + earned);
    let change = next(&realm, u64::MAX, &[0]);
    let at = retry_at(&realm, &change);
    assert!(at > realm.ledger.last_time() && at <= realm.ledger.last_time().plus(INTERVAL));
    // The others, and the same one in another class, are as free as before.
    assert_eq!(rule(&realm, &next(&realm, u64::MAX, &[1])), Ok(()));
    let other = realm.publish("other/a", &[("k", "v")]);
    assert_eq!(rule(&realm, &approved_by(&realm, other, &[0])), Ok(()));

    // Not a nanosecond earlier than the refusal said, and then once.
    let build = |realm: &SimRealm, time| {
        let proposer = realm.ledger.validators().addresses()[0];
        realm.ledger.build(proposer, time, [&change]).changes.len()
    };
    assert_eq!(build(&realm, Timestamp(at.0 - 1)), 0);
    assert_eq!(build(&realm, at), 1);
    realm.now = at;
    realm.decide(&[]).unwrap();
    realm.decide(&[change]).unwrap();
    assert_eq!(rule(&realm, &next(&realm, 7, &[0])), Err("V27"));
}

#[test]
fn v27_only_as_many_pay_as_must_and_all_of_them_must_have_budget() {
    let mut realm = realm(2);
    let spent = exhaust(&mut realm, &[0, 1]);
    assert!(spent >= PUBLISH_BURST);
    let count = |realm: &SimRealm, places: &[usize]| rule(realm, &next(realm, 0, places));
    assert_eq!(count(&realm, &[0, 1]), Err("V27"));
    assert_eq!(count(&realm, &[1, 2]), Err("V27"), "one of two has budget");
    assert_eq!(count(&realm, &[0, 1, 2]), Err("V27"), "an approval without budget counts nothing");
    assert_eq!(
        retry_at(&realm, &next(&realm, 0, &[1, 2])),
        retry_at(&realm, &next(&realm, 0, &[0, 1]))
    );

    // With three approvals the first two pay: the third keeps its burst.
    let mut realm = self::realm(2);
    let change = next(&realm, 1, &[0, 1, 2]);
    realm.decide(&[change]).unwrap();
    assert_eq!(realm.ledger.accounts().buckets(), 2);
}

#[test]
fn v27_budgets_are_certified_and_survive_a_restart() {
    let mut realm = realm(1);
    let root = realm.ledger.governance().root();
    let change = next(&realm, 1, &[0]);
    realm.decide(&[change]).unwrap();
    let charged = realm.ledger.governance().root();
    assert_ne!(charged, root, "who paid is committed to");
    exhaust(&mut realm, &[0]);
    let restored = Ledger::restore(&realm.genesis, &realm.ledger.snapshot()).unwrap();
    let change = next(&realm, 0, &[0]);
    let refusals = [&realm.ledger, &restored].map(|ledger| ledger.check(&change).unwrap_err());
    assert_eq!(refusals[0], refusals[1]);
    assert_eq!(
        restored.accounts().owner(&bundle(CONFIG)),
        realm.ledger.accounts().owner(&bundle(CONFIG))
    );
}

#[test]
fn v27_a_full_bucket_is_not_kept_nor_one_of_a_stranger() {
    let mut realm = realm(1);
    let change = next(&realm, 1, &[0]);
    realm.decide(&[change]).unwrap();
    let change = next(&realm, 2, &[1]);
    realm.decide(&[change]).unwrap();
    assert_eq!(realm.ledger.accounts().buckets(), 2);
    // The first principal loses its key, and its bucket.
    let public = PublicKey::of(&realm.operators[0]);
    let change = realm.govern(GovernanceAct::RevokeOperator(public));
    realm.decide(&[change]).unwrap();
    assert_eq!(realm.ledger.accounts().buckets(), 1);
    realm.now = realm.now.plus(INTERVAL);
    realm.decide(&[]).unwrap();
    assert_eq!(realm.ledger.accounts().buckets(), 0, "an idle realm keeps no buckets");
}

#[test]
fn v27_two_keys_of_one_principal_have_one_budget() {
    let mut realm = realm(1);
    let second = satrap_sim::realm::key("a second key");
    let principal =
        |realm: &SimRealm, key| realm.ledger.governance().operators[&key].principal.clone();
    let public = PublicKey::of(&second);
    let name: Label = principal(&realm, PublicKey::of(&realm.operators[0]));
    let operator = satrap_certify::Operator { public, principal: name };
    let change = realm.govern(GovernanceAct::AuthorizeOperator(operator));
    realm.decide(&[change]).unwrap();
    exhaust(&mut realm, &[0]);
    let mut change = next(&realm, 0, &[]);
    change.approve(&second);
    assert_eq!(rule(&realm, &change), Err("V27"));
}
