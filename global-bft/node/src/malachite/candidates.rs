//! Decides which proposals may go to the consensus core now, which wait for a polka, and which are
//! not even looked at, against hostile proposers.
//!
//! A polka is two thirds of the prevotes of one round for one block. It proves that an honest
//! validator found the block fresh, in that round or in an earlier one, so a proposal whose block
//! has one need not be timely here. A proposal only *claims* that it has one, so it waits until
//! this validator has verified the votes.
//!
//! ```text
//!              timely and fresh, or covered
//!   verified ────────────────────────────────▶ core
//!      │                                         ▲
//!      └──▶ held ────────────────────────────────┘ a polka in the round it names, or in its own
//! ```
//!
//! # Invariants
//!
//! - **CANDIDATE-1** A polka is known only from votes and certificates that the core has verified: those it
//!   logs. A replay of the log therefore knows the same polkas.
//! - **CANDIDATE-2** A proposer makes this validator hold at most [`HELD_PER_PROPOSER_MAX`] proposals, and
//!   look at a few per round that it leads. It can displace only its own.
//! - **CANDIDATE-3** The core is handed no more blocks per round than it keeps, except one with a polka in
//!   that round, which it always keeps.
//!
//! # Deliberately absent
//!
//! Signatures: proposals were verified by `admission`, votes and certificates by the core. Bounds on
//! rounds: the core refuses votes of rounds that are far ahead, and `admission` such proposals.

use std::collections::{BTreeMap, BTreeSet};

use arc_malachitebft_core_consensus::{Input, full_proposal::MAX_PROPOSALS_PER_ROUND};
use arc_malachitebft_core_types::{
    NilOrVal, Round, ThresholdParams, Validator as _, ValidatorSet as _, VoteType,
};

use super::{
    codec,
    context::{Ctx, Electorate, SignedProposal, SignedVote, ValueId, Voter},
};
use crate::limits::{HELD_PER_PROPOSER_MAX, PROPOSALS_PER_ROUND_MAX};

type Polka = (Round, ValueId);

/// One proposal that was looked at.
struct Seen {
    signed: Vec<u8>,
    proof: Vec<u8>,
}

/// Two proposals of one proposer for one round, as [`codec::proposal_evidence`].
pub(super) type Contradiction = (Voter, [Vec<u8>; 2]);

/// The proposals of the height in progress.
#[derive(Default)]
pub(super) struct Candidates {
    seen: BTreeMap<Round, (Voter, Vec<Seen>)>,
    /// Blocks that the core holds proposals for.
    stored: BTreeMap<Round, BTreeSet<ValueId>>,
    prevotes: BTreeMap<Polka, BTreeSet<Voter>>,
    polkas: BTreeSet<Polka>,
    held: Vec<SignedProposal>,
}

impl Candidates {
    /// Whether a proposal that signs `signed` is worth a signature check: it is new, and its round
    /// has room. One with a polka always finds room beside those without.
    pub fn wants(&self, proposal: &SignedProposal, signed: &[u8]) -> bool {
        let seen = self.seen.get(&proposal.round).map_or(&[][..], |(_, seen)| seen);
        let room = PROPOSALS_PER_ROUND_MAX * if self.covers(proposal) { 2 } else { 1 };
        seen.len() < room && !seen.iter().any(|s| s.signed == signed)
    }

    /// Remembers a verified proposal, so that a second one of the same round convicts its proposer.
    pub fn note(&mut self, proposal: &SignedProposal, signed: Vec<u8>) {
        let first = || (proposal.proposer, Vec::new());
        let (_, seen) = self.seen.entry(proposal.round).or_insert_with(first);
        seen.push(Seen { signed, proof: codec::proposal_evidence(proposal) });
    }

    /// Returns `proposal` if the core may have it now, else holds it. `is_timely` says that it is
    /// fresh and arrived in time.
    pub fn place(&mut self, proposal: SignedProposal, is_timely: bool) -> Option<SignedProposal> {
        let (round, id) = (proposal.round, proposal.value.value_id());
        let counts = is_timely || self.covers(&proposal);
        if self.polkas.contains(&(round, id)) || (counts && self.has_room(round, &id)) {
            return Some(proposal);
        }
        self.hold(proposal);
        None
    }

    /// Counts what the core has verified; returns the proposals that no longer wait.
    pub fn count(&mut self, verified: &Input<Ctx>, electorate: &Electorate) -> Vec<SignedProposal> {
        let polka = match verified {
            Input::Vote(vote) => self.count_vote(vote, electorate),
            Input::PolkaCertificate(c) => Some((c.round, c.value_id)),
            Input::Proposal(p) => {
                self.stored.entry(p.round).or_default().insert(p.value.value_id());
                None
            }
            _ => None,
        };
        if !polka.is_some_and(|polka| self.polkas.insert(polka)) {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut self.held);
        waiting.into_iter().filter_map(|proposal| self.place(proposal, false)).collect()
    }

