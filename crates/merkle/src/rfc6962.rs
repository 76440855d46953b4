//! RFC 6962 hashing, and proofs that several leaves are at given places of one tree.
//!
//! Decides whether leaves sent by a relay are the certified ones. The tree and its multi-proofs
//! come from `rs_merkle`, whose `verify` accepts forged leaves under the true root: if an index
//! is repeated or lies beyond the last leaf, nodes are paired by position, and surplus nodes and
//! proof hashes are ignored. So this module is the only one that may call it, and only for
//! proofs that passed [`MultiProof`]'s checks:
//!
//! - **PROOF-1** The number of leaves is the certified one, and at most [`LEAVES_MAX`].
//! - **PROOF-2** Indices strictly increase and the last is below the number of leaves.
//! - **PROOF-3** There are exactly as many hashes as those indices need.
//! - **PROOF-4** At most [`SCATTERED_LEAVES_MAX`] leaves are proven, as the check is quadratic in their
//!   number; or else all of them, and then the root is computed afresh.
//!
//! Given PROOF-1 to PROOF-3, every layer consists of whole pairs of siblings and at most the lone last node,
//! for which pairing by position is right.
//!
//! ```text
//!   empty = SHA-256()      leaf = SHA-256(00 | data)      inner = SHA-256(01 | left | right)
//!   left subtree of n leaves: the largest power of two below n
//! ```

use rs_merkle::{Hasher, MerkleProof, MerkleTree, utils::indices::proof_indices_by_layers};
use sha2::{Digest as _, Sha256};

use crate::{
    Digest, ProofError,
    codec::{Canonical, DecodeError, Reader, Writer},
};

/// Most leaves in a tree that multi-proofs are made for: all heads of a realm.
pub const LEAVES_MAX: usize = 4_096;
/// Most leaves in one proof that does not show all of them: 64 bundles that an edge may ask for,
/// each with two neighbors, twice over.
pub const SCATTERED_LEAVES_MAX: usize = 256;
/// Hashes in one proof: at most one per proven leaf and layer.
const HASHES_MAX: usize = SCATTERED_LEAVES_MAX * LEAVES_MAX.ilog2() as usize;

/// The digest of a leaf.
#[must_use]
pub fn leaf_hash(data: &[u8]) -> Digest {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// The digest of an inner node.
#[must_use]
pub fn inner_hash(left: &Digest, right: &Digest) -> Digest {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of a tree without leaves.
#[must_use]
pub fn empty_root() -> Digest {
    Sha256::digest([]).into()
}

/// The root over leaves given by their [`leaf_hash`].
#[must_use]
pub fn root(leaf_hashes: &[Digest]) -> Digest {
    MerkleTree::<Rfc6962>::from_leaves(leaf_hashes).root().unwrap_or_else(empty_root)
}

/// `rs_merkle` promotes a lone last node unchanged, which gives exactly the shape of RFC 6962.
#[derive(Clone)]
struct Rfc6962;

impl Hasher for Rfc6962 {
    type Hash = Digest;

    fn hash(data: &[u8]) -> Digest {
        leaf_hash(data)
    }

    fn concat_and_hash(left: &Digest, right: Option<&Digest>) -> Digest {
        right.map_or(*left, |right| inner_hash(left, right))
    }
}

/// A tree whose nodes are kept, for a prover with many questions.
#[derive(Clone)]
pub struct Tree {
    nodes: MerkleTree<Rfc6962>,
    size: usize,
}

impl Tree {
    /// The tree over leaves given by their [`leaf_hash`].
    #[must_use]
    pub fn new(leaf_hashes: &[Digest]) -> Self {
        Self { nodes: MerkleTree::from_leaves(leaf_hashes), size: leaf_hashes.len() }
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.nodes.root().unwrap_or_else(empty_root)
    }

    /// Proves the leaves at `indices`.
    ///
    /// # Errors
    ///
    /// [`ProofError::Shape`] if the indices break PROOF-1, PROOF-2 or PROOF-4.
    pub fn prove(&self, indices: &[u32]) -> Result<MultiProof, ProofError> {
        let size = u32::try_from(self.size).map_err(|_| ProofError::Shape("too many leaves"))?;
        let mut proof = MultiProof { size, indices: indices.to_vec(), hashes: Vec::new() };
        if !proof.check_indices()? {
            proof.hashes = self.nodes.proof(&proof.positions()).proof_hashes().to_vec();
        }
        Ok(proof)
    }
}

impl core::fmt::Debug for Tree {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Tree({} leaves)", self.size)
    }
}

/// Proves that some leaves are at given places of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiProof {
    size: u32,
    indices: Vec<u32>,
    hashes: Vec<Digest>,
}

