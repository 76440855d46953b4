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
use satrap_merkle::codec::Canonical as _;

use super::{
    context::{Ctx, Height, Value, ValueId, Voter},
    engine::{EngineEffect, Fatal},
    frame::Frame,
    host::Host,
    peers::{Asked, Purpose, Request},
};
use crate::limits::{
    FULL_BLOCK_COST, SYNC_BYTES_PER_COST, SYNC_HEDGE_AFTER, SYNC_PATIENCE, SYNC_REQUESTS_MAX,
    SYNC_TIMEOUT,
};

/// Blocks are at least this far apart, so that a clock that stands still cannot stop the realm.
const BLOCK_TIME_STEP: Duration = Duration::from_millis(1);

/// Value sync: fetching decided blocks one by one.
///
/// The peer that delivered the last block is asked for the next one. While there is none, or while
/// it takes long, two are asked at once: a peer that claims every height and delivers none then
/// costs nothing but one request.
#[derive(Default)]
pub(super) struct Catchup {
    behind_since: Option<Duration>,
    /// Requests for the height in progress, oldest first.
    asked: Vec<Request>,
    last: Option<Label>,
    /// The peer that delivered the last block.
    proven: Option<Label>,
    value: Option<Value>,
    /// The height whose block came from a peer and was certified.
    delivered: Option<u64>,
}

impl Catchup {
    /// The block that was received for a certificate.
    pub fn take_value(&mut self, id: &ValueId) -> Option<Value> {
        self.value.take().filter(|value| value.value_id() == *id)
    }

    /// A peer delivered the block of `height`, with a certificate that verified.
    pub fn delivered(&mut self, peer: &Label, height: u64) {
        self.proven = Some(peer.clone());
        self.delivered = Some(height);
    }

    /// How many requests may wait for an answer at `now`.
    fn requests_max(&self, now: Duration) -> usize {
        let waits_long = self.asked.first().is_some_and(|r| now - r.at >= SYNC_HEDGE_AFTER);
        if self.proven.is_some() && !waits_long { 1 } else { SYNC_REQUESTS_MAX }
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

    /// Asks peers that are ahead for the next block.
    fn catch_up(&mut self) {
        let (now, next) = (self.now.monotonic, self.height());
        let overdue = |r: &mut Request| now.saturating_sub(r.at) >= SYNC_TIMEOUT;
        let silent: Vec<_> = self.catchup.asked.extract_if(.., overdue).collect();
        silent.into_iter().for_each(|request| self.not_delivered(&request.peer));
        while self.catchup.asked.len() < self.catchup.requests_max(now) {
            let Some(peer) = self.whom_to_ask(next) else {
                if self.catchup.asked.is_empty() {
                    self.catchup.behind_since = None;
                }
                return;
            };
            let since = *self.catchup.behind_since.get_or_insert(now);
            if now.saturating_sub(since) < SYNC_PATIENCE {
                return;
            }
            self.catchup.asked.push(Request { peer: peer.clone(), at: now });
            self.catchup.last = Some(peer.clone());
            self.effects.push(EngineEffect::Send(peer, Frame::SyncRequest(next)));
        }
    }

    fn whom_to_ask(&self, next: u64) -> Option<Label> {
        let (now, asked) = (self.now.monotonic, &self.catchup.asked);
        let proven = self.catchup.proven.as_ref().filter(|_| asked.is_empty());
        let proven = proven.filter(|peer| self.peers.may_hold(peer, next, now)).cloned();
        let asked = Asked { now: asked, last: self.catchup.last.as_ref() };
        proven.or_else(|| self.peers.holder(next, now, &asked))
    }

    /// K1: a peer claimed a block and did not deliver it.
    pub fn not_delivered(&mut self, peer: &Label) {
        self.catchup.proven.take_if(|proven| proven == peer);
        self.peers.distrust(peer, self.now.monotonic);
    }

    /// A height was decided: go on at once if its block came from a peer, else wait and see.
    pub fn after_decision(&mut self) {
        self.catchup.asked.clear();
        if self.catchup.delivered.take() == Some(self.ledger.height()) {
            self.catch_up();
        } else {
            self.catchup.behind_since = None;
        }
    }

    /// Answers a peer that is behind.
    pub fn serve_block(&mut self, from: Label, height: u64) -> Result<(), Fatal> {
        // Reading costs as much as sending, so nothing is read for who could not pay for a full block.
        if !self.peers.can_pay(&from, (Purpose::Bulk, FULL_BLOCK_COST), self.now.monotonic) {
            return Ok(());
        }
        let decided = self.store.decided(height)?;
        // The block sent back is charged to its asker: a full one is a thousand small ones.
        let bytes = decided.as_ref().map_or(0, |(block, _)| block.to_canonical().len());
        let cost = u32::try_from(bytes / SYNC_BYTES_PER_COST).unwrap_or(u32::MAX);
        if !self.peers.allow(&from, (Purpose::Bulk, cost), self.now.monotonic) {
            return Ok(());
        }
        let held = decided.map(|(block, commit)| {
            let value = Value::new(&self.realm, block);
            (value.expect("a decided block carries the payload its header names"), commit)
        });
        self.effects.push(EngineEffect::Send(from, Frame::SyncResponse(height, held)));
        Ok(())
    }

    /// Takes the answer of a peer that is ahead.
    pub fn take_block(&mut self, from: &Label, height: u64, held: Option<(Value, Commit)>) {
        let next = self.height();
        let place = self.catchup.asked.iter().position(|request| request.peer == *from);
        let Some(place) = place.filter(|_| height == next) else { return };
        self.catchup.asked.remove(place);
        let Some((value, commit)) = held else {
            self.peers.claims(from, next - 1);
            self.not_delivered(from);
            self.catch_up();
            return;
        };
        let set = self.ledger.validators();
        if value.block().checkpoint.height != next || commit.signatures.len() != set.len() {
            self.junk = true;
            self.not_delivered(from);
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
