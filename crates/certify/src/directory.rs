//! Heads: what is certified about a bundle, one directory leaf each.

use satrap_merkle::{
    BundleTree, Digest,
    codec::{Canonical, DecodeError, Reader, Writer},
};

use crate::names::BundleName;

/// The certified statement about a bundle's current version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which bundle.
    pub name: BundleName,
    /// Rises by one with every publish; 1 is the first.
    pub version: u64,
    /// Merkle root over all entries.
    pub root: Digest,
    /// Number of entries.
    pub entries: u64,
    /// Sum of the lengths of keys and values, so that a follower can refuse before it downloads.
    pub bytes: u64,
    /// The height that certified this version first.
    pub height: u64,
}

impl Head {
    /// Whether `tree` is the content this head speaks of.
    #[must_use]
    pub fn describes(&self, tree: &BundleTree) -> bool {
        self.root == tree.root() && self.entries == tree.len() as u64 && self.bytes == tree.bytes()
    }

    /// The name in an encoded head, for [`satrap_merkle::directory`].
    ///
    /// # Errors
    ///
    /// If `leaf` is not an encoded head.
    pub fn name_of(leaf: &[u8]) -> Result<String, DecodeError> {
        Ok(Self::from_canonical(leaf)?.name.as_str().to_owned())
    }
}

const DOMAIN: &str = "satrap/head/v1";

impl Canonical for Head {
    fn encode(&self, w: &mut Writer) {
        w.bytes(DOMAIN.as_bytes());
        self.name.encode(w);
        w.u64(self.version);
        w.array(&self.root);
        w.u64(self.entries);
        w.u64(self.bytes);
        w.u64(self.height);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if r.bytes(DOMAIN.len())? != DOMAIN.as_bytes() {
            return Err(DecodeError::Invalid("head format: expected satrap/head/v1"));
        }
        Ok(Self {
            name: BundleName::decode(r)?,
            version: r.u64()?,
            root: r.array()?,
            entries: r.u64()?,
            bytes: r.u64()?,
            height: r.u64()?,
        })
    }
}
