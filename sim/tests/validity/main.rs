//! Every rule of docs/spec/validity.md, broken alone, and every limit at and one beyond it.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod blocks;
mod changes;
mod governance;
mod history;
mod quotas;
mod rates;
mod recheck;
mod retire;
mod sizes;
mod snapshot;
mod trust_roots;

use std::sync::Arc;

use satrap_certify::{Action, BundleName, Key, Publish, SignedChange, ValidatorInfo};
use satrap_global_core::{
    Ledger,
    state::{Cost, Setting, State},
};
use satrap_merkle::BundleTree;
use satrap_sim::SimRealm;

const CONFIG: &str = "config/routing";

fn bundle(name: &str) -> BundleName {
    BundleName::new(name).unwrap()
}

fn name_key(key: &str) -> Key {
    Key::new(key.as_bytes()).unwrap()
}

fn realm() -> SimRealm {
    SimRealm::new("validity", 4)
}

/// The rule that keeps `change` out of the next block.
fn rule(realm: &SimRealm, change: &SignedChange) -> Result<(), &'static str> {
    realm.ledger.check(change).map(|_| ()).map_err(|e| e.rule())
}

/// The publish in `change`, altered and approved again.
fn altered(
    realm: &SimRealm,
    change: &SignedChange,
    alter: impl FnOnce(&mut Publish),
) -> SignedChange {
    let mut action = change.change.action.clone();
    let Action::Publish(publish) = &mut action else { panic!("expected a publish") };
    alter(publish);
    realm.approved(action)
}

/// A tree of `values`, keys in ascending order.
fn tree(values: impl Iterator<Item = (String, Vec<u8>)>) -> BundleTree {
    let entries: Vec<_> = values.map(|(key, value)| (name_key(&key), Arc::from(value))).collect();
    BundleTree::from_sorted(&entries).expect("keys ascend")
}

/// The state that `ledger` would apply a change to, for states that would take many blocks to
/// reach.
fn state(ledger: &Ledger) -> State {
    assert!(ledger.heads().is_empty(), "content is not copied");
    State::genesis(ledger.governance().clone())
}

/// Applies `change` to `state` as the next block of `realm` would.
fn apply(realm: &SimRealm, state: &mut State, change: &SignedChange) -> Result<(), &'static str> {
    let effects = state.judge(&setting(realm), change, &mut Cost::default());
    effects.map(|effects| drop(state.commit(effects))).map_err(|e| e.rule())
}

/// The next block of `realm`.
fn setting(realm: &SimRealm) -> Setting<'_> {
    let ledger = &realm.ledger;
    Setting {
        realm: ledger.realm(),
        signing_set: ledger.validators(),
        height: ledger.height() + 1,
        time: realm.now,
        history_size: 0,
    }
}

/// `name` with its own key and `power`.
fn validator(name: &str, power: u64) -> ValidatorInfo {
    ValidatorInfo { power, ..satrap_sim::realm::validator("validity", name) }
}