    /// The polka that `vote` completes.
    fn count_vote(&mut self, vote: &SignedVote, electorate: &Electorate) -> Option<Polka> {
        let (VoteType::Prevote, NilOrVal::Val(id)) = (vote.vote_type, vote.value) else {
            return None;
        };
        let voters = self.prevotes.entry((vote.round, id)).or_default();
        voters.insert(vote.voter);
        let power = voters.iter().filter_map(|v| electorate.member(v)).map(|m| m.voting_power());
        let quorum = ThresholdParams::default().quorum;
        quorum.is_met(power.sum(), electorate.total_voting_power()).then_some((vote.round, id))
    }

    /// Whether the block of `proposal` has a polka in the round it names, or in its own.
    fn covers(&self, proposal: &SignedProposal) -> bool {
        let id = proposal.value.value_id();
        // A round that is not defined has no polka.
        [proposal.pol_round, proposal.round].iter().any(|r| self.polkas.contains(&(*r, id)))
    }

    /// CANDIDATE-3
    fn has_room(&self, round: Round, id: &ValueId) -> bool {
        let stored = self.stored.get(&round);
        stored.is_none_or(|ids| ids.len() < MAX_PROPOSALS_PER_ROUND || ids.contains(id))
    }

    /// CANDIDATE-2: the next one of a proposer replaces the one of its lowest round.
    fn hold(&mut self, proposal: SignedProposal) {
        let same = |p: &SignedProposal| p.proposer == proposal.proposer;
        if self.held.iter().filter(|p| same(p)).count() >= HELD_PER_PROPOSER_MAX {
            let held = self.held.iter().enumerate().filter(|(_, p)| same(p));
            let oldest = held.min_by_key(|(_, p)| p.round).map(|(at, _)| at);
            self.held.remove(oldest.expect("the proposer has some"));
        }
        self.held.push(proposal);
    }

    /// The first contradiction of each proposer that made one.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let mut found: BTreeMap<Voter, [Vec<u8>; 2]> = BTreeMap::new();
        for (proposer, seen) in self.seen.values() {
            if let [first, second, ..] = &seen[..] {
                let pair = || [first.proof.clone(), second.proof.clone()];
                found.entry(*proposer).or_insert_with(pair);
            }
        }
        found.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use arc_malachitebft_core_types::{PolkaSignature, SignedMessage};
    use ed25519_dalek::SigningKey;
    use satrap_certify::{Block, Genesis, PublicKey, Timestamp};
    use satrap_global_core::Ledger;

    use super::*;
    use crate::malachite::context::{Height, PolkaCertificate, Proposal, Value, Vote};

    fn voter(n: u8) -> Voter {
        Voter(PublicKey::of(&SigningKey::from_bytes(&[n + 1; 32])).address())
    }

