//! The parts of one validator around the consensus core, and the few operations that take several of
//! them: handing a proposal to the core, sending a message, deciding a height.
//!
//! | part | holds |
//! |---|---|
//! | [`Decided`] | ledger, replica and commit of the last decided height |
//! | [`HeightState`] | the height in progress |
//! | [`Journal`] | log, last-sign guard, messages handed to the signer |
//! | [`Admission`], [`Peers`] | messages of the next height; costs and strikes of peers |
//! | [`Catchup`] | requests for decided blocks |
//! | [`Step`] | inputs and effects of the step in progress |
//!
//! The parts do not know each other. `inputs` takes the inputs of the caller, and `perform` the effects
//! of the core.

use arc_malachitebft_core_consensus::{
    Input, MisbehaviorEvidence, ProposedValue, SignedConsensusMsg,
};
use arc_malachitebft_core_types::{Round, Validity, ValueOrigin, ValueResponse};
use satrap_certify::{Genesis, Label, Realm, Timestamp};

use super::{
    admission::Admission,
    catchup::Catchup,
    context::{CommitCertificate, Ctx, SignedProposal, SignedVote, Voter},
    decided::{Decided, commit_of, conflicts},
    effects::{EngineEffect, Fatal},
    frame::Frame,
    height::HeightState,
    journal::Journal,
    peers::Peers,
    step::{Step, Verdict},
    timing::Timing,
};
use crate::{
    mempool::{Answer, Mempool},
    store::Decision,
};

/// Everything around the core.
pub(super) struct Host {
    pub genesis: Genesis,
    pub realm: Realm,
    pub me: Voter,
    pub timing: Timing,
    pub decided: Decided,
    pub height: HeightState,
    pub journal: Journal,
    pub admission: Admission,
    pub peers: Peers,
    pub catchup: Catchup,
    pub mempool: Mempool,
    pub step: Step,
}

impl Host {
    /// Whether there is a reason to leave the height in progress behind.
    pub fn has_work(&self) -> bool {
        let is_due = self.height.is_heartbeat_due(self.step.now.wall);
        self.height.round > 0 || !self.mempool.is_empty() || is_due
    }

    pub fn answer(&mut self, answers: Vec<Answer>) {
        answers.into_iter().for_each(|answer| self.step.effect(EngineEffect::Answer(answer)));
    }

    /// Sends a message of the core once everything before it is on disk.
    pub fn publish(&mut self, frame: Frame) {
        self.journal.flush();
        self.step.effect(EngineEffect::Broadcast(frame));
    }

    /// Sends a signed message of the core, if it may be sent now.
    pub fn publish_message(&mut self, message: SignedConsensusMsg<Ctx>) {
        match self.journal.sendable(message) {
            // JOURNAL-1: the log was flushed before the signer was asked.
            Some(SignedConsensusMsg::Vote(vote)) => {
                self.step.effect(EngineEffect::Broadcast(Frame::Vote(vote)));
            }
            Some(SignedConsensusMsg::Proposal(proposal)) => {
                self.step.effect(EngineEffect::Broadcast(Frame::Proposal(proposal)));
            }
            None => {}
        }
    }

    /// Sends again the messages that this validator signed before it was restarted.
    pub fn publish_own(&mut self) {
        for message in self.journal.own() {
            self.publish_message(message);
        }
    }

    /// Counts a strike if the message of the source turned out to be junk.
    pub fn judge_source(&mut self) {
        let junk = std::mem::take(&mut self.step.junk);
        if let (Some(source), true) = (self.step.source.take(), junk) {
            tracing::debug!(%source, "a message from a peer failed verification");
            if self.peers.strike(&source, self.step.now.monotonic) {
                tracing::warn!(%source, "cutting off a peer whose messages fail verification");
                self.step.effect(EngineEffect::Disconnect(source));
            }
        }
    }

    /// Takes a proposal with its time of arrival.
    pub fn take_proposal(&mut self, from: Label, proposal: SignedProposal, arrived: Timestamp) {
        match self.admission.proposal(&mut self.height, &from, proposal, arrived) {
            Verdict::Take(proposal) => self.hand_over(Some(from), proposal),
            Verdict::Leave => {}
            Verdict::Junk => self.step.junk = true,
        }
    }

    /// Takes a vote.
    pub fn take_vote(&mut self, from: Label, vote: SignedVote) {
        match self.admission.vote(&self.height, &from, vote) {
            Verdict::Take(vote) => self.step.queue(Some(from), Input::Vote(vote)),
            Verdict::Leave => {}
            Verdict::Junk => self.step.junk = true,
        }
    }

