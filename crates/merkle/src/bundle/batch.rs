//! Batches: many changes of one tree, each affected node visited and hashed once.
//!
//! A batch is planned before it is applied. The plan walks the old tree along the paths of the
//! changes and lists what the new tree consists of, in ascending order: whole subtrees that no
//! change touches, and new leaves. It hashes nothing, so a caller can refuse a batch by what would
//! result, and by what it would cost, before it pays for it. Applying joins the items with the
//! same stack of open nodes for any tree, from nothing or from a million entries.
//!
//! # Invariants
//!
//! - **BUNDLE-5** Work is linear in the changes and the nodes on their paths, whatever the keys are: a
//!   node is visited once, and hashed at most once. [`Batch::nodes`] bounds both.

use core::fmt;
use std::{iter::Peekable, sync::Arc};

use super::{BundleTree, Inner, Key, Leaf, Node, entry_bytes};

/// Changes of one tree, not yet applied.
pub struct Batch<'a> {
    /// The parts of the new tree, ascending.
    items: Vec<Item<'a>>,
    descended: usize,
    len: usize,
    bytes: u64,
    kept: usize,
    missing: Option<&'a Key>,
}

enum Item<'a> {
    /// A subtree that no change touches (BUNDLE-3).
    Shared(&'a Arc<Node>),
    Put(&'a Key, &'a Arc<[u8]>),
}

/// Where a key belongs, seen from a subtree.
enum Place {
    Before,
    Inside,
    After,
}

impl BundleTree {
    /// Plans to set the entries in `puts` and to remove the keys in `deletes`; a key in both is
    /// set. `None` if either is not strictly ascending by key.
    #[must_use]
    pub fn batch<'a>(
        &'a self,
        puts: &'a [(Key, Arc<[u8]>)],
        deletes: &'a [Key],
    ) -> Option<Batch<'a>> {
        if !puts.is_sorted_by(|a, b| a.0 < b.0) || !deletes.is_sorted_by(|a, b| a < b) {
            return None;
        }
        let mut batch = Batch {
            items: Vec::new(),
            descended: 0,
            len: self.len,
            bytes: self.bytes,
            kept: self.len,
            missing: None,
        };
        let mut changes = merged(puts, deletes).peekable();
        // Subtrees not reached yet; the leftmost is on top.
        let mut ahead: Vec<&Arc<Node>> = self.root.iter().collect();
        while let Some(node) = ahead.pop() {
            let Some((key, _)) = changes.peek() else {
                batch.items.push(Item::Shared(node));
                continue;
            };
            match (node.place(key), &**node) {
                (Place::After, _) => batch.items.push(Item::Shared(node)),
                (Place::Before, _) => {
                    batch.create(&mut changes);
                    ahead.push(node);
                }
                (Place::Inside, Node::Inner(Inner { children: [left, right], .. })) => {
                    batch.descended += 1;
                    ahead.extend([right, left]);
                }
                (Place::Inside, Node::Leaf(leaf)) => batch.replace(leaf, &mut changes),
            }
        }
        while changes.peek().is_some() {
            batch.create(&mut changes);
        }
        Some(batch)
    }
}

/// A changed key, and its new value unless it is removed.
type Change<'a> = (&'a Key, Option<&'a Arc<[u8]>>);

/// Puts and deletes as one ascending sequence.
fn merged<'a>(
    puts: &'a [(Key, Arc<[u8]>)],
    deletes: &'a [Key],
) -> impl Iterator<Item = Change<'a>> {
    let (mut puts, mut deletes) = (puts.iter().peekable(), deletes.iter().peekable());
    core::iter::from_fn(move || {
        let deleted = deletes.next_if(|key| puts.peek().is_none_or(|(put, _)| **key < *put));
        if let Some(key) = deleted {
            return Some((key, None));
        }
        let (key, value) = puts.next()?;
        deletes.next_if(|deleted| *deleted == key);
        Some((key, Some(value)))
    })
}

