//! Turns pending changes into blocks, checks blocks of others, and applies decided ones.
//!
//! # Invariants
//!
//! - **LEDGER-1** `validate` accepts a block if and only if `build` at the same ledger, with the same
//!   changes, proposer and time, gives that very block: every header field is re-derived.
//! - **LEDGER-2** `apply` changes the ledger only for a valid block with a valid commit.
//! - **LEDGER-3** Two ledgers that applied the same blocks are equal, and their next blocks too.
//!
//! # Deliberately absent
//!
//! Timeliness of the proposer's clock: the host checks it, because it needs a clock.

mod snapshot;

use std::{collections::BTreeMap, sync::Arc};

use satrap_certify::{
    Address, Block, BlockId, BundleName, Checkpoint, Commit, Commitments, Digest, Genesis,
    Governance, Head, Realm, SignedChange, Step, Timestamp, Update, ValidatorSet,
    limits::{BLOCK_APPROVALS_MAX, BLOCK_CHANGES_BYTES_MAX, BLOCK_CHANGES_MAX, BLOCK_NODES_MAX},
    replica::directory_of,
    update::{Delta, HistoryUpdate},
};
use satrap_merkle::{
    BundleTree,
    codec::{Canonical, Writer},
    history::History,
    rfc6962,
};

use crate::{
    accounts::Accounts,
    rejection::Rejection,
    room::Room,
    state::{Applied, Cost, Setting, State},
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
            state: State::genesis(genesis.governance.clone()),
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

    /// The validators that sign the next height.
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

    /// The owners of bundles, and the budgets that principals have left.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.state.accounts
    }

    /// The block after the last one, at `time`.
    fn setting(&self, time: Timestamp) -> Setting<'_> {
        Setting {
            realm: self.realm(),
            signing_set: &self.validators,
            height: self.height() + 1,
            time,
            history_size: self.history.size(),
        }
    }

    /// Whether `change` could be in the next block; returns the size its bundle would have.
    ///
    /// Budgets are those at the time of the last block, so that a change which passes does not
    /// have to wait for time to pass.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] says why not.
    pub fn check(&self, change: &SignedChange) -> Result<Room, Rejection> {
        if change.to_canonical().len() > BLOCK_CHANGES_BYTES_MAX {
            return Err(Rejection::BlockLimit);
        }
        let setting = self.setting(self.last_time());
        Ok(self.state.judge(&setting, change, &mut Cost::default())?.room())
    }

    /// Whether `change` names a version that this ledger has not reached; another one may have.
    #[must_use]
    pub fn is_behind(&self, change: &SignedChange) -> bool {
        self.state.is_behind(self.realm(), &change.change)
    }

    /// Whether `change`, for which an earlier ledger's [`Ledger::check`] returned `room`, could be
    /// in the next block. Costs a few look-ups, whatever the change is.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] says why not.
    pub fn recheck(&self, change: &SignedChange, room: Room) -> Result<(), Rejection> {
        self.state.recheck(&self.setting(self.last_time()), change, room)
    }

    /// Builds the next block from those of `pending` that apply, in order, up to the block limits.
    ///
    /// Changes that do not apply cost too; what they may cost together is limited like a block.
    #[must_use]
    pub fn build<'a>(
        &self,
        proposer: Address,
        time: Timestamp,
        pending: impl IntoIterator<Item = &'a SignedChange>,
    ) -> Block {
        let mut draft = Draft::new(self, time);
        let mut changes = Vec::new();
        for change in pending {
            if draft.is_exhausted() {
                break;
            }
            if draft.add(change).is_ok() {
                changes.push(change.clone());
            }
        }
        Block { checkpoint: draft.finish(proposer).checkpoint, changes }
    }

    /// Re-derives `block` (LEDGER-1).
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
        if let Some(leaf) = derived.leaf {
            Arc::make_mut(&mut self.history).append(leaf);
        }
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
        let mut draft = Draft::new(self, time);
        block.changes.iter().try_for_each(|change| draft.add(change))?;
        let derived = draft.finish(offered.proposer);
        match difference(&derived.checkpoint, offered) {
            Some(field) => Err(Rejection::Derived(field)),
            None => Ok(derived),
        }
    }
}

