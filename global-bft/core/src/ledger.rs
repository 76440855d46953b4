//! Turns pending changes into blocks, checks blocks of others, and applies decided ones.
//!
//! # Invariants
//!
//! - **L1** `validate` accepts a block if and only if `build` at the same ledger, with the same
//!   changes, proposer and time, gives that very block: every header field is re-derived.
//! - **L2** `apply` changes the ledger only for a valid block with a valid commit.
//! - **L3** Two ledgers that applied the same blocks are equal, and their next blocks too.
//!
//! # Deliberately absent
//!
//! Timeliness of the proposer's clock: the host checks it, because it needs a clock.

use std::{collections::BTreeMap, sync::Arc};

use satrap_certify::{
    Action, Address, Block, BlockId, BundleName, Checkpoint, Commit, Commitments, Digest, Genesis,
    Governance, Head, Realm, SignedChange, Step, Timestamp, Update, ValidatorSet,
    limits::{BLOCK_CHANGES_BYTES_MAX, BLOCK_CHANGES_MAX, HEADS_MAX, HISTORY_LEAVES_MAX},
    replica::directory_of,
    update::{Delta, HistoryUpdate},
};
use satrap_merkle::{
    BundleTree,
    codec::{Canonical, DecodeError, Reader, Writer},
    history::History,
    rfc6962,
};

use crate::{
    rejection::Rejection,
    state::{Applied, State},
};

/// The global state at one height.
#[derive(Clone, Debug)]
pub struct Ledger {
    genesis: Arc<Genesis>,
    last: Option<(Checkpoint, BlockId)>,
    validators: ValidatorSet,
    state: State,
    history: Arc<History>,
}

/// A block's effect, derived but not yet committed to.
struct Derived {
    state: State,
    history: Arc<History>,
    /// The history leaf, if the directory changed.
    leaf: Option<Digest>,
    deltas: Vec<Delta>,
    next_validators: ValidatorSet,
    checkpoint: Checkpoint,
}

