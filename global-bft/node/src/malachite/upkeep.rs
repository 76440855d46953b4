//! Decides when to propose, when to catch up, and what to repeat.
//!
//! There are no empty blocks: the propose timer and the leader's own block wait until a change is
//! pending or the heartbeat is due. That holds on *every* validator, because changes are sent to
//! all: whoever has work starts the timer, so a dead leader is replaced while an idle realm burns no
//! rounds. From round 1 on something has already gone wrong, so nobody waits any more.

use std::time::Duration;

use arc_malachitebft_core_consensus::{Input, LocallyProposedValue, PeerId};
use arc_malachitebft_core_types::{
    CommitCertificate, CommitSignature, ExtendedCommitCertificate, Round, ValueResponse,
    VoteExtensions,
};
use bytes::Bytes;
use satrap_certify::{Commit, Label, Timestamp};

use super::{
    context::{Ctx, Height, Value, ValueId, Voter},
    engine::{EngineEffect, Fatal},
    frame::Frame,
    host::Host,
};
use crate::limits::{SYNC_PATIENCE, SYNC_TIMEOUT};

/// Blocks are at least this far apart, so that a clock that stands still cannot stop the realm.
const BLOCK_TIME_STEP: Duration = Duration::from_millis(1);

/// Value sync: fetching decided blocks one by one.
#[derive(Default)]
pub(super) struct Catchup {
    behind_since: Option<Duration>,
    asked: Option<(Label, u64, Duration)>,
    last: Option<Label>,
    value: Option<Value>,
}

impl Catchup {
    /// The block that was received for a certificate.
    pub fn take_value(&mut self, id: &ValueId) -> Option<Value> {
        self.value.take().filter(|value| value.value_id() == *id)
    }
}

impl Host {
    /// Periodic upkeep.
    pub fn tick(&mut self) {
        self.effects.push(EngineEffect::Broadcast(Frame::Status(self.ledger.height())));
        for change in self.mempool.resend(self.now.monotonic) {
            self.effects.push(EngineEffect::Broadcast(Frame::Change(change)));
        }
        self.catch_up();
    }

    /// Whether a validator with clock `time` should make a block although nothing is pending.
    pub fn is_heartbeat_due(&self, time: Timestamp) -> bool {
        time >= self.ledger.last_time().plus(self.genesis.policy.heartbeat)
    }

    /// Whether there is a reason to leave the height in progress behind.
    pub fn has_work(&self) -> bool {
        self.round > 0 || !self.mempool.is_empty() || self.is_heartbeat_due(self.now.wall)
    }

    /// Starts what was deferred, once there is work; returns a block to propose.
    pub fn drive(&mut self) -> Option<Input<Ctx>> {
        if !self.has_work() {
            return None;
        }
        if let Some(timer) = self.deferred.take() {
            self.effects.push(EngineEffect::Schedule(timer, self.timing.of(timer)));
        }
        self.wanted.and_then(|round| self.propose(round))
    }

    fn propose(&mut self, round: u32) -> Option<Input<Ctx>> {
        let time = self.now.wall.max(self.ledger.last_time().plus(BLOCK_TIME_STEP));
        let block = self.ledger.build(self.me.0, time, self.mempool.changes());
        if block.changes.is_empty() {
            // What each applied alone may not apply together with the limits of the realm.
            let answers = self.mempool.recheck_all(&self.ledger);
            self.answer(answers);
            if round == 0 && !self.is_heartbeat_due(time) {
                return None;
            }
        }
        self.wanted = None;
        let value = Value::new(&self.realm, block).expect("the ledger derives the payload's hash");
        self.values.insert(value.value_id(), value.clone());
        let (height, round) = (Height(self.height()), Round::new(round));
        Some(Input::Propose(LocallyProposedValue { height, round, value }))
    }