    /// Hands a proposal to the core with this validator's verdict on its block.
    ///
    /// The core keeps the verdict for every proposal of that block, so it depends on nothing but
    /// the block and the ledger.
    pub fn hand_over(&mut self, from: Option<Label>, proposal: SignedProposal) {
        let block = proposal.value.block();
        let verdict = self.decided.ledger.validate(block);
        if let Err(why) = &verdict {
            let (height, proposer) = (block.checkpoint.height, proposal.proposer);
            tracing::warn!(height, %proposer, %why, "voting nil: the proposed block is invalid");
        }
        let value = ProposedValue {
            height: proposal.height,
            round: proposal.round,
            valid_round: proposal.pol_round,
            proposer: proposal.proposer,
            value: proposal.value.clone(),
            validity: Validity::from_bool(verdict.is_ok()),
        };
        self.height.values.insert(proposal.value.value_id(), proposal.value.clone());
        self.step.queue(from.clone(), Input::Proposal(proposal));
        self.step.queue(from, Input::ProposedValue(value, ValueOrigin::Consensus));
    }

    /// Makes a decision durable, answers the callers that waited for it, and starts the next height.
    pub fn finalize(
        &mut self,
        certificate: &CommitCertificate,
        evidence: &MisbehaviorEvidence<Ctx>,
    ) -> Result<(), Fatal> {
        let value = self.height.values.get(&certificate.value_id).cloned();
        let value = value.ok_or_else(|| Fatal::Core("decided a block that is not held".into()))?;
        let block = value.block();
        let height = block.checkpoint.height;
        let signers = self.decided.ledger.validators().clone();
        let commit = commit_of(certificate, &signers);
        let conflicts = conflicts(evidence, self.height.candidates.contradictions());
        for conflict in &conflicts {
            let (offender, kind) = (conflict.offender, conflict.kind.as_str());
            tracing::error!(
                height, %offender, kind,
                "a validator signed two conflicting messages; operators can remove it"
            );
        }
        self.decided.apply(block, commit.clone())?;
        let snapshot = self.decided.snapshot();
        let decision = Decision { block: block.clone(), commit, signers, conflicts, snapshot };
        self.journal.decide(&decision)?;
        let answers = self.mempool.settle(&self.decided.ledger, block, value.value_id().block);
        self.step.effect(EngineEffect::Decided(height));
        self.answer(answers);
        self.peers.forgive();
        self.next_height();
        Ok(())
    }

    fn next_height(&mut self) {
        self.height = HeightState::after(&self.decided.ledger, &self.genesis);
        // The other inputs that are queued are of the decided height; the core drops them.
        self.step.queue.push_front((None, self.height.start()));
        for (from, change) in self.admission.take_changes() {
            self.step.source = Some(from.clone());
            self.take_change(&from, change);
            self.judge_source();
        }
        let (proposals, votes) = (self.admission.take_proposals(), self.admission.take_votes());
        for (from, proposal, arrived) in proposals {
            self.step.source = Some(from.clone());
            self.take_proposal(from, proposal, arrived);
            self.judge_source();
        }
        for (from, vote) in votes {
            self.step.source = Some(from.clone());
            self.take_vote(from, vote);
            self.judge_source();
        }
        if self.catchup.decided(self.decided.ledger.height()) {
            self.request_blocks();
        }
    }

    /// Asks peers that are ahead for the block of the height in progress.
    pub fn request_blocks(&mut self) {
        let next = self.height.number;
        for peer in self.catchup.requests(next, self.step.now.monotonic) {
            self.step.effect(EngineEffect::Send(peer, Frame::SyncRequest(next)));
        }
    }

    /// A block from value sync has a valid certificate; judges it and hands it to the core.
    pub fn sync_value_certified(
        &mut self,
        response: &ValueResponse<Ctx>,
        proposer: Voter,
    ) -> Result<(), Fatal> {
        let (height, id) = (response.certificate.height, response.certificate.value_id);
        let source = self.step.source.as_ref();
        let Some(value) = self.catchup.certified(height.0, &id, source) else {
            self.step.junk = true;
            return Ok(());
        };
        self.decided.check(value.block())?;
        self.height.values.insert(value.value_id(), value.clone());
        let value = ProposedValue {
            height,
            round: response.certificate.round,
            valid_round: Round::Nil,
            proposer,
            value,
            validity: Validity::Valid,
        };
        self.step.queue.push_front((None, Input::ProposedValue(value, ValueOrigin::Sync)));
        Ok(())
    }
}
