//! What happens when a height is decided, and how decided heights are restored.
//!
//! Both go through the same two calls, `Ledger::apply` and `Replica::verify_own`: a validator believes
//! its own disk as little as it believes a peer. No clock takes part. Clocks judge what strangers
//! say; what the quorum decided is stored, however long the realm was down.

use std::sync::Arc;

use arc_malachitebft_core_consensus::{Input, MisbehaviorEvidence, ProposedValue};
use arc_malachitebft_core_types::{Round, Validity, ValueOrigin, ValueResponse};
use satrap_certify::{Block, Commit, Genesis, Interest, Replica, Snapshot as State, ValidatorSet};
use satrap_global_core::Ledger;
use satrap_merkle::codec::{Canonical as _, Writer};

use super::{
    candidates::Contradiction,
    codec,
    context::{CommitCertificate, Ctx, SignedVote, Voter},
    engine::{EngineEffect, Fatal},
    host::Host,
};
use crate::{
    limits::SNAPSHOT_HEIGHTS,
    mempool::Answer,
    store::{Conflict, ConflictKind, Decision, DiskError, Snapshot, Storage},
};

/// The decided state on disk.
pub(super) struct Restored {
    pub ledger: Ledger,
    pub replica: Replica,
    pub last_commit: Option<Commit>,
}

/// Restores the newest snapshot and applies the blocks after it.
pub(super) fn restore(genesis: &Genesis, store: &dyn Storage) -> Result<Restored, Fatal> {
    let (mut ledger, mut replica) = match store.snapshot()? {
        None => (Ledger::genesis(genesis), Replica::genesis(genesis, Interest::Everything)),
        Some(snapshot) => {
            let damaged = |why| DiskError::Damaged { what: "the snapshot", why };
            let ledger = Ledger::restore(genesis, &snapshot.ledger).map_err(damaged)?;
            let state = State::from_canonical(&snapshot.replica).map_err(damaged)?;
            let replica = Replica::restore(genesis, Interest::Everything, &state);
            let diverged = |why: satrap_certify::Rejection| diverged(ledger.height(), &why);
            (ledger.clone(), replica.map_err(diverged)?)
        }
    };
    let mut last_commit = store.decided(ledger.height())?.map(|(_, commit)| commit);
    while let Some((block, commit)) = store.decided(ledger.height() + 1)? {
        advance(&mut ledger, &mut replica, &block, &commit)?;
        last_commit = Some(commit);
    }
    Ok(Restored { ledger, replica, last_commit })
}

fn diverged(height: u64, why: &dyn core::fmt::Display) -> Fatal {
    Fatal::Diverged { height, why: why.to_string() }
}

fn advance(
    ledger: &mut Ledger,
    replica: &mut Replica,
    block: &Block,
    commit: &Commit,
) -> Result<(), Fatal> {
    let height = block.checkpoint.height;
    let update = ledger.apply(block, commit).map_err(|why| diverged(height, &why))?;
    let verified = replica.verify_own(&update);
    replica.advance(verified.map_err(|why| diverged(height, &why))?);
    Ok(())
}

/// The signatures of a certificate, in set order.
fn commit_of(certificate: &CommitCertificate, set: &ValidatorSet) -> Commit {
    let mut signatures = vec![None; set.len()];
    for s in &certificate.commit_signatures {
        if let Some(index) = set.index_of(&s.address.0) {
            signatures[index] = Some(s.signature);
        }
    }
    Commit { round: certificate.round.as_u32().expect("decisions have a round"), signatures }
}

