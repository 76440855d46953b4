//! Finds the keys in which a mirror differs from its source, for about the price of the difference.
//!
//! Both sides have keys and the revision of each key's last write. Keys are placed by hash in a
//! tree of sixteen branches per level, and a node's digest covers every key below it. The mirror
//! sends digests of the nodes it was asked about; the source compares, and asks on only where they
//! differ. A few keys in a million cost a few kilobytes and about five rounds.
//!
//! ```text
//!   Mirror                                          Source
//!   start: digests of the 256 nodes of level 2  ──▶ judge
//!   answer: children, or the entries            ◀── ask: descend here, list there
//!           forget what is gone                 ◀── clear these nodes, these hashes are gone
//!           take what is new                    ◀── put (whole keys and values)
//!                                   ... until nothing is asked
//! ```
//!
//! A faulty peer costs either side little: a [`Source`] accepts only answers that match its questions, and a [`Mirror`]
//! answers any question from the keys it has.
//!
//! # Invariants
//!
//! - **KEYSET-1** When the source has nothing left to ask, a mirror that followed every verdict has exactly
//!   the source's keys at the source's revisions.
//! - **KEYSET-2** Questions and answers are proportional to the number of differing keys, times the depth
//!   of the tree, whatever the number of keys.
//! - **KEYSET-3** One question or answer is bounded by [`NODES_MAX`]; what is left follows in the next.
//!
//! # Deliberately absent
//!
//! Keys and values themselves: both sides number their keys as they were added, and this module
//! speaks of places in that order. Proofs: a client that mirrors a store believes it.

mod mirror;
mod source;
#[cfg(test)]
mod tests;

pub use mirror::{Instructions, Mirror};
pub use source::{Source, UnexpectedAnswer, Verdict};

/// First 16 bytes of the BLAKE3 hash of a key.
pub type KeyHash = [u8; 16];

/// The level a mirror starts at, unless it is small.
const START_LEVEL: u8 = 2;
/// A node of at most this many keys of the mirror is listed instead of divided.
pub const LIST_MAX: usize = 24;
/// Deepest level; a node there is listed however many keys it has.
const LEVEL_MAX: u8 = 16;
/// Nodes asked about at a time, and answered with.
pub const NODES_MAX: usize = 1_024;

const DIGEST_CONTEXT: &str = "satrap/keyset/node/v1";

/// All keys whose hash begins with the first `level` half bytes of `prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    prefix: u64,
    level: u8,
}

impl Node {
    /// The node above everything.
    pub const ROOT: Self = Self { prefix: 0, level: 0 };

    /// A node as it was received; nothing if there is no such node.
    #[must_use]
    pub fn new(prefix: u64, level: u32) -> Option<Self> {
        let level = u8::try_from(level).ok().filter(|level| *level <= LEVEL_MAX)?;
        let node = Self { prefix, level };
        (prefix & !node.mask() == 0).then_some(node)
    }

    /// The hash's first bits; those after the level are zero.
    #[must_use]
    pub fn prefix(self) -> u64 {
        self.prefix
    }

    /// Half bytes of the prefix that count.
    #[must_use]
    pub fn level(self) -> u32 {
        self.level.into()
    }

    fn mask(self) -> u64 {
        match self.level {
            0 => 0,
            level => u64::MAX << (64 - 4 * u32::from(level)),
        }
    }

    fn contains(self, hash: &KeyHash) -> bool {
        head(hash) & self.mask() == self.prefix
    }

    /// All nodes that are `levels` further down.
    fn descendants(self, levels: u8) -> impl Iterator<Item = Self> {
        let level = self.level + levels;
        let shift = 64 - 4 * u32::from(level);
        (0..1_u64 << (4 * levels)).map(move |n| {
            let below = if level == 0 { 0 } else { n << shift };
            Self { prefix: self.prefix | below, level }
        })
    }
}

fn head(hash: &KeyHash) -> u64 {
    u64::from_be_bytes(*hash.first_chunk().expect("16 bytes have 8"))
}

/// One key, by hash, and the revision of its last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Of the key.
    pub hash: KeyHash,
    /// Of its last write.
    pub revision: i64,
}

/// A node in short. Nodes without keys are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Which.
    pub node: Node,
    /// Keys below it.
    pub keys: u64,
    /// Of all entries below it.
    pub digest: [u8; 16],
}

/// The message of a mirror: summaries of everything below the nodes it was asked to divide, and the
/// entries of those it was asked to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// In any order; a node that is left out has no keys.
    pub summaries: Vec<Summary>,
    /// In any order.
    pub lists: Vec<(Node, Vec<Entry>)>,
}

/// Keys in the order of their hashes, each with its place in the order it was added.
#[derive(Clone, Debug)]
pub struct Keyset {
    /// By the first byte of the hash, so that a large set is sorted in small steps.
    buckets: Vec<Vec<(Entry, u32)>>,
    sorted: usize,
    len: u32,
}

impl Default for Keyset {
    fn default() -> Self {
        Self { buckets: vec![Vec::new(); 256], sorted: 256, len: 0 }
    }
}

impl Keyset {
    /// No keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key; its place is the number of keys before it. A key may be added once only.
    ///
    /// # Panics
    ///
    /// If there are four billion keys: a store has far fewer.
    pub fn add(&mut self, key: &[u8], revision: i64) {
        let hash = key_hash(key);
        let place = self.len;
        self.len = self.len.checked_add(1).expect("fewer than four billion keys");
        self.buckets[usize::from(hash[0])].push((Entry { hash, revision }, place));
        self.sorted = 0;
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sorts a part of what was added; false once everything is. [`Source`] and [`Mirror`] do the
    /// rest themselves; this is for those who must not be away for long.
    pub fn sort_some(&mut self) -> bool {
        if let Some(bucket) = self.buckets.get_mut(self.sorted) {
            bucket.sort_unstable();
            self.sorted += 1;
        }
        self.sorted < self.buckets.len()
    }

    fn sort(&mut self) {
        while self.sort_some() {}
    }

    /// The entries of a node, in order.
    fn within(&self, node: Node) -> impl Iterator<Item = &(Entry, u32)> {
        let first = usize::try_from(node.prefix >> 56).expect("8 bits");
        let buckets = match node.level {
            0 => 0..256,
            1 => first..first + 16,
            _ => first..first + 1,
        };
        self.buckets[buckets].iter().flat_map(move |bucket| {
            let last = node.prefix | !node.mask();
            let from = bucket.partition_point(|(entry, _)| head(&entry.hash) < node.prefix);
            let to = bucket.partition_point(|(entry, _)| head(&entry.hash) <= last);
            &bucket[from..to]
        })
    }

    fn summary(&self, node: Node) -> Summary {
        let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
        let mut keys = 0;
        for (entry, _) in self.within(node) {
            keys += 1;
            hasher.update(&entry.hash);
            hasher.update(&entry.revision.to_be_bytes());
        }
        let digest = *hasher.finalize().as_bytes().first_chunk().expect("32 bytes have 16");
        Summary { node, keys, digest }
    }

    fn find(&self, hash: &KeyHash) -> Option<(Entry, u32)> {
        let bucket = &self.buckets[usize::from(hash[0])];
        let at = bucket.binary_search_by_key(hash, |(entry, _)| entry.hash).ok()?;
        Some(bucket[at])
    }
}

/// The hash that identifies a key.
#[must_use]
pub fn key_hash(key: &[u8]) -> KeyHash {
    *blake3::hash(key).as_bytes().first_chunk().expect("32 bytes have 16")
}
