//! Handles each input of the engine: frames of peers, timers, submissions, signatures and the periodic tick. Inputs for the
//! consensus core are queued for it, and the others are answered here.

use arc_malachitebft_core_consensus::{Input, SignedConsensusMsg};
use arc_malachitebft_core_types::TimeoutKind;
use satrap_certify::{Label, SignatureBytes, SignedChange};
use satrap_merkle::codec::Canonical as _;

use super::{
    catchup::Wanted,
    context::Value,
    effects::{EngineEffect, EngineInput, Fatal},
    frame::Frame,
    host::Host,
    peers::Purpose,
    step::Verdict,
    timing::TimerId,
};
use crate::{
    guard::Place,
    limits::{FULL_BLOCK_COST, SYNC_BYTES_PER_COST},
    mempool::{Refusal, Ticket},
};

/// Whether a relayed change is wrong whatever the ledger holds. Only such a refusal counts as a strike, because a peer
/// that is a block behind or ahead relays changes that its own ledger accepts.
///
/// The content rules are checked only at the version that the change was made for, and the content
/// of a version is the same everywhere.
fn is_wrong_at_any_height(refusal: &Refusal) -> bool {
    use satrap_global_core::Rejection as R;
    let Refusal::Rejected(why) = refusal else { return false };
    matches!(
        why,
        R::Realm(_)
            | R::Missing { .. }
            | R::Empty(_)
            | R::Root { .. }
            | R::BundleLimit { .. }
            | R::BlockLimit
    )
}

impl Host {
    /// Takes one input of the engine.
    pub fn admit(&mut self, input: EngineInput) -> Result<(), Fatal> {
        match input {
            EngineInput::Frame(from, frame) => {
                if self.peers.allow(&from, frame.cost(), self.step.now.monotonic) {
                    self.step.source = Some(from.clone());
                    self.admit_frame(from, frame)?;
                    self.judge_source();
                }
            }
            EngineInput::Timer(timer) => self.timer(timer),
            EngineInput::Submit(change, ticket) => self.submit(change, ticket),
            EngineInput::Signed(place, signature) => self.signed(place, signature),
            EngineInput::Tick => self.tick(),
        }
        Ok(())
    }

    fn admit_frame(&mut self, from: Label, frame: Frame) -> Result<(), Fatal> {
        match frame {
            Frame::Vote(vote) => self.take_vote(from, vote),
            Frame::Proposal(proposal) => {
                let arrived = self.step.now.wall;
                self.take_proposal(from, proposal, arrived);
            }
            Frame::Polka(certificate) => {
                let is_current = certificate.height.0 == self.height.number;
                if is_current && self.height.in_reach(certificate.round) {
                    self.step.queue(Some(from), Input::PolkaCertificate(certificate));
                }
            }
            // Not bounded by round: it is how a validator catches up with the round of the others,
            // and at least one honest validator has signed it.
            Frame::Round(certificate) => {
                if certificate.height.0 == self.height.number {
                    self.step.queue(Some(from), Input::RoundCertificate(certificate));
                }
            }
            Frame::Status(height) => self.catchup.claims(&from, height),
            Frame::SyncRequest(height) => self.serve_block(from, height)?,
            Frame::SyncResponse(height, held) => {
                let (now, set) = (self.step.now.monotonic, self.decided.ledger.validators());
                let wanted = Wanted { height: self.height.number, set, now };
                match self.catchup.take(&from, (height, held), wanted) {
                    Verdict::Take(response) => {
                        self.step.queue(Some(from), Input::SyncValueResponse(response));
                    }
                    Verdict::Leave => self.request_blocks(),
                    Verdict::Junk => self.step.junk = true,
                }
            }
            Frame::Change(change) if self.decided.ledger.is_behind(&change) => {
                self.admission.keep_change(&from, change);
            }
            Frame::Change(change) => self.take_change(&from, change),
        }
        Ok(())
    }

    /// Takes a change that a peer relayed.
    pub fn take_change(&mut self, from: &Label, change: SignedChange) {
        if let Err(refusal) = self.mempool.relay(&self.decided.ledger, change) {
            tracing::debug!(%from, %refusal, "refused a relayed change");
            self.step.junk |= is_wrong_at_any_height(&refusal);
        }
    }

    fn timer(&mut self, timer: TimerId) {
        if timer.height != self.height.number {
            return;
        }
        let timeout = timer.timeout();
        if timeout.kind == TimeoutKind::Propose {
            // The leader proposes nothing, perhaps because its ledger is newer and no change applies any more.
            let answers = self.mempool.recheck_all(&self.decided.ledger);
            self.answer(answers);
        }
        self.step.queue(None, Input::TimeoutElapsed(timeout));
    }

    fn submit(&mut self, change: SignedChange, ticket: Ticket) {
        let now = self.step.now.monotonic;
        match self.mempool.submit(&self.decided.ledger, change.clone(), ticket, now) {
            Ok(true) => self.step.effect(EngineEffect::Broadcast(Frame::Change(change))),
            Ok(false) => {}
            Err(refusal) => self.answer(vec![(ticket, Err(refusal))]),
        }
    }

    /// JOURNAL-4: a message of this validator is sent and counted once it is signed.
    fn signed(&mut self, place: Place, signature: SignatureBytes) {
        let Some(message) = self.journal.answer(place, signature) else { return };
        let input = match &message {
            SignedConsensusMsg::Vote(vote) => Input::Vote(vote.clone()),
            SignedConsensusMsg::Proposal(proposal) => Input::Proposal(proposal.clone()),
        };
        self.publish_message(message);
        self.step.queue(None, input);
    }

    /// Periodic upkeep.
    fn tick(&mut self) {
        let decided = self.decided.ledger.height();
        self.step.effect(EngineEffect::Broadcast(Frame::Status(decided)));
        for change in self.mempool.resend(self.step.now.monotonic) {
            self.step.effect(EngineEffect::Broadcast(Frame::Change(change)));
        }
        self.request_blocks();
    }

    /// Answers a peer that is behind.
    fn serve_block(&mut self, from: Label, height: u64) -> Result<(), Fatal> {
        let now = self.step.now.monotonic;
        // Reading costs as much as sending, so nothing is read for a peer that could not pay for a
        // full block.
        if !self.peers.can_pay(&from, (Purpose::Bulk, FULL_BLOCK_COST), now) {
            return Ok(());
        }
        let decided = self.journal.decided(height)?;
        // The peer that asked is charged for the bytes of the block.
        let bytes = decided.as_ref().map_or(0, |(block, _)| block.to_canonical().len());
        let cost = u32::try_from(bytes / SYNC_BYTES_PER_COST).unwrap_or(u32::MAX);
        if !self.peers.allow(&from, (Purpose::Bulk, cost), now) {
            return Ok(());
        }
        let held = decided.map(|(block, commit)| {
            let value = Value::new(&self.realm, block);
            (value.expect("a decided block carries the payload its header names"), commit)
        });
        self.step.effect(EngineEffect::Send(from, Frame::SyncResponse(height, held)));
        Ok(())
    }
}
