//! Decides which messages from the network reach the consensus core, against certified but hostile
//! validators.
//!
//! # Rules
//!
//! - **A1** A vote counts only on the stream of the validator that cast it, so nobody can fill
//!   another's quota. Certificates and proposals may be relayed: they are verified as a whole.
//! - **A2** Messages of the next height wait here, per peer and verified if the signer is known;
//!   everything later is dropped, and value sync brings those heights.
//! - **A3** A block reaches the core only with a proposal whose proposer and signature were checked,
//!   and together with this validator's own verdict on its content.
//! - **A4** A fresh proposal reaches the core only if it is timely (PBTS): its time lies within clock
//!   precision and message delay of the time it arrived.
//! - **A5** An empty block is fresh in round 0 only as a heartbeat, by the time in its own header.
//! - **A6** A block names as its proposer the validator that leads the round in which it is fresh.
//! - **A7** A proposal that is not fresh or not timely waits until a polka for its block was
//!   verified. Its claim to have one counts for nothing.
//!
//! # Why the core never hears of time
//!
//! The core pairs a proposal with a verdict by block alone, over all rounds of a height. A verdict
//! that depended on the round or the clock would thus be lent to another proposal of that block. So
//! the verdict is a function of ledger and block, and what depends on anything else keeps the
//! proposal away from the core: its round then times out, and the validator votes nil.
//!
//! # Deliberately absent
//!
//! Votes and certificates of the height in progress are verified by the core, once; what fails
//! there counts as a strike against the peer that sent it.

use std::collections::BTreeMap;

use arc_malachitebft_core_consensus::{Input, ProposedValue};
use arc_malachitebft_core_types::{
    Round, TimeoutKind, Validator as _, ValidatorSet as _, Validity, ValueOrigin,
};
use satrap_certify::{Label, Timestamp};

use super::{
    context::{SignedProposal, SignedVote, Voter},
    engine::{EngineEffect, EngineInput, Fatal},
    frame::Frame,
    host::Host,
    signing::{bytes_of_proposal, bytes_of_vote},
};
use crate::{
    limits::{EARLY_PROPOSALS_MAX, EARLY_VOTES_MAX, ROUNDS_AHEAD_MAX},
    mempool::Refusal,
};

/// Messages of the next height, by peer.
#[derive(Default)]
pub(super) struct Early {
    votes: BTreeMap<Label, Vec<SignedVote>>,
    proposals: BTreeMap<Label, Vec<(SignedProposal, Timestamp)>>,
}

