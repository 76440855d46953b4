//! Decides when this validator proposes a block, and which.
//!
//! There are no empty blocks: the propose timer and the leader's own block wait until a change is
//! pending or the heartbeat is due. That holds on *every* validator, because changes are sent to all:
//! each validator that has work starts the timer, so a dead leader is replaced while an idle realm
//! burns no rounds. From round 1 on something has already gone wrong, so no validator waits any more.

use std::time::Duration;

use arc_malachitebft_core_consensus::{Input, LocallyProposedValue};
use arc_malachitebft_core_types::Round;

use super::{
    context::{Ctx, Height, Value},
    effects::EngineEffect,
    host::Host,
};

/// Blocks are at least this far apart, so that a clock that does not advance cannot stop the realm.
const BLOCK_TIME_STEP: Duration = Duration::from_millis(1);

impl Host {
    /// Starts the deferred timer, once there is work; returns a block to propose.
    pub fn drive(&mut self) -> Option<Input<Ctx>> {
        if !self.has_work() {
            return None;
        }
        if let Some(timer) = self.height.deferred.take() {
            self.step.effect(EngineEffect::Schedule(timer, self.timing.of(timer)));
        }
        self.height.wanted.and_then(|round| self.propose(round))
    }

    fn propose(&mut self, round: u32) -> Option<Input<Ctx>> {
        let ledger = &self.decided.ledger;
        let time = self.step.now.wall.max(ledger.last_time().plus(BLOCK_TIME_STEP));
        let block = ledger.build(self.me.0, time, self.mempool.changes());
        if block.changes.is_empty() {
            // Changes that apply alone may exceed the limits of the realm together.
            let answers = self.mempool.recheck_all(ledger);
            self.answer(answers);
            if round == 0 && !self.height.is_heartbeat_due(time) {
                return None;
            }
        }
        self.height.wanted = None;
        let value = Value::new(&self.realm, block).expect("the ledger derives the payload's hash");
        self.height.values.insert(value.value_id(), value.clone());
        let (height, round) = (Height(self.height.number), Round::new(round));
        Some(Input::Propose(LocallyProposedValue { height, round, value }))
    }

    /// ENGINE-3: the log has been replayed; the core is not asked again for a block that the log holds.
    pub fn end_replay(&mut self) {
        let log = self.journal.end_replay();
        let Some(round) = self.height.wanted.map(Round::new) else { return };
        let mut logged = None;
        for input in log {
            match input {
                Input::Proposal(p) if p.proposer == self.me && p.round == round => {
                    self.height.wanted = None;
                    return;
                }
                Input::ProposedValue(v, _) if v.proposer == self.me && v.round == round => {
                    logged = Some(v);
                }
                _ => {}
            }
        }
        if let Some(v) = logged.filter(|v| v.height.0 == self.height.number) {
            self.height.wanted = None;
            let value = LocallyProposedValue { height: v.height, round, value: v.value };
            self.step.queue(None, Input::Propose(value));
        }
    }
}
