//! The bundle tree: an ordered map from keys to values that is its own Merkle tree.
//!
//! Decides what a bundle's root is, and thereby whether content received from a relay is exactly
//! what was certified. The tree is a crit-bit (binary Patricia) tree over raw keys, so a prefix of
//! the key space is one subtree: a relay that serves a part of a bundle cannot withhold an entry
//! of that part unnoticed.
//!
//! ```text
//!   H(x)           = BLAKE3("satrap/bundle/v1" | x)
//!   empty          = H(02)
//!   leaf           = H(00 | len(key) u32 | key | H(03 | value))
//!   inner          = H(01 | critical bit u32 | left | right)
//!   critical bit   = first bit in which keys below the node differ; keys end in one NUL
//! ```
//!
//! # Invariants
//!
//! - **BUNDLE-1** The root is a function of the set of entries (history independence).
//! - **BUNDLE-2** Critical bits strictly increase from the root downwards; bit 0 goes left. With keys of
//!   at most 512 bytes and a terminator, no path is longer than [`PATH_STEPS_MAX`].
//! - **BUNDLE-3** Nodes never change. A clone shares them all, a change copies the nodes on its path.
//! - **BUNDLE-4** No operation recurses, not even the release of memory: who chooses the keys chooses
//!   the depth.
//!
//! # Deliberately absent
//!
//! No limits on the number of entries or on the length of values: the certificate rules have
//! them, and both sides of a comparison must be able to hold whatever was certified. No balancing:
//! it would make the root depend on the order of changes.

mod batch;
mod key;
mod proof;
#[cfg(test)]
mod tests;

use core::fmt;
use std::sync::Arc;

pub use batch::Batch;
use key::Bits;
pub use key::{KEY_BYTES_MAX, Key, KeyError};
pub use proof::{AbsenceProof, InclusionProof, PrefixProof, Proof};

use crate::Digest;

/// Longest path in any tree: one step per bit of the longest key and its terminator (BUNDLE-2).
pub const PATH_STEPS_MAX: usize = 8 * (KEY_BYTES_MAX + 1);

/// An ordered map from keys to values with a root; cloning shares everything (BUNDLE-3).
#[derive(Clone, Default)]
pub struct BundleTree {
    root: Option<Arc<Node>>,
    len: usize,
    bytes: u64,
}

enum Node {
    Leaf(Leaf),
    Inner(Inner),
}

struct Leaf {
    key: Key,
    value: Arc<[u8]>,
    digest: Digest,
}

struct Inner {
    bit: u32,
    /// A key below this node, so that a batch can tell without descending whether a change
    /// belongs below it.
    sample: Key,
    children: [Arc<Node>; 2],
    digest: Digest,
}

impl BundleTree {
    /// Builds a tree from all its entries at once.
    ///
    /// `None` if keys are not strictly ascending.
    #[must_use]
    pub fn from_sorted(entries: &[(Key, Arc<[u8]>)]) -> Option<Self> {
        Some(Self::default().batch(entries, &[])?.apply())
    }

    /// Sets the value of a key and returns the one before.
    pub fn insert(&mut self, key: &Key, value: Arc<[u8]>) -> Option<Arc<[u8]>> {
        let before = self.get(key).cloned();
        let put = [(key.clone(), value)];
        *self = self.batch(&put, &[]).expect("one key is in order").apply();
        before
    }

    /// Removes a key; `false` if it was not there.
    pub fn remove(&mut self, key: &Key) -> bool {
        let delete = core::slice::from_ref(key);
        let batch = self.batch(&[], delete).expect("one key is in order");
        if batch.missing().is_some() {
            return false;
        }
        *self = batch.apply();
        true
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<[u8]>> {
        let leaf = self.root.as_ref()?.leaf_towards(key.bits());
        (leaf.key == *key).then_some(&leaf.value)
    }

    /// All entries, ascending by key.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.root.as_deref().into_iter().collect())
    }

