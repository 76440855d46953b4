//! V28: a realm that filled up can be emptied, and no version of a name ever falls.

use satrap_certify::{
    Action, BundleName, Class, ClassKind, Head, Interest, Publish, Replica, Retire, SignedChange,
    Update, update::HistoryUpdate,
};
use satrap_global_core::Ledger;
use satrap_merkle::codec::Canonical as _;
use satrap_sim::SimRealm;

use crate::{CONFIG, bundle, realm, rule, trust_roots::ca};

fn decide(realm: &mut SimRealm, change: SignedChange) -> Update {
    realm.decide(&[change]).unwrap()
}

fn version(realm: &SimRealm, name: &str) -> Option<u64> {
    realm.ledger.heads().get(&bundle(name)).map(|head| head.version)
}

/// `change` with another version that it expects.
fn signed_as(realm: &SimRealm, change: SignedChange, expect_version: u64) -> SignedChange {
    let Action::Publish(publish) = change.change.action else { panic!("a publish") };
    realm.approved(Action::Publish(Publish { expect_version, ..publish }))
}

/// The names that an update proves to be all there are.
fn names(realm: &SimRealm, update: &Update) -> Vec<BundleName> {
    let (checkpoint, _) = realm.ledger.last().unwrap();
    let (root, size) =
        (checkpoint.commitments.directory_root, checkpoint.commitments.directory_size);
    let proven = update.heads.as_ref().unwrap().verify(&root, size, Head::name_of).unwrap();
    proven.leaves().map(|leaf| Head::from_canonical(leaf).unwrap().name).collect()
}

#[test]
fn v28_a_retired_bundle_is_gone_and_the_directory_says_so() {
    let mut realm = realm();
    for name in [CONFIG, "config/other"] {
        let change = realm.publish(name, &[("a", "1")]);
        decide(&mut realm, change);
    }
    let before = realm.ledger.last().unwrap().0.commitments.clone();
    let change = realm.retire(CONFIG);
    let update = decide(&mut realm, change);
    assert_eq!(version(&realm, CONFIG), None);
    assert!(realm.ledger.content(&bundle(CONFIG)).is_none());
    assert!(realm.ledger.accounts().owner(&bundle(CONFIG)).is_none());
    assert_eq!(names(&realm, &update), [bundle("config/other")]);
    assert!(update.contents.is_empty(), "there is no content to send");
    let after = &realm.ledger.last().unwrap().0.commitments;
    assert_eq!(after.directory_size, before.directory_size - 1);
    assert_eq!(after.history_size, before.history_size + 1, "a directory like any other");
    assert!(matches!(&update.history, Some(HistoryUpdate::Leaves(leaves)) if leaves.len() == 1));
    assert_ne!(after.governance_root, before.governance_root, "the version is committed to");
}

#[test]
fn v28_only_the_expected_version_is_retired_and_only_once() {
    let mut realm = realm();
    assert_eq!(rule(&realm, &realm.retire(CONFIG)), Err("V28"), "there is nothing yet");
    let change = realm.publish(CONFIG, &[("a", "1")]);
    decide(&mut realm, change);
    for expect_version in [0, 2] {
        let retire = Retire { bundle: bundle(CONFIG), expect_version };
        assert_eq!(rule(&realm, &realm.approved(Action::Retire(retire))), Err("V4"));
    }
    let retire = realm.retire(CONFIG);
    decide(&mut realm, retire.clone());
    assert_eq!(rule(&realm, &retire), Err("V4"), "replayed");
    // Created anew, the bundle is at another version than the old change speaks of.
    let change = realm.publish(CONFIG, &[("a", "1")]);
    decide(&mut realm, change);
    assert_eq!(rule(&realm, &retire), Err("V4"), "replayed later");
}

#[test]
fn v28_the_version_of_a_name_never_falls() {
    let mut realm = realm();
    for value in ["1", "2", "3"] {
        let change = realm.publish(CONFIG, &[("a", value)]);
        decide(&mut realm, change);
    }
    let change = realm.publish("config/other", &[("a", "1")]);
    decide(&mut realm, change);
    assert_eq!(version(&realm, "config/other"), Some(1), "as long as nothing was retired");
    let change = realm.retire(CONFIG);
    decide(&mut realm, change);
    let change = realm.retire("config/other");
    decide(&mut realm, change);
    assert_eq!(realm.ledger.governance().retired_version, 4, "above the highest one");
    // Every name continues above it, whether it was ever used or not.
    for name in [CONFIG, "config/new"] {
        let change = realm.publish(name, &[("a", "9")]);
        let update = decide(&mut realm, change);
        assert_eq!(version(&realm, name), Some(5));
        assert_eq!(update.contents[0].base, 0, "the whole content");
    }
    let restored = Ledger::restore(&realm.genesis, &realm.ledger.snapshot()).unwrap();
    assert_eq!(restored.snapshot(), realm.ledger.snapshot());
}

