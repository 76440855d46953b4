//! Decides whether an offered update may become what this edge runs, and what is activated next.
//!
//! A region is trusted to deliver, never to author. If one is compromised it can delay this edge,
//! but must not make it run anything the validators did not certify. So every claim in an offer
//! is verified again here, against the genesis that the edge was provisioned with.
//!
//! Two things happen side by side, because a workload may take long over a version: an offer is
//! verified and made durable, and a version that is durable is activated.
//!
//! ```text
//!   offers        idle ── Offered ──▶ staging ── Staged, StageFailed ──▶ idle
//!
//!   activation    none ── complete state staged, or resumed ──▶ activating one version
//!                   ▲                                              │ Activated: it is active
//!                   │ no version is pending                        │ ActivationFailed: quarantine
//!                   └──────────────────────────────────────────────┘ ActivationDeferred: as before
//! ```
//!
//! After a failed or deferred activation the bundle's old version stays active. A deferred version
//! is pending again as soon as the next complete state is staged.
//!
//! # Invariants
//!
//! - **ACCEPT-1** Only a [`Certified`] advance leaves this module, and only [`Replica`] makes one, by
//!   verifying an update.
//! - **ACCEPT-2** Content is durable before a workload sees it, and a version is recorded as active only
//!   after the workload took it. A crash in between restarts with the version that was active, and
//!   activates the newer one again.
//! - **ACCEPT-3** Neither the verified nor the active version of a bundle ever decreases. The active one
//!   is the newest verified version, or the last one that worked if that one failed here, is not
//!   activated yet, or its bundle was retired.
//! - **ACCEPT-4** At most one offer is in flight, and at most one activation. A second offer is refused,
//!   not queued; of the versions that wait for an activation only those of one state are held.
//! - **ACCEPT-5** A version that failed to activate is quarantined: it is not tried again until the
//!   certified version changes.
//! - **ACCEPT-6** Offers may be parts: each is verified and made durable by itself, and nothing of them is
//!   activated before they are complete. The versions that are activated in a row are those of one
//!   certified directory; the next complete one replaces those that still wait.
//!
//! # Deliberately absent
//!
//! No sockets, files, clocks, tasks or randomness. There is no retry either: [`crate::follow`]
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

/// A version that is to be handed to the workload.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its bundle.
    pub bundle: BundleName,
    /// Its certified number and root.
    pub version: Active,
    /// The content that the root commits to.
    pub content: BundleTree,
}

/// An input of the acceptor.
#[derive(Debug)]
pub enum Event {
    /// A server sent an update.
    Offered(Box<Update>),
    /// The staged state is durable.
    Staged,
    /// The staged state could not be made durable.
    StageFailed,
    /// The workload runs the version, and that is recorded.
    Activated,
    /// The version cannot run here, and that is recorded; the workload runs the one from before.
    ActivationFailed,
    /// The host was at fault, a full disk for example; the version from before runs.
    ActivationDeferred,
}

/// The action that the acceptor asks of its caller.
#[derive(Debug)]
pub enum Effect {
    /// Make this state durable, then report [`Event::Staged`] or [`Event::StageFailed`].
    Stage(Box<Staged>),
    /// Begin to hand this content to the workload. When that has ended, record it as active or
    /// failed and report [`Event::Activated`], [`Event::ActivationFailed`] or
    /// [`Event::ActivationDeferred`]. Offers may be taken meanwhile.
    Activate(Candidate),
    /// Nothing; the next event comes from a server, or from the activation in flight.
    Wait,
}

/// A verified state that is to be made durable (ACCEPT-1, ACCEPT-2).
#[derive(Clone, Debug)]
pub struct Staged {
    /// The state after the advance.
    pub replica: Replica,
    /// Bundles whose content differs from what is on disk.
    pub changed: Vec<BundleName>,
}

/// Judges offers for one edge and tracks what it is installing.
#[derive(Debug)]
pub struct Acceptor {
    replica: Replica,
    active: BTreeMap<BundleName, Active>,
    quarantine: BTreeSet<(BundleName, Active)>,
    /// The state that is being made durable (ACCEPT-4).
    staging: Option<Box<Staged>>,
    /// The version that the workload is being given (ACCEPT-4).
    activating: Option<(BundleName, Active)>,
    /// Versions to activate after it, all of one complete state (ACCEPT-6).
    pending: VecDeque<Candidate>,
}

impl Acceptor {
    /// An edge that verified `replica` before and whose workload runs `active`.
    #[must_use]
    pub fn new(
        replica: Replica,
        active: BTreeMap<BundleName, Active>,
        quarantine: BTreeSet<(BundleName, Active)>,
    ) -> Self {
        Self {
            replica,
            active,
            quarantine,
            staging: None,
            activating: None,
            pending: VecDeque::new(),
        }
    }

