//! Decides which votes and proposals from the network reach the consensus core, against certified but
//! hostile validators.
//!
//! # Rules
//!
//! - **ADMIT-1** A vote counts only on the stream of the validator that cast it, so no validator can fill the
//!   quota of another. Certificates and proposals may be relayed: they are verified as a whole.
//! - **ADMIT-2** Messages of the next height wait here, per peer and verified if the signer is known;
//!   everything later is dropped, and value sync brings those heights. A relayed change that names a later
//!   version than this validator has waits for one height, unverified: its sender may have decided that
//!   version already.
//! - **ADMIT-3** A block reaches the core only with a proposal whose proposer and signature were checked,
//!   and together with this validator's own verdict on its content.
//! - **ADMIT-4** A fresh proposal reaches the core only if it is timely (PBTS): its time lies within clock
//!   precision and message delay of the time it arrived.
//! - **ADMIT-5** An empty block is fresh in round 0 only as a heartbeat, by the time in its own header.
//! - **ADMIT-6** A block names as its proposer the validator that leads the round in which it is fresh.
//! - **ADMIT-7** A proposal that is not fresh or not timely waits until a polka for its block was
//!   verified. Its claim to have one counts for nothing.
//!
//! # Why the core never hears of time
//!
//! The core pairs a proposal with a verdict by block alone, over all rounds of a height. A verdict
//! that depended on the round or the clock would thus be lent to another proposal of that block. So
//! the verdict is a function of ledger and block. A check that depends on anything else keeps the
//! proposal away from the core: its round then times out, and the validator votes nil.
//!
//! # Deliberately absent
//!
//! Votes and certificates of the height in progress are verified by the core, once; one that fails
//! there counts as a strike against the peer that sent it.

use std::collections::BTreeMap;

use arc_malachitebft_core_types::Validator as _;
use satrap_certify::{Label, Realm, SignedChange, Timestamp};
use satrap_merkle::codec::Canonical as _;

use super::{
    context::{SignedProposal, SignedVote},
    height::HeightState,
    signing::{bytes_of_proposal, bytes_of_vote},
    step::Verdict,
    timing::Timing,
};
use crate::limits::{
    EARLY_CHANGE_BYTES_MAX, EARLY_CHANGES_MAX, EARLY_PROPOSALS_MAX, EARLY_VOTES_MAX,
};

/// Messages of the next height, by peer.
#[derive(Default)]
struct Early {
    votes: BTreeMap<Label, Vec<SignedVote>>,
    proposals: BTreeMap<Label, Vec<(SignedProposal, Timestamp)>>,
    changes: BTreeMap<Label, EarlyChanges>,
}

#[derive(Default)]
struct EarlyChanges {
    held: Vec<SignedChange>,
    bytes: usize,
}

impl EarlyChanges {
    /// Keeps one more, if there is room.
    fn keep(&mut self, change: SignedChange) {
        let bytes = self.bytes + change.to_canonical().len();
        let room = self.held.len() < EARLY_CHANGES_MAX && bytes <= EARLY_CHANGE_BYTES_MAX;
        if room && !self.held.contains(&change) {
            self.bytes = bytes;
            self.held.push(change);
        }
    }
}

/// Judges votes and proposals from peers, and keeps those of the next height.
pub(super) struct Admission {
    realm: Realm,
    timing: Timing,
    early: Early,
}

impl Admission {
    /// With nothing kept.
    pub fn new(realm: Realm, timing: Timing) -> Self {
        Self { realm, timing, early: Early::default() }
    }

    /// ADMIT-1, ADMIT-2
    pub fn vote(
        &mut self,
        height: &HeightState,
        from: &Label,
        vote: SignedVote,
    ) -> Verdict<SignedVote> {
        let known = height.name(&vote.voter);
        if known.is_some_and(|name| name != from) {
            return Verdict::Junk;
        }
        if vote.height.0 == height.number && known.is_some() {
            return Verdict::Take(vote);
        }
        if vote.height.0 != height.number + 1 {
            return Verdict::Leave;
        }
        if let Some(member) = height.electorate.member(&vote.voter) {
            let bytes = bytes_of_vote(&self.realm, &vote);
            if !member.public_key().verifies(&bytes, &vote.signature) {
                return Verdict::Junk;
            }
        }
        let held = self.early.votes.entry(from.clone()).or_default();
        if held.len() < EARLY_VOTES_MAX && !held.contains(&vote) {
            held.push(vote);
        }
        Verdict::Leave
    }

