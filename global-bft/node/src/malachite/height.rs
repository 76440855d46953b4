//! The height in progress: who votes and leads, the blocks and proposals seen so far, and what this
//! validator owes the core. Made anew for each height; nothing in it outlives the decision.

use std::collections::BTreeMap;

use arc_malachitebft_core_consensus::Input;
use arc_malachitebft_core_types::{Round, Validator as _, ValidatorSet as _, VoteExtensionPolicy};
use satrap_certify::{Address, Genesis, Label, Timestamp};
use satrap_global_core::Ledger;

use super::{
    candidates::Candidates,
    context::{Ctx, Electorate, Height, SignedProposal, Value, ValueId, Voter},
    timing::TimerId,
};
use crate::limits::ROUNDS_AHEAD_MAX;

/// The state of one height.
pub(super) struct HeightState {
    /// The height.
    pub number: u64,
    pub electorate: Electorate,
    names: BTreeMap<Address, Label>,
    /// From this time on an empty block is a heartbeat.
    heartbeat_at: Timestamp,
    pub round: u32,
    pub values: BTreeMap<ValueId, Value>,
    pub candidates: Candidates,
    /// The round for which the core waits for a block of this validator.
    pub wanted: Option<u32>,
    /// The propose timer, not started while there is nothing to propose.
    pub deferred: Option<TimerId>,
}

impl HeightState {
    /// The height after the last one that `ledger` has decided.
    pub fn after(ledger: &Ledger, genesis: &Genesis) -> Self {
        let proposer = ledger.last().map(|(checkpoint, _)| checkpoint.proposer);
        let rotation = genesis.policy.leader_rotation_heights;
        let (set, number) = (ledger.validators(), ledger.height() + 1);
        let validators = &ledger.governance().validators;
        Self {
            number,
            electorate: Electorate::new(set, number, proposer.as_ref(), rotation),
            names: validators.iter().map(|v| (v.public.address(), v.name.clone())).collect(),
            heartbeat_at: ledger.last_time().plus(genesis.policy.heartbeat),
            round: 0,
            values: BTreeMap::new(),
            candidates: Candidates::default(),
            wanted: None,
            deferred: None,
        }
    }

    /// The input that starts the height in the core.
    pub fn start(&self) -> Input<Ctx> {
        let policy = VoteExtensionPolicy::Disabled;
        Input::StartHeight(Height(self.number), self.electorate.clone(), false, None, policy)
    }

    /// The name of a validator that governance lists.
    pub fn name(&self, voter: &Voter) -> Option<&Label> {
        self.names.get(&voter.0)
    }

    /// Whether the core looks at messages of `round`.
    pub fn in_reach(&self, round: Round) -> bool {
        round.as_u32().is_some_and(|r| r <= self.round.saturating_add(ROUNDS_AHEAD_MAX))
    }

    /// Whether a block of `time` may be empty.
    pub fn is_heartbeat_due(&self, time: Timestamp) -> bool {
        time >= self.heartbeat_at
    }

    /// ADMIT-5, ADMIT-6 of `admission`: why no honest validator makes this proposal, whatever the time.
    pub fn malformed(&self, proposal: &SignedProposal) -> Option<&'static str> {
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
}
