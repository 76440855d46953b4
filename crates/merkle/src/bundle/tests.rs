//! The tree against a `BTreeMap`, and its proofs against every tampering we could think of.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{ProofError, codec::Canonical};

mod batches;

thread_local! {
    /// Hashes computed on this thread: what work costs, whatever the machine is doing.
    pub(super) static HASHES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

type Entries = Vec<(Key, Arc<[u8]>)>;

fn key(bytes: &[u8]) -> Key {
    Key::new(bytes).unwrap()
}

fn value(byte: u8) -> Arc<[u8]> {
    Arc::from(vec![byte; usize::from(byte) % 4])
}

/// Few bytes, so that keys often are prefixes of each other or differ in one bit.
fn any_key() -> impl Strategy<Value = Key> {
    vec(prop::sample::select(&[1_u8, 2, 3, b'a', 0x80, 0xff][..]), 1..6).prop_map(|k| key(&k))
}

fn any_map() -> impl Strategy<Value = BTreeMap<Key, u8>> {
    prop::collection::btree_map(any_key(), any::<u8>(), 0..24)
}

fn entries(map: &BTreeMap<Key, u8>) -> Entries {
    map.iter().map(|(key, byte)| (key.clone(), value(*byte))).collect()
}

fn tree(map: &BTreeMap<Key, u8>) -> BundleTree {
    BundleTree::from_sorted(&entries(map)).unwrap()
}

fn contents(tree: &BundleTree) -> Entries {
    tree.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn with_prefix(map: &BTreeMap<Key, u8>, prefix: &[u8]) -> Entries {
    let mut all = entries(map);
    all.retain(|(key, _)| key.as_bytes().starts_with(prefix));
    all
}

proptest! {
    #[test]
    fn it_is_a_map_whose_root_depends_on_its_content_alone(
        changes in vec((any_key(), any::<Option<u8>>()), 0..60)
    ) {
        let (mut tree, mut map) = (BundleTree::default(), BTreeMap::new());
        for (key, change) in changes {
            let before = (tree.clone(), contents(&tree), tree.root());
            match change {
                Some(byte) => {
                    let expected = map.insert(key.clone(), byte).map(value);
                    prop_assert_eq!(tree.insert(&key, value(byte)), expected);
                }
                None => prop_assert_eq!(tree.remove(&key), map.remove(&key).is_some()),
            }
            prop_assert_eq!(tree.get(&key).cloned(), map.get(&key).copied().map(value));
            prop_assert_eq!((contents(&before.0), before.0.root()), (before.1, before.2));
        }
        prop_assert_eq!(contents(&tree), entries(&map));
        prop_assert_eq!(tree.len(), map.len());
        let bytes = |(key, value): &(Key, Arc<[u8]>)| key.as_bytes().len() + value.len();
        prop_assert_eq!(tree.bytes(), entries(&map).iter().map(bytes).sum::<usize>() as u64);
        // Built in one go from the content: neither the order nor the removed entries matter.
        let fresh = self::tree(&map);
        prop_assert_eq!(tree.root(), fresh.root());
        prop_assert_eq!((tree.len(), tree.bytes()), (fresh.len(), fresh.bytes()));
    }

    #[test]
    fn different_contents_have_different_roots(a in any_map(), b in any_map()) {
        prop_assert_eq!(tree(&a) == tree(&b), entries(&a) == entries(&b));
    }

    #[test]
    fn each_key_is_proven_present_or_absent_and_never_the_other(
        map in any_map(), others in vec(any_key(), 0..24)
    ) {
        let tree = tree(&map);
        let root = tree.root();
        let keys: Vec<_> = map.keys().cloned().chain(others).collect();
        for key in &keys {
            let proof = tree.prove(key);
            prop_assert_eq!(Proof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));
            for asked in &keys {
                let held = tree.get(asked);
                match &proof {
                    Proof::Inclusion(proof) => {
                        let truth = held == tree.get(key) && asked == key;
                        let said = proof.verify(&root, asked, tree.get(key).unwrap());
                        prop_assert_eq!(said.is_ok(), truth);
                        prop_assert_eq!(
                            proof.verify(&root, key, b"other value"), Err(ProofError::Root)
                        );
                    }
                    Proof::Absence(proof) => {
                        let said = proof.verify(&root, asked);
                        prop_assert!(said.is_err() || held.is_none());
                        prop_assert!(said.is_ok() || asked != key);
                        prop_assert!(proof.verify(&[7; 32], asked).is_err());
                    }
                }
            }
        }
    }

    #[test]
    fn under_a_prefix_nothing_can_be_withheld_added_or_altered(
        map in any_map(), prefix in vec(prop::sample::select(&[1_u8, 2, b'a', 0][..]), 0..3),
        at in any::<prop::sample::Index>(), foreign in any_key(),
    ) {
        let tree = tree(&map);
        let root = tree.root();
        let proof = tree.prove_prefix(&prefix);
        prop_assert_eq!(PrefixProof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));

        let all = with_prefix(&map, &prefix);
        let listed: Entries =
            tree.iter_prefix(&prefix).map(|(k, v)| (k.clone(), v.clone())).collect();
        prop_assert_eq!(&listed, &all);
        let part = proof.verify(&root, &prefix, &all);
        prop_assert_eq!(part.map(|part| contents(&part)), Ok(all.clone()));

        let refused = |forged: Entries| proof.verify(&root, &prefix, &forged).is_err();
        if !all.is_empty() {
            let at = at.index(all.len());
            let mut forged = all.clone();
            forged.remove(at);
            prop_assert!(refused(forged));
            let mut forged = all.clone();
            forged[at].1 = Arc::from(&b"altered"[..]);
            prop_assert!(refused(forged));
            prop_assert!(refused(Vec::new()));
            let mut forged = all.clone();
            forged.push(all[at].clone());
            prop_assert!(refused(forged));
        }
        if !all.iter().any(|(key, _)| *key == foreign) {
            let mut forged = all.clone();
            forged.push((foreign, value(1)));
            forged.sort();
            prop_assert!(refused(forged));
        }
    }

    #[test]
    fn a_proof_for_one_prefix_says_nothing_false_about_another(
        map in any_map(), prefixes in vec(vec(prop::sample::select(&[1_u8, 2, b'a'][..]), 0..4), 2)
    ) {
        let tree = tree(&map);
        let proof = tree.prove_prefix(&prefixes[0]);
        let truth = with_prefix(&map, &prefixes[1]);
        for claimed in [Vec::new(), with_prefix(&map, &prefixes[0]), truth.clone()] {
            let said = proof.verify(&tree.root(), &prefixes[1], &claimed);
            prop_assert!(said.is_err() || claimed == truth);
        }
    }

    #[test]
    fn every_bit_of_a_proof_matters(
        map in any_map(), key in any_key(), at in any::<prop::sample::Index>(), bit in 0..8_u32
    ) {
        let tree = tree(&map);
        let mut bytes = tree.prove(&key).to_canonical();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let value = tree.get(&key).cloned().unwrap_or_default();
        match Proof::from_canonical(&bytes) {
            Err(_) => {}
            Ok(Proof::Inclusion(p)) => prop_assert!(p.verify(&tree.root(), &key, &value).is_err()),
            Ok(Proof::Absence(p)) => prop_assert!(p.verify(&tree.root(), &key).is_err()),
        }
    }

    #[test]
    fn decoders_and_verifiers_survive_anything(bytes in vec(any::<u8>(), 0..200), key in any_key()) {
        let _ = Key::from_canonical(&bytes);
        if let Ok(Proof::Inclusion(p)) = Proof::from_canonical(&bytes) {
            prop_assert!(p.verify(&[0; 32], &key, b"").is_err());
        }
        for kind in [0, 1] {
            // One step with an arbitrary critical bit.
            let mut forged = vec![kind, 0, 0, 0, 1];
            forged.extend(bytes.iter().copied().chain([0; 37]).take(36));
            if kind == 1 {
                forged.extend([1, 0, 0, 0, 1, b'x']);
                forged.extend([0; 32]);
            }
            let proof = PrefixProof::from_canonical(&forged).unwrap();
            prop_assert!(proof.verify(&[0; 32], key.as_bytes(), &[]).is_err());
            prop_assert!(
                proof.verify(&[0; 32], key.as_bytes(), &[(key.clone(), value(1))]).is_err()
            );
        }
    }
}

