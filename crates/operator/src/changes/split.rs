//! Divides a publish that no block can carry into versions that follow each other.
//!
//! A block holds one change of 768 KiB, and a bundle may hold 4 MiB. The parts are decided one after
//! the other, and edges run the versions between as they come. So the order matters:
//!
//! - entries that are new or changed come first, those that go come last. Between the first and the
//!   last part a bundle of trust roots holds more than either, and no root that stays is ever missing;
//! - an entry goes earlier only if there is no room for what must come, since every version has to
//!   respect the limits of a bundle.
//!
//! - no two parts name the same key (CHANGEFILE-1): every entry of a version between is one of the first or of
//!   the last.
//!
//! All parts are built and signed at once. Each names the version it expects and the root that
//! results, so they can be decided in this order only, and nothing can be put between them.

use std::collections::VecDeque;

use satrap_certify::{
    Action, BundleName, Change, Publish, Realm, SignedChange,
    limits::{
        APPROVALS_MAX, BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, CHANGE_BYTES_MAX, ENTRY_WIRE_BYTES,
    },
};
use satrap_merkle::{BundleTree, Key, codec::Canonical as _};

use super::{Changes, PARTS_MAX};
use crate::error::Error;

/// A key and a signature.
const APPROVAL_BYTES: usize = 32 + 64;
/// Canonical bytes of an entry beyond its key and value.
const ENTRY_BYTES: usize = ENTRY_WIRE_BYTES as usize;

/// The changes that turn `from`, which is at version `expected`, into `to`.
///
/// # Errors
///
/// If `to` is beyond the limits of a bundle.
pub fn publish(
    realm: &Realm,
    bundle: &BundleName,
    expected: u64,
    (from, to): (&BundleTree, &BundleTree),
) -> Result<Changes, Error> {
    let whole = Publish::between(bundle.clone(), expected, from, to);
    let budget = CHANGE_BYTES_MAX - overhead(realm, &whole);
    let (mut puts, mut deletes) = (sorted(from, &whole), VecDeque::from(whole.deletes));
    let (mut tree, mut parts) = (from.clone(), Vec::new());
    while parts.is_empty() || !puts.is_empty() || !deletes.is_empty() {
        let before = tree.clone();
        fill(&mut tree, to, (&mut puts, &mut deletes), budget);
        let made = tree != before || parts.is_empty();
        if !made || parts.len() == PARTS_MAX {
            return Err(Error::refused(format!(
                "`{bundle}` cannot be divided into at most {PARTS_MAX} changes that fit a block; \
                 keep large artifacts elsewhere and publish their digests"
            )));
        }
        let publish =
            Publish::between(bundle.clone(), expected + parts.len() as u64, &before, &tree);
        parts.push(SignedChange::unsigned(Change::new(realm, Action::Publish(publish))));
    }
    Ok(Changes { parts })
}

/// Canonical bytes of a change besides its entries, with all the approvals it may get.
fn overhead(realm: &Realm, whole: &Publish) -> usize {
    let empty = Publish { puts: Vec::new(), deletes: Vec::new(), ..whole.clone() };
    let empty = SignedChange::unsigned(Change::new(realm, Action::Publish(empty)));
    empty.to_canonical().len() + APPROVALS_MAX * APPROVAL_BYTES
}

/// The keys to put: those first that make the bundle smaller, then in the order of keys.
fn sorted(from: &BundleTree, whole: &Publish) -> VecDeque<Key> {
    let mut keys: Vec<_> = whole
        .puts
        .iter()
        .map(|(key, value)| {
            let before = from.get(key);
            (before.is_none_or(|before| before.len() < value.len()), key.clone())
        })
        .collect();
    keys.sort_by_key(|(grows, _)| *grows);
    keys.into_iter().map(|(_, key)| key).collect()
}

/// Puts and deletes in `tree` as much as one change may carry.
fn fill(
    tree: &mut BundleTree,
    to: &BundleTree,
    (puts, deletes): (&mut VecDeque<Key>, &mut VecDeque<Key>),
    budget: usize,
) {
    let mut left = budget;
    loop {
        let next = puts.front().map(|key| {
            let value = to.get(key).expect("a key that is put is in the result");
            (key.clone(), value.clone(), key.as_bytes().len() + value.len())
        });
        match next {
            Some((key, value, bytes)) if has_room(tree, &key, bytes) => {
                let Some(rest) = left.checked_sub(ENTRY_BYTES + bytes) else { return };
                left = rest;
                puts.pop_front();
                tree.insert(&key, value);
            }
            // The next entry does not fit yet, or every entry has come.
            _ => {
                let Some(key) = deletes.front() else { return };
                let Some(rest) = left.checked_sub(ENTRY_BYTES + key.as_bytes().len()) else {
                    return;
                };
                left = rest;
                tree.remove(key);
                deletes.pop_front();
            }
        }
    }
}

