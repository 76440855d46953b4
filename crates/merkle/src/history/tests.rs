//! The log against `rfc6962::root`, and its proofs between all pairs of sizes.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::rfc6962;

const SIZES: usize = 300;

fn leaf(i: usize) -> Digest {
    rfc6962::leaf_hash(&i.to_le_bytes())
}

fn log(n: usize) -> History {
    let mut log = History::default();
    (0..n).for_each(|i| log.append(leaf(i)));
    log
}

#[test]
fn roots_are_those_of_an_independent_implementation() {
    let hashes: Vec<_> = (0..SIZES).map(|i| rfc6962::leaf_hash(&leaf(i))).collect();
    let mut log = History::default();
    for n in 0..SIZES {
        assert_eq!((log.size(), log.root()), (n as u64, rfc6962::root(&hashes[..n])));
        log.append(leaf(n));
    }
}

#[test]
fn the_root_to_come_is_known_before_appending() {
    let all: Vec<_> = (0..70).map(leaf).collect();
    for n in 0..=70 {
        for m in n..=70 {
            assert_eq!(log(n).root_after(&all[n..m]), log(m).root(), "{n} to {m}");
        }
    }
}

#[test]
fn every_leaf_is_proven_at_its_place_and_nowhere_else() {
    for n in 1..70 {
        let (log, size) = (log(n), n as u64);
        let root = log.root();
        for index in 0..size {
            let proof = log.prove_inclusion(index).unwrap();
            assert_eq!(InclusionProof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));
            for claimed in 0..=size {
                let said = verify_inclusion(&root, size, claimed, &leaf(index as usize), &proof);
                assert_eq!(said.is_ok(), claimed == index, "{claimed} for {index} of {n}");
            }
            assert!(verify_inclusion(&root, size, index, &[9; 32], &proof).is_err());
            assert!(
                verify_inclusion(&[9; 32], size, index, &leaf(index as usize), &proof).is_err()
            );
        }
        assert_eq!(log.prove_inclusion(size), None);
    }
}

#[test]
fn every_log_continues_its_own_past_and_no_other() {
    let other = |n: usize| {
        let mut other = log(n - 1);
        other.append([9; 32]);
        other.root()
    };
    let roots: Vec<_> = (0..70).map(|n| log(n).root()).collect();
    for new in 0..70_usize {
        let log = log(new);
        for old in 0..=new {
            let proof = log.prove_consistency(old as u64).unwrap();
            assert_eq!(ConsistencyProof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));
            let said = |old_root: &Digest, new_root: &Digest| {
                verify_consistency(old_root, old as u64, new_root, new as u64, &proof)
            };
            assert_eq!(said(&roots[old], &roots[new]), Ok(()), "{old} to {new}");
            assert!(said(&[9; 32], &roots[new]).is_err(), "{old} to {new}");
            if old > 0 {
                assert!(said(&roots[old], &other(new)).is_err(), "{old} to {new}");
                assert!(said(&other(old), &roots[new]).is_err(), "{old} to {new}");
            }
            let mut surplus = proof.clone();
            surplus.0.push([9; 32]);
            let said =
                verify_consistency(&roots[old], old as u64, &roots[new], new as u64, &surplus);
            assert_eq!(said, Err(ProofError::Shape(HASHES)), "{old} to {new}");
        }
        assert_eq!(log.prove_consistency(new as u64 + 1), None);
    }
}

#[test]
fn a_log_cannot_shrink_or_fork() {
    let (short, long) = (log(5), log(9));
    let none = ConsistencyProof::default();
    let said = verify_consistency(&long.root(), 9, &short.root(), 5, &none);
    assert_eq!(said, Err(ProofError::Shape("the log became shorter")));
    let said = verify_consistency(&short.root(), 5, &long.root(), 5, &none);
    assert_eq!(said, Err(ProofError::Root));
    let said = verify_consistency(&empty_root(), 0, &[9; 32], 0, &none);
    assert_eq!(said, Err(ProofError::Root));
    let said = verify_consistency(&short.root(), 5, &[9; 32], u64::MAX, &none);
    assert_eq!(said, Err(ProofError::Shape("the log is too long")));
    let most = HISTORY_LEAVES_MAX;
    assert!(verify_consistency(&short.root(), 5, &[9; 32], most, &none).is_err());
}

#[test]
fn leaves_are_handed_out_from_any_place() {
    let log = log(5);
    assert_eq!(log.leaves_from(3), [leaf(3), leaf(4)]);
    assert_eq!(log.leaves_from(0).len(), 5);
    assert!(log.leaves_from(5).is_empty());
    assert!(log.leaves_from(u64::MAX).is_empty());
}

proptest! {
    #[test]
    fn no_hash_of_a_proof_can_be_changed(
        old in 1..300_usize, added in 1..300_usize, at in any::<prop::sample::Index>()
    ) {
        let log_new = log(old + added);
        let (old_root, new_root) = (log(old).root(), log_new.root());
        let mut proof = log_new.prove_consistency(old as u64).unwrap();
        let at = at.index(proof.0.len());
        proof.0[at][0] ^= 1;
        let new = (old + added) as u64;
        let said = verify_consistency(&old_root, old as u64, &new_root, new, &proof);
        prop_assert_eq!(said, Err(ProofError::Root));
    }

    #[test]
    fn decoders_and_verifiers_survive_anything(
        bytes in vec(any::<u8>(), 0..100), hashes in vec(any::<Digest>(), 0..40),
        a in any::<u64>(), b in any::<u64>(), shift in 0..64,
    ) {
        let _ = InclusionProof::from_canonical(&bytes);
        let _ = ConsistencyProof::from_canonical(&bytes);
        for (a, b) in [(a, b), (a >> shift, b >> shift)] {
            let proof = InclusionProof(hashes.clone());
            prop_assert!(verify_inclusion(&[0; 32], a, b, &[1; 32], &proof).is_err());
            let proof = ConsistencyProof(hashes.clone());
            prop_assert!(verify_consistency(&[0; 32], a, &[1; 32], b, &proof).is_err());
        }
    }
}