#[test]
fn v28_the_creation_of_a_retired_bundle_cannot_be_replayed() {
    let mut realm = realm();
    let first = realm.publish(CONFIG, &[("a", "1")]);
    let draft = realm.publish("config/other", &[("a", "1")]);
    decide(&mut realm, first.clone());
    let newer = realm.publish(CONFIG, &[("a", "2")]);
    decide(&mut realm, newer);
    let change = realm.retire(CONFIG);
    decide(&mut realm, change);
    // The holder of an old block holds its approvals, too: edges would take the first content for
    // the newest.
    assert_eq!(rule(&realm, &first), Err("V4"), "what was decided before");
    assert_eq!(rule(&realm, &draft), Err("V4"), "what was approved and never submitted");
    // With new approvals the same content is a new version.
    let again = realm.publish(CONFIG, &[("a", "1")]);
    decide(&mut realm, again.clone());
    assert_eq!(version(&realm, CONFIG), Some(4));
    let change = realm.retire(CONFIG);
    decide(&mut realm, change);
    assert_eq!(rule(&realm, &again), Err("V4"), "and is dead once that is retired");
}

#[test]
fn v28_followers_see_a_bundle_go_and_come_back() {
    let mut realm = realm();
    let name = bundle(CONFIG);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let mut edge = Replica::genesis(&realm.genesis, Interest::Bundles(vec![name.clone()]));
    let mut seen = Vec::new();
    for value in [Some("1"), None, Some("1")] {
        let change = match value {
            Some(value) => realm.publish(CONFIG, &[("a", value)]),
            None => realm.retire(CONFIG),
        };
        let update = decide(&mut realm, change);
        relay.advance(relay.verify(&update, realm.now).unwrap());
        let answer = relay.answer(&edge.position()).unwrap().unwrap();
        edge.advance(edge.verify(&answer.update, realm.now).unwrap());
        assert!(edge.is_complete() && relay.is_complete());
        assert_eq!(relay.heads(), realm.ledger.heads());
        assert_eq!(edge.heads().get(&name), relay.heads().get(&name));
        assert_eq!(edge.content(&name), relay.content(&name));
        seen.push(edge.heads().get(&name).map(|head| head.version));
    }
    assert_eq!(seen, [Some(1), None, Some(3)]);
}

#[test]
fn v28_publishing_and_retiring_in_one_block_leaves_nothing_half_done() {
    let mut realm = realm();
    let publish = realm.publish(CONFIG, &[("a", "1")]);
    let retire = Action::Retire(Retire { bundle: bundle(CONFIG), expect_version: 1 });
    let retire = realm.approved(retire);
    // Created anew, it continues above the version that was retired.
    let again = signed_as(&realm, realm.publish(CONFIG, &[("a", "2")]), 2);
    let proposer = realm.ledger.validators().addresses()[0];
    let time = realm.now.plus(core::time::Duration::from_secs(1));
    let pending = [&publish, &retire, &again];
    let block = realm.ledger.build(proposer, time, pending);
    assert_eq!(block.changes.len(), 3);
    let commit = realm.commit(&block, realm.quorum());
    let update = realm.ledger.apply(&block, &commit).unwrap();
    assert_eq!(version(&realm, CONFIG), Some(3));
    let [delta] = &update.contents[..] else { panic!("one delta per bundle") };
    assert_eq!((delta.base, &*delta.puts[0].1), (0, &b"2"[..]));
}

#[test]
fn v28_trust_roots_need_the_governance_quorum() {
    let class = |prefix, kind| Class::new(prefix, 1, kind);
    let classes = [class("pki/", ClassKind::X509Trust), class("config/", ClassKind::Opaque)];
    let mut realm = SimRealm::with_classes("retire", 4, &classes);
    assert_eq!(realm.ledger.governance().approvals, 2);
    let root = ca();
    for (name, value) in [("pki/roots", root.as_str()), (CONFIG, "1")] {
        let change = realm.publish(name, &[("a", value)]);
        decide(&mut realm, change);
    }
    let by = |change: SignedChange, approvals: usize| {
        let mut signed = SignedChange::unsigned(change.change);
        realm.operators.iter().take(approvals).for_each(|key| signed.approve(key));
        rule(&realm, &signed)
    };
    // One key could otherwise swap all roots at once, which V10 forbids.
    assert_eq!(by(realm.retire("pki/roots"), 1), Err("V3"));
    assert_eq!(by(realm.retire("pki/roots"), 2), Ok(()));
    assert_eq!(by(realm.retire(CONFIG), 1), Ok(()));
}

#[test]
fn v28_a_class_that_is_full_has_room_after_a_retirement() {
    let mut small = Class::new("config/", 1, ClassKind::Opaque);
    small.quota.bundles_max = 2;
    let mut realm = SimRealm::with_classes("retire", 4, &[small]);
    realm.operators.truncate(1);
    let change = realm.publish("config/a", &[("a", "1")]);
    decide(&mut realm, change);
    let full = realm.publish("config/b", &[("a", "1")]);
    assert_eq!(rule(&realm, &full), Err("V19"));
    let change = realm.retire("config/a");
    decide(&mut realm, change);
    assert_eq!(rule(&realm, &realm.publish("config/b", &[("a", "1")])), Ok(()));
}