/// Pairs of contradicting messages that came to light, as both signed messages. The core has no
/// evidence against a proposer whose proposals it was not handed; that is in `withheld`.
fn conflicts(evidence: &MisbehaviorEvidence<Ctx>, withheld: Vec<Contradiction>) -> Vec<Conflict> {
    let vote = |vote: &SignedVote| {
        let mut w = Writer::default();
        codec::put_vote(&mut w, vote);
        w.finish()
    };
    let mut found = Vec::new();
    for (voter, pairs) in evidence.votes.iter() {
        found.extend(pairs.iter().map(|(first, second)| Conflict {
            kind: ConflictKind::Vote,
            offender: voter.0,
            first: vote(first),
            second: vote(second),
        }));
    }
    for (proposer, [first, second]) in withheld {
        if evidence.proposals.get(&proposer).is_none() {
            let (kind, offender) = (ConflictKind::Proposal, proposer.0);
            found.push(Conflict { kind, offender, first, second });
        }
    }
    for (voter, pairs) in evidence.proposals.iter() {
        found.extend(pairs.iter().map(|(first, second)| Conflict {
            kind: ConflictKind::Proposal,
            offender: voter.0,
            first: codec::proposal_evidence(first),
            second: codec::proposal_evidence(second),
        }));
    }
    found
}

impl Host {
    /// Makes a decision durable, answers whoever waited for it, and starts the next height.
    pub fn finalize(
        &mut self,
        certificate: &CommitCertificate,
        evidence: &MisbehaviorEvidence<Ctx>,
    ) -> Result<(), Fatal> {
        let value = self.values.get(&certificate.value_id).cloned();
        let value = value.ok_or_else(|| Fatal::Core("decided a block that is not held".into()))?;
        let block = value.block();
        let height = block.checkpoint.height;
        let signers = self.ledger.validators().clone();
        let commit = commit_of(certificate, &signers);
        let conflicts = conflicts(evidence, self.candidates.contradictions());
        for conflict in &conflicts {
            let (offender, kind) = (conflict.offender, conflict.kind.as_str());
            tracing::error!(height, %offender, kind, "a validator contradicted itself");
        }
        let replica = Arc::make_mut(&mut self.replica);
        advance(&mut self.ledger, replica, block, &commit)?;
        let due = height.is_multiple_of(SNAPSHOT_HEIGHTS);
        let snapshot = due.then(|| Snapshot {
            ledger: self.ledger.snapshot(),
            replica: self.replica.snapshot().expect("a height was decided").to_canonical(),
        });
        let decision =
            Decision { block: block.clone(), commit: commit.clone(), signers, conflicts, snapshot };
        self.store.decide(&decision)?;
        let answers = self.mempool.settle(&self.ledger, block, value.value_id().block);
        self.last_commit = Some(commit);
        self.effects.push(EngineEffect::Decided(height));
        self.answer(answers);
        self.peers.forgive();
        self.next_height();
        Ok(())
    }

    fn next_height(&mut self) {
        self.enter_height();
        let start = self.start_height();
        // Whatever else is queued is of the decided height; the core drops it.
        self.queue.push_front((None, start));
        if self.replaying.is_empty() {
            self.admit_early();
        }
        self.after_decision();
    }

    pub fn answer(&mut self, answers: Vec<Answer>) {
        self.effects.extend(answers.into_iter().map(EngineEffect::Answer));
    }

    /// A block from value sync has a valid certificate; judge it and hand it to the core.
    pub fn sync_value_certified(
        &mut self,
        response: &ValueResponse<Ctx>,
        proposer: Voter,
    ) -> Result<(), Fatal> {
        let Some(value) = self.catchup.take_value(&response.certificate.value_id) else {
            self.junk = true;
            return Ok(());
        };
        let height = response.certificate.height;
        if let Some(peer) = self.source.clone() {
            self.peers.trust(&peer);
            self.catchup.delivered(&peer, height.0);
        }
        self.ledger.validate(value.block()).map_err(|why| diverged(height.0, &why))?;
        self.values.insert(value.value_id(), value.clone());
        let value = ProposedValue {
            height,
            round: response.certificate.round,
            valid_round: Round::Nil,
            proposer,
            value,
            validity: Validity::Valid,
        };
        self.queue.push_front((None, Input::ProposedValue(value, ValueOrigin::Sync)));
        Ok(())
    }
}
