//! BUNDLE-5: a batch gives the tree that single changes give, at a cost that is linear whatever the keys.

use std::time::Instant;

use super::*;

/// The result of `work`, and how many hashes it took.
fn hashes<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = HASHES.get();
    let result = work();
    (result, HASHES.get() - before)
}

/// The one way to a tree that touches one path per change.
fn one_by_one(tree: &BundleTree, puts: &[(Key, Arc<[u8]>)], deletes: &[Key]) -> BundleTree {
    let mut tree = tree.clone();
    for key in deletes {
        tree.remove(key);
    }
    puts.iter().for_each(|(key, value)| drop(tree.insert(key, value.clone())));
    tree
}

proptest! {
    #[test]
    fn bundle_5_a_batch_is_the_sum_of_its_changes(
        before in any_map(), puts in any_map(),
        deletes in prop::collection::btree_set(any_key(), 0..24),
    ) {
        let mut after = before.clone();
        let mut deletes: Vec<Key> = deletes.into_iter().collect();
        // Half of the deletes find something.
        deletes.extend(before.keys().step_by(3).cloned());
        deletes.sort();
        deletes.dedup();
        after.retain(|key, _| deletes.binary_search(key).is_err());
        after.extend(puts.clone());

        let (old, put) = (tree(&before), entries(&puts));
        let batch = old.batch(&put, &deletes).unwrap();
        let missing = deletes.iter().find(|k| !before.contains_key(*k) && !puts.contains_key(*k));
        prop_assert_eq!(batch.missing(), missing);
        let same = |(key, byte): (&Key, &u8)| after.get(key).map(|b| value(*b)) == Some(value(*byte));
        prop_assert_eq!(batch.kept(), before.iter().filter(|entry| same(*entry)).count());
        let (planned, nodes) = ((batch.len(), batch.bytes()), batch.nodes() as u64);
        let (new, cost) = hashes(|| batch.apply());
        prop_assert!(cost <= nodes + put.len() as u64, "{} hashes for {} nodes", cost, nodes);

        let (fresh, stepwise) = (tree(&after), one_by_one(&old, &put, &deletes));
        prop_assert_eq!(contents(&new), entries(&after));
        for same in [&fresh, &stepwise] {
            prop_assert_eq!(new.root(), same.root());
            prop_assert_eq!(planned, (same.len(), same.bytes()));
        }
        prop_assert_eq!(contents(&old), entries(&before), "BUNDLE-3: the old tree is as it was");
        for key in after.keys() {
            prop_assert_eq!(new.get(key), fresh.get(key));
            prop_assert_eq!(new.prove(key), fresh.prove(key));
        }
    }
}

#[test]
fn bundle_5_changes_out_of_order_are_refused() {
    let tree = BundleTree::default();
    let [a, b] = [key(b"a"), key(b"b")];
    let put = |key: &Key| (key.clone(), value(1));
    assert!(tree.batch(&[put(&a), put(&b)], &[a.clone(), b.clone()]).is_some());
    assert!(tree.batch(&[put(&b), put(&a)], &[]).is_none());
    assert!(tree.batch(&[put(&a), put(&a)], &[]).is_none());
    assert!(tree.batch(&[], &[b, a.clone()]).is_none());
    assert!(tree.batch(&[], &[a.clone(), a]).is_none());
}

/// Keys of 512 bytes, each sharing all but its last bits with the next: one long path, with as
/// many entries again as close to its end as keys allow.
fn caterpillar(entries: usize) -> Entries {
    let mut all = deepest();
    let mut numbers = 0_u32..;
    all.extend(
        core::iter::from_fn(|| {
            let number = numbers.next()?;
            let mut bytes = [0x55; KEY_BYTES_MAX];
            for (place, byte) in bytes[KEY_BYTES_MAX - 8..].iter_mut().enumerate() {
                *byte = 0xA0 | u8::try_from(number >> (4 * (7 - place)) & 0xF).unwrap();
            }
            Some((key(&bytes), value(3)))
        })
        .take(entries - all.len()),
    );
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

/// BUNDLE-5 on the worst trees there are: 8 192 entries as deep as keys of 512 bytes allow.
#[test]
fn bundle_5_no_keys_make_a_batch_costly() {
    let all = caterpillar(8_192);
    let (tree, built) = hashes(|| BundleTree::from_sorted(&all).unwrap());
    let n = all.len() as u64;
    assert_eq!(built, 3 * n - 1, "two hashes a leaf, one an inner node");

    // Every value of it changes; every second entry goes; everything goes; one entry changes.
    let changed: Entries = all.iter().map(|(key, _)| (key.clone(), value(7))).collect();
    let halved: Vec<Key> = all.iter().step_by(2).map(|(key, _)| key.clone()).collect();
    let everything: Vec<Key> = all.iter().map(|(key, _)| key.clone()).collect();
    let cost = |puts: &[_], deletes: &[_]| {
        let batch = tree.batch(puts, deletes).unwrap();
        let nodes = batch.nodes();
        assert!(nodes <= 3 * all.len() + 2 * puts.len(), "{nodes} nodes");
        hashes(|| batch.apply()).1
    };
    assert!(cost(&changed, &[]) < 3 * n);
    assert!(cost(&[], &halved) < n);
    assert_eq!(cost(&[], &everything), 0);
    assert!(cost(&changed[n as usize / 2..][..1], &[]) <= 2 + 8 * KEY_BYTES_MAX as u64);
    // Keys beside the path, between each two of its nodes.
    let beside: Entries = all
        .iter()
        .map(|(key, _)| {
            let mut bytes = key.as_bytes().to_vec();
            bytes[KEY_BYTES_MAX - 1] ^= 0x0F;
            (self::key(&bytes), value(9))
        })
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect();
    assert!(cost(&beside, &[]) < 5 * n);
}

/// A change of 700 KB whose keys share long prefixes once kept a consensus thread busy for 1.4 s.
#[test]
#[expect(clippy::disallowed_methods, reason = "the time is printed, and decides nothing")]
fn bundle_5_a_change_of_long_keys_takes_as_long_as_any_other() {
    let all = caterpillar(8_192);
    let (old, new) = all.split_at(all.len() - 1_400);
    let tree = BundleTree::from_sorted(old).unwrap();
    let time = |work: &dyn Fn() -> BundleTree| {
        let start = Instant::now();
        let (tree, hashes) = hashes(work);
        (tree.root(), hashes, start.elapsed())
    };
    let batch = time(&|| tree.batch(new, &[]).unwrap().apply());
    let single = time(&|| one_by_one(&tree, new, &[]));
    assert_eq!(batch.0, single.0);
    assert!(batch.1 < 3 * 1_400 + 8 * KEY_BYTES_MAX as u64, "{} hashes", batch.1);
    assert!(single.1 > 100 * batch.1, "the keys are as hostile as they were meant");
    println!(
        "716 800 bytes of keys onto {} entries: {} hashes in {:?} as a batch, {} in {:?} one by one",
        old.len(),
        batch.1,
        batch.2,
        single.1,
        single.2
    );
}
