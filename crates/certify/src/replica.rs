//! A verified copy of the realm, or of the part one follower wants.
//!
//! Every tier holds one: validators feed it their own decisions, ring members what their leader
//! adopted, edges what a region sent. [`Replica::verify`] decides whether an update may become
//! state, against a sender that may lie in every field; [`Replica::advance`] makes it so.
//!
//! # Invariants
//!
//! - **R1** `verify` borrows the replica: a refused update cannot have changed anything.
//! - **R2** Height, history size and the version of every bundle never decrease.
//! - **R3** The content of every bundle has the root that its head certifies; one update moves all
//!   bundles to the same directory, so versions are never mixed.
//! - **R4** A bundle asked for is either proven absent, or held at the certified version. A server
//!   that leaves a newer version out is refused (D2, B5), it cannot pass for "nothing new".
//!
//! # Deliberately absent
//!
//! When to ask and whom: that is the follower's `pull`. How stale is too stale: the follower
//! knows [`Replica::certified_time`] and its own policy.

mod heads;
mod serve;

pub use serve::directory_of;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use satrap_merkle::{
    BundleTree, Digest,
    directory::DirectoryProof,
    history::{self, History},
};

use crate::{
    certified::Certified,
    checkpoint::Commitments,
    directory::Head,
    genesis::{Genesis, Policy, Realm},
    light::Trusted,
    limits::{
        BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, JOURNAL_BYTES_MAX, JOURNAL_DELTAS_MAX, STEPS_MAX,
    },
    names::BundleName,
    rejection::Rejection,
    timestamp::Timestamp,
    update::{Delta, HistoryUpdate, Interest, Position, Step, Update},
};

/// Verified state, and what is needed to prove it to others.
#[derive(Clone, Debug)]
pub struct Replica {
    realm: Realm,
    policy: Policy,
    interest: Interest,
    trusted: Trusted,
    /// How `trusted` was certified; `None` at the genesis.
    newest: Option<Step>,
    /// Every verified step that changed the validator set, oldest first.
    set_changes: Vec<Step>,
    history: HistoryView,
    heads: BTreeMap<BundleName, Head>,
    /// Proof of `heads` under the newest directory root.
    heads_proof: Option<DirectoryProof>,
    contents: BTreeMap<BundleName, Content>,
}

/// What a follower keeps of the history.
#[derive(Clone, Debug)]
enum HistoryView {
    /// A relay: all leaves, to prove consistency to any follower.
    Log(Arc<History>),
    /// An edge: the certified root and size.
    Root(Digest, u64),
}

/// A bundle's content, and how it came about lately.
#[derive(Clone, Debug, Default)]
struct Content {
    tree: BundleTree,
    journal: VecDeque<JournalEntry>,
}

#[derive(Clone, Debug)]
struct JournalEntry {
    base_root: Digest,
    delta: Arc<Delta>,
}

/// A verified move of a replica, ready to be made.
#[derive(Clone, Debug)]
pub struct Advance {
    trusted: Trusted,
    newest: Step,
    set_changes: Vec<Step>,
    history: HistoryAdvance,
    heads: Option<ProvenHeads>,
    contents: Vec<(Head, BundleTree, Delta)>,
}

/// How the history moves, verified.
#[derive(Clone, Debug)]
enum HistoryAdvance {
    Append(Vec<Digest>),
    Root(Digest, u64),
}

/// Heads and their proof under one directory root.
#[derive(Clone, Debug)]
struct ProvenHeads {
    heads: BTreeMap<BundleName, Head>,
    proof: DirectoryProof,
}

impl Advance {
    /// The height this moves to.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.trusted.height
    }

    /// Bundles whose content changes, with their heads.
    pub fn changed(&self) -> impl Iterator<Item = (&Head, &BundleTree)> {
        self.contents.iter().map(|(head, tree, _)| (head, tree))
    }
}

