//! The history: an append-only log of every directory ever certified.
//!
//! Decides whether a newer history continues an older one. Validators who rewrite the past, or
//! show two pasts to two regions, cannot make a root from which a proof leads back to both, so
//! any two parties that compare checkpoints find out. The log is the one of RFC 6962; `ct-merkle` verifies
//! its proofs. That crate does not bind a proof to the sizes of the trees, so the sizes come from
//! the certified checkpoints, together with the roots (MERKLE-1).
//!
//! # Invariants
//!
//! - **HISTORY-1** Leaves are only ever appended.
//! - **HISTORY-2** Two logs of equal size are consistent only if their roots are equal; every log
//!   continues the empty one.
//!
//! # Deliberately absent
//!
//! The meaning of a leaf. Removal. Any proof over half of a log: every statement is about the
//! whole log at a certified size.

use ct_merkle::{
    RootHash,
    digest::{FixedOutput, HashMarker, Output, OutputSizeUser, Update, consts::U32},
    indices_for_consistency_proof, indices_for_inclusion_proof,
};

use crate::{
    Digest, ProofError,
    codec::{Canonical, DecodeError, Reader, Writer},
    rfc6962::{empty_root, inner_hash, leaf_hash},
};

/// Most leaves of a log: one a second for 136 years. Keeps arithmetic on indices from overflowing.
pub const HISTORY_LEAVES_MAX: u64 = 1 << 32;
/// One hash per level, and in a consistency proof the node to start from.
const HASHES_MAX: usize = HISTORY_LEAVES_MAX.ilog2() as usize + 1;

/// The whole log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    leaves: Vec<Digest>,
    /// `complete[k][i]` is the root over leaves `i * 2^k .. (i + 1) * 2^k`.
    complete: Vec<Vec<Digest>>,
}

/// Proves that a leaf is at a place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InclusionProof(Vec<Digest>);

/// Proves that one log continues another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsistencyProof(Vec<Digest>);

impl History {
    /// Appends a leaf (HISTORY-1).
    pub fn append(&mut self, leaf: Digest) {
        self.leaves.push(leaf);
        let mut node = leaf_hash(&leaf);
        for level in 0.. {
            if level == self.complete.len() {
                self.complete.push(Vec::new());
            }
            let nodes = &mut self.complete[level];
            nodes.push(node);
            // The second of two siblings completes their parent.
            let [.., left, right] = &nodes[..] else { return };
            if nodes.len() % 2 == 1 {
                return;
            }
            node = inner_hash(left, right);
        }
    }

    /// The root over all leaves.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root_after(&[])
    }

    /// The root that the log would have with `leaves` appended.
    #[must_use]
    pub fn root_after(&self, leaves: &[Digest]) -> Digest {
        // Roots of the complete subtrees that the log consists of, as digits of a binary counter.
        let peak = |(level, nodes): (usize, &Vec<Digest>)| {
            (self.leaves.len() >> level & 1 == 1).then(|| nodes.last().copied()).flatten()
        };
        let mut peaks: Vec<Option<Digest>> = self.complete.iter().enumerate().map(peak).collect();
        for leaf in leaves {
            let mut node = leaf_hash(leaf);
            let mut level = 0;
            while let Some(left) = peaks.get_mut(level).and_then(Option::take) {
                node = inner_hash(&left, &node);
                level += 1;
            }
            peaks.resize(peaks.len().max(level + 1), None);
            peaks[level] = Some(node);
        }
        let peaks = peaks.into_iter().flatten();
        peaks.reduce(|right, left| inner_hash(&left, &right)).unwrap_or_else(empty_root)
    }

    /// The number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// The leaves from index `start` on; none if the log is not that long.
    #[must_use]
    pub fn leaves_from(&self, start: u64) -> &[Digest] {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        self.leaves.get(start..).unwrap_or(&[])
    }

    /// Proves the leaf at `index`; `None` if there is none.
    #[must_use]
    pub fn prove_inclusion(&self, index: u64) -> Option<InclusionProof> {
        let size = self.size();
        (index < size)
            .then(|| InclusionProof(self.nodes(&indices_for_inclusion_proof(size, index))))
    }

    /// Proves that this log continues the one it was at `from_size` leaves; `None` if it never
    /// was so long.
    #[must_use]
    pub fn prove_consistency(&self, from_size: u64) -> Option<ConsistencyProof> {
        let added = self.size().checked_sub(from_size)?;
        if from_size == 0 {
            return Some(ConsistencyProof::default());
        }
        Some(ConsistencyProof(self.nodes(&indices_for_consistency_proof(from_size, added))))
    }

    fn nodes(&self, in_order: &[u64]) -> Vec<Digest> {
        in_order.iter().map(|index| self.node(*index)).collect()
    }

    /// A node by its in-order number, as `ct-merkle` names them: leaves are even, and a node's
    /// level is the number of ones its number ends in.
    fn node(&self, in_order: u64) -> Digest {
        let level = in_order.trailing_ones() as usize;
        let offset = usize::try_from(in_order >> (level + 1)).expect("the log is in memory");
        let complete = |level: usize, offset| self.complete.get(level)?.get(offset).copied();
        if let Some(node) = complete(level, offset) {
            return node;
        }
        // The node on the right edge covers what is left: a sum of ever smaller subtrees.
        let start = offset << level;
        let rest = self.leaves.len() - start;
        let mut root = None;
        for level in (0..level).filter(|level| rest >> level & 1 == 1) {
            let offset = (self.leaves.len() >> level) - 1;
            let left = complete(level, offset).expect("all complete subtrees are stored");
            root = Some(root.map_or(left, |right| inner_hash(&left, &right)));
        }
        root.expect("a node has at least one leaf")
    }
}

