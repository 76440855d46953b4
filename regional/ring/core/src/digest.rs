//! An incremental digest of the whole state.
//!
//! Members compare it at equal applied indices. A difference means that memory, a disk or this code
//! failed; it does not detect an attacker: one who can write states can search for collisions of a
//! sum, and is stopped elsewhere.
//!
//! Every item of the state is hashed with its place, and the hashes are summed. So an inserted,
//! changed or removed item costs one or two hashes however large the state is, and the order of the
//! members' housekeeping does not matter.

use core::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Digest of a whole state; equal on all members that applied the same log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateDigest(pub [u8; 16]);

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A multiset of items, represented by the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Multiset(u128);

impl Multiset {
    /// Adds an item; `domain` keeps equal bytes of different kinds apart.
    pub fn insert(&mut self, domain: &str, item: &[u8]) {
        self.0 = self.0.wrapping_add(hash(domain, item));
    }

    /// Removes an item that was added before.
    pub fn remove(&mut self, domain: &str, item: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(domain, item));
    }

    /// Adds every item of another multiset.
    pub fn join(&mut self, other: &Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// The sum, for comparison.
    #[must_use]
    pub fn digest(&self) -> StateDigest {
        StateDigest(self.0.to_be_bytes())
    }
}

fn hash(domain: &str, item: &[u8]) -> u128 {
    xxh3_128_with_seed(item, xxh3_64(domain.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_leaves_no_trace_and_removal_undoes() {
        let (mut one, mut other) = (Multiset::default(), Multiset::default());
        one.insert("k", b"a");
        one.insert("k", b"b");
        other.insert("k", b"b");
        other.insert("k", b"c");
        other.insert("k", b"a");
        assert_ne!(one.digest(), other.digest());
        other.remove("k", b"c");
        assert_eq!(one.digest(), other.digest());
        other.remove("k", b"a");
        other.insert("l", b"a");
        assert_ne!(one.digest(), other.digest(), "a domain counts");
    }
}
