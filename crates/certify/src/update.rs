//! The messages of the sync protocol: the position of a follower, and the update that moves it on.
//!
//! An [`Update`] carries everything needed to verify it against a [`Position`]: the light-client
//! steps, the history proof, the heads with their directory proof, and content. It is at once the
//! wire message, the entry in the Raft log and, as a [`Snapshot`], the ring's checkpoint, so
//! bytes that are read back are verified by the same code as bytes from a stranger.
//!
//! An answer can be divided over several updates: steps alone, then the newest state with as much
//! content as fits, then more content at the same height. Each is verified by itself.

use satrap_merkle::{
    BundleTree, Digest, Key,
    codec::{Canonical, DecodeError, Reader, Writer},
    directory::DirectoryProof,
    history::ConsistencyProof,
};

use crate::{
    change::{Entry, decode_deletes, decode_puts, encode_puts},
    checkpoint::Checkpoint,
    commit::Commit,
    limits::{
        ENTRY_WIRE_BYTES, HEADS_MAX, HISTORY_LEAVES_MAX, INTEREST_MAX, PATH_STEPS_MAX, STEPS_MAX,
        UPDATE_ENTRIES_MAX,
    },
    names::BundleName,
    validators::ValidatorSet,
};

/// Which bundles a follower wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// All bundles and the whole history: a relay that serves others.
    Everything,
    /// These bundles: an edge. Strictly ascending.
    Bundles(Vec<BundleName>),
}

/// The position of a follower; sent to a server, which answers with the [`Update`] from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The follower's realm.
    pub genesis_hash: Digest,
    /// Highest verified checkpoint; 0 for the genesis.
    pub height: u64,
    /// The directory whose heads are held, zeros if none: the server leaves the heads out if it is
    /// still current.
    pub directory_root: Digest,
    /// Size of the verified history.
    pub history_size: u64,
    /// The bundles to send.
    pub interest: Interest,
    /// Content held: version and root. Strictly ascending by name.
    pub held: Vec<(BundleName, u64, Digest)>,
}

/// One light-client step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where to.
    pub checkpoint: Checkpoint,
    /// The validators' signatures of the checkpoint.
    pub commit: Commit,
    /// Sets that the checkpoint names and the follower may not know.
    pub sets: Vec<ValidatorSet>,
}

/// How the history at the newest checkpoint relates to the follower's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryUpdate {
    /// The leaves that were appended: for relays, which prove the history to others.
    Leaves(Vec<Digest>),
    /// A proof that the follower's history is a prefix.
    Proof(ConsistencyProof),
}

/// Content of one bundle, relative to a version the follower holds (0: to nothing).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Which bundle.
    pub bundle: BundleName,
    /// The version this applies to; 0 means the delta holds the whole content.
    pub base: u64,
    /// New values, strictly ascending by key.
    pub puts: Vec<Entry>,
    /// Removed keys, strictly ascending.
    pub deletes: Vec<Key>,
}

/// The message that brings a follower from one position closer to the newest checkpoint, or there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The sender's realm.
    pub genesis_hash: Digest,
    /// Steps in ascending height; none if the follower's checkpoint is the newest.
    pub steps: Vec<Step>,
    /// The history up to the last step; `None` if the follower holds it already, or if more steps
    /// follow in the next update.
    pub history: Option<HistoryUpdate>,
    /// The heads asked for, proven; `None` if the follower's directory is still current.
    pub heads: Option<DirectoryProof>,
    /// Content of bundles whose version changed: all of it, or what fits one update.
    pub contents: Vec<Delta>,
}

/// A whole replica: an update from the genesis that takes any number of validator-set changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(pub Update);

impl Delta {
    /// All of `tree`, for a follower that holds nothing.
    #[must_use]
    pub fn whole(bundle: BundleName, tree: &BundleTree) -> Self {
        let puts = tree.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { bundle, base: 0, puts, deletes: Vec::new() }
    }

    /// The content after this delta.
    #[must_use]
    pub fn apply(&self, base: &BundleTree) -> BundleTree {
        let nothing = BundleTree::default();
        let base = if self.base == 0 { &nothing } else { base };
        match base.batch(&self.puts, &self.deletes) {
            Some(batch) => batch.apply(),
            // Decoded deltas are in order. One made by hand is refused by its root.
            None => nothing,
        }
    }