/// Whether a bundle may hold an entry of so many bytes besides, or in place of the one it has.
fn has_room(tree: &BundleTree, key: &Key, bytes: usize) -> bool {
    let before = tree.get(key).map(|value| key.as_bytes().len() + value.len());
    let entries = tree.len() + usize::from(before.is_none());
    let held = tree.bytes() - before.unwrap_or(0) as u64 + bytes as u64;
    entries <= BUNDLE_ENTRIES_MAX && held <= BUNDLE_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use satrap_certify::limits::VALUE_BYTES_MAX;
    use satrap_sim::SimRealm;

    use super::*;

    fn tree(entries: impl IntoIterator<Item = (String, usize, u8)>) -> BundleTree {
        let mut tree = BundleTree::default();
        for (key, bytes, fill) in entries {
            tree.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(vec![fill; bytes]));
        }
        tree
    }

    /// `n` entries of `bytes` each, whose keys begin with `prefix`.
    fn many(prefix: &str, n: usize, bytes: usize, fill: u8) -> BundleTree {
        tree((0..n).map(|i| (format!("{prefix}{i:05}"), bytes, fill)))
    }

    /// Divides, applies part by part, and returns every state between.
    fn states(from: &BundleTree, to: &BundleTree) -> Vec<BundleTree> {
        let realm = SimRealm::new("test", 1);
        let bundle = BundleName::new("config/x").unwrap();
        let changes = publish(realm.genesis.realm(), &bundle, 6, (from, to)).unwrap();
        let (mut tree, mut states) = (from.clone(), Vec::new());
        for (n, part) in changes.parts().iter().enumerate() {
            assert!(part.to_canonical().len() + APPROVALS_MAX * APPROVAL_BYTES <= CHANGE_BYTES_MAX);
            let Action::Publish(publish) = &part.change.action else { panic!("a publish") };
            assert_eq!(publish.expect_version, 6 + n as u64);
            let batch = tree.batch(&publish.puts, &publish.deletes).expect("in order");
            assert!(batch.missing().is_none());
            tree = batch.apply();
            assert_eq!(tree.root(), publish.root);
            assert!(tree.len() <= BUNDLE_ENTRIES_MAX && tree.bytes() <= BUNDLE_BYTES_MAX);
            states.push(tree.clone());
        }
        assert_eq!(states.last().unwrap().root(), to.root());
        let bytes = changes.encode().unwrap();
        assert_eq!(
            Changes::decode(&bytes).unwrap(),
            changes,
            "approvers can read it (CHANGEFILE-1)"
        );
        for (key, value) in states.iter().flat_map(BundleTree::iter) {
            assert!(from.get(key) == Some(value) || to.get(key) == Some(value), "{key}");
        }
        states
    }

    #[test]
    fn a_small_publish_is_one_change() {
        let (from, to) = (many("a", 3, 10, 1), many("a", 2, 10, 2));
        assert_eq!(states(&from, &to).len(), 1);
        assert_eq!(states(&BundleTree::default(), &to).len(), 1);
    }

    #[test]
    fn a_large_publish_is_several_and_what_goes_goes_last() {
        let (from, to) = (many("a", 10, 100_000, 1), many("b", 20, 100_000, 2));
        let states = states(&from, &to);
        assert_eq!(states.len(), 3);
        let (last, between) = states.split_last().unwrap();
        for state in between {
            assert!(from.iter().all(|(key, _)| state.get(key).is_some()), "all are still there");
        }
        assert_eq!(last.len(), 20);
    }

    #[test]
    fn a_full_bundle_is_replaced_within_its_limits() {
        let full = BUNDLE_BYTES_MAX as usize / VALUE_BYTES_MAX - 1;
        let from = many("a", full, VALUE_BYTES_MAX, 1);
        states(&from, &many("b", full, VALUE_BYTES_MAX, 2));
        let (few, small) = (many("a", 1, 10, 1), many("z", BUNDLE_ENTRIES_MAX, 50, 2));
        states(&from, &small);
        states(&small, &from);
        states(&small, &few);
        // Every value changes its size, in both directions.
        let sizes = |odd: usize, even: usize| {
            let size = move |i: usize| if i.is_multiple_of(2) { even } else { odd };
            tree((0..24).map(|i| (format!("k{i}"), size(i), 9)))
        };
        states(&sizes(200_000, 140_000), &sizes(140_000, 200_000));
    }

    #[test]
    fn a_bundle_of_as_many_entries_as_there_may_be_is_divided() {
        let full = many("", BUNDLE_ENTRIES_MAX, 1, 1);
        states(&BundleTree::default(), &full);
    }
    /// Up to 40 entries under few keys, so that two contents share many of them.
    fn contents() -> impl Strategy<Value = BundleTree> {
        let entry = (0..60u8, 1..120_000usize, 0..3u8);
        proptest::collection::vec(entry, 0..40).prop_map(|entries| {
            let mut made = BundleTree::default();
            for (key, bytes, fill) in entries {
                let key = Key::new(format!("k{key}").as_bytes()).unwrap();
                if has_room(&made, &key, key.as_bytes().len() + bytes) {
                    made.insert(&key, Arc::from(vec![fill; bytes]));
                }
            }
            made
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_two_parts_name_the_same_key(from in contents(), to in contents()) {
            states(&from, &to);
        }
    }
}
