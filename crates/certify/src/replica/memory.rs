//! The memory of a follower, and how it goes on from there.
//!
//! A follower that lost its newest verified checkpoint, or the highest version of a bundle, would
//! accept older ones again. So both are a value of their own that does not depend on what is wanted
//! at the moment, on whether content can be read, or on whether the way from the genesis can be
//! verified once more: validators of the past may be gone.

use std::collections::BTreeMap;

use satrap_merkle::{
    BundleTree, Digest,
    codec::{Canonical, DecodeError, Reader, Writer},
};

use super::{Content, HistoryView, Replica};
use crate::{
    directory::Head, genesis::Genesis, light::Trusted, limits::FLOORS_MAX, names::BundleName,
    rejection::Rejection, update::Interest,
};

/// The newest verified state in a few kilobytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The realm of the follower, by the hash of its genesis.
    pub genesis_hash: Digest,
    /// The newest verified checkpoint.
    pub trusted: Trusted,
    /// The newest verified history: its root and size.
    pub history: (Digest, u64),
    /// The newest verified head of every bundle that was ever held, wanted or not.
    pub floors: BTreeMap<BundleName, Head>,
}

impl Replica {
    /// The memory of this replica: its newest checkpoint, its history and its floors.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory {
            genesis_hash: *self.realm.genesis_hash(),
            trusted: self.trusted.clone(),
            history: (self.history.root(), self.history.size()),
            floors: self.floors.clone(),
        }
    }

    /// An edge that goes on from what it verified and stored itself. Heads may be older than the
    /// checkpoint, so the next server is asked for them; of `contents`, what has the root of its
    /// floor is taken over and the rest is fetched again.
    ///
    /// # Errors
    ///
    /// [`Rejection::Realm`] if the memory is of another realm.
    ///
    /// # Panics
    ///
    /// If `interest` is everything: a relay needs the way from the genesis, to prove it to others.
    pub fn resume(
        genesis: &Genesis,
        interest: Interest,
        memory: Memory,
        contents: BTreeMap<BundleName, BundleTree>,
    ) -> Result<Self, Rejection> {
        let Interest::Bundles(names) = &interest else {
            panic!("BUG: a relay is restored from a snapshot")
        };
        let expected = *genesis.realm().genesis_hash();
        if memory.genesis_hash != expected {
            return Err(Rejection::Realm { offered: memory.genesis_hash, expected });
        }
        let wanted = |name: &BundleName| names.binary_search(name).is_ok();
        let heads: BTreeMap<_, _> = memory.floors.iter().filter(|(name, _)| wanted(name)).collect();
        let usable = |(name, tree): (BundleName, BundleTree)| {
            let head = heads.get(&name).filter(|head| head.describes(&tree))?;
            Some((name, Content { version: head.version, tree }))
        };
        let contents = contents.into_iter().filter_map(usable).collect();
        let heads = heads.into_iter().map(|(name, head)| (name.clone(), head.clone())).collect();
        let (root, size) = memory.history;
        Ok(Self {
            trusted: memory.trusted,
            history: HistoryView::Root(root, size),
            heads,
            floors: memory.floors,
            contents,
            ..Self::genesis(genesis, interest)
        })
    }
}

impl Canonical for Memory {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.genesis_hash);
        self.trusted.encode(w);
        w.array(&self.history.0);
        w.u64(self.history.1);
        w.count(self.floors.len());
        self.floors.values().for_each(|head| head.encode(w));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (genesis_hash, trusted) = (r.array()?, Trusted::decode(r)?);
        let history = (r.array()?, r.u64()?);
        let heads: Vec<Head> = r.list(FLOORS_MAX)?;
        if !heads.is_sorted_by(|a, b| a.name < b.name) {
            return Err(DecodeError::Invalid("order of floors"));
        }
        let floors = heads.into_iter().map(|head| (head.name.clone(), head)).collect();
        Ok(Self { genesis_hash, trusted, history, floors })
    }
}