    /// N3: the log has been replayed; what it already answered is not asked again.
    pub fn end_replay(&mut self) {
        let log = std::mem::take(&mut self.replaying);
        let Some(round) = self.wanted.map(Round::new) else { return };
        let mut logged = None;
        for input in log {
            match input {
                Input::Proposal(p) if p.proposer == self.me && p.round == round => {
                    self.wanted = None;
                    return;
                }
                Input::ProposedValue(v, _) if v.proposer == self.me && v.round == round => {
                    logged = Some(v);
                }
                _ => {}
            }
        }
        if let Some(v) = logged.filter(|v| v.height.0 == self.height()) {
            self.wanted = None;
            let value = LocallyProposedValue { height: v.height, round, value: v.value };
            self.queue.push_back((None, Input::Propose(value)));
        }
    }

    /// Asks a peer that is ahead for the next block.
    fn catch_up(&mut self) {
        let (now, next) = (self.now.monotonic, self.height());
        if let Some((peer, height, at)) = &self.catchup.asked {
            if *height == next && now.saturating_sub(*at) < SYNC_TIMEOUT {
                return;
            }
            // No answer: ask others until it says again that it is ahead.
            let (peer, claim) = (peer.clone(), next - 1);
            self.peers.claims(&peer, claim);
            self.catchup.asked = None;
        }
        let Some(peer) = self.peers.holding(next, self.catchup.last.as_ref()) else {
            self.catchup.behind_since = None;
            return;
        };
        let since = *self.catchup.behind_since.get_or_insert(now);
        if now.saturating_sub(since) >= SYNC_PATIENCE {
            self.catchup.asked = Some((peer.clone(), next, now));
            self.catchup.last = Some(peer.clone());
            self.effects.push(EngineEffect::Send(peer, Frame::SyncRequest(next)));
        }
    }

    /// A height was decided: go on at once if it came from value sync, else wait and see.
    pub fn after_decision(&mut self) {
        let decided = self.ledger.height();
        match self.catchup.asked.take() {
            Some((_, height, _)) if height == decided => {
                // The peer that just answered is as good as any.
                self.catchup.last = None;
                self.catch_up();
            }
            _ => self.catchup.behind_since = None,
        }
    }

    /// Answers a peer that is behind.
    pub fn serve_block(&mut self, from: Label, height: u64) -> Result<(), Fatal> {
        let held = self.store.decided(height)?.map(|(block, commit)| {
            let value = Value::new(&self.realm, block);
            (value.expect("a decided block carries the payload its header names"), commit)
        });
        self.effects.push(EngineEffect::Send(from, Frame::SyncResponse(height, held)));
        Ok(())
    }

    /// Takes the answer of a peer that is ahead.
    pub fn take_block(&mut self, from: &Label, height: u64, held: Option<(Value, Commit)>) {
        let next = self.height();
        let asked = self.catchup.asked.as_ref();
        if height != next || asked.is_none_or(|(peer, h, _)| peer != from || *h != height) {
            return;
        }
        let Some((value, commit)) = held else {
            self.catchup.asked = None;
            self.peers.claims(from, next - 1);
            return;
        };
        let set = self.ledger.validators();
        if value.block().checkpoint.height != next || commit.signatures.len() != set.len() {
            self.junk = true;
            return;
        }
        let signer = |(address, s): (&_, &Option<_>)| {
            s.map(|signature| CommitSignature::new(Voter(*address), signature))
        };
        let certificate = CommitCertificate {
            height: Height(next),
            round: Round::new(commit.round),
            value_id: value.value_id(),
            commit_signatures: set
                .addresses()
                .iter()
                .zip(&commit.signatures)
                .filter_map(signer)
                .collect(),
        };
        let certificate = ExtendedCommitCertificate::from_commit_certificate_and_extensions(
            certificate,
            VoteExtensions::new(Vec::new()),
        );
        self.catchup.value = Some(value);
        // The core only hands these two back; the host knows whom it asked, and holds the block.
        let response = ValueResponse::new(core_peer(), Bytes::new(), certificate);
        self.queue.push_back((Some(from.clone()), Input::SyncValueResponse(response)));
    }
}

/// The core names peers by libp2p ids, which nothing here uses.
fn core_peer() -> PeerId {
    /// Multihash "identity" of one zero byte.
    const IDENTITY: [u8; 3] = [0, 1, 0];
    PeerId::from_bytes(&IDENTITY).expect("an identity multihash is a peer id")
}
