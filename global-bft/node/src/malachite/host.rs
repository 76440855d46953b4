//! Performs what the consensus core asks for: log, sign, verify, publish, schedule.
//!
//! # Invariants
//!
//! - **O1** A message of this validator leaves only after the guard admitted it and log and guard
//!   are on disk, in that order: the guard is then never ahead of the log, so a crash between the
//!   two cannot make a restarted validator abstain.
//! - **O2** A validator that lost part of its log has forgotten what it locked, so it signs nothing
//!   up to the height of the newest message that the guard remembers.
//! - **O3** What the guard refuses is neither signed nor sent. The core is handed
//!   [`ABSTAIN`](super::signing::ABSTAIN), which verifies under no key.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use arc_malachitebft_core_consensus::{
    ConsensusMsg, Effect, Input, LivenessMsg, Resumable as _, Resume, SignedConsensusMsg,
    VoteExtensionError,
};
use arc_malachitebft_core_types::{
    CertificateError, SignedMessage, Timeout, TimeoutKind, VoteExtensionPolicy,
};
use arc_malachitebft_signing::VerifierExt as _;
use futures::FutureExt as _;
use satrap_certify::{Address, Commit, Genesis, Label, Realm, Replica, SignatureBytes};
use satrap_global_core::Ledger;

use super::{
    admission::Early,
    candidates::Candidates,
    codec::{self, Blocks},
    context::{Ctx, Electorate, Height, SignedProposal, SignedVote, Value, ValueId, Voter},
    decide,
    engine::{EngineEffect, Fatal, Now, Setup, TimerId, Timing},
    frame::Frame,
    peers::Peers,
    signing::{
        ABSTAIN, RealmVerifier, Signer, bytes_of_proposal, bytes_of_vote, place_of_proposal,
        place_of_vote,
    },
    upkeep::Catchup,
};
use crate::{
    guard::{Guard, Place},
    mempool::Mempool,
    store::Storage,
};

/// Log entries of the height in progress that are not on disk yet.
#[derive(Default)]
pub(super) struct LogBuffer {
    pub entries: Vec<Vec<u8>>,
    pub blocks: BTreeSet<ValueId>,
}

impl Blocks for LogBuffer {
    fn note(&mut self, id: ValueId) -> bool {
        !self.blocks.insert(id)
    }
}

/// Everything around the core.
pub(super) struct Host {
    pub genesis: Genesis,
    pub realm: Realm,
    pub me: Voter,
    pub timing: Timing,
    pub signer: Box<dyn Signer>,
    pub guard: Guard,
    pub store: Box<dyn Storage>,
    verifier: RealmVerifier,
    /// O2: nothing is signed up to this height.
    abstain_through: u64,

    pub ledger: Ledger,
    pub replica: Arc<Replica>,
    pub last_commit: Option<Commit>,
    pub mempool: Mempool,
    pub peers: Peers,
    pub early: Early,
    pub catchup: Catchup,

    // The height in progress.
    pub electorate: Electorate,
    pub names: BTreeMap<Address, Label>,
    pub round: u32,
    pub values: BTreeMap<ValueId, Value>,
    pub candidates: Candidates,
    pub log: LogBuffer,
    /// The round for which the core waits for a block of ours.
    pub wanted: Option<u32>,
    /// The propose timer, not started while there is nothing to propose.
    pub deferred: Option<TimerId>,
    /// What is being replayed; empty afterwards.
    pub replaying: Vec<Input<Ctx>>,

    // The step in progress.
    pub now: Now,
    pub source: Option<Label>,
    pub junk: bool,
    must_flush: bool,
    pub queue: VecDeque<(Option<Label>, Input<Ctx>)>,
    pub effects: Vec<EngineEffect>,
}

