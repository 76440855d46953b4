//! Each forgery that `rs_merkle` accepts is shown here to be accepted by it, and refused by us.

use proptest::{collection::vec, prelude::*};

use super::*;

fn leaf(i: usize) -> Digest {
    leaf_hash(&i.to_be_bytes())
}

fn leaves(n: usize) -> Vec<Digest> {
    (0..n).map(leaf).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "shows what the library accepts without PROOF-1 to PROOF-4"
)]
fn library_accepts(root: Digest, proof: &MultiProof, leaves: &[Digest]) -> bool {
    let hashes = MerkleProof::<Rfc6962>::new(proof.hashes.clone());
    hashes.verify(root, &proof.positions(), leaves, proof.size as usize)
}

fn forged(size: u32, indices: &[u32], hashes: &[Digest]) -> MultiProof {
    MultiProof { size, indices: indices.to_vec(), hashes: hashes.to_vec() }
}

#[test]
fn a_repeated_index_smuggles_in_a_leaf() {
    let (tree, evil) = (leaves(2), leaf_hash(b"evil"));
    let proof = forged(2, &[0, 1, 1], &[]);
    let shown = [tree[0], tree[1], evil];
    assert!(library_accepts(root(&tree), &proof, &shown));
    let refusal = Err(ProofError::Shape("indices do not increase"));
    assert_eq!(proof.verify(&root(&tree), 2, &shown), refusal);
}

#[test]
fn an_index_beyond_the_tree_smuggles_in_a_leaf() {
    let (tree, evil) = (leaves(3), leaf_hash(b"evil"));
    let (x, y) = (leaf_hash(b"x"), leaf_hash(b"y"));
    let proof = forged(3, &[0, 4], &[tree[1], x, tree[2], y]);
    let shown = [tree[0], evil];
    assert!(library_accepts(root(&tree), &proof, &shown));
    let refusal = Err(ProofError::Shape("an index beyond the last leaf"));
    assert_eq!(proof.verify(&root(&tree), 3, &shown), refusal);
}

#[test]
fn surplus_hashes_make_a_proof_malleable() {
    let tree = leaves(4);
    let mut proof = MultiProof::prove(&tree, &[1]).unwrap();
    proof.hashes.push([9; 32]);
    assert!(library_accepts(root(&tree), &proof, &tree[1..2]));
    let refusal = Err(ProofError::Shape("not the number of hashes that the indices need"));
    assert_eq!(proof.verify(&root(&tree), 4, &tree[1..2]), refusal);
}

#[test]
fn the_size_of_the_tree_is_not_proven_but_certified() {
    let tree = leaves(4);
    let mut proof = MultiProof::prove(&tree, &[1]).unwrap();
    proof.size = 3;
    assert!(library_accepts(root(&tree), &proof, &tree[1..2]));
    let refusal = Err(ProofError::Shape("it is about a tree of another size"));
    assert_eq!(proof.verify(&root(&tree), 4, &tree[1..2]), refusal);
}

#[test]
fn a_proof_of_nothing_is_refused_unless_there_is_nothing() {
    let tree = leaves(3);
    let nothing = forged(3, &[], &[]);
    let refusal = Err(ProofError::Shape("it proves no leaf"));
    assert_eq!(nothing.verify(&root(&tree), 3, &[]), refusal);
    assert_eq!(MultiProof::prove(&tree, &[]), refusal.map(|()| nothing));
    let empty = MultiProof::prove(&[], &[]).unwrap();
    assert_eq!(empty.verify(&empty_root(), 0, &[]), Ok(()));
    assert_eq!(empty.verify(&root(&tree), 0, &[]), Err(ProofError::Root));
    assert!(empty.verify(&empty_root(), 3, &[]).is_err());
}

#[test]
fn each_index_has_one_leaf() {
    let tree = leaves(4);
    let refusal = Err(ProofError::Shape("not one leaf per index"));
    for indices in [&[1][..], &[0, 1, 2, 3]] {
        let proof = MultiProof::prove(&tree, indices).unwrap();
        assert_eq!(proof.verify(&root(&tree), 4, &tree[..indices.len() - 1]), refusal);
        let surplus: Vec<_> = tree[..indices.len()].iter().copied().chain([[9; 32]]).collect();
        assert_eq!(proof.verify(&root(&tree), 4, &surplus), refusal);
    }
}