    /// Goes on where a crash may have interrupted: `ready` has the wanted versions of the newest
    /// complete state that was made durable, of which parts of a later state change nothing
    /// (ACCEPT-2, ACCEPT-6), and `contents` what is held of them. To be called once, before any event.
    #[must_use]
    pub fn resume(
        &mut self,
        ready: &BTreeMap<BundleName, Active>,
        contents: &BTreeMap<BundleName, BundleTree>,
    ) -> Effect {
        let held = |(bundle, version): (&BundleName, &Active)| {
            let content = contents.get(bundle).filter(|content| content.root() == version.root)?;
            let (bundle, content) = (bundle.clone(), content.clone());
            Some(Candidate { bundle, version: *version, content })
        };
        let pending = ready.iter().filter(|(bundle, version)| self.is_pending(bundle, **version));
        let pending: Option<_> = pending.map(held).collect();
        // ACCEPT-6: if content of one is lost, a server brings it, and then all of them are activated.
        self.pending = pending.unwrap_or_default();
        self.activate_next()
    }

    /// The verified state.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The versions that the workload runs.
    #[must_use]
    pub fn active(&self) -> &BTreeMap<BundleName, Active> {
        &self.active
    }

    /// Versions that failed here (ACCEPT-5).
    #[must_use]
    pub fn quarantine(&self) -> &BTreeSet<(BundleName, Active)> {
        &self.quarantine
    }

    /// The version that the workload is being given.
    #[must_use]
    pub fn activating(&self) -> Option<(&BundleName, Active)> {
        self.activating.as_ref().map(|(bundle, version)| (bundle, *version))
    }

    /// The position to continue from; sent to a server.
    #[must_use]
    pub fn position(&self) -> Position {
        self.replica.position()
    }

    /// Whether an offer could be taken now (ACCEPT-4).
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.staging.is_none()
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
    /// the wrong config (ACCEPT-2, ACCEPT-4).
    pub fn step(&mut self, now: Timestamp, event: Event) -> Result<Effect, Rejection> {
        Ok(match (event, self.staging.take(), self.activating.take()) {
            // ACCEPT-1, ACCEPT-3: the only line where an offer turns into something we may act on.
            (Event::Offered(update), None, activating) => {
                self.activating = activating;
                let advance = self.replica.verify(&update, now)?;
                self.stage(advance)
            }
            // ACCEPT-2
            (Event::Staged, Some(staged), activating) => {
                self.activating = activating;
                self.replica = staged.replica;
                // ACCEPT-6: parts change nothing of what was complete before.
                if self.replica.is_complete() {
                    self.pending = self.newest();
                }
                self.activate_next()
            }
            (Event::StageFailed, Some(_), activating) => {
                self.activating = activating;
                Effect::Wait
            }
            (Event::Activated, staging, Some((bundle, version))) => {
                self.staging = staging;
                self.quarantine.retain(|(name, _)| *name != bundle);
                self.active.insert(bundle, version);
                self.activate_next()
            }
            // ACCEPT-5
            (Event::ActivationFailed, staging, Some((bundle, version))) => {
                self.staging = staging;
                self.quarantine.retain(|(name, _)| *name != bundle);
                self.quarantine.insert((bundle, version));
                self.activate_next()
            }
            (Event::ActivationDeferred, staging, Some(_)) => {
                self.staging = staging;
                self.activate_next()
            }
            (event, staging, activating) => {
                panic!("BUG: {event:?} while staging {staging:?} and activating {activating:?}")
            }
        })
    }

    fn stage(&mut self, advance: Certified<Advance>) -> Effect {
        let changed = advance.changed().map(|(head, _)| head.name.clone()).collect();
        let mut replica = self.replica.clone();
        replica.advance(advance);
        let staged = Box::new(Staged { replica, changed });
        self.staging = Some(staged.clone());
        Effect::Stage(staged)
    }

    /// The versions of the complete verified state that are to be activated (ACCEPT-6).
    fn newest(&self) -> VecDeque<Candidate> {
        let pending = |head: &&Head| self.is_pending(&head.name, Active::of(head));
        let with_content = |head: &Head| {
            let content = self.replica.content(&head.name);
            let content = content.expect("a complete replica holds what its heads say (REPLICA-4)");
            let (bundle, content) = (head.name.clone(), content.clone());
            Candidate { bundle, version: Active::of(head), content }
        };
        self.replica.heads().values().filter(pending).map(with_content).collect()
    }

    /// ACCEPT-3, ACCEPT-5
    fn is_pending(&self, bundle: &BundleName, version: Active) -> bool {
        let newer = |active: &Active| version.version > active.version;
        self.active.get(bundle).is_none_or(newer)
            && !self.quarantine.contains(&(bundle.clone(), version))
    }

    /// ACCEPT-4: nothing, as long as an activation is in flight.
    fn activate_next(&mut self) -> Effect {
        if self.activating.is_some() {
            return Effect::Wait;
        }
        while let Some(candidate) = self.pending.pop_front() {
            let Candidate { bundle, version, .. } = &candidate;
            // Again, because the activation that was in flight may have been of this version.
            if self.is_pending(bundle, *version) {
                self.activating = Some((bundle.clone(), *version));
                return Effect::Activate(candidate);
            }
        }
        Effect::Wait
    }
}

