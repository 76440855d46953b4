//! Changes, which operators sign: of one bundle, or of the governance state.
//!
//! The signature covers the realm (by genesis hash), the version the change expects, and for a
//! publish the Merkle root that results. A change can therefore not be replayed in another realm
//! or at another time, and an approver approves the exact outcome, not a recipe for it.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use satrap_merkle::{
    BundleTree, Digest, Key,
    codec::{Canonical, DecodeError, Reader, Writer, ascending},
    rfc6962,
};
use sha2::{Digest as _, Sha256};

use crate::{
    checkpoint::Checkpoint,
    genesis::Realm,
    governance::GovernanceAct,
    keys::{PublicKey, SignatureBytes, sign},
    limits::{APPROVALS_MAX, BLOCK_CHANGES_MAX, BUNDLE_ENTRIES_MAX, VALUE_BYTES_MAX},
    names::BundleName,
};

/// One key of a bundle with its value.
pub type Entry = (Key, Arc<[u8]>);

/// The new content of some keys of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Which bundle.
    pub bundle: BundleName,
    /// The version this change applies to. A bundle that does not exist is created with the highest
    /// version that was ever retired, `Governance::retired_version`: 0 as long as none was.
    pub expect_version: u64,
    /// The root of the bundle after this change.
    pub root: Digest,
    /// Keys in strictly ascending order, with their new values.
    pub puts: Vec<Entry>,
    /// Keys in strictly ascending order that are removed.
    pub deletes: Vec<Key>,
}

impl Publish {
    /// The change that turns `from` (at `expect_version`) into `to`.
    #[must_use]
    pub fn between(
        bundle: BundleName,
        expect_version: u64,
        from: &BundleTree,
        to: &BundleTree,
    ) -> Self {
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        let mut held = from.iter().peekable();
        for (key, value) in to {
            while let Some((gone, _)) = held.next_if(|(held, _)| *held < key) {
                deletes.push(gone.clone());
            }
            let before = held.next_if(|(held, _)| *held == key);
            if before.is_none_or(|(_, before)| before != value) {
                puts.push((key.clone(), value.clone()));
            }
        }
        deletes.extend(held.map(|(key, _)| key.clone()));
        Self { bundle, expect_version, root: to.root(), puts, deletes }
    }
}

/// Takes a bundle out of the directory, entries and all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retire {
    /// Which bundle.
    pub bundle: BundleName,
    /// The version it must be at.
    pub expect_version: u64,
}

/// The effect of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publishes a new version of a bundle.
    Publish(Publish),
    /// Removes a bundle. Its name may be used again, at a higher version.
    Retire(Retire),
    /// Changes the governance state, which must be at the given version.
    Govern(u64, GovernanceAct),
}

impl Action {
    /// The bundle it changes.
    #[must_use]
    pub fn bundle(&self) -> Option<&BundleName> {
        match self {
            Self::Publish(publish) => Some(&publish.bundle),
            Self::Retire(retire) => Some(&retire.bundle),
            Self::Govern(..) => None,
        }
    }
}

/// An action in a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The genesis hash of the realm it is meant for.
    pub genesis_hash: Digest,
    /// The effect.
    pub action: Action,
}

impl Change {
    /// An action in `realm`.
    #[must_use]
    pub fn new(realm: &Realm, action: Action) -> Self {
        Self { genesis_hash: *realm.genesis_hash(), action }
    }

    /// Identifies the change, whichever operators approved it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut w = Writer::tagged("satrap/change/v1");
        self.encode(&mut w);
        Sha256::digest(w.finish()).into()
    }

    /// The bytes that an approval signs.
    #[must_use]
    pub fn approval_bytes(&self) -> Vec<u8> {
        let mut w = Writer::tagged("satrap/approval/v1");
        w.array(&self.digest());
        w.finish()
    }
}

/// One operator's signature on a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// The operator's key.
    pub operator: PublicKey,
    /// Over [`Change::approval_bytes`].
    pub signature: SignatureBytes,
}

/// A change with the approvals it has so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedChange {
    /// The approved change.
    pub change: Change,
    /// The signatures so far, strictly ascending by key.
    pub approvals: Vec<Approval>,
}

impl SignedChange {
    /// A change without approvals.
    #[must_use]
    pub fn unsigned(change: Change) -> Self {
        Self { change, approvals: Vec::new() }
    }

    /// Adds the signature of `operator` over [`Change::approval_bytes`], or replaces an earlier one.
    pub fn add_approval(&mut self, operator: PublicKey, signature: SignatureBytes) {
        self.approvals.retain(|a| a.operator != operator);
        self.approvals.push(Approval { operator, signature });
        self.approvals.sort_by_key(|a| a.operator);
    }

