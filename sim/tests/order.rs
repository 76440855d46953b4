//! E1 for maps and sets: whatever decodes re-encodes to the same bytes.
//!
//! A decoder that collects into a map takes items in any order, and forgets repeated ones. Then one
//! value has many encodings, and a digest over the bytes speaks of more than one of them.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{collections::BTreeMap, sync::Arc};

use satrap_certify::{
    Action, Change, Class, ClassKind, Delta, Governance, GovernanceAct, Interest, Key, Label,
    Operator, Position, PublicKey, Publish, SignedChange,
};
use satrap_global_core::accounts::Accounts;
use satrap_merkle::codec::{Canonical, Writer};
use satrap_sim::{SimRealm, realm::key};

/// Asserts that two neighbors in the encoding of `value` can neither change places nor be repeated.
fn ordered<T: Canonical>(what: &str, value: &T, neighbors: [Vec<u8>; 2]) {
    let encoded = value.to_canonical();
    assert!(T::from_canonical(&encoded).is_ok(), "{what}: the sample is valid");
    let [a, b] = &neighbors;
    let pair = [a.as_slice(), b].concat();
    let at = encoded.windows(pair.len()).position(|window| window == pair);
    let at = at.unwrap_or_else(|| panic!("{what}: the neighbors are not in the sample"));
    for (how, forged) in [("swapped", [b, a]), ("repeated", [a, a]), ("repeated", [b, b])] {
        let mut bytes = encoded[..at].to_vec();
        forged.iter().for_each(|item| bytes.extend_from_slice(item));
        bytes.extend_from_slice(&encoded[at + pair.len()..]);
        assert!(T::from_canonical(&bytes).is_err(), "{what}: {how}");
    }
}

fn encoded(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    write(&mut w);
    w.finish()
}

fn pair<T: Canonical>(mut items: impl Iterator<Item = T>) -> [Vec<u8>; 2] {
    std::array::from_fn(|_| items.next().expect("two items").to_canonical())
}

fn governance() -> Governance {
    let mut governance = SimRealm::new("order", 4).genesis.governance.clone();
    for region in ["eu", "us"] {
        let keys = ["one", "two"].map(|name| PublicKey::of(&key(&format!("{region}/{name}"))));
        governance.region_keys.insert(Label::new(region).unwrap(), keys.into());
    }
    governance
}

#[test]
fn the_governance_state_has_one_encoding() {
    let governance = governance();
    ordered("operators", &governance, pair(governance.operators.values().cloned()));
    ordered("classes", &governance, pair(governance.classes.values().cloned()));
    ordered(
        "region keys",
        &governance,
        pair(governance.region_keys.values().next().unwrap().iter().copied()),
    );
    let regions: Vec<_> = governance
        .region_keys
        .iter()
        .map(|(region, keys)| {
            encoded(|w| {
                region.encode(w);
                w.list(&keys.iter().copied().collect::<Vec<_>>());
            })
        })
        .collect();
    ordered("regions", &governance, regions.try_into().unwrap());
}

/// The order of validators is free, but none is listed twice, by name or key.
#[test]
fn a_validator_is_listed_once() {
    let mut governance = governance();
    let refused =
        |governance: &Governance| Governance::from_canonical(&governance.to_canonical()).is_err();
    governance.validators.reverse();
    assert!(!refused(&governance));
    let first = governance.validators[0].clone();
    let mut twin = governance.clone();
    twin.validators[1].name = first.name.clone();
    assert!(refused(&twin));
    governance.validators[1].public = first.public;
    assert!(refused(&governance));
}

#[test]
fn a_region_has_keys() {
    let mut governance = governance();
    governance.region_keys.values_mut().next().unwrap().clear();
    assert!(Governance::from_canonical(&governance.to_canonical()).is_err());
}