impl Active {
    /// The version `head` speaks of.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        Self { version: head.version, root: head.root }
    }
}

#[cfg(test)]
mod tests {
    use satrap_certify::Interest;
    use satrap_sim::SimRealm;

    use super::*;

    /// A realm, a relay that has all of it, and an edge that wants two bundles.
    struct World {
        realm: SimRealm,
        relay: Replica,
        edge: Acceptor,
    }

    impl World {
        fn new() -> Self {
            let realm = SimRealm::new("accept", 4);
            let relay = Replica::genesis(&realm.genesis, Interest::Everything);
            let names = ["config/a", "config/b"].map(|name| BundleName::new(name).unwrap());
            let wanted = Replica::genesis(&realm.genesis, Interest::Bundles(names.to_vec()));
            let edge = Acceptor::new(wanted, BTreeMap::new(), BTreeSet::new());
            Self { realm, relay, edge }
        }

        /// Publishes one value in both bundles, and offers it: whole, or without content.
        fn offer(&mut self, value: &str, whole: bool) -> Effect {
            let changes = ["config/a", "config/b"];
            let changes = changes.map(|name| self.realm.publish(name, &[("k", value)]));
            let update = self.realm.decide(&changes).unwrap();
            let advance = self.relay.verify(&update, self.realm.now).unwrap();
            self.relay.advance(advance);
            let mut offer = self.relay.answer(&self.edge.position()).unwrap().unwrap().update;
            if !whole {
                offer.contents.clear();
            }
            let staged = self.step(Event::Offered(Box::new(offer)));
            assert!(matches!(staged, Effect::Stage(_)));
            self.step(Event::Staged)
        }

        fn step(&mut self, event: Event) -> Effect {
            self.edge.step(self.realm.now, event).unwrap()
        }

        fn active(&self) -> Vec<u64> {
            self.edge.active().values().map(|active| active.version).collect()
        }
    }

    #[track_caller]
    fn activates(effect: &Effect, name: &str, version: u64) {
        let Effect::Activate(candidate) = effect else { panic!("{effect:?}") };
        assert_eq!((candidate.bundle.as_str(), candidate.version.version), (name, version));
        assert_eq!(candidate.content.root(), candidate.version.root);
    }

    #[test]
    fn accept_4_offers_are_taken_while_a_version_is_activated_and_the_newest_state_follows() {
        let mut world = World::new();
        activates(&world.offer("one", true), "config/a", 1);
        for value in ["two", "three"] {
            assert!(matches!(world.offer(value, true), Effect::Wait), "one activation at a time");
        }
        assert_eq!(world.edge.replica().height(), 3, "verified and durable");
        // Version 1 of the other bundle, and version 2 of both, are passed over (ACCEPT-6).
        activates(&world.step(Event::Activated), "config/a", 3);
        activates(&world.step(Event::Activated), "config/b", 3);
        assert!(matches!(world.step(Event::Activated), Effect::Wait));
        assert_eq!(world.active(), [3, 3]);
    }

    #[test]
    fn accept_5_a_version_that_fails_while_the_same_state_is_staged_again_is_not_tried_again() {
        let mut world = World::new();
        activates(&world.offer("one", true), "config/a", 1);
        // A checkpoint with nothing new in it.
        let update = world.realm.decide(&[]).unwrap();
        let advance = world.relay.verify(&update, world.realm.now).unwrap();
        world.relay.advance(advance);
        let offer = world.relay.answer(&world.edge.position()).unwrap().unwrap().update;
        drop(world.step(Event::Offered(Box::new(offer))));
        assert!(matches!(world.step(Event::Staged), Effect::Wait));
        activates(&world.step(Event::ActivationFailed), "config/b", 1);
        assert!(matches!(world.step(Event::Activated), Effect::Wait));
        assert_eq!((world.active(), world.edge.quarantine().len()), (vec![1], 1));
    }

    #[test]
    fn accept_6_parts_that_come_during_an_activation_do_not_hold_up_the_complete_state() {
        let mut world = World::new();
        activates(&world.offer("one", true), "config/a", 1);
        assert!(matches!(world.offer("two", false), Effect::Wait));
        assert!(!world.edge.replica().is_complete());
        activates(&world.step(Event::Activated), "config/b", 1);
        assert!(matches!(world.step(Event::Activated), Effect::Wait), "version 2 is in part");
        assert_eq!(world.active(), [1, 1]);
    }

    #[test]
    #[should_panic(expected = "BUG")]
    fn accept_4_an_outcome_that_no_activation_is_in_flight_for_is_refused() {
        let mut world = World::new();
        drop(world.step(Event::ActivationDeferred));
    }
}
