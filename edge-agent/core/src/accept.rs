//! Decides whether an offered update may become what this edge runs.
//!
//! A region is trusted to deliver, never to author. If one is compromised it can delay this edge,
//! but must not make it run anything the validators did not certify. So every claim in an offer
//! is checked again here, against the genesis the edge was provisioned with.
//!
//! ```text
//!          Offered            Staged, complete       Activated (of the last bundle)
//!   Idle ──────────▶ Staging ────────▶ Activating ─────────────────────────────▶ Idle
//!    ▲                  │ StageFailed,    │  │ ActivationFailed: quarantine, next bundle
//!    └──────────────────┘ Staged in part  └──┘ ActivationDeferred: next bundle
//! ```
//!
//! In both cases the bundle's old version stays active; a deferred one is pending again as soon as
//! the next offer is staged.
//!
//! # Invariants
//!
//! - **A1** Only a [`Certified`] advance leaves this module, and only [`Replica::verify`] makes one.
//! - **A2** Content is durable before a workload sees it, and a version is recorded as active only
//!   after the workload took it. A crash therefore restarts into a config that already ran here.
//! - **A3** Neither the verified nor the active version of a bundle ever decreases. The active one
//!   is the newest verified version, or the last one that worked if that one failed here or its
//!   bundle was retired.
//! - **A4** At most one offer is in flight. A second one is refused, not queued.
//! - **A5** A version that failed to activate is quarantined: it is not tried again until the
//!   certified version changes.
//! - **A6** Offers may be parts: each is verified and made durable by itself, and nothing is
//!   activated before they are complete. So what runs is of one directory, never a mixture.
//!
//! # Deliberately absent
//!
//! No sockets, files, clocks, tasks or randomness. There is no retry either: [`crate::pull`]
//! decides when to ask again, and this module only judges. How long parts may stay incomplete is
//! for [`satrap_pressure::Freshness`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use satrap_certify::{
    Advance, BundleName, Certified, Digest, Head, Position, Rejection, Replica, Timestamp, Update,
};
use satrap_merkle::BundleTree;

/// A version a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Active {
    /// Version of the bundle.
    pub version: u64,
    /// Its root.
    pub root: Digest,
}

/// What happens to an acceptor.
#[derive(Debug)]
pub enum Event {
    /// A server sent an update.
    Offered(Box<Update>),
    /// The staged state is durable.
    Staged,
    /// The staged state could not be made durable.
    StageFailed,
    /// The workload runs the bundle, and that is recorded.
    Activated,
    /// The version cannot run here: the workload did not take it and runs the one from before.
    ActivationFailed,
    /// The host was at fault, a full disk for example; the version from before runs.
    ActivationDeferred,
}

/// What the caller does next.
#[derive(Debug)]
pub enum Effect {
    /// Make this state durable, then report [`Event::Staged`] or [`Event::StageFailed`].
    Stage(Box<Staged>),
    /// Hand this content to the workload, record it as active or failed, then report
    /// [`Event::Activated`], [`Event::ActivationFailed`] or [`Event::ActivationDeferred`].
    Activate(Head, BundleTree),
    /// Nothing is in flight; what runs is in [`Acceptor::active`].
    Settled,
}

/// A verified state that is to be made durable (A1, A2).
#[derive(Clone, Debug)]
pub struct Staged {
    /// The state after the advance.
    pub replica: Replica,
    /// Bundles whose content differs from what is on disk.
    pub changed: Vec<BundleName>,
}

#[derive(Debug)]
enum Step {
    Idle,
    Staging(Box<Staged>),
    Activating(Head, VecDeque<Head>),
}

/// Judges offers for one edge and tracks the one it is installing.
#[derive(Debug)]
pub struct Acceptor {
    replica: Replica,
    active: BTreeMap<BundleName, Active>,
    quarantine: BTreeSet<(BundleName, Active)>,
    step: Step,
}

impl Acceptor {
    /// An edge that verified `replica` before and whose workload runs `active`.
    #[must_use]
    pub fn new(
        replica: Replica,
        active: BTreeMap<BundleName, Active>,
        quarantine: BTreeSet<(BundleName, Active)>,
    ) -> Self {
        Self { replica, active, quarantine, step: Step::Idle }
    }