    /// Adds (or renews) the approval of `key`'s operator.
    pub fn approve(&mut self, key: &SigningKey) {
        let signature = sign(key, &self.change.approval_bytes());
        self.add_approval(PublicKey::of(key), signature);
    }
}

/// A checkpoint and the changes it carries: what validators propose and vote on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The header and the state that results.
    pub checkpoint: Checkpoint,
    /// Applied in this order.
    pub changes: Vec<SignedChange>,
}

impl Block {
    /// The RFC 6962 root over the changes, which the header's `data_hash` must equal.
    #[must_use]
    pub fn data_hash(changes: &[SignedChange]) -> Digest {
        let leaves: Vec<_> =
            changes.iter().map(|c| rfc6962::leaf_hash(&c.to_canonical())).collect();
        rfc6962::root(&leaves)
    }
}

pub(crate) fn encode_puts(puts: &[Entry], w: &mut Writer) {
    w.count(puts.len());
    for (key, value) in puts {
        key.encode(w);
        w.bytes(value);
    }
}

pub(crate) fn decode_puts(r: &mut Reader<'_>) -> Result<Vec<Entry>, DecodeError> {
    let mut puts = Vec::new();
    for _ in 0..r.count(BUNDLE_ENTRIES_MAX)? {
        puts.push((Key::decode(r)?, Arc::from(r.bytes(VALUE_BYTES_MAX)?)));
    }
    ascending(puts.iter().map(|(key, _)| key))?;
    Ok(puts)
}

pub(crate) fn decode_deletes(r: &mut Reader<'_>) -> Result<Vec<Key>, DecodeError> {
    let deletes: Vec<Key> = r.list(BUNDLE_ENTRIES_MAX)?;
    ascending(deletes.iter())?;
    Ok(deletes)
}

impl Canonical for Publish {
    fn encode(&self, w: &mut Writer) {
        self.bundle.encode(w);
        w.u64(self.expect_version);
        w.array(&self.root);
        encode_puts(&self.puts, w);
        w.list(&self.deletes);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (bundle, expect_version, root) = (BundleName::decode(r)?, r.u64()?, r.array()?);
        let (puts, deletes) = (decode_puts(r)?, decode_deletes(r)?);
        let is_put = |key: &Key| puts.binary_search_by(|(put, _)| put.cmp(key)).is_ok();
        if deletes.iter().any(is_put) {
            return Err(DecodeError::Invalid("publish: a key is both put and deleted"));
        }
        Ok(Self { bundle, expect_version, root, puts, deletes })
    }
}

impl Canonical for Retire {
    fn encode(&self, w: &mut Writer) {
        self.bundle.encode(w);
        w.u64(self.expect_version);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { bundle: BundleName::decode(r)?, expect_version: r.u64()? })
    }
}

impl Canonical for Change {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.genesis_hash);
        match &self.action {
            Action::Publish(publish) => {
                w.u8(0);
                publish.encode(w);
            }
            Action::Govern(expect_version, act) => {
                w.u8(1);
                w.u64(*expect_version);
                act.encode(w);
            }
            Action::Retire(retire) => {
                w.u8(2);
                retire.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let genesis_hash = r.array()?;
        let action = match r.u8()? {
            0 => Action::Publish(Publish::decode(r)?),
            1 => Action::Govern(r.u64()?, GovernanceAct::decode(r)?),
            2 => Action::Retire(Retire::decode(r)?),
            _ => return Err(DecodeError::Invalid("action")),
        };
        Ok(Self { genesis_hash, action })
    }
}

impl Canonical for Approval {
    fn encode(&self, w: &mut Writer) {
        self.operator.encode(w);
        w.array(&self.signature);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { operator: PublicKey::decode(r)?, signature: r.array()? })
    }
}

impl Canonical for SignedChange {
    fn encode(&self, w: &mut Writer) {
        self.change.encode(w);
        w.list(&self.approvals);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let change = Change::decode(r)?;
        let approvals: Vec<Approval> = r.list(APPROVALS_MAX)?;
        ascending(approvals.iter().map(|a| a.operator))?;
        Ok(Self { change, approvals })
    }
}

impl Canonical for Block {
    fn encode(&self, w: &mut Writer) {
        self.checkpoint.encode(w);
        w.list(&self.changes);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { checkpoint: Checkpoint::decode(r)?, changes: r.list(BLOCK_CHANGES_MAX)? })
    }
}