impl Host {
    pub fn restore(setup: Setup, now: Now) -> Result<Self, Fatal> {
        let restored = decide::restore(&setup.genesis, &*setup.store)?;
        let realm = setup.genesis.realm().clone();
        let me = Voter(setup.signer.public().address());
        let electorate = Electorate::new(restored.ledger.validators(), 1, None, 1);
        let mut host = Self {
            verifier: RealmVerifier(realm.clone()),
            abstain_through: 0,
            genesis: setup.genesis,
            realm,
            me,
            timing: setup.timing,
            signer: setup.signer,
            guard: setup.guard,
            store: setup.store,
            ledger: restored.ledger,
            replica: Arc::new(restored.replica),
            last_commit: restored.last_commit,
            mempool: Mempool::default(),
            peers: Peers::default(),
            early: Early::default(),
            catchup: Catchup::default(),
            electorate,
            names: BTreeMap::new(),
            round: 0,
            values: BTreeMap::new(),
            candidates: Candidates::default(),
            log: LogBuffer::default(),
            wanted: None,
            deferred: None,
            replaying: Vec::new(),
            now,
            source: None,
            junk: false,
            must_flush: false,
            queue: VecDeque::new(),
            effects: Vec::new(),
        };
        host.enter_height();
        Ok(host)
    }

    /// The height in progress.
    pub fn height(&self) -> u64 {
        self.ledger.height() + 1
    }

    /// Derives what depends on the set of the height in progress.
    pub fn enter_height(&mut self) {
        let proposer = self.ledger.last().map(|(checkpoint, _)| checkpoint.proposer);
        let rotation = self.genesis.policy.leader_rotation_heights;
        let (set, height) = (self.ledger.validators(), self.height());
        self.electorate = Electorate::new(set, height, proposer.as_ref(), rotation);
        let validators = &self.ledger.governance().validators;
        self.names = validators.iter().map(|v| (v.public.address(), v.name.clone())).collect();
        self.round = 0;
        self.values.clear();
        self.candidates = Candidates::default();
        self.log = LogBuffer::default();
        self.wanted = None;
        self.deferred = None;
    }

    /// The input that starts the height in progress.
    pub fn start_height(&self) -> Input<Ctx> {
        let height = Height(self.height());
        let policy = VoteExtensionPolicy::Disabled;
        Input::StartHeight(height, self.electorate.clone(), false, None, policy)
    }

    /// N1: what follows from this step may leave after this returns.
    pub fn settle(&mut self) -> Result<Vec<EngineEffect>, Fatal> {
        if std::mem::take(&mut self.must_flush) {
            let entries = std::mem::take(&mut self.log.entries);
            if !entries.is_empty() {
                self.store.log(&entries)?;
            }
            self.guard.persist()?;
        }
        Ok(std::mem::take(&mut self.effects))
    }

    /// Refuses a log with a message of ours that contradicts the guard, and notices one that lacks
    /// the newest message the guard remembers (O2).
    pub fn check_log(&mut self, log: &[Input<Ctx>]) -> Result<(), Fatal> {
        let mut missing = self.guard.newest().filter(|newest| newest.height >= self.height());
        let mut own = BTreeMap::new();
        for input in log {
            let (place, bytes) = match input {
                Input::Vote(vote) if vote.voter == self.me => {
                    (place_of_vote(vote), bytes_of_vote(&self.realm, vote))
                }
                Input::Proposal(proposal) if proposal.proposer == self.me => {
                    (place_of_proposal(proposal), bytes_of_proposal(&self.realm, proposal))
                }
                _ => continue,
            };
            let digest = codec::digest(&bytes);
            self.guard.check(place, &digest).map_err(Fatal::Rollback)?;
            missing = missing.filter(|newest| *newest != place);
            own.insert(place, digest);
        }
        // The crash may have come between log and guard. The core publishes a precommit before the
        // prevote that completed its quorum, so they are admitted here, in the order of signing.
        for (place, digest) in own {
            // One that is older than the guard remembers is refused again when it is to be sent.
            let _ = self.guard.admit(place, &digest);
        }
        if let Some(newest) = missing {
            tracing::error!(
                height = newest.height,
                "the log of this height is lost; abstaining until the quorum has decided it"
            );
            self.abstain_through = newest.height;
        }
        Ok(())
    }