impl Ledger {
    /// The state before the first block.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        Self {
            genesis: Arc::new(genesis.clone()),
            last: None,
            validators: genesis.validators().clone(),
            state: State {
                governance: Arc::new(genesis.governance.clone()),
                heads: BTreeMap::new(),
                contents: BTreeMap::new(),
            },
            history: Arc::default(),
        }
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        self.genesis.realm()
    }

    /// The last applied height.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.last.as_ref().map_or(0, |(checkpoint, _)| checkpoint.height)
    }

    /// Who signs the next height.
    #[must_use]
    pub fn validators(&self) -> &ValidatorSet {
        &self.validators
    }

    /// The last applied block.
    #[must_use]
    pub fn last(&self) -> Option<&(Checkpoint, BlockId)> {
        self.last.as_ref()
    }

    /// Block time must be after this.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        self.last.as_ref().map_or(self.genesis.time, |(checkpoint, _)| checkpoint.time)
    }

    /// The governance state.
    #[must_use]
    pub fn governance(&self) -> &Governance {
        &self.state.governance
    }

    /// Heads by name.
    #[must_use]
    pub fn heads(&self) -> &BTreeMap<BundleName, Head> {
        &self.state.heads
    }

    /// Content of a bundle.
    #[must_use]
    pub fn content(&self, bundle: &BundleName) -> Option<&BundleTree> {
        self.state.contents.get(bundle)
    }

    /// Whether `change` could be in the next block.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] says why not.
    pub fn check(&self, change: &SignedChange) -> Result<(), Rejection> {
        if encoded_bytes(change) > BLOCK_CHANGES_BYTES_MAX {
            return Err(Rejection::BlockLimit);
        }
        let mut state = self.state.clone();
        self.apply_change(&mut state, change).map(|_| ())
    }

    fn apply_change(&self, state: &mut State, change: &SignedChange) -> Result<Applied, Rejection> {
        if matches!(change.change.action, Action::Publish(_)) {
            check_history_room(self.history.size())?;
        }
        state.apply(self.realm(), &self.validators, self.height() + 1, change)
    }

    /// Builds the next block from those of `pending` that apply, in order, up to the block limits.
    #[must_use]
    pub fn build<'a>(
        &self,
        proposer: Address,
        time: Timestamp,
        pending: impl IntoIterator<Item = &'a SignedChange>,
    ) -> Block {
        let mut state = self.state.clone();
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for change in pending {
            let room = bytes + encoded_bytes(change) <= BLOCK_CHANGES_BYTES_MAX
                && changes.len() < BLOCK_CHANGES_MAX;
            if room && self.apply_change(&mut state, change).is_ok() {
                bytes += encoded_bytes(change);
                changes.push(change.clone());
            }
        }
        let derived = self
            .derive(proposer, time, &changes)
            .expect("the changes were applied to the same state one line above");
        Block { checkpoint: derived.checkpoint, changes }
    }

    /// Re-derives `block` (L1).
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names what does not follow from this ledger.
    pub fn validate(&self, block: &Block) -> Result<(), Rejection> {
        self.derive_as(block).map(|_| ())
    }

    /// Applies a decided block and returns it as an update for replicas that follow.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] says why the block is invalid or uncertified; the ledger is unchanged.
    pub fn apply(&mut self, block: &Block, commit: &Commit) -> Result<Update, Rejection> {
        let derived = self.derive_as(block)?;
        commit.verify(self.realm(), &block.checkpoint, &self.validators)?;
        let directory_changed = derived.leaf.is_some();
        let set_changed = derived.next_validators != self.validators;
        let update = Update {
            genesis_hash: *self.realm().genesis_hash(),
            steps: vec![Step {
                checkpoint: block.checkpoint.clone(),
                commit: commit.clone(),
                sets: set_changed.then(|| derived.next_validators.clone()).into_iter().collect(),
            }],
            history: derived.leaf.map(|leaf| HistoryUpdate::Leaves(vec![leaf])),
            heads: (directory_changed || self.last.is_none())
                .then(|| directory_of(derived.state.heads.values()).prove_all()),
            contents: derived.deltas,
        };
        self.state = derived.state;
        self.history = derived.history;
        self.validators = derived.next_validators;
        self.last = Some((block.checkpoint.clone(), block.checkpoint.id(self.realm())));
        Ok(update)
    }

    fn derive_as(&self, block: &Block) -> Result<Derived, Rejection> {
        let offered = &block.checkpoint;
        let (height, current) = (offered.height, self.height());
        if height != current + 1 {
            return Err(Rejection::Height { offered: height, current });
        }
        if offered.last_block != self.last.as_ref().map(|(_, id)| *id) {
            return Err(Rejection::LastBlock);
        }
        let (time, last) = (offered.time, self.last_time());
        if time <= last {
            return Err(Rejection::Time { offered: time, last });
        }
        if self.validators.index_of(&offered.proposer).is_none() {
            return Err(Rejection::Proposer(offered.proposer));
        }
        let bytes: usize = block.changes.iter().map(encoded_bytes).sum();
        if bytes > BLOCK_CHANGES_BYTES_MAX || block.changes.len() > BLOCK_CHANGES_MAX {
            return Err(Rejection::BlockLimit);
        }
        let derived = self.derive(offered.proposer, time, &block.changes)?;
        match difference(&derived.checkpoint, offered) {
            Some(field) => Err(Rejection::Derived(field)),
            None => Ok(derived),
        }
    }

    fn derive(
        &self,
        proposer: Address,
        time: Timestamp,
        changes: &[SignedChange],
    ) -> Result<Derived, Rejection> {
        let height = self.height() + 1;
        let mut state = self.state.clone();
        let mut deltas: Vec<Delta> = Vec::new();
        for change in changes {
            if let Some(delta) = self.apply_change(&mut state, change)? {
                deltas.push(delta);
            }
        }
        let deltas = self.one_per_bundle(deltas, &state);
        let directory = directory_of(state.heads.values());
        let mut history = self.history.clone();
        let leaf = (!deltas.is_empty()).then(|| {
            let mut w = Writer::tagged("satrap/history/v1");
            w.u64(height);
            w.array(&directory.root());
            w.u64(directory.size());
            rfc6962::leaf_hash(&w.finish())
        });
        if let Some(leaf) = leaf {
            Arc::make_mut(&mut history).append(leaf);
        }
        let next_validators = state
            .governance
            .validator_set()
            .expect("rule V15 admits only validators that form a set");
        let checkpoint = Checkpoint {
            height,
            time,
            last_block: self.last.as_ref().map(|(_, id)| *id),
            data_hash: Block::data_hash(changes),
            validators_hash: self.validators.hash(),
            next_validators_hash: next_validators.hash(),
            proposer,
            commitments: Commitments {
                directory_root: directory.root(),
                directory_size: directory.size(),
                history_root: history.root(),
                history_size: history.size(),
                governance_root: state.governance.root(),
            },
        };
        Ok(Derived { state, history, leaf, deltas, next_validators, checkpoint })
    }

    /// A follower gets one delta per bundle; a bundle published twice in one block is sent whole.
    fn one_per_bundle(&self, deltas: Vec<Delta>, state: &State) -> Vec<Delta> {
        let mut merged: BTreeMap<BundleName, Delta> = BTreeMap::new();
        for delta in deltas {
            let name = delta.bundle.clone();
            let delta = match merged.contains_key(&name) {
                false => delta,
                true => Delta::whole(name.clone(), &state.contents[&name]),
            };
            merged.insert(name, delta);
        }
        merged.into_values().collect()
    }
}