/// Checks that `leaf` is at `index` of the log with this root and size.
///
/// # Errors
///
/// [`ProofError`] if the proof does not show it.
pub fn verify_inclusion(
    root: &Digest,
    size: u64,
    index: u64,
    leaf: &Digest,
    proof: &InclusionProof,
) -> Result<(), ProofError> {
    check_size(size)?;
    let path = proof.0.iter().map(|hash| Output::<Sha256>::from(*hash)).collect::<Vec<_>>();
    let path = ct_merkle::InclusionProof::from_digests(&path);
    root_hash(root, size).verify_inclusion(leaf, index, &path).map_err(|e| match e {
        ct_merkle::InclusionVerifError::IncorrectHash => ProofError::Root,
        ct_merkle::InclusionVerifError::MalformedProof => ProofError::Shape(HASHES),
        _ => ProofError::Shape("an index beyond the end of the log"),
    })
}

/// Checks that the log with the new root and size continues the one with the old (HISTORY-2).
///
/// # Errors
///
/// [`ProofError`] if the proof does not show it.
pub fn verify_consistency(
    old_root: &Digest,
    old_size: u64,
    new_root: &Digest,
    new_size: u64,
    proof: &ConsistencyProof,
) -> Result<(), ProofError> {
    check_size(new_size)?;
    if old_size > new_size {
        return Err(ProofError::Shape("the log became shorter"));
    }
    let trivial = old_size == 0 || old_size == new_size;
    if trivial && !proof.0.is_empty() {
        return Err(ProofError::Shape(HASHES));
    }
    if old_size == new_size && old_root != new_root {
        return Err(ProofError::Root);
    }
    if old_size == 0 {
        return if *old_root == empty_root() { Ok(()) } else { Err(ProofError::Root) };
    }
    let path = proof.0.iter().map(|hash| Output::<Sha256>::from(*hash)).collect::<Vec<_>>();
    let path = ct_merkle::ConsistencyProof::from_digests(&path);
    let (old, new) = (root_hash(old_root, old_size), root_hash(new_root, new_size));
    new.verify_consistency(&old, &path).map_err(|e| match e {
        ct_merkle::ConsistencyVerifError::VerificationFailure => ProofError::Root,
        _ => ProofError::Shape(HASHES),
    })
}

const HASHES: &str = "not the number of hashes that the sizes need";

fn check_size(size: u64) -> Result<(), ProofError> {
    if size > HISTORY_LEAVES_MAX {
        return Err(ProofError::Shape("the log is too long"));
    }
    Ok(())
}

fn root_hash(root: &Digest, size: u64) -> RootHash<Sha256> {
    RootHash::new((*root).into(), size)
}

/// The workspace's SHA-256 behind the traits of the newer `digest` release that `ct-merkle` uses,
/// so that there is one implementation of it in the process.
#[derive(Default)]
struct Sha256(sha2::Sha256);

impl HashMarker for Sha256 {}

impl OutputSizeUser for Sha256 {
    type OutputSize = U32;
}

impl Update for Sha256 {
    fn update(&mut self, data: &[u8]) {
        sha2::Digest::update(&mut self.0, data);
    }
}

impl FixedOutput for Sha256 {
    fn finalize_into(self, out: &mut Output<Self>) {
        out.copy_from_slice(&sha2::Digest::finalize(self.0));
    }
}

impl Canonical for InclusionProof {
    fn encode(&self, w: &mut Writer) {
        w.list(&self.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.list(HASHES_MAX).map(Self)
    }
}

impl Canonical for ConsistencyProof {
    fn encode(&self, w: &mut Writer) {
        w.list(&self.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.list(HASHES_MAX).map(Self)
    }
}

#[cfg(test)]
mod tests;