impl<'a> Batch<'a> {
    /// Takes the next change, whose key the tree does not hold.
    fn create(&mut self, changes: &mut Peekable<impl Iterator<Item = Change<'a>>>) {
        match changes.next() {
            Some((key, Some(value))) => {
                self.items.push(Item::Put(key, value));
                self.len += 1;
                self.bytes += entry_bytes(key, value);
            }
            Some((key, None)) => self.missing = self.missing.or(Some(key)),
            None => {}
        }
    }

    /// Takes the next change, which is about the key of `leaf`.
    fn replace(&mut self, leaf: &Leaf, changes: &mut Peekable<impl Iterator<Item = Change<'a>>>) {
        self.bytes -= entry_bytes(&leaf.key, &leaf.value);
        let Some((key, Some(value))) = changes.next() else {
            self.len -= 1;
            self.kept -= 1;
            return;
        };
        self.items.push(Item::Put(key, value));
        self.bytes += entry_bytes(key, value);
        self.kept -= usize::from(leaf.value != *value);
    }

    /// The number of entries there will be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no entry will be left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sum of the lengths of all keys and values there will be.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many entries stay as they are, key and value.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The first key to remove that the tree does not hold.
    #[must_use]
    pub fn missing(&self) -> Option<&'a Key> {
        self.missing
    }

    /// Nodes that were visited or will be hashed, at most (BUNDLE-5).
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.descended + 2 * self.items.len()
    }

    /// The tree after the changes: one hash per new node.
    #[must_use]
    pub fn apply(self) -> BundleTree {
        let mut nodes = self.items.into_iter().map(Item::into_node);
        let Some(mut last) = nodes.next() else { return BundleTree::default() };
        // Left siblings on the rightmost path, whose nodes still wait for their right child.
        let mut open: Vec<(u32, Arc<Node>)> = Vec::new();
        for node in nodes {
            let bit = last.sample().critical_bit(node.sample());
            let bit = bit.expect("subtrees of one tree hold different keys");
            let left = close(&mut open, last, bit);
            open.push((bit, left));
            last = node;
        }
        let root = Some(close(&mut open, last, 0));
        BundleTree { root, len: self.len, bytes: self.bytes }
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} entries, {} nodes)", self.len, self.nodes())
    }
}

impl Item<'_> {
    fn into_node(self) -> Arc<Node> {
        match self {
            Self::Shared(node) => node.clone(),
            Self::Put(key, value) => Node::leaf(key, value),
        }
    }
}

impl Node {
    /// Any key below this node; all of them agree up to its critical bit.
    fn sample(&self) -> &Key {
        match self {
            Self::Leaf(leaf) => &leaf.key,
            Self::Inner(inner) => &inner.sample,
        }
    }

    /// Where `key` belongs: below this node, or to one side of everything below it.
    fn place(&self, key: &Key) -> Place {
        let Some(bit) = self.sample().critical_bit(key) else { return Place::Inside };
        match self {
            Self::Inner(inner) if bit >= inner.bit => Place::Inside,
            _ if key.bits().side(bit) == 0 => Place::Before,
            _ => Place::After,
        }
    }

    /// `left` and `right` under a new node.
    fn join(bit: u32, left: Arc<Self>, right: Arc<Self>) -> Arc<Self> {
        let digest = super::inner_digest(bit, 0, left.digest(), right.digest());
        let sample = left.sample().clone();
        Arc::new(Self::Inner(Inner { bit, sample, children: [left, right], digest }))
    }
}

/// Gives `node` the left siblings that wait at or below critical bit `from`.
fn close(open: &mut Vec<(u32, Arc<Node>)>, mut node: Arc<Node>, from: u32) -> Arc<Node> {
    while let Some((bit, left)) = open.pop_if(|(bit, _)| *bit >= from) {
        node = Node::join(bit, left, node);
    }
    node
}