    /// Bytes of the entries on the wire, with their lengths.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.bytes() + ENTRY_WIRE_BYTES * (self.puts.len() + self.deletes.len()) as u64
    }

    /// Bytes of keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let puts = self.puts.iter().map(|(key, value)| key.as_bytes().len() + value.len());
        let deletes = self.deletes.iter().map(|key| key.as_bytes().len());
        puts.chain(deletes).sum::<usize>() as u64
    }
}

impl Canonical for Interest {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Everything => w.u8(0),
            Self::Bundles(names) => {
                w.u8(1);
                w.list(names);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(Self::Everything),
            1 => {
                let names: Vec<BundleName> = r.list(INTEREST_MAX)?;
                if !names.is_sorted_by(|a, b| a < b) {
                    return Err(DecodeError::Invalid("order of bundle names"));
                }
                Ok(Self::Bundles(names))
            }
            _ => Err(DecodeError::Invalid("interest")),
        }
    }
}

impl Canonical for Position {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.genesis_hash);
        w.u64(self.height);
        w.array(&self.directory_root);
        w.u64(self.history_size);
        self.interest.encode(w);
        w.count(self.held.len());
        for (name, version, root) in &self.held {
            name.encode(w);
            w.u64(*version);
            w.array(root);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (genesis_hash, height) = (r.array()?, r.u64()?);
        let (directory_root, history_size) = (r.array()?, r.u64()?);
        let interest = Interest::decode(r)?;
        let mut held = Vec::new();
        for _ in 0..r.count(HEADS_MAX)? {
            held.push((BundleName::decode(r)?, r.u64()?, r.array()?));
        }
        if !held.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(DecodeError::Invalid("order of held bundles"));
        }
        if let Interest::Bundles(names) = &interest
            && held.iter().any(|(name, ..)| names.binary_search(name).is_err())
        {
            return Err(DecodeError::Invalid("held bundles: one was not asked for"));
        }
        Ok(Self { genesis_hash, height, directory_root, history_size, interest, held })
    }
}

impl Canonical for Step {
    fn encode(&self, w: &mut Writer) {
        self.checkpoint.encode(w);
        self.commit.encode(w);
        w.list(&self.sets);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (checkpoint, commit) = (Checkpoint::decode(r)?, Commit::decode(r)?);
        // The signing set and the announced one.
        Ok(Self { checkpoint, commit, sets: r.list(2)? })
    }
}

impl Canonical for HistoryUpdate {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Leaves(leaves) => {
                w.u8(0);
                w.list(leaves);
            }
            Self::Proof(proof) => {
                w.u8(1);
                proof.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(Self::Leaves(r.list(HISTORY_LEAVES_MAX)?)),
            1 => Ok(Self::Proof(ConsistencyProof::decode(r)?)),
            _ => Err(DecodeError::Invalid("history update")),
        }
    }
}

impl Canonical for Delta {
    fn encode(&self, w: &mut Writer) {
        self.bundle.encode(w);
        w.u64(self.base);
        encode_puts(&self.puts, w);
        w.list(&self.deletes);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            bundle: BundleName::decode(r)?,
            base: r.u64()?,
            puts: decode_puts(r)?,
            deletes: decode_deletes(r)?,
        })
    }
}

impl Update {
    fn decode_within(r: &mut Reader<'_>, steps_max: usize) -> Result<Self, DecodeError> {
        Ok(Self {
            genesis_hash: r.array()?,
            steps: r.list(steps_max)?,
            history: r.option()?,
            heads: r.option()?,
            contents: decode_contents(r)?,
        })
    }
}

/// The entries of all deltas together are bounded: small ones take many times their bytes in memory.
fn decode_contents(r: &mut Reader<'_>) -> Result<Vec<Delta>, DecodeError> {
    let (mut contents, mut entries) = (Vec::new(), 0);
    for _ in 0..r.count(HEADS_MAX)? {
        let delta = Delta::decode(r)?;
        entries += delta.puts.len() + delta.deletes.len();
        if entries > UPDATE_ENTRIES_MAX {
            return Err(DecodeError::TooLong { claimed: entries, max: UPDATE_ENTRIES_MAX });
        }
        contents.push(delta);
    }
    Ok(contents)
}

impl Canonical for Update {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.genesis_hash);
        w.list(&self.steps);
        w.option(self.history.as_ref());
        w.option(self.heads.as_ref());
        w.list(&self.contents);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_within(r, STEPS_MAX)
    }
}

impl Canonical for Snapshot {
    fn encode(&self, w: &mut Writer) {
        self.0.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Update::decode_within(r, PATH_STEPS_MAX).map(Self)
    }
}