/// The next block while changes are added to it.
struct Draft<'a> {
    ledger: &'a Ledger,
    setting: Setting<'a>,
    state: State,
    /// The delta of each changed bundle for followers; `None` if that is the whole content.
    deltas: BTreeMap<BundleName, Option<Delta>>,
    directory_changed: bool,
    /// RFC 6962 leaves over the changes, and the sum of their canonical bytes.
    leaves: Vec<Digest>,
    bytes: usize,
    cost: Cost,
    /// The cost of changes that were not added.
    wasted: Cost,
}

impl<'a> Draft<'a> {
    fn new(ledger: &'a Ledger, time: Timestamp) -> Self {
        Self {
            ledger,
            setting: ledger.setting(time),
            state: ledger.state.clone(),
            deltas: BTreeMap::new(),
            directory_changed: false,
            leaves: Vec::new(),
            bytes: 0,
            cost: Cost::default(),
            wasted: Cost::default(),
        }
    }

    /// Whether changes that were not added have cost as much as a block may.
    fn is_exhausted(&self) -> bool {
        self.wasted.approvals > BLOCK_APPROVALS_MAX || self.wasted.nodes > BLOCK_NODES_MAX
    }

    /// Adds a change, or leaves the draft as it is (V1 to V19, V25, V27, V28).
    fn add(&mut self, change: &SignedChange) -> Result<(), Rejection> {
        let encoded = change.to_canonical();
        let bytes = self.bytes + encoded.len();
        if bytes > BLOCK_CHANGES_BYTES_MAX || self.leaves.len() >= BLOCK_CHANGES_MAX {
            return Err(Rejection::BlockLimit);
        }
        let mut cost = self.cost;
        let effects = match self.state.judge(&self.setting, change, &mut cost) {
            Ok(effects) => effects,
            Err(refusal) => {
                self.wasted.approvals += cost.approvals - self.cost.approvals;
                self.wasted.nodes += cost.nodes - self.cost.nodes;
                return Err(refusal);
            }
        };
        (self.cost, self.bytes) = (cost, bytes);
        self.leaves.push(rfc6962::leaf_hash(&encoded));
        match self.state.commit(effects) {
            Applied::Published(delta) => {
                let again = self.deltas.contains_key(&delta.bundle);
                self.deltas.insert(delta.bundle.clone(), (!again).then_some(delta));
                self.directory_changed = true;
            }
            Applied::Retired(bundle) => {
                self.deltas.remove(&bundle);
                self.directory_changed = true;
            }
            Applied::Governed => {}
        }
        Ok(())
    }

    /// Derives everything that the header commits to.
    fn finish(self, proposer: Address) -> Derived {
        let Self { ledger, setting, mut state, .. } = self;
        state.seal(setting.time);
        let directory = directory_of(state.heads.values());
        let leaf = self.directory_changed.then(|| {
            let mut w = Writer::tagged("satrap/history/v1");
            w.u64(setting.height);
            w.array(&directory.root());
            w.u64(directory.size());
            rfc6962::leaf_hash(&w.finish())
        });
        let next_validators = state
            .governance
            .validator_set()
            .expect("rule V15 admits only validators that form a set");
        let checkpoint = Checkpoint {
            height: setting.height,
            time: setting.time,
            last_block: ledger.last.as_ref().map(|(_, id)| *id),
            data_hash: rfc6962::root(&self.leaves),
            validators_hash: ledger.validators.hash(),
            next_validators_hash: next_validators.hash(),
            proposer,
            commitments: Commitments {
                directory_root: directory.root(),
                directory_size: directory.size(),
                history_root: ledger.history.root_after(leaf.as_slice()),
                history_size: setting.history_size + u64::from(leaf.is_some()),
                governance_root: state.governance.root(),
            },
        };
        let deltas = self.deltas.into_iter();
        let deltas = deltas.map(|(name, delta)| {
            delta.unwrap_or_else(|| Delta::whole(name.clone(), &state.contents[&name]))
        });
        let deltas = deltas.collect();
        Derived { state, leaf, deltas, next_validators, checkpoint }
    }
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
