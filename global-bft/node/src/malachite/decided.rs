//! The decided state: the ledger, the replica that is served to regions, and the last commit.
//!
//! A decision and a restart go through the same two calls, `Ledger::apply` and
//! `Replica::verify_own`: a validator believes its own disk as little as it believes a peer. No clock
//! takes part. Clocks judge what strangers say; what the quorum decided is stored, however long the
//! realm was down.

use std::sync::Arc;

use arc_malachitebft_core_consensus::MisbehaviorEvidence;
use satrap_certify::{Block, Commit, Genesis, Interest, Replica, Snapshot as State, ValidatorSet};
use satrap_global_core::Ledger;
use satrap_merkle::codec::{Canonical as _, Writer};

use super::{
    candidates::Contradiction,
    codec,
    context::{CommitCertificate, Ctx, SignedVote},
    effects::Fatal,
};
use crate::{
    limits::SNAPSHOT_HEIGHTS,
    store::{Conflict, ConflictKind, DiskError, Snapshot, Storage},
};

/// The state after the last decided height.
pub(super) struct Decided {
    pub ledger: Ledger,
    pub replica: Arc<Replica>,
    pub last_commit: Option<Commit>,
}

impl Decided {
    /// Restores the newest snapshot and applies the blocks after it.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if the disk fails, or holds what does not verify.
    pub fn restore(genesis: &Genesis, store: &dyn Storage) -> Result<Self, Fatal> {
        let (ledger, replica) = match store.snapshot()? {
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
        let last_commit = store.decided(ledger.height())?.map(|(_, commit)| commit);
        let mut decided = Self { ledger, replica: Arc::new(replica), last_commit };
        while let Some((block, commit)) = store.decided(decided.ledger.height() + 1)? {
            decided.apply(&block, commit)?;
        }
        Ok(decided)
    }

    /// Moves to the height of `block`.
    ///
    /// # Errors
    ///
    /// [`Fatal::Diverged`]
    pub fn apply(&mut self, block: &Block, commit: Commit) -> Result<(), Fatal> {
        let height = block.checkpoint.height;
        let update = self.ledger.apply(block, &commit).map_err(|why| diverged(height, &why))?;
        let replica = Arc::make_mut(&mut self.replica);
        let verified = replica.verify_own(&update);
        replica.advance(verified.map_err(|why| diverged(height, &why))?);
        self.last_commit = Some(commit);
        Ok(())
    }

    /// The state that a restart begins with, once in [`SNAPSHOT_HEIGHTS`] heights.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.ledger.height().is_multiple_of(SNAPSHOT_HEIGHTS).then(|| Snapshot {
            ledger: self.ledger.snapshot(),
            replica: self.replica.snapshot().expect("a height was decided").to_canonical(),
        })
    }

    /// Whether this validator finds a certified block valid, as it must.
    ///
    /// # Errors
    ///
    /// [`Fatal::Diverged`]
    pub fn check(&self, block: &Block) -> Result<(), Fatal> {
        let height = block.checkpoint.height;
        self.ledger.validate(block).map_err(|why| diverged(height, &why))
    }
}

fn diverged(height: u64, why: &dyn core::fmt::Display) -> Fatal {
    Fatal::Diverged { height, why: why.to_string() }
}

/// The signatures of a certificate, in set order.
pub(super) fn commit_of(certificate: &CommitCertificate, set: &ValidatorSet) -> Commit {
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
pub(super) fn conflicts(
    evidence: &MisbehaviorEvidence<Ctx>,
    withheld: Vec<Contradiction>,
) -> Vec<Conflict> {
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