fn encoded_bytes(change: &SignedChange) -> usize {
    change.to_canonical().len()
}

/// V17
fn check_history_room(size: u64) -> Result<(), Rejection> {
    if size >= HISTORY_LEAVES_MAX as u64 {
        return Err(Rejection::HistoryFull(size));
    }
    Ok(())
}

/// The first header field in which two checkpoints differ.
fn difference(derived: &Checkpoint, offered: &Checkpoint) -> Option<&'static str> {
    let (d, o) = (&derived.commitments, &offered.commitments);
    let fields = [
        ("data hash", derived.data_hash == offered.data_hash),
        ("validators hash", derived.validators_hash == offered.validators_hash),
        ("next validators hash", derived.next_validators_hash == offered.next_validators_hash),
        ("directory root", d.directory_root == o.directory_root),
        ("directory size", d.directory_size == o.directory_size),
        ("history root", d.history_root == o.history_root),
        ("history size", d.history_size == o.history_size),
        ("governance root", d.governance_root == o.governance_root),
        ("header", derived == offered),
    ];
    fields.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
}

/// The ledger's own snapshot on disk. It is not a message: it is read back only by the validator
/// that wrote it, which then compares the next decided block with it.
impl Ledger {
    /// Encodes everything but the genesis.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut w = Writer::tagged("satrap/ledger/v1");
        w.option(self.last.as_ref().map(|(checkpoint, _)| checkpoint));
        // The id covers every field of the header, so that damage to any of them shows.
        w.option(self.last.as_ref().map(|(_, id)| id));
        self.state.governance.encode(&mut w);
        let heads: Vec<_> = self.state.heads.values().cloned().collect();
        w.list(&heads);
        for head in &heads {
            Delta::whole(head.name.clone(), &self.state.contents[&head.name]).encode(&mut w);
        }
        w.list(self.history.leaves_from(0));
        w.finish()
    }

    /// Decodes a snapshot.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if it is damaged.
    pub fn restore(genesis: &Genesis, snapshot: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(snapshot);
        let tag = "satrap/ledger/v1";
        if r.bytes(tag.len())? != tag.as_bytes() {
            return Err(DecodeError::Invalid("ledger snapshot format"));
        }
        let last: Option<Checkpoint> = r.option()?;
        let last_id: Option<BlockId> = r.option()?;
        let governance = Governance::decode(&mut r)?;
        let heads: Vec<Head> = r.list(HEADS_MAX)?;
        let mut contents = BTreeMap::new();
        for head in &heads {
            let tree = Delta::decode(&mut r)?.apply(&BundleTree::default());
            if !head.describes(&tree) {
                return Err(DecodeError::Invalid("bundle content in the ledger snapshot"));
            }
            contents.insert(head.name.clone(), tree);
        }
        let mut history = History::default();
        r.list(HISTORY_LEAVES_MAX)?.into_iter().for_each(|leaf| history.append(leaf));
        if r.remaining() != 0 {
            return Err(DecodeError::Trailing(r.remaining()));
        }
        let mut ledger = Self::genesis(genesis);
        ledger.validators = governance
            .validator_set()
            .map_err(|_| DecodeError::Invalid("validators in the ledger snapshot"))?;
        ledger.state = State {
            governance: Arc::new(governance),
            heads: heads.into_iter().map(|head| (head.name.clone(), head)).collect(),
            contents,
        };
        ledger.history = Arc::new(history);
        ledger.last = last.map(|checkpoint| {
            let id = checkpoint.id(ledger.realm());
            (checkpoint, id)
        });
        if ledger.last.as_ref().map(|(_, id)| *id) != last_id {
            return Err(DecodeError::Invalid("ledger snapshot: the last header is damaged"));
        }
        ledger.check_snapshot()?;
        Ok(ledger)
    }

    /// The restored state must be the one the last header commits to.
    fn check_snapshot(&self) -> Result<(), DecodeError> {
        let Some((checkpoint, _)) = &self.last else { return Ok(()) };
        let directory = directory_of(self.state.heads.values());
        let restored = Commitments {
            directory_root: directory.root(),
            directory_size: directory.size(),
            history_root: self.history.root(),
            history_size: self.history.size(),
            governance_root: self.state.governance.root(),
        };
        if restored != checkpoint.commitments {
            return Err(DecodeError::Invalid(
                "ledger snapshot: it is not what its header certifies",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v17_a_full_history_takes_no_more_directories() {
        let limit = HISTORY_LEAVES_MAX as u64;
        assert_eq!(check_history_room(limit - 1), Ok(()));
        assert_eq!(check_history_room(limit), Err(Rejection::HistoryFull(limit)));
    }
}
