//! Proofs about a bundle: an entry, its absence, and all entries under a prefix.
//!
//! The verifier holds a certified root, so the tree behind it is a correct crit-bit tree; the
//! prover may be hostile. A proof is the path from the root to a leaf or subtree. Its directions
//! are not sent: they are the bits of what is asked about, so a path cannot lead elsewhere.
//!
//! *Absence* of key K: the path ends at another leaf W (the witness), and at every critical bit
//! within K and its terminator W has the same bit as K. Were K in the tree, then K and W would
//! part at a node on this path whose critical bit is the first in which they differ; there is none.
//!
//! *Completeness* under prefix P: the subtree is rebuilt from the entries received, and all
//! critical bits above it lie within P. Were another key with P in the tree, it would take the
//! same turn at each of them and so be inside the subtree, whose digest would then differ. That
//! nothing has prefix P is shown by a witness, as above.
//!
//! # Deliberately absent
//!
//! Values and entries: they travel beside the proof, so one proof serves whatever carries them.

use std::sync::Arc;

use super::{
    Bits, BundleTree, Inner, Key, Node, PATH_STEPS_MAX, Path, empty_digest, inner_digest,
    leaf_digest, value_digest,
};
use crate::{
    Digest, ProofError,
    codec::{Canonical, DecodeError, Reader, Writer},
};

/// The statement of a tree about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The key is there.
    Inclusion(InclusionProof),
    /// The key is not there.
    Absence(AbsenceProof),
}

/// Proves that a key has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    path: Steps,
}

/// Proves that a key, or every key with a prefix, is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsenceProof {
    path: Steps,
    /// `None` only for the empty tree.
    witness: Option<Witness>,
}

/// Proves that the entries sent along are all that have a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixProof {
    /// The path to the subtree of these entries.
    Subtree(SubtreePath),
    /// There are none.
    Absence(AbsenceProof),
}

/// The path from the root to the subtree of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubtreePath(Steps);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Witness {
    key: Key,
    value: Digest,
}

/// From the root downwards.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Steps(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    bit: u32,
    sibling: Digest,
}

impl BundleTree {
    /// Proves what this tree says about `key`.
    #[must_use]
    pub fn prove(&self, key: &Key) -> Proof {
        match &self.root {
            Some(root) if root.leaf_towards(key.bits()).key == *key => {
                let path = Steps::of(&root.walk(key.bits(), u32::MAX).0);
                Proof::Inclusion(InclusionProof { path })
            }
            _ => Proof::Absence(self.prove_nothing_at(key.bits())),
        }
    }

    /// Proves that the entries of [`BundleTree::iter_prefix`] are all that have `prefix`.
    #[must_use]
    pub fn prove_prefix(&self, prefix: &[u8]) -> PrefixProof {
        match (&self.root, self.subtree(prefix)) {
            (Some(root), Some(_)) => {
                let (path, _) = root.walk(Bits(prefix), Bits::index(prefix.len()));
                PrefixProof::Subtree(SubtreePath(Steps::of(&path)))
            }
            _ => PrefixProof::Absence(self.prove_nothing_at(Bits(prefix))),
        }
    }

    /// The leaf that a lookup of absent `bits` ends at is the witness.
    fn prove_nothing_at(&self, bits: Bits<'_>) -> AbsenceProof {
        let Some(root) = &self.root else {
            return AbsenceProof { path: Steps(Vec::new()), witness: None };
        };
        let path = Steps::of(&root.walk(bits, u32::MAX).0);
        let leaf = root.leaf_towards(bits);
        let witness = Witness { key: leaf.key.clone(), value: value_digest(&leaf.value) };
        AbsenceProof { path, witness: Some(witness) }
    }
}

impl InclusionProof {
    /// Checks that `key` has `value` in the tree with this root.
    ///
    /// # Errors
    ///
    /// [`ProofError`] if the proof does not show it.
    pub fn verify(&self, root: &Digest, key: &Key, value: &[u8]) -> Result<(), ProofError> {
        let leaf = leaf_digest(key, &value_digest(value));
        self.path.verify(root, leaf, key.bits())
    }
}

impl AbsenceProof {
    /// Checks that the tree with this root does not hold `key`.
    ///
    /// # Errors
    ///
    /// [`ProofError`] if the proof does not show it.
    pub fn verify(&self, root: &Digest, key: &Key) -> Result<(), ProofError> {
        if self.witness.as_ref().is_some_and(|w| w.key == *key) {
            return Err(ProofError::Shape("the witness is the key itself"));
        }
        self.verify_bits(root, key.bits(), Bits::index(key.as_bytes().len() + 1))
    }

    fn verify_prefix(&self, root: &Digest, prefix: &[u8]) -> Result<(), ProofError> {
        if self.witness.as_ref().is_some_and(|w| w.key.as_bytes().starts_with(prefix)) {
            return Err(ProofError::Shape("the witness has the prefix"));
        }
        self.verify_bits(root, Bits(prefix), Bits::index(prefix.len()))
    }