#[test]
fn entries_out_of_order_are_refused() {
    let (a, b) = ((key(b"a"), value(1)), (key(b"b"), value(2)));
    assert!(BundleTree::from_sorted(&[a.clone(), b.clone()]).is_some());
    assert!(BundleTree::from_sorted(&[b, a.clone()]).is_none());
    assert!(BundleTree::from_sorted(&[a.clone(), a]).is_none());
}

#[test]
fn the_empty_tree_proves_that_there_is_nothing() {
    let (tree, other) = (BundleTree::default(), [1; 32]);
    let Proof::Absence(proof) = tree.prove(&key(b"a")) else { panic!("nothing is included") };
    assert_eq!(proof.verify(&tree.root(), &key(b"a")), Ok(()));
    assert_eq!(proof.verify(&other, &key(b"a")), Err(ProofError::Root));
    assert!(tree.prove_prefix(b"").verify(&tree.root(), b"", &[]).is_ok());
    assert!(tree.prove_prefix(b"").verify(&other, b"", &[]).is_err());
}

/// MERKLE-2: the same statement must not have two proofs, or a relay could tell two readers apart by them.
#[test]
fn a_proof_in_another_shape_is_refused() {
    let step = [[0, 0, 0, 1].as_slice(), &[0, 0, 0, 0], &[9; 32]].concat();
    let (empty, a) = (BundleTree::default(), key(b"a"));
    let absence = AbsenceProof::from_canonical(&[step.as_slice(), &[0]].concat()).unwrap();
    assert!(absence.verify(&empty.root(), &a).is_err());
    let subtree = PrefixProof::from_canonical(&[0, 0, 0, 0, 0]).unwrap();
    let refusal = Err(ProofError::Shape("a subtree without entries"));
    assert_eq!(subtree.verify(&empty.root(), b"", &[]), refusal);

    let falling = [[0, 0, 0, 2].as_slice(), &step[4..], &step[4..]].concat();
    let falling = InclusionProof::from_canonical(&falling).unwrap();
    let refusal = Err(ProofError::Shape("critical bits do not increase"));
    assert_eq!(falling.verify(&empty.root(), &a, b""), refusal);
}