impl MultiProof {
    /// Proves the leaves at `indices` among `leaf_hashes`.
    ///
    /// # Errors
    ///
    /// [`ProofError::Shape`] if the indices break PROOF-1, PROOF-2 or PROOF-4.
    pub fn prove(leaf_hashes: &[Digest], indices: &[u32]) -> Result<Self, ProofError> {
        Tree::new(leaf_hashes).prove(indices)
    }

    /// The positions of the proven leaves; ascending.
    #[must_use]
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Checks that `leaves`, given by their [`leaf_hash`], are at [`MultiProof::indices`] of the
    /// tree with this root and size. Both come from what was certified (MERKLE-1).
    ///
    /// # Errors
    ///
    /// [`ProofError`] if the proof does not show it.
    pub fn verify(&self, root: &Digest, size: u64, leaves: &[Digest]) -> Result<(), ProofError> {
        if u64::from(self.size) != size {
            return Err(ProofError::Shape("it is about a tree of another size"));
        }
        if leaves.len() != self.indices.len() {
            return Err(ProofError::Shape("not one leaf per index"));
        }
        #[expect(clippy::disallowed_methods, reason = "the one call, behind PROOF-1 to PROOF-4")]
        let shown = if self.check()? {
            self::root(leaves) == *root
        } else {
            MerkleProof::<Rfc6962>::new(self.hashes.clone()).verify(
                *root,
                &self.positions(),
                leaves,
                self.size as usize,
            )
        };
        if shown { Ok(()) } else { Err(ProofError::Root) }
    }

    fn positions(&self) -> Vec<usize> {
        self.indices.iter().map(|index| *index as usize).collect()
    }

    /// PROOF-1, PROOF-2, PROOF-4; returns whether all leaves are proven.
    fn check_indices(&self) -> Result<bool, ProofError> {
        let (size, proven) = (self.size as usize, self.indices.len());
        if size > LEAVES_MAX {
            return Err(ProofError::Shape("too many leaves"));
        }
        if !self.indices.is_sorted_by(|a, b| a < b) {
            return Err(ProofError::Shape("indices do not increase"));
        }
        if self.indices.last().is_some_and(|last| *last >= self.size) {
            return Err(ProofError::Shape("an index beyond the last leaf"));
        }
        match proven {
            // By PROOF-2 these are 0, 1, .. size - 1; the empty tree belongs here too.
            all if all == size => Ok(true),
            0 => Err(ProofError::Shape("it proves no leaf")),
            1..=SCATTERED_LEAVES_MAX => Ok(false),
            _ => Err(ProofError::Shape("too many scattered leaves")),
        }
    }

    /// PROOF-1 to PROOF-4; returns whether all leaves are proven.
    fn check(&self) -> Result<bool, ProofError> {
        let all = self.check_indices()?;
        let layers = if all {
            Vec::new()
        } else {
            proof_indices_by_layers(&self.positions(), self.size as usize)
        };
        if self.hashes.len() != layers.iter().map(Vec::len).sum::<usize>() {
            return Err(ProofError::Shape("not the number of hashes that the indices need"));
        }
        Ok(all)
    }
}

impl Canonical for MultiProof {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.size);
        w.count(self.indices.len());
        for index in &self.indices {
            w.u32(*index);
        }
        w.list(&self.hashes);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let size = r.u32()?;
        let count = r.count(LEAVES_MAX)?;
        let indices = (0..count).map(|_| r.u32()).collect::<Result<_, _>>()?;
        Ok(Self { size, indices, hashes: r.list(HASHES_MAX)? })
    }
}

#[cfg(test)]
mod tests;