    /// Nothing in the tree agrees with the first `len` of `bits`, given that the witness does not.
    fn verify_bits(&self, root: &Digest, bits: Bits<'_>, len: u32) -> Result<(), ProofError> {
        let Some(witness) = &self.witness else {
            let empty = self.path.0.is_empty() && *root == empty_digest();
            return if empty { Ok(()) } else { Err(ProofError::Root) };
        };
        let turns = witness.key.bits();
        let mut within = self.path.0.iter().map(|step| step.bit).filter(|bit| *bit < len);
        if within.any(|bit| turns.side(bit) != bits.side(bit)) {
            return Err(ProofError::Shape("the witness is not where a lookup ends"));
        }
        self.path.verify(root, leaf_digest(&witness.key, &witness.value), turns)
    }
}

impl PrefixProof {
    /// Checks that `entries` are all entries with `prefix` in the tree with this root, and
    /// returns them as a tree of their own.
    ///
    /// # Errors
    ///
    /// [`ProofError`] if an entry is missing, altered, foreign or out of order.
    pub fn verify(
        &self,
        root: &Digest,
        prefix: &[u8],
        entries: &[(Key, Arc<[u8]>)],
    ) -> Result<BundleTree, ProofError> {
        let tree = BundleTree::from_sorted(entries)
            .ok_or(ProofError::Shape("entries are not in ascending order"))?;
        match self {
            Self::Absence(absence) if tree.is_empty() => absence.verify_prefix(root, prefix)?,
            Self::Absence(_) => return Err(ProofError::Shape("entries with a proof of absence")),
            // Without entries there is no subtree that a path could lead to.
            Self::Subtree(_) if tree.is_empty() => {
                return Err(ProofError::Shape("a subtree without entries"));
            }
            Self::Subtree(SubtreePath(path)) => {
                if entries.iter().any(|(key, _)| !key.as_bytes().starts_with(prefix)) {
                    return Err(ProofError::Shape("an entry outside the prefix"));
                }
                if path.0.iter().any(|step| step.bit >= Bits::index(prefix.len())) {
                    return Err(ProofError::Shape("the path leads past the prefix"));
                }
                path.verify(root, tree.root(), Bits(prefix))?;
            }
        }
        Ok(tree)
    }
}

impl Steps {
    fn of(path: &Path<'_>) -> Self {
        let step = |(inner, side): &(&Inner, usize)| {
            let sibling: &Node = &inner.children[1 - side];
            Step { bit: inner.bit, sibling: *sibling.digest() }
        };
        Self(path.iter().map(step).collect())
    }

    /// Whether climbing from `node` at the end of the path, turning as `bits` say, ends at `root`.
    fn verify(&self, root: &Digest, node: Digest, bits: Bits<'_>) -> Result<(), ProofError> {
        if !self.0.is_sorted_by(|a, b| a.bit < b.bit) {
            return Err(ProofError::Shape("critical bits do not increase"));
        }
        let top = self.0.iter().rev().fold(node, |node, step| {
            inner_digest(step.bit, bits.side(step.bit), &node, &step.sibling)
        });
        if top == *root { Ok(()) } else { Err(ProofError::Root) }
    }
}

impl Canonical for Step {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.bit);
        w.array(&self.sibling);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { bit: r.u32()?, sibling: r.array()? })
    }
}

impl Canonical for Steps {
    fn encode(&self, w: &mut Writer) {
        w.list(&self.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(r.list(PATH_STEPS_MAX)?))
    }
}

impl Canonical for Witness {
    fn encode(&self, w: &mut Writer) {
        self.key.encode(w);
        w.array(&self.value);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { key: Key::decode(r)?, value: r.array()? })
    }
}

impl Canonical for InclusionProof {
    fn encode(&self, w: &mut Writer) {
        self.path.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { path: Steps::decode(r)? })
    }
}

impl Canonical for AbsenceProof {
    fn encode(&self, w: &mut Writer) {
        self.path.encode(w);
        w.option(self.witness.as_ref());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { path: Steps::decode(r)?, witness: r.option()? })
    }
}

impl Canonical for Proof {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Inclusion(proof) => {
                w.u8(0);
                proof.encode(w);
            }
            Self::Absence(proof) => {
                w.u8(1);
                proof.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => InclusionProof::decode(r).map(Self::Inclusion),
            1 => AbsenceProof::decode(r).map(Self::Absence),
            _ => Err(DecodeError::Invalid("kind of proof")),
        }
    }
}

impl Canonical for PrefixProof {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Subtree(SubtreePath(path)) => {
                w.u8(0);
                path.encode(w);
            }
            Self::Absence(proof) => {
                w.u8(1);
                proof.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Steps::decode(r).map(|path| Self::Subtree(SubtreePath(path))),
            1 => AbsenceProof::decode(r).map(Self::Absence),
            _ => Err(DecodeError::Invalid("kind of prefix proof")),
        }
    }
}
