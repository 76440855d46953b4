//! Decides which messages from the network reach the consensus core, against certified but hostile
//! validators.
//!
//! # Rules
//!
//! - **A1** A vote counts only on the stream of the validator that cast it, so nobody can fill
//!   another's quota. Certificates and proposals may be relayed: they are verified as a whole.
//! - **A2** Messages of the next height wait here, per peer and verified if the voter is known;
//!   everything later is dropped, and value sync brings those heights.
//! - **A3** A block reaches the core only with a proposal whose proposer and signature were checked,
//!   and together with this validator's own verdict on it.
//! - **A4** A fresh proposal must be timely (PBTS): its time lies within clock precision and message
//!   delay of the time it arrived. A block that already had a polka was judged by others.
//! - **A5** An empty block in round 0 is valid only as a heartbeat, by the time in its own header.
//!
//! # Deliberately absent
//!
//! Votes and certificates of the height in progress are verified by the core, once; what fails
//! there counts as a strike against the peer that sent it.

use std::collections::BTreeMap;

use arc_malachitebft_core_consensus::{Input, ProposedValue};
use arc_malachitebft_core_types::{Round, TimeoutKind, Validator as _, Validity, ValueOrigin};
use satrap_certify::{Label, Timestamp};

use super::{
    context::{SignedProposal, SignedVote},
    engine::{EngineEffect, EngineInput, Fatal},
    frame::Frame,
    host::Host,
    signing::{bytes_of_proposal, bytes_of_vote},
};
use crate::limits::{
    EARLY_PROPOSALS_MAX, EARLY_VOTES_MAX, PROPOSALS_PER_ROUND_MAX, ROUNDS_AHEAD_MAX,
};

/// Messages of the next height.
#[derive(Default)]
pub(super) struct Early {
    votes: BTreeMap<Label, Vec<SignedVote>>,
    proposals: Vec<(Label, SignedProposal, Timestamp)>,
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
                self.admit_proposal(from, proposal, arrived);
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
                // Refusals are no strikes: the peer may be a block behind or ahead.
                if let Err(refusal) = self.mempool.relay(&self.ledger, change) {
                    tracing::debug!(%from, %refusal, "refused a relayed change");
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

    /// A3
    fn admit_proposal(&mut self, from: Label, proposal: SignedProposal, arrived: Timestamp) {
        let height = self.height();
        if proposal.height.0 == height + 1 {
            let same = |(_, held, _): &(Label, SignedProposal, _)| *held == proposal;
            let full = self.early.proposals.len() >= EARLY_PROPOSALS_MAX;
            if !full && !self.early.proposals.iter().any(same) {
                self.early.proposals.push((from, proposal, arrived));
            }
            return;
        }
        let later_polka = proposal.pol_round.is_defined() && proposal.pol_round >= proposal.round;
        if proposal.height.0 != height || !self.in_reach(proposal.round) || later_polka {
            return;
        }
        let round = proposal.round.as_u32().expect("decoders refuse proposals without a round");
        let seen = self.seen.entry(round).or_default();
        if seen.len() >= PROPOSALS_PER_ROUND_MAX || seen.contains(&proposal) {
            return;
        }
        let proposer = self.electorate.proposer(proposal.round);
        if *proposer.address() != proposal.proposer {
            return;
        }
        let bytes = bytes_of_proposal(&self.realm, &proposal);
        if !proposer.public_key().verifies(&bytes, &proposal.signature) {
            self.junk = true;
            return;
        }
        seen.push(proposal.clone());
        let value = ProposedValue {
            height: proposal.height,
            round: proposal.round,
            valid_round: proposal.pol_round,
            proposer: proposal.proposer,
            value: proposal.value.clone(),
            validity: self.verdict(&proposal, arrived),
        };
        self.values.insert(proposal.value.value_id(), proposal.value.clone());
        self.queue.push_back((Some(from.clone()), Input::Proposal(proposal)));
        let input = Input::ProposedValue(value, ValueOrigin::Consensus);
        self.queue.push_back((Some(from), input));
    }

    /// Whether this validator may vote for a proposal.
    fn verdict(&self, proposal: &SignedProposal, arrived: Timestamp) -> Validity {
        let why =
            if proposal.pol_round.is_defined() { None } else { self.untimely(proposal, arrived) };
        let block = proposal.value.block();
        let why = why.or_else(|| self.ledger.validate(block).err().map(|r| r.to_string()));
        if let Some(why) = &why {
            let (height, proposer) = (block.checkpoint.height, proposal.proposer);
            tracing::warn!(height, %proposer, why, "voting against a proposal");
        }
        Validity::from_bool(why.is_none())
    }

    /// A4, A5, and that a fresh block names its proposer.
    fn untimely(&self, proposal: &SignedProposal, arrived: Timestamp) -> Option<String> {
        let block = proposal.value.block();
        let time = block.checkpoint.time;
        let round = proposal.round.as_u32().unwrap_or(0);
        let precision = self.timing.clock_precision;
        let delay = self.timing.grown(self.timing.message_delay, round);
        if block.checkpoint.proposer != proposal.proposer.0 {
            return Some("the block names another proposer".into());
        }
        if time > arrived.plus(precision) {
            return Some(format!("its time {time} is ahead of this clock, {arrived}"));
        }
        if arrived > time.plus(precision).plus(delay) {
            return Some(format!("its time {time} is too old; it arrived at {arrived}"));
        }
        if round == 0 && block.changes.is_empty() && !self.is_heartbeat_due(time) {
            return Some("an empty block before the heartbeat is due".into());
        }
        None
    }

    /// Hands over what waited for the height that just began.
    pub fn admit_early(&mut self) {
        let Early { votes, proposals } = std::mem::take(&mut self.early);
        for (from, proposal, arrived) in proposals {
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
