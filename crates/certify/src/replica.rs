//! A verified copy of the realm, or of the part one follower wants.
//!
//! Every tier holds one: validators feed it their own decisions, ring members what their leader
//! adopted, edges what a region sent. [`Replica::verify`] decides whether an update may become
//! state, against a sender that may lie in every field; [`Replica::advance`] makes it so.
//!
//! ```text
//!   steps alone ──▶ steps, history, heads, some content ──▶ more content … ──▶ complete
//!   (far behind)              (the newest checkpoint)       (same checkpoint)
//! ```
//!
//! # Invariants
//!
//! - **REPLICA-1** `verify` borrows the replica: a refused update cannot have changed anything.
//! - **REPLICA-2** Height, history size and the version of every bundle never decrease. The highest
//!   version of a bundle is remembered as its floor, whether or not the bundle is still wanted.
//! - **REPLICA-3** The content of every bundle has the root that its head certifies.
//! - **REPLICA-4** A replica [is complete](Replica::is_complete) only if every bundle asked for is proven
//!   absent, or held at the version that the newest checkpoint certifies. Followers act on complete
//!   replicas, so versions are never mixed, and a server that leaves a newer version out cannot
//!   pass for "nothing new" (D2, B5).
//!
//! # Deliberately absent
//!
//! When to ask and which server, and how long it may take to complete its answer: that is the
//! follower's `pull`. How stale is too stale: the follower knows [`Replica::certified_time`] and its
//! own policy.

mod heads;
mod journal;
mod memory;
mod serve;
mod verify;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use journal::Journal;
pub use memory::Memory;
use satrap_merkle::{
    BundleTree, Digest,
    directory::{Directory, DirectoryProof},
    history::History,
};
pub use serve::{Answer, directory_of};

use crate::{
    certified::Certified,
    directory::Head,
    genesis::{Genesis, Policy, Realm},
    light::{Clock, Trusted},
    names::BundleName,
    rejection::Rejection,
    timestamp::Timestamp,
    update::{Delta, Interest, Position, Snapshot, Step, Update},
    validators::ValidatorSet,
};

/// Verified state, and what is needed to prove it to others.
#[derive(Clone, Debug)]
pub struct Replica {
    realm: Realm,
    policy: Policy,
    interest: Interest,
    trusted: Trusted,
    /// The set that signs height 1, where every path begins.
    first_validators: ValidatorSet,
    /// How `trusted` was certified; `None` at the genesis and after [`Replica::resume`].
    newest: Option<Step>,
    /// Every verified step that changed the announced set, with the set it announced; oldest first.
    path: Arc<Vec<(Step, ValidatorSet)>>,
    history: HistoryView,
    /// The directory that `heads` belong to; `None` if they may be older than `trusted`.
    heads_root: Option<Digest>,
    heads: BTreeMap<BundleName, Head>,
    /// Proof of `heads` under `heads_root`.
    heads_proof: Option<DirectoryProof>,
    /// REPLICA-2
    floors: BTreeMap<BundleName, Head>,
    contents: BTreeMap<BundleName, Content>,
    /// Relays only.
    journal: Journal,
    /// Built when the first follower asks for heads.
    directory: Arc<OnceLock<Directory>>,
}

/// The part of the history that a follower keeps.
#[derive(Clone, Debug)]
enum HistoryView {
    /// A relay: all leaves, to prove consistency to any follower.
    Log(Arc<History>),
    /// An edge: the certified root and size.
    Root(Digest, u64),
}

/// A bundle's content, and the version it is of.
#[derive(Clone, Debug, Default)]
struct Content {
    version: u64,
    tree: BundleTree,
}