/// Whether a relayed change is refused for what it is. Other refusals are no strikes: the peer may
/// be a block behind or ahead, and relays what its own ledger accepts.
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
                if self.peers.allow(&from, frame.cost(), self.now.monotonic) {
                    self.source = Some(from.clone());
                    self.admit_frame(from, frame)?;
                    self.judge_source();
                }
            }
            EngineInput::Timer(timer) => {
                if timer.height == self.height() {
                    let timeout = timer.timeout();
                    if timeout.kind == TimeoutKind::Propose {
                        // The leader may know better than the pool here that nothing applies.
                        let answers = self.mempool.recheck_all(&self.ledger);
                        self.answer(answers);
                    }
                    self.queue.push_back((None, Input::TimeoutElapsed(timeout)));
                }
            }
            EngineInput::Submit(change, ticket) => {
                let now = self.now.monotonic;
                match self.mempool.submit(&self.ledger, change.clone(), ticket, now) {
                    Ok(true) => {
                        self.effects.push(EngineEffect::Broadcast(Frame::Change(change)));
                    }
                    Ok(false) => {}
                    Err(refusal) => self.answer(vec![(ticket, Err(refusal))]),
                }
            }
            EngineInput::Tick => self.tick(),
        }
        Ok(())
    }

    fn admit_frame(&mut self, from: Label, frame: Frame) -> Result<(), Fatal> {
        match frame {
            Frame::Vote(vote) => self.admit_vote(from, vote),
            Frame::Proposal(proposal) => {
                let arrived = self.now.wall;
                if proposal.height.0 == self.height() + 1 {
                    self.keep_early(from, proposal, arrived);
                } else {
                    self.admit_proposal(from, proposal, arrived);
                }
            }
            Frame::Polka(certificate) => {
                if certificate.height.0 == self.height() && self.in_reach(certificate.round) {
                    self.queue.push_back((Some(from), Input::PolkaCertificate(certificate)));
                }
            }
            // Not bounded by round: it is how a validator catches up with the round of the others,
            // and at least one honest validator has signed it.
            Frame::Round(certificate) => {
                if certificate.height.0 == self.height() {
                    self.queue.push_back((Some(from), Input::RoundCertificate(certificate)));
                }
            }
            Frame::Status(height) => self.peers.claims(&from, height),
            Frame::SyncRequest(height) => self.serve_block(from, height)?,
            Frame::SyncResponse(height, held) => self.take_block(&from, height, held),
            Frame::Change(change) => {
                if let Err(refusal) = self.mempool.relay(&self.ledger, change) {
                    tracing::debug!(%from, %refusal, "refused a relayed change");
                    self.junk |= is_wrong_at_any_height(&refusal);
                }
            }
        }
        Ok(())
    }

    /// Counts a strike if the message of `source` turned out to be junk.
    pub fn judge_source(&mut self) {
        let junk = std::mem::take(&mut self.junk);
        if let (Some(source), true) = (self.source.take(), junk) {
            tracing::debug!(%source, "junk from a peer");
            if self.peers.strike(&source, self.now.monotonic) {
                tracing::warn!(%source, "too much junk from a peer; cutting it off");
                self.effects.push(EngineEffect::Disconnect(source));
            }
        }
    }

    fn in_reach(&self, round: Round) -> bool {
        round.as_u32().is_some_and(|r| r <= self.round.saturating_add(ROUNDS_AHEAD_MAX))
    }

    /// A1, A2
    fn admit_vote(&mut self, from: Label, vote: SignedVote) {
        let (height, known) = (self.height(), self.names.get(&vote.voter.0));
        if known.is_some_and(|name| *name != from) {
            self.junk = true;
            return;
        }
        if vote.height.0 == height && known.is_some() {
            self.queue.push_back((Some(from), Input::Vote(vote)));
        } else if vote.height.0 == height + 1 {
            if let Some(member) = self.electorate.member(&vote.voter) {
                let bytes = bytes_of_vote(&self.realm, &vote);
                if !member.public_key().verifies(&bytes, &vote.signature) {
                    self.junk = true;
                    return;
                }
            }
            let held = self.early.votes.entry(from).or_default();
            if held.len() < EARLY_VOTES_MAX && !held.contains(&vote) {
                held.push(vote);
            }
        }
    }

    /// A2
    fn keep_early(&mut self, from: Label, proposal: SignedProposal, arrived: Timestamp) {
        let held = self.early.proposals.entry(from.clone()).or_default();
        let is_held = held.iter().any(|(p, _)| p.message == proposal.message);
        if held.len() >= EARLY_PROPOSALS_MAX || is_held {
            return;
        }
        if let Some(member) = self.electorate.member(&proposal.proposer) {
            let signed = bytes_of_proposal(&self.realm, &proposal);
            // Its proposer sends it here, too, and then it costs that one's quota.
            if self.names.get(&proposal.proposer.0).is_some_and(|name| *name != from) {
                return;
            }
            if !member.public_key().verifies(&signed, &proposal.signature) {
                self.junk = true;
                return;
            }
        }
        held.push((proposal, arrived));
    }

    /// A3
    fn admit_proposal(&mut self, from: Label, proposal: SignedProposal, arrived: Timestamp) {
        let later_polka = proposal.pol_round.is_defined() && proposal.pol_round >= proposal.round;
        if proposal.height.0 != self.height() || !self.in_reach(proposal.round) || later_polka {
            return;
        }
        let signed = bytes_of_proposal(&self.realm, &proposal);
        let proposer = self.electorate.proposer(proposal.round);
        if *proposer.address() != proposal.proposer || !self.candidates.wants(&proposal, &signed) {
            return;
        }
        if !proposer.public_key().verifies(&signed, &proposal.signature) {
            self.junk = true;
            return;
        }
        self.candidates.note(&proposal, signed);
        if let Some(why) = self.malformed(&proposal) {
            let (height, proposer) = (proposal.height, proposal.proposer);
            tracing::warn!(%height, %proposer, why, "refused a proposal");
            return;
        }
        let is_timely = self.is_timely(&proposal, arrived);
        if let Some(proposal) = self.candidates.place(proposal, is_timely) {
            self.hand_over(Some(from), proposal);
        }
    }

    /// Hands a proposal to the core with this validator's verdict on its block.
    ///
    /// The core keeps the verdict for every proposal of that block, so it depends on nothing but
    /// the block and the ledger.
    pub fn hand_over(&mut self, from: Option<Label>, proposal: SignedProposal) {
        let block = proposal.value.block();
        let verdict = self.ledger.validate(block);
        if let Err(why) = &verdict {
            let (height, proposer) = (block.checkpoint.height, proposal.proposer);
            tracing::warn!(height, %proposer, %why, "voting against a proposal");
        }
        let value = ProposedValue {
            height: proposal.height,
            round: proposal.round,
            valid_round: proposal.pol_round,
            proposer: proposal.proposer,
            value: proposal.value.clone(),
            validity: Validity::from_bool(verdict.is_ok()),
        };
        self.values.insert(proposal.value.value_id(), proposal.value.clone());
        self.queue.push_back((from.clone(), Input::Proposal(proposal)));
        self.queue.push_back((from, Input::ProposedValue(value, ValueOrigin::Consensus)));
    }

    /// A5, A6: what no honest validator proposes, whatever the time.
    fn malformed(&self, proposal: &SignedProposal) -> Option<&'static str> {
        let block = proposal.value.block();
        let (time, named) = (block.checkpoint.time, Voter(block.checkpoint.proposer));
        let led = |round| *self.electorate.proposer(Round::new(round)).address() == named;
        let (was_led, first_round) = match proposal.pol_round.as_u32() {
            None => (named == proposal.proposer, proposal.round == Round::new(0)),
            // Leaders repeat after each of them has led.
            Some(polka) => ((0..=polka).take(self.electorate.count()).any(led), polka == 0),
        };
        if !was_led {
            return Some("its block names a validator that did not lead");
        }
        if first_round && block.changes.is_empty() && !self.is_heartbeat_due(time) {
            return Some("its block is empty, and the heartbeat is not due");
        }
        None
    }

    /// A4
    fn is_timely(&self, proposal: &SignedProposal, arrived: Timestamp) -> bool {
        if proposal.pol_round.is_defined() {
            return false;
        }
        let time = proposal.value.block().checkpoint.time;
        let round = proposal.round.as_u32().unwrap_or(0);
        let precision = self.timing.clock_precision;
        let delay = self.timing.grown(self.timing.message_delay, round);
        let is_timely =
            time <= arrived.plus(precision) && arrived <= time.plus(precision).plus(delay);
        if !is_timely {
            let (height, proposer) = (proposal.height, proposal.proposer);
            tracing::warn!(%height, %proposer, %time, %arrived, "a proposal is not timely");
        }
        is_timely
    }

    /// Hands over what waited for the height that just began.
    pub fn admit_early(&mut self) {
        let Early { votes, proposals } = std::mem::take(&mut self.early);
        for (from, (proposal, arrived)) in
            proposals.into_iter().flat_map(|(f, p)| p.into_iter().map(move |p| (f.clone(), p)))
        {
            self.source = Some(from.clone());
            self.admit_proposal(from, proposal, arrived);
            self.judge_source();
        }
        for (from, vote) in
            votes.into_iter().flat_map(|(f, v)| v.into_iter().map(move |v| (f.clone(), v)))
        {
            self.source = Some(from.clone());
            self.admit_vote(from, vote);
            self.judge_source();
        }
    }
}