impl Replica {
    /// A replica that has seen nothing but the genesis.
    #[must_use]
    pub fn genesis(genesis: &Genesis, interest: Interest) -> Self {
        let history = match interest {
            Interest::Everything => HistoryView::Log(Arc::default()),
            Interest::Bundles(_) => HistoryView::Root(History::default().root(), 0),
        };
        Self {
            realm: genesis.realm().clone(),
            policy: genesis.policy,
            interest,
            trusted: Trusted::genesis(genesis),
            newest: None,
            set_changes: Vec::new(),
            history,
            heads: BTreeMap::new(),
            heads_proof: None,
            contents: BTreeMap::new(),
        }
    }

    /// Rebuilds a replica from its own [`Replica::snapshot`]. Everything is verified again, except
    /// against the clock: the trusting period was checked when the steps were first made, and a
    /// process must come up with its last known good however long it was off.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] says what in the snapshot is damaged.
    pub fn restore(
        genesis: &Genesis,
        interest: Interest,
        snapshot: &Update,
    ) -> Result<Self, Rejection> {
        let mut replica = Self::genesis(genesis, interest);
        let advance = replica.check(snapshot, Clock::Ignored)?;
        replica.make(advance);
        Ok(replica)
    }

    /// Which realm this is a copy of.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The highest verified height; 0 before the first checkpoint.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.trusted.height
    }

    /// The certified time of that height.
    #[must_use]
    pub fn certified_time(&self) -> Timestamp {
        self.trusted.time
    }

    /// The newest verified checkpoint and its neighborhood.
    #[must_use]
    pub fn trusted(&self) -> &Trusted {
        &self.trusted
    }

    /// How the newest checkpoint was certified.
    #[must_use]
    pub fn newest(&self) -> Option<&Step> {
        self.newest.as_ref()
    }

    /// Verified heads, by name.
    #[must_use]
    pub fn heads(&self) -> &BTreeMap<BundleName, Head> {
        &self.heads
    }

    /// The verified content of a bundle.
    #[must_use]
    pub fn content(&self, bundle: &BundleName) -> Option<&BundleTree> {
        self.contents.get(bundle).map(|content| &content.tree)
    }

    /// Decides whether `update` may become state. `now` is the caller's clock.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] blames the sender; the replica is unchanged (R1).
    pub fn verify(&self, update: &Update, now: Timestamp) -> Result<Certified<Advance>, Rejection> {
        self.check(update, Clock::Now(now)).map(Certified::by_verification)
    }

    /// [`Replica::verify`] for what this process itself decided: no clock judges it.
    ///
    /// A clock protects against strangers who show an old state. What a process decided, or holds in
    /// its own store, is no older than the process; were its age judged, a realm that was down for
    /// longer than the trusting period could never store its next block.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names the rule. None of them depends on the time of day.
    pub fn verify_own(&self, update: &Update) -> Result<Certified<Advance>, Rejection> {
        self.check(update, Clock::Ignored).map(Certified::by_verification)
    }

    /// Makes a verified move.
    ///
    /// # Panics
    ///
    /// If the replica has moved since `advance` was verified; the caller must not interleave.
    pub fn advance(&mut self, advance: Certified<Advance>) {
        let advance = advance.into_inner();
        assert!(advance.height() > self.height(), "BUG: a verified advance was overtaken");
        self.make(advance);
    }

    fn check(&self, update: &Update, clock: Clock) -> Result<Advance, Rejection> {
        // C1
        if update.genesis_hash != *self.realm.genesis_hash() {
            let (offered, expected) = (update.genesis_hash, *self.realm.genesis_hash());
            return Err(Rejection::Realm { offered, expected });
        }
        let (trusted, set_changes) = self.check_steps(&update.steps, clock)?;
        let (_, commitments) = trusted.certified.as_ref().expect("a step certifies a block");
        let history = self.check_history(&update.history, commitments, trusted.height)?;
        let heads = self.check_heads(update.heads.as_ref(), commitments)?;
        let current = heads.as_ref().map_or(&self.heads, |proven| &proven.heads);
        let contents = self.check_contents(&update.contents, current)?;
        let newest = update.steps.last().expect("check_steps refused an empty list").clone();
        Ok(Advance { trusted, newest, set_changes, history, heads, contents })
    }

    /// C2 to C11
    fn check_steps(&self, steps: &[Step], clock: Clock) -> Result<(Trusted, Vec<Step>), Rejection> {
        if !(1..=STEPS_MAX).contains(&steps.len()) {
            return Err(Rejection::Steps(STEPS_MAX));
        }
        let mut trusted = self.trusted.clone();
        let mut set_changes = Vec::new();
        for step in steps {
            let now = match clock {
                Clock::Now(now) => now,
                Clock::Ignored => trusted.time,
            };
            let policy = match clock {
                Clock::Now(_) => self.policy,
                Clock::Ignored => Policy { clock_drift: core::time::Duration::MAX, ..self.policy },
            };
            trusted = trusted.step(&self.realm, &policy, step, now)?;
            if step.checkpoint.validators_hash != step.checkpoint.next_validators_hash {
                set_changes.push(step.clone());
            }
        }
        Ok((trusted, set_changes))
    }

    /// H1
    fn check_history(
        &self,
        update: &HistoryUpdate,
        commitments: &Commitments,
        height: u64,
    ) -> Result<HistoryAdvance, Rejection> {
        let refuse =
            |why: &dyn core::fmt::Display| Rejection::History { height, why: why.to_string() };
        let (root, size) = (commitments.history_root, commitments.history_size);
        match (&self.history, update) {
            (HistoryView::Log(log), HistoryUpdate::Leaves(leaves)) => {
                if log.size() + leaves.len() as u64 != size || log.root_after(leaves) != root {
                    return Err(refuse(&"the appended leaves do not give the certified root"));
                }
                Ok(HistoryAdvance::Append(leaves.clone()))
            }
            (HistoryView::Root(held_root, held_size), HistoryUpdate::Proof(proof)) => {
                history::verify_consistency(held_root, *held_size, &root, size, proof)
                    .map_err(|e| refuse(&e))?;
                Ok(HistoryAdvance::Root(root, size))
            }
            _ => Err(refuse(&"relays need leaves, edges need a proof")),
        }
    }

    /// D1, D2, B1, B2
    fn check_heads(
        &self,
        proof: Option<&DirectoryProof>,
        commitments: &Commitments,
    ) -> Result<Option<ProvenHeads>, Rejection> {
        let held_root = self.directory_root();
        let Some(proof) = proof else {
            if held_root == Some(commitments.directory_root) {
                return Ok(None);
            }
            return Err(Rejection::Directory("it changed, but no heads were sent".into()));
        };
        let proven = proof
            .verify(&commitments.directory_root, commitments.directory_size, Head::name_of)
            .map_err(|e| Rejection::Directory(e.to_string()))?;
        let heads = match &self.interest {
            Interest::Everything => heads::all_heads(&proven, commitments.directory_size)?,
            Interest::Bundles(names) => heads::wanted_heads(&proven, names)?,
        };
        for (name, held) in &self.heads {
            match heads.get(name) {
                Some(head) if head.version > held.version || head == held => {}
                Some(head) if head.version == held.version => {
                    let (bundle, version) = (name.clone(), held.version);
                    return Err(Rejection::Fork { bundle, version });
                }
                offered => {
                    let offered = offered.map_or(0, |head| head.version);
                    let (bundle, held) = (name.clone(), held.version);
                    return Err(Rejection::Rollback { bundle, held, offered });
                }
            }
        }
        Ok(Some(ProvenHeads { heads, proof: proof.clone() }))
    }

    /// B3 to B7
    fn check_contents(
        &self,
        deltas: &[Delta],
        heads: &BTreeMap<BundleName, Head>,
    ) -> Result<Vec<(Head, BundleTree, Delta)>, Rejection> {
        let mut offered = BTreeMap::new();
        for delta in deltas {
            if offered.insert(&delta.bundle, delta).is_some() {
                return Err(Rejection::Unasked(delta.bundle.clone()));
            }
        }
        let mut contents = Vec::new();
        for (name, head) in heads {
            let held = self.heads.get(name).map_or(0, |held| held.version);
            if held == head.version {
                continue;
            }
            let delta = offered.remove(name).ok_or_else(|| Rejection::ContentWithheld {
                bundle: name.clone(),
                version: head.version,
            })?;
            contents.push((head.clone(), self.rebuild(head, held, delta)?, delta.clone()));
        }
        match offered.keys().next() {
            Some(name) => Err(Rejection::Unasked((*name).clone())),
            None => Ok(contents),
        }
    }

    fn rebuild(&self, head: &Head, held: u64, delta: &Delta) -> Result<BundleTree, Rejection> {
        let bundle = || head.name.clone();
        if head.bytes > BUNDLE_BYTES_MAX || head.entries > BUNDLE_ENTRIES_MAX as u64 {
            let what = format!("{} bytes in {} entries", head.bytes, head.entries);
            return Err(Rejection::Limit { bundle: bundle(), what });
        }
        if delta.base != 0 && delta.base != held {
            return Err(Rejection::DeltaBase { bundle: bundle(), base: delta.base, held });
        }
        let empty = BundleTree::default();
        let tree = delta.apply(self.content(&head.name).unwrap_or(&empty));
        if !head.describes(&tree) {
            return Err(Rejection::Content {
                bundle: bundle(),
                version: head.version,
                computed: tree.root(),
                certified: head.root,
            });
        }
        Ok(tree)
    }

    fn make(&mut self, advance: Advance) {
        self.trusted = advance.trusted;
        self.newest = Some(advance.newest);
        self.set_changes.extend(advance.set_changes);
        match (&mut self.history, advance.history) {
            (HistoryView::Log(_), HistoryAdvance::Append(leaves)) if leaves.is_empty() => {}
            (HistoryView::Log(log), HistoryAdvance::Append(leaves)) => {
                let log = Arc::make_mut(log);
                leaves.into_iter().for_each(|leaf| log.append(leaf));
            }
            (view, HistoryAdvance::Root(root, size)) => *view = HistoryView::Root(root, size),
            (HistoryView::Root(..), HistoryAdvance::Append(_)) => {
                unreachable!("check_history refuses leaves for an edge")
            }
        }
        if let Some(proven) = advance.heads {
            self.heads = proven.heads;
            self.heads_proof = Some(proven.proof);
        }
        for (head, tree, delta) in advance.contents {
            let content = self.contents.entry(head.name).or_default();
            if self.interest == Interest::Everything {
                content.remember(delta);
            }
            content.tree = tree;
        }
    }

    fn directory_root(&self) -> Option<Digest> {
        self.trusted.certified.as_ref().map(|(_, commitments)| commitments.directory_root)
    }

    /// Where this replica stands, for asking a server.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position_of(&self.interest)
    }

    /// Where a follower with `interest` stands that has taken everything this replica has.
    #[must_use]
    pub fn position_of(&self, interest: &Interest) -> Position {
        let wanted = |name: &BundleName| match interest {
            Interest::Everything => true,
            Interest::Bundles(names) => names.binary_search(name).is_ok(),
        };
        let held = |(name, head): (&BundleName, &Head)| (name.clone(), head.version, head.root);
        Position {
            genesis_hash: *self.realm.genesis_hash(),
            height: self.height(),
            directory_root: self.directory_root().unwrap_or([0; 32]),
            history_size: self.history.size(),
            interest: interest.clone(),
            held: self.heads.iter().filter(|(name, _)| wanted(name)).map(held).collect(),
        }
    }
}

/// Whether the clock rules (C8, C9) apply.
#[derive(Clone, Copy)]
enum Clock {
    Now(Timestamp),
    Ignored,
}

impl HistoryView {
    fn size(&self) -> u64 {
        match self {
            Self::Log(log) => log.size(),
            Self::Root(_, size) => *size,
        }
    }
}

impl Content {
    /// Keeps the step that leads away from the present content, within bounds.
    fn remember(&mut self, delta: Delta) {
        if delta.base == 0 {
            self.journal.clear();
            return;
        }
        let base_root = self.tree.root();
        self.journal.push_back(JournalEntry { base_root, delta: Arc::new(delta) });
        let bytes = |journal: &VecDeque<JournalEntry>| -> u64 {
            journal.iter().map(|entry| entry.delta.bytes()).sum()
        };
        while self.journal.len() > JOURNAL_DELTAS_MAX || bytes(&self.journal) > JOURNAL_BYTES_MAX {
            self.journal.pop_front();
        }
    }
}