/// A verified move of a replica, ready to be made.
#[derive(Clone, Debug)]
pub struct Advance {
    trusted: Trusted,
    /// The last step, if there were any.
    newest: Option<Step>,
    path: Vec<(Step, ValidatorSet)>,
    history: Option<HistoryAdvance>,
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
    root: Digest,
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
            first_validators: genesis.validators().clone(),
            newest: None,
            path: Arc::default(),
            history,
            heads_root: None,
            heads: BTreeMap::new(),
            heads_proof: None,
            floors: BTreeMap::new(),
            contents: BTreeMap::new(),
            journal: Journal::default(),
            directory: Arc::default(),
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
        snapshot: &Snapshot,
    ) -> Result<Self, Rejection> {
        let mut replica = Self::genesis(genesis, interest);
        let advance = replica.check(&snapshot.0, Clock::Ignored)?;
        replica.make(advance);
        if let Some(withheld) = replica.withheld() {
            return Err(withheld);
        }
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

    /// How the newest checkpoint was certified; `None` at the genesis and right after
    /// [`Replica::resume`].
    #[must_use]
    pub fn newest(&self) -> Option<&Step> {
        self.newest.as_ref()
    }

    /// Verified heads, by name.
    #[must_use]
    pub fn heads(&self) -> &BTreeMap<BundleName, Head> {
        &self.heads
    }

    /// The verified content of a bundle: of the version in its head, or of an older one while the
    /// replica is not complete.
    #[must_use]
    pub fn content(&self, bundle: &BundleName) -> Option<&BundleTree> {
        self.contents.get(bundle).map(|content| &content.tree)
    }

    /// REPLICA-4: heads and content are those that the newest checkpoint certifies. True at the genesis,
    /// which certifies nothing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.withheld().is_none()
    }

    /// Says which head or content is certified but not held.
    #[must_use]
    pub fn withheld(&self) -> Option<Rejection> {
        let (_, commitments) = self.trusted.certified.as_ref()?;
        if self.heads_root != Some(commitments.directory_root) {
            let why = format!("the heads at height {} are withheld", self.height());
            return Some(Rejection::Directory(why));
        }
        let missing = self.heads.values().find(|head| !self.holds(head))?;
        let (bundle, version) = (missing.name.clone(), missing.version);
        Some(Rejection::ContentWithheld { bundle, version })
    }

    fn holds(&self, head: &Head) -> bool {
        self.contents.get(&head.name).is_some_and(|content| content.version == head.version)
    }

    /// Decides whether `update` may become state. `now` is the caller's clock.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] blames the sender; the replica is unchanged (REPLICA-1).
    pub fn verify(&self, update: &Update, now: Timestamp) -> Result<Certified<Advance>, Rejection> {
        self.check(update, Clock::Now(now)).map(Certified::by_verification)
    }

    /// [`Replica::verify`] for what this process itself decided: no clock judges it.
    ///
    /// A clock protects against strangers who show an old state. State that a process decided, or
    /// holds in its own store, is no older than the process; were its age judged, a realm that was
    /// down for longer than the trusting period could never store its next block.
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
        assert!(advance.height() >= self.height(), "BUG: a verified advance was overtaken");
        self.make(advance);
    }

    fn make(&mut self, advance: Advance) {
        self.trusted = advance.trusted;
        self.newest = advance.newest.or(self.newest.take());
        if !advance.path.is_empty() {
            Arc::make_mut(&mut self.path).extend(advance.path);
        }
        match (&mut self.history, advance.history) {
            (_, None) => {}
            (HistoryView::Log(log), Some(HistoryAdvance::Append(leaves))) => {
                let log = Arc::make_mut(log);
                leaves.into_iter().for_each(|leaf| log.append(leaf));
            }
            (view, Some(HistoryAdvance::Root(root, size))) => *view = HistoryView::Root(root, size),
            (HistoryView::Root(..), Some(HistoryAdvance::Append(_))) => {
                unreachable!("check_history refuses leaves for an edge")
            }
        }
        if let Some(proven) = advance.heads {
            self.take_heads(proven);
        }
        for (head, tree, delta) in advance.contents {
            let content = self.contents.entry(head.name).or_default();
            if self.interest == Interest::Everything {
                self.journal.remember(delta, content.tree.root());
            }
            *content = Content { version: head.version, tree };
        }
    }

    fn take_heads(&mut self, proven: ProvenHeads) {
        self.directory = Arc::default();
        self.heads_root = Some(proven.root);
        self.heads = proven.heads;
        self.heads_proof = Some(proven.proof);
        // A bundle that is proven absent was retired.
        self.contents.retain(|name, _| self.heads.contains_key(name));
        match self.interest {
            // A relay serves what there is; versions of retired names rise by rule V28.
            Interest::Everything => self.floors.clone_from(&self.heads),
            Interest::Bundles(_) => {
                let heads = self.heads.iter().map(|(name, head)| (name.clone(), head.clone()));
                self.floors.extend(heads);
            }
        }
    }

    /// The position of this replica, for asking a server.
    #[must_use]
    pub fn position(&self) -> Position {
        let held = self.contents.iter().map(|(name, content)| {
            let root = content.tree.root();
            (name.clone(), content.version, root)
        });
        Position {
            genesis_hash: *self.realm.genesis_hash(),
            height: self.height(),
            directory_root: self.heads_root.unwrap_or([0; 32]),
            history_size: self.history.size(),
            interest: self.interest.clone(),
            held: held.collect(),
        }
    }
}

impl HistoryView {
    fn size(&self) -> u64 {
        match self {
            Self::Log(log) => log.size(),
            Self::Root(_, size) => *size,
        }
    }

    fn root(&self) -> Digest {
        match self {
            Self::Log(log) => log.root(),
            Self::Root(root, _) => *root,
        }
    }
}