    /// Goes on where a crash may have interrupted: `ready` is what was complete when it was last
    /// made durable (A2, A6). To be called once, before any event.
    #[must_use]
    pub fn resume(&mut self, ready: &BTreeMap<BundleName, Active>) -> Effect {
        let heads = self.replica.heads();
        let known = |(name, version): (&BundleName, &Active)| {
            heads.get(name).filter(|head| Active::of(head) == *version && self.is_pending(head))
        };
        let pending: VecDeque<Head> = ready.iter().filter_map(known).cloned().collect();
        let held = |head: &Head| {
            self.replica.content(&head.name).is_some_and(|content| head.describes(content))
        };
        // A6: what was lost on the disk comes from a server, and then all of it at once.
        let complete = pending.iter().all(held);
        self.activate_next(if complete { pending } else { VecDeque::new() })
    }

    /// The verified state.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// What the workload runs.
    #[must_use]
    pub fn active(&self) -> &BTreeMap<BundleName, Active> {
        &self.active
    }

    /// Versions that failed here (A5).
    #[must_use]
    pub fn quarantine(&self) -> &BTreeSet<(BundleName, Active)> {
        &self.quarantine
    }

    /// Where to go on from; sent to a server.
    #[must_use]
    pub fn position(&self) -> Position {
        self.replica.position()
    }

    /// Whether an offer could be taken now (A4).
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    /// Takes one event and returns the one thing to do next.
    ///
    /// `now` is compared with certificate times and nothing else.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] names what is wrong with the *offer*, and leaves the state unchanged.
    /// Count it against the peer that sent the offer.
    ///
    /// # Panics
    ///
    /// If an outcome is reported that nothing is in flight for, or an offer is made while one is
    /// in flight. The caller has then lost track of what is on disk, and going on could activate
    /// the wrong config (A2, A4).
    pub fn step(&mut self, now: Timestamp, event: Event) -> Result<Effect, Rejection> {
        Ok(match (core::mem::replace(&mut self.step, Step::Idle), event) {
            // A1, A3: the only line where an offer turns into something we may act on.
            (Step::Idle, Event::Offered(update)) => {
                let advance = self.replica.verify(&update, now)?;
                self.stage(advance)
            }
            // A2
            (Step::Staging(staged), Event::Staged) => {
                self.replica = staged.replica;
                self.activate_next(self.pending())
            }
            (Step::Staging(_), Event::StageFailed) => Effect::Settled,
            (Step::Activating(head, rest), Event::Activated) => {
                self.active.insert(head.name.clone(), Active::of(&head));
                self.quarantine.retain(|(name, _)| *name != head.name);
                self.activate_next(rest)
            }
            // A5
            (Step::Activating(head, rest), Event::ActivationFailed) => {
                self.quarantine.retain(|(name, _)| *name != head.name);
                self.quarantine.insert((head.name.clone(), Active::of(&head)));
                self.activate_next(rest)
            }
            (Step::Activating(_, rest), Event::ActivationDeferred) => self.activate_next(rest),
            (step, event) => panic!("BUG: {event:?} while {step:?}"),
        })
    }

    fn stage(&mut self, advance: Certified<Advance>) -> Effect {
        let changed = advance.changed().map(|(head, _)| head.name.clone()).collect();
        let mut replica = self.replica.clone();
        replica.advance(advance);
        let staged = Box::new(Staged { replica, changed });
        self.step = Step::Staging(staged.clone());
        Effect::Stage(staged)
    }

    /// Verified heads to be activated (A6).
    fn pending(&self) -> VecDeque<Head> {
        if !self.replica.is_complete() {
            return VecDeque::new();
        }
        let heads = self.replica.heads().values();
        heads.filter(|head| self.is_pending(head)).cloned().collect()
    }

    /// A3, A5
    fn is_pending(&self, head: &Head) -> bool {
        let newer = |active: &Active| head.version > active.version;
        self.active.get(&head.name).is_none_or(newer)
            && !self.quarantine.contains(&(head.name.clone(), Active::of(head)))
    }

    fn activate_next(&mut self, mut pending: VecDeque<Head>) -> Effect {
        let Some(head) = pending.pop_front() else { return Effect::Settled };
        let tree = self.replica.content(&head.name);
        let tree = tree.expect("a complete replica holds what its heads say (R4)").clone();
        self.step = Step::Activating(head.clone(), pending);
        Effect::Activate(head, tree)
    }
}

impl Active {
    /// The version `head` speaks of.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        Self { version: head.version, root: head.root }
    }
}