    fn genesis() -> Genesis {
        let key = |n: u8| PublicKey::of(&SigningKey::from_bytes(&[n + 1; 32]));
        let validator = |n| {
            format!(
                r#"{{"name": "v{n}", "public_key": "{}", "power": 1, "jurisdiction": "eu",
                     "url": "https://v{n}:1"}}"#,
                key(n)
            )
        };
        let validators: Vec<_> = (0..4).map(validator).collect();
        let json = format!(
            r#"{{"chain_id": "test", "genesis_time": "2026-01-01T00:00:00Z",
                "policy": {{ "heartbeat_ms": 60000, "trusting_period_s": 7776000,
                             "clock_drift_ms": 10000, "leader_rotation_heights": 100 }},
                "governance_approvals": 1,
                "operators": [{{ "principal": "alice", "public_key": "{}" }}],
                "classes": [{{ "prefix": "", "approvals": 1, "kind": "opaque" }}],
                "validators": [{}]}}"#,
            key(200),
            validators.join(",")
        );
        Genesis::from_json(json.as_bytes()).unwrap()
    }

    fn electorate() -> Electorate {
        Electorate::new(genesis().validators(), 1, None, 100)
    }

    /// A block that differs from others by its time.
    fn value(ms: u64) -> Value {
        let genesis = genesis();
        let time = Timestamp(1_800_000_000_000_000_000 + ms * 1_000_000);
        let block: Block = Ledger::genesis(&genesis).build(voter(0).0, time, &[]);
        Value::new(genesis.realm(), block).unwrap()
    }

    fn proposal(round: u32, pol_round: Round, value: &Value) -> SignedProposal {
        let (height, round, value) = (Height(1), Round::new(round), value.clone());
        let proposal = Proposal { height, round, pol_round, value, proposer: voter(0) };
        SignedMessage::new(proposal, [0; 64])
    }

    fn prevote(n: u8, round: u32, value: &Value) -> Input<Ctx> {
        let vote = Vote {
            vote_type: VoteType::Prevote,
            height: Height(1),
            round: Round::new(round),
            value: NilOrVal::Val(value.value_id()),
            voter: voter(n),
        };
        Input::Vote(SignedMessage::new(vote, [0; 64]))
    }

    fn certificate(round: u32, value: &Value) -> Input<Ctx> {
        let signature = PolkaSignature { address: voter(0), signature: [0; 64] };
        Input::PolkaCertificate(PolkaCertificate {
            height: Height(1),
            round: Round::new(round),
            value_id: value.value_id(),
            polka_signatures: vec![signature],
        })
    }

    #[test]
    fn a_claim_waits_for_two_thirds_of_the_power_and_not_for_less() {
        let (mut candidates, set, block) = (Candidates::default(), electorate(), value(1));
        let claim = proposal(2, Round::new(0), &block);
        assert!(candidates.place(claim.clone(), false).is_none());
        for vote in [
            prevote(1, 0, &block),
            prevote(2, 0, &block),
            prevote(2, 0, &block),
            prevote(9, 0, &block),
            prevote(3, 1, &block),
            prevote(3, 0, &value(2)),
        ] {
            assert!(candidates.count(&vote, &set).is_empty(), "{vote:?}");
        }
        let released = candidates.count(&prevote(3, 0, &block), &set);
        assert_eq!(released, std::slice::from_ref(&claim));
        assert!(candidates.count(&certificate(0, &block), &set).is_empty(), "it no longer waits");
        assert_eq!(candidates.place(claim.clone(), false), Some(claim), "the polka is known now");
    }

    #[test]
    fn a_certificate_counts_for_its_round_and_block_only() {
        let (mut candidates, set, block) = (Candidates::default(), electorate(), value(1));
        let claim = proposal(3, Round::new(1), &block);
        // Not timely: it waits for a polka in its own round.
        let late = proposal(2, Round::Nil, &block);
        assert!(candidates.place(claim.clone(), false).is_none());
        assert!(candidates.place(late.clone(), false).is_none());
        assert!(candidates.count(&certificate(0, &block), &set).is_empty(), "another round");
        assert!(candidates.count(&certificate(1, &value(2)), &set).is_empty(), "another block");
        assert_eq!(candidates.count(&certificate(1, &block), &set), [claim]);
        assert_eq!(candidates.count(&certificate(2, &block), &set), [late]);
    }

    #[test]
    fn proposals_of_a_round_at_the_limit_and_over_it() {
        let (mut candidates, set) = (Candidates::default(), electorate());
        let room = u64::try_from(PROPOSALS_PER_ROUND_MAX).unwrap();
        for ms in 0..room {
            let p = proposal(1, Round::Nil, &value(ms));
            assert!(candidates.wants(&p, &[ms as u8]));
            candidates.note(&p, vec![ms as u8]);
            assert!(!candidates.wants(&p, &[ms as u8]), "the same again");
        }
        let voted = proposal(1, Round::new(0), &value(99));
        assert!(!candidates.wants(&voted, &[99]), "over the limit");
        assert!(candidates.wants(&proposal(2, Round::Nil, &value(99)), &[99]), "another round");
        candidates.count(&certificate(0, &value(99)), &set);
        assert!(candidates.wants(&voted, &[99]), "with a polka");
        let contradictions = candidates.contradictions();
        assert_eq!(contradictions.len(), 1);
        assert_eq!(contradictions[0].0, voter(0));
    }

    #[test]
    fn the_core_gets_no_more_blocks_of_a_round_than_it_keeps() {
        let (mut candidates, set) = (Candidates::default(), electorate());
        for ms in 0..MAX_PROPOSALS_PER_ROUND as u64 {
            let p = candidates.place(proposal(1, Round::Nil, &value(ms)), true).expect("room");
            candidates.count(&Input::Proposal(p), &set);
        }
        let third = proposal(1, Round::Nil, &value(99));
        assert!(candidates.place(third.clone(), true).is_none(), "over the limit");
        assert_eq!(candidates.count(&certificate(1, &value(99)), &set), [third]);
    }

    #[test]
    fn a_proposer_displaces_its_own_oldest_claim() {
        let (mut candidates, set, block) = (Candidates::default(), electorate(), value(1));
        let rounds = u32::try_from(HELD_PER_PROPOSER_MAX).unwrap() + 1;
        for round in 1..=rounds {
            assert!(candidates.place(proposal(round, Round::new(0), &block), false).is_none());
        }
        let released = candidates.count(&certificate(0, &block), &set);
        let released: Vec<_> = released.iter().map(|p| p.round.as_u32().unwrap()).collect();
        assert_eq!(released, (2..=rounds).collect::<Vec<_>>());
    }
}