#[test]
fn a_path_is_at_most_as_long_as_a_key_has_bits() {
    let mut w = crate::codec::Writer::default();
    w.u8(0);
    w.count(PATH_STEPS_MAX + 1);
    let too_long =
        crate::codec::DecodeError::TooLong { claimed: PATH_STEPS_MAX + 1, max: PATH_STEPS_MAX };
    assert_eq!(Proof::from_canonical(&w.finish()), Err(too_long));
}

/// A path of 4096 nodes: one key per bit of the longest key, each flipping that bit.
fn deepest() -> Entries {
    let base = [0x55; KEY_BYTES_MAX];
    let flipped = (0..8 * KEY_BYTES_MAX).map(|bit| {
        let mut bytes = base;
        bytes[bit / 8] ^= 0x80 >> (bit % 8);
        (key(&bytes), value(1))
    });
    let mut entries: Entries = flipped.chain([(key(&base), value(2))]).collect();
    entries.sort();
    entries
}

/// BUNDLE-4: a peer that chooses the keys must not choose the height of our stack.
#[test]
fn the_deepest_tree_needs_no_deep_stack() {
    let all = deepest();
    let work = move || {
        let mut tree = BundleTree::from_sorted(&all).unwrap();
        let (root, base) = (tree.root(), key(&[0x55; KEY_BYTES_MAX]));
        let shared = tree.clone();

        let Proof::Inclusion(proof) = tree.prove(&base) else { panic!("the key is there") };
        let proof = InclusionProof::from_canonical(&proof.to_canonical()).unwrap();
        assert_eq!(proof.verify(&root, &base, &value(2)), Ok(()));
        assert_eq!(proof.to_canonical().len(), 4 + 36 * 8 * KEY_BYTES_MAX);
        assert!(tree.remove(&base));
        let Proof::Absence(proof) = tree.prove(&base) else { panic!("the key is gone") };
        assert_eq!(proof.verify(&tree.root(), &base), Ok(()));
        assert_eq!(tree.insert(&base, value(2)), None);
        assert_eq!(tree.root(), root);

        drop(shared);
        assert!(tree.prove_prefix(b"").verify(&root, b"", &all).is_ok());
        assert_eq!(tree.iter().count(), all.len());
        drop(tree);
    };
    let small = std::thread::Builder::new().stack_size(128 * 1024);
    small.spawn(work).unwrap().join().unwrap();
}
