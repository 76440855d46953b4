//! V17: a full history takes no more directories, and opaque classes leave a quarter of it.

use satrap_certify::{
    Action, GovernanceAct, Label, PublicKey, Retire, SignedChange,
    limits::{HISTORY_LEAVES_MAX, TRUST_HISTORY_RESERVED},
};
use satrap_global_core::state::{Cost, Setting, State};
use satrap_sim::{SimRealm, realm::key};

use crate::{
    CONFIG, apply, bundle, realm, setting, state,
    trust_roots::{ROOTS, ca},
};

/// The rule that keeps `change` out of a block before which the history has `size` directories.
fn rule_at(
    realm: &SimRealm,
    state: &State,
    size: usize,
    change: &SignedChange,
) -> Result<(), &'static str> {
    let setting = Setting { history_size: size as u64, ..setting(realm) };
    state.judge(&setting, change, &mut Cost::default()).map(drop).map_err(|e| e.rule())
}

#[test]
fn v17_publishes_and_retirements_need_room_and_governance_does_not() {
    let realm = realm();
    let root = ca();
    for (name, value, max) in [
        (CONFIG, "1", HISTORY_LEAVES_MAX - TRUST_HISTORY_RESERVED),
        (ROOTS, &root, HISTORY_LEAVES_MAX),
    ] {
        let mut state = state(&realm.ledger);
        let publish = realm.publish(name, &[("k", value)]);
        assert_eq!(rule_at(&realm, &state, max - 1, &publish), Ok(()), "{name}");
        assert_eq!(rule_at(&realm, &state, max, &publish), Err("V17"), "{name}");
        assert_eq!(apply(&realm, &mut state, &publish), Ok(()));
        let retire = Retire { bundle: bundle(name), expect_version: 1 };
        let retire = realm.approved(Action::Retire(retire));
        assert_eq!(rule_at(&realm, &state, max - 1, &retire), Ok(()), "{name}");
        assert_eq!(rule_at(&realm, &state, max, &retire), Err("V17"), "{name}");
    }
    let act =
        GovernanceAct::AuthorizeRegionKey(Label::new("eu").unwrap(), PublicKey::of(&key("eu")));
    let govern = realm.govern(act);
    assert_eq!(rule_at(&realm, &state(&realm.ledger), HISTORY_LEAVES_MAX, &govern), Ok(()));
}