#[test]
fn limits_hold_at_their_edge_and_not_beyond() {
    let tree = leaves(LEAVES_MAX);
    let expected = root(&tree);
    let all: Vec<u32> = (0..).take(LEAVES_MAX).collect();
    let proof = MultiProof::prove(&tree, &all).unwrap();
    assert_eq!(proof.verify(&expected, LEAVES_MAX as u64, &tree), Ok(()));
    let mut swapped = tree.clone();
    swapped.swap(5, 6);
    assert_eq!(proof.verify(&expected, LEAVES_MAX as u64, &swapped), Err(ProofError::Root));

    let scattered: Vec<u32> = (0..).step_by(16).take(SCATTERED_LEAVES_MAX).collect();
    let shown: Vec<_> = scattered.iter().map(|i| tree[*i as usize]).collect();
    let proof = MultiProof::prove(&tree, &scattered).unwrap();
    assert!(proof.hashes.len() <= HASHES_MAX);
    assert_eq!(MultiProof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));
    assert_eq!(proof.verify(&expected, LEAVES_MAX as u64, &shown), Ok(()));

    let refusal = Err(ProofError::Shape("too many scattered leaves"));
    assert_eq!(MultiProof::prove(&tree, &all[..=SCATTERED_LEAVES_MAX]), refusal);
    let refusal = Err(ProofError::Shape("too many leaves"));
    assert_eq!(MultiProof::prove(&leaves(LEAVES_MAX + 1), &[0]), refusal);
}

/// The reference vectors of Certificate Transparency.
#[test]
fn roots_are_those_of_rfc_6962() {
    let data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    ];
    let data: Vec<_> = data.iter().map(|d| leaf_hash(&hex::decode(d).unwrap())).collect();
    for (n, expected) in roots.iter().enumerate() {
        assert_eq!(hex::encode(root(&data[..n])), *expected, "{n} leaves");
    }
}

proptest! {
    #[test]
    fn proofs_hold_and_no_tampering_does(
        n in 1..70_usize, picks in vec(any::<prop::sample::Index>(), 1..12),
        class in 0..9, at in any::<prop::sample::Index>(),
    ) {
        let tree = leaves(n);
        let mut indices: Vec<u32> = picks.iter().map(|p| p.index(n) as u32).collect();
        indices.sort_unstable();
        indices.dedup();
        let mut proof = MultiProof::prove(&tree, &indices).unwrap();
        let mut shown: Vec<_> = indices.iter().map(|i| tree[*i as usize]).collect();
        let (mut certified, mut size) = (root(&tree), n as u64);
        prop_assert_eq!(proof.verify(&certified, size, &shown), Ok(()));
        prop_assert_eq!(MultiProof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));

        let pick = at.index(indices.len());
        match class {
            0 => shown[pick] = [9; 32],
            1 => certified = [9; 32],
            2 => proof.hashes.push([9; 32]),
            3 => match proof.hashes.len() {
                0 => shown.push([9; 32]),
                len => proof.hashes[at.index(len)] = [9; 32],
            },
            4 => {
                proof.indices.insert(pick, indices[pick]);
                shown.insert(pick, [9; 32]);
            }
            5 => {
                proof.indices.push(n as u32 + at.index(5) as u32);
                shown.push([9; 32]);
            }
            6 => size += 1,
            7 => proof.hashes.truncate(proof.hashes.len().saturating_sub(1)),
            _ => proof.indices[pick] = proof.indices[pick].wrapping_add(1),
        }
        let unchanged = class == 7 && indices.len() == n;
        prop_assert_eq!(proof.verify(&certified, size, &shown).is_ok(), unchanged);
    }

    #[test]
    fn a_moved_leaf_is_refused(n in 2..70_usize, from in 0..70_u32, to in 0..70_u32) {
        let (from, to) = (from % n as u32, to % n as u32);
        let tree = leaves(n);
        let mut proof = MultiProof::prove(&tree, &[from]).unwrap();
        proof.indices = vec![to];
        let said = proof.verify(&root(&tree), n as u64, &[tree[from as usize]]);
        prop_assert_eq!(said.is_ok(), from == to);
    }

    #[test]
    fn decoders_and_verifiers_survive_anything(
        bytes in vec(any::<u8>(), 0..200), size in 0..100_u32,
        indices in vec(0..110_u32, 0..6), hashes in vec(any::<Digest>(), 0..9),
    ) {
        let _ = MultiProof::from_canonical(&bytes);
        let proof = MultiProof { size, indices, hashes };
        let shown = vec![[1; 32]; proof.indices.len()];
        prop_assert!(proof.verify(&[0; 32], size.into(), &shown).is_err());
    }
}