    /// Performs one effect of the core and returns what to resume it with.
    pub fn perform(&mut self, effect: Effect<Ctx>) -> Result<Resume<Ctx>, Fatal> {
        Ok(match effect {
            Effect::CancelAllTimeouts(r) => {
                self.deferred = None;
                self.effects.push(EngineEffect::CancelAll);
                r.resume_with(())
            }
            Effect::CancelTimeout(timeout, r) => {
                self.cancel(&timeout);
                r.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, r) => {
                self.schedule(&timeout);
                r.resume_with(())
            }
            Effect::StartRound(_, round, _, _, r) => {
                self.round = round.as_u32().expect("the core starts rounds from 0 up");
                self.wanted = None;
                self.must_flush = true;
                r.resume_with(())
            }
            Effect::GetValue(_, round, _, r) => {
                // N3: answered by `drive`, which does not run during the replay.
                self.wanted = round.as_u32();
                r.resume_with(())
            }
            // The proposal that follows carries the block.
            Effect::RestreamProposal(.., r) => r.resume_with(()),
            // `Finalize` follows at once, since no height has a target time.
            Effect::Decide(_, _, r) => r.resume_with(()),
            Effect::Finalize(certificate, _, evidence, r) => {
                self.finalize(&certificate, &evidence)?;
                r.resume_with(())
            }
            Effect::CertVerifiedSyncValue(response, proposer, r) => {
                self.sync_value_certified(&response, proposer)?;
                r.resume_with(())
            }
            Effect::CertRejectedSyncValue(_, _, error, r) => {
                tracing::warn!(%error, "refused a block from value sync");
                self.junk = true;
                if let Some(peer) = self.source.clone() {
                    self.not_delivered(&peer);
                }
                r.resume_with(())
            }
            other => return self.perform_message(other),
        })
    }