    /// ADMIT-2 to ADMIT-7; takes a proposal that the core may have now.
    pub fn proposal(
        &mut self,
        height: &mut HeightState,
        from: &Label,
        proposal: SignedProposal,
        arrived: Timestamp,
    ) -> Verdict<SignedProposal> {
        if proposal.height.0 == height.number + 1 {
            return self.keep(height, from, proposal, arrived);
        }
        let later_polka = proposal.pol_round.is_defined() && proposal.pol_round >= proposal.round;
        if proposal.height.0 != height.number || !height.in_reach(proposal.round) || later_polka {
            return Verdict::Leave;
        }
        let signed = bytes_of_proposal(&self.realm, &proposal);
        let proposer = height.electorate.proposer(proposal.round);
        if *proposer.address() != proposal.proposer || !height.candidates.wants(&proposal, &signed)
        {
            return Verdict::Leave;
        }
        if !proposer.public_key().verifies(&signed, &proposal.signature) {
            return Verdict::Junk;
        }
        height.candidates.note(&proposal, signed);
        if let Some(why) = height.malformed(&proposal) {
            let (height, proposer) = (proposal.height, proposal.proposer);
            tracing::warn!(%height, %proposer, why, "refused a proposal");
            return Verdict::Leave;
        }
        let is_timely = self.is_timely(&proposal, arrived);
        match height.candidates.place(proposal, is_timely) {
            Some(proposal) => Verdict::Take(proposal),
            None => Verdict::Leave,
        }
    }

    /// ADMIT-2
    fn keep(
        &mut self,
        height: &HeightState,
        from: &Label,
        proposal: SignedProposal,
        arrived: Timestamp,
    ) -> Verdict<SignedProposal> {
        let held = self.early.proposals.entry(from.clone()).or_default();
        let is_held = held.iter().any(|(p, _)| p.message == proposal.message);
        if held.len() >= EARLY_PROPOSALS_MAX || is_held {
            return Verdict::Leave;
        }
        if let Some(member) = height.electorate.member(&proposal.proposer) {
            // Its proposer sends it here, too, and then it costs the quota of the proposer.
            if height.name(&proposal.proposer).is_some_and(|name| name != from) {
                return Verdict::Leave;
            }
            let signed = bytes_of_proposal(&self.realm, &proposal);
            if !member.public_key().verifies(&signed, &proposal.signature) {
                return Verdict::Junk;
            }
        }
        held.push((proposal, arrived));
        Verdict::Leave
    }

    /// ADMIT-2, for a change that the ledger is behind.
    pub fn keep_change(&mut self, from: &Label, change: SignedChange) {
        self.early.changes.entry(from.clone()).or_default().keep(change);
    }

    /// ADMIT-4
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
            tracing::warn!(
                %height, %proposer, %time, %arrived,
                "a proposal is not timely; see that the clocks of its proposer and of this \
                 validator are right"
            );
        }
        is_timely
    }

    /// The proposals that were kept for the height that just began, with their times of arrival.
    pub fn take_proposals(&mut self) -> Vec<(Label, SignedProposal, Timestamp)> {
        let kept = std::mem::take(&mut self.early.proposals).into_iter();
        let of_peer = |(from, held): (Label, Vec<_>)| {
            held.into_iter().map(move |(proposal, arrived)| (from.clone(), proposal, arrived))
        };
        kept.flat_map(of_peer).collect()
    }

    /// The changes that were kept for the height that just began.
    pub fn take_changes(&mut self) -> Vec<(Label, SignedChange)> {
        let kept = std::mem::take(&mut self.early.changes).into_iter();
        let of_peer = |(from, early): (Label, EarlyChanges)| {
            early.held.into_iter().map(move |change| (from.clone(), change))
        };
        kept.flat_map(of_peer).collect()
    }

    /// The votes that were kept for the height that just began.
    pub fn take_votes(&mut self) -> Vec<(Label, SignedVote)> {
        let kept = std::mem::take(&mut self.early.votes).into_iter();
        kept.flat_map(|(from, held)| held.into_iter().map(move |vote| (from.clone(), vote)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use satrap_certify::{
        Action, BundleName, Change, GovernanceAct, Key, PublicKey, Publish, SignedChange,
    };
    use satrap_merkle::BundleTree;

    use super::*;

    fn change(action: Action) -> SignedChange {
        SignedChange::unsigned(Change { genesis_hash: [0; 32], action })
    }

    fn small(n: u8) -> SignedChange {
        change(Action::Govern(9, GovernanceAct::RevokeOperator(PublicKey([n; 32]))))
    }

    fn large(n: u8) -> SignedChange {
        let mut tree = BundleTree::default();
        let value = vec![n; EARLY_CHANGE_BYTES_MAX / 2 + 1];
        tree.insert(&Key::new(b"key").unwrap(), value.into());
        let bundle = BundleName::new("test/large").unwrap();
        change(Action::Publish(Publish::between(bundle, 9, &BundleTree::default(), &tree)))
    }

    #[test]
    fn early_changes_at_the_limits_of_a_peer_and_over_them() {
        let mut early = EarlyChanges::default();
        for n in (0..=EARLY_CHANGES_MAX).chain([0]) {
            early.keep(small(u8::try_from(n).unwrap()));
        }
        assert_eq!(early.held.len(), EARLY_CHANGES_MAX);
        let mut early = EarlyChanges::default();
        for n in [0, 0, 1] {
            early.keep(large(n));
        }
        assert_eq!(early.held, [large(0)], "two are over the limit of bytes");
        assert_eq!(early.bytes, large(0).to_canonical().len());
    }
}
