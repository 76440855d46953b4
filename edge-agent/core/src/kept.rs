//! The state that an edge must never forget, as one value with a digest.
//!
//! An edge that forgot its newest verified checkpoint, the highest version of a bundle, or what
//! runs, would take an older version for news. So all of that is one value, written as a whole and
//! read back as a whole: it cannot be half old. The disk is the adversary; it may have lost or
//! altered any of it.
//!
//! # Invariants
//!
//! - **KEPT-3** The value is read back as it was written, or not at all: it is canonical and carries a
//!   digest. Nothing in it depends on which bundles are wanted, or whether content can be read.
//! - **KEPT-4** Nothing in it is lowered, but by a reset that is certified.

use std::collections::{BTreeMap, BTreeSet};

use satrap_certify::{
    BundleName, Digest, Genesis, Interest, Memory, Rejection, Replica,
    limits::{FLOORS_MAX, INTEREST_MAX},
};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::accept::{Active, Staged};

/// Separates these digests from all others.
const SEAL_CONTEXT: &str = "satrap 2026 edge memory v1";

/// Bundles in one list: each has a floor, but for those of one configuration that were found
/// running after the database was lost.
const VERSIONS_MAX: usize = FLOORS_MAX + INTEREST_MAX;

/// Versions by bundle.
pub type Versions = BTreeMap<BundleName, Active>;

/// The memory of an edge: nothing in it may be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The newest verified checkpoint, and the highest version of every bundle.
    pub memory: Memory,
    /// The heads that were certified when all of their content was held: it may be activated
    /// without any server.
    pub ready: Versions,
    /// The versions that the workload runs.
    pub active: Versions,
    /// Versions that failed here.
    pub quarantine: BTreeSet<(BundleName, Active)>,
}

/// Why a sealed value cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It has not the digest it carries.
    #[error("its digest does not match")]
    Digest,
    /// It has, and still is no value of this format.
    #[error("another build wrote it: {0}")]
    Format(#[from] DecodeError),
}

impl Kept {
    /// An edge that has seen nothing but the genesis.
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            memory: Replica::genesis(genesis, Interest::Bundles(Vec::new())).memory(),
            ready: Versions::new(),
            active: Versions::new(),
            quarantine: BTreeSet::new(),
        }
    }

    /// After `staged` is made durable.
    pub fn staged(&mut self, staged: &Staged) {
        self.memory = staged.replica.memory();
        if staged.replica.is_complete() {
            let heads = staged.replica.heads().values();
            self.ready = heads.map(|head| (head.name.clone(), Active::of(head))).collect();
        }
    }

    /// After the workload took `version`.
    pub fn activated(&mut self, bundle: &BundleName, version: Active) {
        self.active.insert(bundle.clone(), version);
        self.quarantine.retain(|(name, _)| name != bundle);
    }

    /// After the workload refused `version`.
    pub fn quarantined(&mut self, bundle: &BundleName, version: Active) {
        self.quarantine.retain(|(name, _)| name != bundle);
        self.quarantine.insert((bundle.clone(), version));
    }

    /// Takes over what was provisioned, where it is newer (KEPT-4): its checkpoint if that is higher,
    /// and each of its versions that is.
    ///
    /// # Errors
    ///
    /// [`Rejection::Realm`] if it is of another realm.
    pub fn raise(&mut self, provisioned: Memory) -> Result<(), Rejection> {
        let memory = &mut self.memory;
        let (offered, expected) = (provisioned.genesis_hash, memory.genesis_hash);
        if offered != expected {
            return Err(Rejection::Realm { offered, expected });
        }
        if provisioned.trusted.height > memory.trusted.height {
            memory.trusted = provisioned.trusted;
            memory.history = provisioned.history;
        }
        for (name, head) in provisioned.floors {
            let lower = memory.floors.get(&name).is_none_or(|floor| floor.version < head.version);
            if lower {
                memory.floors.insert(name, head);
            }
        }
        Ok(())
    }

    /// The value with its digest (KEPT-3).
    #[must_use]
    pub fn seal(&self) -> Vec<u8> {
        let mut bytes = self.to_canonical();
        let digest = digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads back what [`Kept::seal`] made (KEPT-3).
    ///
    /// # Errors
    ///
    /// [`SealError`] says what is wrong with the bytes.
    pub fn unseal(bytes: &[u8]) -> Result<Self, SealError> {
        let (value, seal) = bytes.split_last_chunk::<32>().ok_or(SealError::Digest)?;
        if digest(value) != *seal {
            return Err(SealError::Digest);
        }
        Ok(Self::from_canonical(value)?)
    }
}

fn digest(bytes: &[u8]) -> Digest {
    blake3::derive_key(SEAL_CONTEXT, bytes)
}

impl Canonical for Active {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.version);
        w.array(&self.root);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { version: r.u64()?, root: r.array()? })
    }
}

impl Canonical for Kept {
    fn encode(&self, w: &mut Writer) {
        self.memory.encode(w);
        encode_versions(self.ready.iter(), w);
        encode_versions(self.active.iter(), w);
        encode_versions(self.quarantine.iter().map(|(name, version)| (name, version)), w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            memory: Memory::decode(r)?,
            ready: decode_versions(r)?,
            active: decode_versions(r)?,
            quarantine: decode_versions(r)?.into_iter().collect(),
        })
    }
}

fn encode_versions<'a>(
    versions: impl ExactSizeIterator<Item = (&'a BundleName, &'a Active)>,
    w: &mut Writer,
) {
    w.count(versions.len());
    for (name, version) in versions {
        name.encode(w);
        version.encode(w);
    }
}

/// At most one version for each bundle, in the order of names.
fn decode_versions(r: &mut Reader<'_>) -> Result<Versions, DecodeError> {
    let mut versions = Versions::new();
    for _ in 0..r.count(VERSIONS_MAX)? {
        let (name, version) = (BundleName::decode(r)?, Active::decode(r)?);
        if versions.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(DecodeError::Invalid("order of bundle names"));
        }
        versions.insert(name, version);
    }
    Ok(versions)
}