#[test]
fn changes_and_updates_have_one_encoding() {
    let realm = SimRealm::new("order", 4);
    let entries = [("a", "1"), ("b", "2")].map(|(key, value)| {
        (Key::new(key.as_bytes()).unwrap(), Arc::<[u8]>::from(value.as_bytes()))
    });
    let [c, d] = ["c", "d"].map(|key| Key::new(key.as_bytes()).unwrap());
    let bundle = "config/a".parse().unwrap();
    let publish = Publish {
        bundle,
        expect_version: 1,
        root: [0; 32],
        puts: entries.to_vec(),
        deletes: vec![c.clone(), d.clone()],
    };
    let puts = || {
        entries.clone().map(|(key, value)| {
            encoded(|w| {
                key.encode(w);
                w.bytes(&value);
            })
        })
    };
    ordered("puts", &publish, puts());
    ordered("deletes", &publish, pair([c.clone(), d.clone()].into_iter()));
    let mut both = publish.clone();
    both.deletes = vec![entries[1].0.clone()];
    assert!(Publish::from_canonical(&both.to_canonical()).is_err(), "a key put and deleted");

    let (bundle, deletes) = (publish.bundle.clone(), publish.deletes.clone());
    let delta = Delta { bundle, base: 1, puts: entries.to_vec(), deletes };
    ordered("puts of a delta", &delta, puts());
    ordered("deletes of a delta", &delta, pair([c, d].into_iter()));

    let signed: SignedChange = realm.approved(Action::Publish(publish));
    ordered("approvals", &signed, pair(signed.approvals.iter().cloned()));
    assert!(Change::from_canonical(&signed.change.to_canonical()).is_ok());

    let names = ["config/a", "config/b"].map(|name| name.parse().unwrap());
    let interest = Interest::Bundles(names.to_vec());
    ordered("interest", &interest, pair(names.iter().cloned()));
    let position = Position {
        genesis_hash: [0; 32],
        height: 1,
        directory_root: [0; 32],
        history_size: 0,
        interest: Interest::Everything,
        held: names.iter().map(|name| (name.clone(), 1, [0; 32])).collect(),
    };
    let held = names.map(|name| {
        encoded(|w| {
            name.encode(w);
            w.u64(1);
            w.array(&[0; 32]);
        })
    });
    ordered("held bundles", &position, held);
}

#[test]
fn accounts_have_one_encoding() {
    let classes = [("a/", 2), ("b/", 1)].map(|(p, n)| Class::new(p, n, ClassKind::Opaque));
    let mut realm = SimRealm::with_classes("order", 4, &classes);
    for bundle in ["a/1", "a/2", "b/1"] {
        let change = realm.publish(bundle, &[("k", "v")]);
        realm.decide(&[change]).unwrap();
    }
    let accounts = realm.ledger.accounts();
    let owner = |name: &str| {
        let name = name.parse().unwrap();
        encoded(|w| {
            satrap_certify::BundleName::encode(&name, w);
            accounts.owner(&name).unwrap().encode(w);
        })
    };
    ordered("owners", accounts, ["a/1", "a/2"].map(owner));

    // The rest of the encoding is buckets: per class a prefix and principals with times.
    let bytes = accounts.to_canonical();
    let owners = encoded(|w| w.count(3)).len()
        + ["a/1", "a/2", "b/1"].map(|n| owner(n).len()).iter().sum::<usize>();
    let mut r = satrap_merkle::codec::Reader::new(&bytes[owners..]);
    let mut buckets: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for _ in 0..r.count(2).unwrap() {
        let prefix = r.text(16).unwrap().to_owned();
        let class = buckets.entry(prefix).or_default();
        for _ in 0..r.count(3).unwrap() {
            let principal = Label::decode(&mut r).unwrap();
            let full = r.u64().unwrap();
            class.push(encoded(|w| {
                principal.encode(w);
                w.u64(full);
            }));
        }
    }
    ordered("buckets", accounts, buckets["a/"].clone().try_into().unwrap());
    let whole = |prefix: &str| {
        encoded(|w| {
            w.bytes(prefix.as_bytes());
            w.count(buckets[prefix].len());
            buckets[prefix].iter().for_each(|bucket| w.encoded(bucket));
        })
    };
    ordered("classes of buckets", accounts, ["a/", "b/"].map(whole));
    assert!(Accounts::from_canonical(&bytes).is_ok());
}

#[test]
fn acts_have_one_encoding() {
    let operator = Operator { public: PublicKey([7; 32]), principal: Label::new("a").unwrap() };
    for act in [
        GovernanceAct::AuthorizeOperator(operator),
        GovernanceAct::RevokeOperator(PublicKey([7; 32])),
        GovernanceAct::SetValidators(governance().validators),
    ] {
        assert_eq!(GovernanceAct::from_canonical(&act.to_canonical()), Ok(act));
    }
}
