//! The directory: one leaf per bundle, sorted by name, under an RFC 6962 root.
//!
//! Decides which heads a checkpoint certifies. A relay proves the heads that a follower asked for,
//! and must not be able to hide one: for a name that has no head it shows the two neighbors
//! between which the name would be, so "there is no such bundle" is as much proven as a head.
//!
//! # Invariants
//!
//! - **DIRECTORY-1** Leaves are strictly ascending by name. Validators certify only such directories, so
//!   two adjacent leaves leave no room between them.
//! - **DIRECTORY-2** A leaf's name is read from the proven bytes, never from beside them.
//!
//! # Deliberately absent
//!
//! The meaning of a leaf: it is opaque here, and the caller says how to read its name.

use std::collections::BTreeSet;

use crate::{
    Digest, ProofError,
    codec::{Canonical, DecodeError, Reader, Writer},
    rfc6962::{self, LEAVES_MAX, MultiProof, SCATTERED_LEAVES_MAX},
};

/// Most leaves.
pub const DIRECTORY_LEAVES_MAX: usize = LEAVES_MAX;
/// Longest leaf: a head is a name and a few numbers.
pub const LEAF_BYTES_MAX: usize = 1024;

/// All leaves of one directory.
#[derive(Clone, Debug)]
pub struct Directory {
    entries: Vec<(String, Vec<u8>)>,
    tree: rfc6962::Tree,
}

/// Proves what a directory says about some names, or all of it. Carries the leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryProof {
    proof: MultiProof,
    leaves: Vec<Vec<u8>>,
}

/// Verified leaves of one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenLeaves {
    size: u64,
    leaves: Vec<ProvenLeaf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ProvenLeaf {
    index: u32,
    name: String,
    bytes: Vec<u8>,
}

/// The statement of verified leaves about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence<'a> {
    /// The directory has this leaf.
    Present(&'a [u8]),
    /// The directory has no leaf of this name.
    Absent,
    /// The prover left open whether it has one.
    Unproven,
}

impl Directory {
    /// A directory of names and leaves, in any order.
    ///
    /// # Panics
    ///
    /// If there are more than [`DIRECTORY_LEAVES_MAX`] leaves, one is longer than
    /// [`LEAF_BYTES_MAX`], or a name repeats. Validators check heads before they enter the ledger;
    /// to certify such a directory would leave every follower with a root that no follower can verify.
    #[must_use]
    pub fn new(mut entries: Vec<(String, Vec<u8>)>) -> Self {
        assert!(entries.len() <= DIRECTORY_LEAVES_MAX, "{} directory leaves", entries.len());
        entries.sort_unstable();
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "a name repeats in the directory");
        let longest = entries.iter().map(|(_, leaf)| leaf.len()).max().unwrap_or(0);
        assert!(longest <= LEAF_BYTES_MAX, "a directory leaf of {longest} bytes");
        let hashes: Vec<_> = entries.iter().map(|(_, leaf)| rfc6962::leaf_hash(leaf)).collect();
        Self { entries, tree: rfc6962::Tree::new(&hashes) }
    }

    /// The root that a checkpoint certifies.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.tree.root()
    }

    /// The number of leaves, certified with the root.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Proves what the directory says about each of `names`; all of it, if they are so many that
    /// their leaves do not fit a proof.
    #[must_use]
    pub fn prove(&self, names: &[&str]) -> DirectoryProof {
        let mut indices = BTreeSet::new();
        for name in names {
            match self.entries.binary_search_by(|(other, _)| other.as_str().cmp(name)) {
                Ok(index) => indices.extend([index]),
                Err(index) => indices.extend([index.saturating_sub(1), index]),
            }
        }
        indices.retain(|index| *index < self.entries.len());
        // A proof shows something, if only to be checked against the root.
        if indices.is_empty() && !self.entries.is_empty() {
            indices.insert(0);
        }
        if indices.len() > SCATTERED_LEAVES_MAX {
            return self.prove_all();
        }
        self.prove_indices(indices)
    }

    /// Proves every leaf.
    #[must_use]
    pub fn prove_all(&self) -> DirectoryProof {
        self.prove_indices(0..self.entries.len())
    }

    fn prove_indices(&self, indices: impl IntoIterator<Item = usize>) -> DirectoryProof {
        let mut numbers = Vec::new();
        let mut leaves = Vec::new();
        for index in indices {
            numbers.push(u32::try_from(index).expect("at most 4096 leaves"));
            leaves.push(self.entries[index].1.clone());
        }
        let proof = self.tree.prove(&numbers).expect("ascending, in range, few or all");
        DirectoryProof { proof, leaves }
    }
}

impl DirectoryProof {
    /// Checks the proof against the certified root and size. `name_of` reads the name in a leaf.
    ///
    /// # Errors
    ///
    /// [`ProofError`] if a leaf is not under the root, is unreadable, or breaks the order (DIRECTORY-1).
    pub fn verify(
        &self,
        root: &Digest,
        size: u64,
        name_of: impl Fn(&[u8]) -> Result<String, DecodeError>,
    ) -> Result<ProvenLeaves, ProofError> {
        let hashes: Vec<_> = self.leaves.iter().map(|leaf| rfc6962::leaf_hash(leaf)).collect();
        self.proof.verify(root, size, &hashes)?;
        let mut leaves = Vec::with_capacity(hashes.len());
        for (index, bytes) in self.proof.indices().iter().zip(&self.leaves) {
            let name = name_of(bytes)?;
            leaves.push(ProvenLeaf { index: *index, name, bytes: bytes.clone() });
        }
        if !leaves.is_sorted_by(|a, b| a.name < b.name) {
            return Err(ProofError::Shape("leaves are not in ascending order of their names"));
        }
        Ok(ProvenLeaves { size, leaves })
    }
}

impl ProvenLeaves {
    /// The statement about `name` that is proven.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Presence<'_> {
        let at = match self.leaves.binary_search_by(|leaf| leaf.name.as_str().cmp(name)) {
            Ok(at) => return Presence::Present(&self.leaves[at].bytes),
            Err(at) => at,
        };
        // The name would be between these two leaves; DIRECTORY-1: it does not, if they are adjacent.
        let start = match at.checked_sub(1) {
            Some(before) => u64::from(self.leaves[before].index) + 1,
            None => 0,
        };
        let end = self.leaves.get(at).map_or(self.size, |after| u64::from(after.index));
        if start == end { Presence::Absent } else { Presence::Unproven }
    }

    /// The leaves shown, ascending by name.
    pub fn leaves(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.leaves.iter().map(|leaf| leaf.bytes.as_slice())
    }

    /// Whether these are all leaves of the directory.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.leaves.len() as u64 == self.size
    }
}

impl Canonical for DirectoryProof {
    fn encode(&self, w: &mut Writer) {
        self.proof.encode(w);
        // One leaf per index: the count is known.
        for leaf in &self.leaves {
            w.bytes(leaf);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let proof = MultiProof::decode(r)?;
        let mut leaves = Vec::new();
        for _ in proof.indices() {
            leaves.push(r.bytes(LEAF_BYTES_MAX)?.to_vec());
        }
        Ok(Self { proof, leaves })
    }
}