    /// The entries whose key starts with `prefix`, ascending by key.
    #[must_use]
    pub fn iter_prefix(&self, prefix: &[u8]) -> Iter<'_> {
        Iter(self.subtree(prefix).into_iter().collect())
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sum of the lengths of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The Merkle root (BUNDLE-1).
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root.as_deref().map_or_else(empty_digest, |root| *root.digest())
    }

    /// The node that holds exactly the keys starting with `prefix`.
    fn subtree(&self, prefix: &[u8]) -> Option<&Node> {
        let (_, node) = self.root.as_ref()?.walk(Bits(prefix), Bits::index(prefix.len()));
        let leaf = node.leaf_towards(Bits(prefix));
        leaf.key.as_bytes().starts_with(prefix).then_some(node)
    }
}

impl Drop for BundleTree {
    /// BUNDLE-4: dropping the root alone would recurse.
    fn drop(&mut self) {
        let mut released: Vec<Arc<Node>> = self.root.take().into_iter().collect();
        while let Some(node) = released.pop() {
            if let Some(Node::Inner(inner)) = Arc::into_inner(node) {
                released.extend(inner.children);
            }
        }
    }
}

impl PartialEq for BundleTree {
    /// Equal roots are equal content, as BLAKE3 has no collisions.
    fn eq(&self, other: &Self) -> bool {
        self.root() == other.root()
    }
}

impl Eq for BundleTree {}

impl fmt::Debug for BundleTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.root();
        write!(f, "BundleTree({} entries, root {a:02x}{b:02x}{c:02x}{d:02x}..)", self.len)
    }
}

/// Entries in ascending order of their keys.
pub struct Iter<'a>(Vec<&'a Node>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Key, &'a Arc<[u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.pop()? {
                Node::Leaf(leaf) => return Some((&leaf.key, &leaf.value)),
                Node::Inner(inner) => {
                    let [left, right] = &inner.children;
                    self.0.extend([&**right, &**left]);
                }
            }
        }
    }
}

impl<'a> IntoIterator for &'a BundleTree {
    type Item = (&'a Key, &'a Arc<[u8]>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl Node {
    fn leaf(key: &Key, value: &Arc<[u8]>) -> Arc<Self> {
        let digest = leaf_digest(key, &value_digest(value));
        Arc::new(Self::Leaf(Leaf { key: key.clone(), value: value.clone(), digest }))
    }

    fn digest(&self) -> &Digest {
        match self {
            Self::Leaf(leaf) => &leaf.digest,
            Self::Inner(inner) => &inner.digest,
        }
    }

    /// Where a lookup ends. It need not be the key that was sought.
    fn leaf_towards(&self, bits: Bits<'_>) -> &Leaf {
        let mut node = self;
        loop {
            match node {
                Self::Leaf(leaf) => return leaf,
                Self::Inner(inner) => node = &inner.children[bits.side(inner.bit)],
            }
        }
    }

    /// Follows `bits` past all critical bits below `until`; returns the nodes passed, with the
    /// side taken at each, and the node reached.
    fn walk<'a>(self: &'a Arc<Self>, bits: Bits<'_>, until: u32) -> (Path<'a>, &'a Arc<Self>) {
        let (mut path, mut node) = (Path::new(), self);
        while let Self::Inner(inner) = &**node
            && inner.bit < until
        {
            let side = bits.side(inner.bit);
            path.push((inner, side));
            node = &inner.children[side];
        }
        (path, node)
    }
}

type Path<'a> = Vec<(&'a Inner, usize)>;

fn entry_bytes(key: &Key, value: &[u8]) -> u64 {
    (key.as_bytes().len() + value.len()) as u64
}

const DOMAIN: &[u8] = b"satrap/bundle/v1";

fn hash(parts: &[&[u8]]) -> Digest {
    #[cfg(test)]
    tests::HASHES.with(|hashes| hashes.set(hashes.get() + 1));
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn empty_digest() -> Digest {
    hash(&[&[2]])
}

fn value_digest(value: &[u8]) -> Digest {
    hash(&[&[3], value])
}

fn leaf_digest(key: &Key, value: &Digest) -> Digest {
    let key = key.as_bytes();
    let len = u32::try_from(key.len()).expect("keys are at most 512 bytes");
    hash(&[&[0], &len.to_be_bytes(), key, value])
}

fn inner_digest(bit: u32, side: usize, own: &Digest, sibling: &Digest) -> Digest {
    let (left, right) = if side == 0 { (own, sibling) } else { (sibling, own) };
    hash(&[&[1], &bit.to_be_bytes(), left, right])
}