    /// Effects that log, sign, verify or publish messages.
    fn perform_message(&mut self, effect: Effect<Ctx>) -> Result<Resume<Ctx>, Fatal> {
        Ok(match effect {
            Effect::WalAppend(height, input, r) => {
                self.append(height, &input);
                r.resume_with(())
            }
            Effect::SignVote(vote, r) => {
                let bytes = bytes_of_vote(&self.realm, &vote);
                let signature = self.sign(place_of_vote(&vote), &bytes)?;
                r.resume_with(SignedMessage::new(vote, signature))
            }
            Effect::SignProposal(proposal, r) => {
                let bytes = bytes_of_proposal(&self.realm, &proposal);
                let signature = self.sign(place_of_proposal(&proposal), &bytes)?;
                r.resume_with(SignedMessage::new(proposal, signature))
            }
            Effect::PublishConsensusMsg(SignedConsensusMsg::Vote(vote), r)
            | Effect::PublishLivenessMsg(LivenessMsg::Vote(vote), r)
            | Effect::RepublishVote(vote, r) => {
                self.publish_vote(vote);
                r.resume_with(())
            }
            Effect::PublishConsensusMsg(SignedConsensusMsg::Proposal(proposal), r) => {
                self.publish_proposal(proposal);
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(LivenessMsg::PolkaCertificate(certificate), r) => {
                self.publish(Frame::Polka(certificate));
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(LivenessMsg::SkipRoundCertificate(certificate), r)
            | Effect::RepublishRoundCertificate(certificate, r) => {
                self.publish(Frame::Round(certificate));
                r.resume_with(())
            }
            Effect::VerifySignature(message, public, r) => {
                let bytes = match &message.message {
                    ConsensusMsg::Vote(vote) => bytes_of_vote(&self.realm, vote),
                    ConsensusMsg::Proposal(proposal) => bytes_of_proposal(&self.realm, proposal),
                };
                let valid = public.verifies(&bytes, &message.signature);
                self.junk |= !valid;
                r.resume_with(valid)
            }
            other => self.perform_certificate(other),
        })
    }

    /// Effects that verify certificates. The verifier never waits, so its futures are ready.
    fn perform_certificate(&mut self, effect: Effect<Ctx>) -> Resume<Ctx> {
        const READY: &str = "verification performs no IO, so it never suspends";
        let verified = |result: &Result<(), CertificateError<Ctx>>, junk: &mut bool| {
            *junk |= result.is_err();
        };
        match effect {
            Effect::VerifyCommitCertificate(certificate, set, thresholds, r) => {
                let verify =
                    self.verifier.verify_commit_certificate(&Ctx, &certificate, &set, thresholds);
                r.resume_with(verify.now_or_never().expect(READY))
            }
            Effect::VerifyExtendedCommitCertificate(certificate, set, thresholds, policy, r) => {
                let verify = self.verifier.verify_extended_commit_certificate(
                    &Ctx,
                    &certificate,
                    &set,
                    thresholds,
                    policy,
                );
                r.resume_with(verify.now_or_never().expect(READY))
            }
            Effect::VerifyPolkaCertificate(certificate, set, thresholds, r) => {
                let verify =
                    self.verifier.verify_polka_certificate(&Ctx, &certificate, &set, thresholds);
                let result = verify.now_or_never().expect(READY);
                verified(&result, &mut self.junk);
                r.resume_with(result)
            }
            Effect::VerifyRoundCertificate(certificate, set, thresholds, r) => {
                let verify =
                    self.verifier.verify_round_certificate(&Ctx, &certificate, &set, thresholds);
                let result = verify.now_or_never().expect(READY);
                verified(&result, &mut self.junk);
                r.resume_with(result)
            }
            // Extensions are disabled at every height.
            Effect::ExtendVote(.., r) => r.resume_with(None),
            Effect::VerifyVoteExtension(.., r) => {
                r.resume_with(Err(VoteExtensionError::InvalidVoteExtension))
            }
            other => unreachable!("BUG: {other:?} is performed elsewhere"),
        }
    }

    fn append(&mut self, height: Height, input: &Input<Ctx>) {
        if height.0 != self.height() {
            return;
        }
        // P1: whatever the core logs, it has verified.
        for proposal in self.candidates.count(input, &self.electorate) {
            self.hand_over(None, proposal);
        }
        // A replayed input is already logged; one derived for the first time is not.
        if !self.replaying.contains(input) {
            let entry = codec::log_entry(input, &mut self.log);
            self.log.entries.extend(entry);
        }
    }

    /// O2, O3
    fn sign(&mut self, place: Place, bytes: &[u8]) -> Result<SignatureBytes, Fatal> {
        if place.height <= self.abstain_through {
            return Ok(ABSTAIN);
        }
        match self.guard.admit(place, &codec::digest(bytes)) {
            Ok(()) => self.signer.sign(bytes).map_err(Fatal::Signer),
            Err(refused) => {
                tracing::error!(%refused, "abstaining: the last-sign guard refuses to sign");
                Ok(ABSTAIN)
            }
        }
    }

    fn publish_vote(&mut self, vote: SignedVote) {
        let bytes = || bytes_of_vote(&self.realm, &vote);
        if vote.signature == ABSTAIN {
            return;
        }
        if vote.voter == self.me {
            let digest = codec::digest(&bytes());
            if let Err(refused) = self.guard.admit(place_of_vote(&vote), &digest) {
                tracing::error!(%refused, "a vote from the log stays here");
                return;
            }
        }
        self.publish(Frame::Vote(vote));
    }

    fn publish_proposal(&mut self, proposal: SignedProposal) {
        if proposal.signature == ABSTAIN {
            return;
        }
        if proposal.proposer == self.me {
            let digest = codec::digest(&bytes_of_proposal(&self.realm, &proposal));
            if let Err(refused) = self.guard.admit(place_of_proposal(&proposal), &digest) {
                tracing::error!(%refused, "a proposal from the log stays here");
                return;
            }
        }
        self.publish(Frame::Proposal(proposal));
    }

    /// O1: leaves only through [`Host::settle`].
    fn publish(&mut self, frame: Frame) {
        self.must_flush = true;
        self.effects.push(EngineEffect::Broadcast(frame));
    }

    fn schedule(&mut self, timeout: &Timeout) {
        let Some(timer) = TimerId::of(self.height(), timeout) else { return };
        if timeout.kind == TimeoutKind::Propose && !self.has_work() {
            self.deferred = Some(timer);
        } else {
            self.effects.push(EngineEffect::Schedule(timer, self.timing.of(timer)));
        }
    }

    fn cancel(&mut self, timeout: &Timeout) {
        let Some(timer) = TimerId::of(self.height(), timeout) else { return };
        if self.deferred == Some(timer) {
            self.deferred = None;
        }
        self.effects.push(EngineEffect::Cancel(timer));
    }
}
