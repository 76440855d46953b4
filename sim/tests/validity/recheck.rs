//! A change that waits is checked again after each block, by a few look-ups: with the same outcome.

use std::time::Duration;

use satrap_certify::{
    Class, ClassKind, GovernanceAct, Label, PublicKey, SignedChange, limits::PUBLISH_BURST,
};
use satrap_global_core::{Ledger, room::Room};
use satrap_sim::{SimRealm, realm::key};

use crate::trust_roots::ca;

/// A realm whose class `small/` is nearly full, and where the first operator has one publish left.
fn realm() -> SimRealm {
    let mut small = Class::new("small/", 1, ClassKind::Opaque);
    (small.quota.bundles_max, small.quota.bytes_max) = (5, 100);
    let classes = [
        small,
        Class::new("config/", 1, ClassKind::Opaque),
        Class::new("pki/", 2, ClassKind::X509Trust),
    ];
    let mut realm = SimRealm::with_classes("recheck", 4, &classes);
    realm.operators.sort_by_key(|key| key.verifying_key().to_bytes());
    let root = ca();
    for (bundle, value) in [("small/a", "1"), ("small/b", "1"), ("pki/a", &root)] {
        let change = realm.publish(bundle, &[("k", value)]);
        realm.decide(&[change]).unwrap();
    }
    let mut left = PUBLISH_BURST - 1;
    while left > 0 {
        let changes: Vec<_> = (0..left.min(128))
            .map(|i| {
                by(&realm, realm.publish(&format!("config/{i}"), &[("n", &left.to_string())]), 0)
            })
            .collect();
        realm.decide(&changes).unwrap();
        left -= changes.len() as u64;
    }
    realm
}

/// The change with no approval but that of one operator.
fn by(realm: &SimRealm, change: SignedChange, operator: usize) -> SignedChange {
    let mut signed = SignedChange::unsigned(change.change);
    signed.approve(&realm.operators[operator]);
    signed
}

fn candidates(realm: &SimRealm) -> Vec<SignedChange> {
    let root = ca();
    let revoke = GovernanceAct::RevokeOperator(PublicKey::of(&realm.operators[1]));
    let authorize =
        GovernanceAct::AuthorizeRegionKey(Label::new("eu").unwrap(), PublicKey::of(&key("eu")));
    vec![
        realm.publish("small/c", &[("k", "1")]),
        realm.publish("small/d", &[("k", "1")]),
        realm.publish("small/e", &[("k", &"x".repeat(90))]),
        realm.publish("small/a", &[("k", &"x".repeat(90))]),
        by(realm, realm.publish("small/f", &[("k", "1")]), 1),
        realm.retire("small/a"),
        by(realm, realm.publish("config/new", &[("k", "1")]), 0),
        by(realm, realm.publish("config/0", &[("k", "1")]), 0),
        by(realm, realm.publish("config/0", &[("k", "2")]), 1),
        realm.retire("config/0"),
        realm.retire("pki/a"),
        realm.publish("pki/b", &[("k", &root)]),
        realm.govern(revoke),
        realm.govern(authorize),
    ]
}

fn after(realm: &SimRealm, change: &SignedChange) -> Ledger {
    let mut ledger = realm.ledger.clone();
    let proposer = ledger.validators().addresses()[0];
    let block = ledger.build(proposer, realm.now.plus(Duration::from_secs(1)), [change]);
    assert_eq!(block.changes.len(), 1);
    ledger.apply(&block, &realm.commit(&block, realm.quorum())).unwrap();
    ledger
}

#[test]
fn a_second_look_says_what_the_first_would_say_now() {
    let realm = realm();
    let candidates = candidates(&realm);
    let waiting: Vec<(&SignedChange, Room)> =
        candidates.iter().map(|c| (c, realm.ledger.check(c).unwrap())).collect();
    let mut refused = std::collections::BTreeSet::new();
    for (first, _) in &waiting {
        let ledger = after(&realm, first);
        for (change, room) in &waiting {
            let again = ledger.recheck(change, *room);
            assert_eq!(again, ledger.check(change).map(|_| ()), "{change:?} after {first:?}");
            refused.extend(again.err().map(|refusal| refusal.rule()));
        }
    }
    let expected = ["V11", "V18", "V19", "V27", "V3", "V4"];
    assert_eq!(refused.into_iter().collect::<Vec<_>>(), expected, "what a block can change");
}
