//! Light-client steps: from one verified checkpoint to a newer one.
//!
//! The rules are Tendermint's (light-client specification, sequential and skipping verification):
//! the offered checkpoint must carry more than two thirds of its own set (C5, C6). If it is the
//! very next one, that set is the one announced before (C4); if heights were skipped, more than
//! one third of the announced set must be among the signers (C7), so at least one honest
//! validator of a set we trust vouches for it. Keys of a set are believed only for the trusting
//! period (C8).

use crate::{
    checkpoint::{BlockId, Checkpoint, Commitments},
    commit::Commit,
    genesis::{Genesis, Policy, Realm},
    rejection::Rejection,
    timestamp::Timestamp,
    update::Step,
    validators::ValidatorSet,
};

/// The newest verified checkpoint and the set it announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// 0 for the genesis itself.
    pub height: u64,
    /// Certified time; the genesis time at height 0.
    pub time: Timestamp,
    /// Certified block and its roots; `None` at height 0.
    pub certified: Option<(BlockId, Commitments)>,
    /// Who signs the next height.
    pub next_validators: ValidatorSet,
}

impl Trusted {
    /// The state of a process that has seen nothing but the genesis.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        Self {
            height: 0,
            time: genesis.time,
            certified: None,
            next_validators: genesis.validators().clone(),
        }
    }

    /// Verifies one step and returns the state after it.
    ///
    /// `now` is the caller's clock, used for C8 and C9 alone.
    ///
    /// # Errors
    ///
    /// [`Rejection`] C2 to C10.
    pub fn step(
        &self,
        realm: &Realm,
        policy: &Policy,
        step: &Step,
        now: Timestamp,
    ) -> Result<Self, Rejection> {
        let Step { checkpoint, commit, sets } = step;
        let height = checkpoint.height;
        let id = checkpoint.id(realm);
        let find = |hash| {
            sets.iter()
                .chain([&self.next_validators])
                .find(|set| set.hash() == hash)
                .ok_or(Rejection::UnknownSet { height, set: hash })
        };
        if height <= self.height {
            let known = self.certified.as_ref().map(|(known, _)| known);
            if height == self.height && known != Some(&id) {
                // C3 accuses validators, so the accusation must itself be proven.
                let set = find(checkpoint.validators_hash)?;
                commit.verify(realm, checkpoint, set)?;
                self.check_overlap(height, commit, set)?;
                return Err(Rejection::Conflict { height });
            }
            return Err(Rejection::NotNewer { offered: height, verified: self.height });
        }
        if checkpoint.time <= self.time {
            let (time, before) = (checkpoint.time, self.time);
            return Err(Rejection::Time { height, time, before });
        }
        self.check_clock(policy, checkpoint, now)?;
        let adjacent = height == self.height + 1;
        if adjacent && checkpoint.validators_hash != self.next_validators.hash() {
            return Err(Rejection::UnknownSet { height, set: checkpoint.validators_hash });
        }
        let set = find(checkpoint.validators_hash)?;
        commit.verify(realm, checkpoint, set)?;
        if !adjacent {
            self.check_overlap(height, commit, set)?;
        }
        let next_validators = find(checkpoint.next_validators_hash)?.clone();
        Ok(Self {
            height,
            time: checkpoint.time,
            certified: Some((id, checkpoint.commitments.clone())),
            next_validators,
        })
    }

    fn check_clock(
        &self,
        policy: &Policy,
        checkpoint: &Checkpoint,
        now: Timestamp,
    ) -> Result<(), Rejection> {
        let (age, period) = (now.since(self.time), policy.trusting_period);
        if age > period {
            return Err(Rejection::TrustExpired { height: self.height, age, period });
        }
        let ahead = checkpoint.time.since(now);
        if ahead > policy.clock_drift {
            return Err(Rejection::Future { height: checkpoint.height, ahead });
        }
        Ok(())
    }

    fn check_overlap(
        &self,
        height: u64,
        commit: &Commit,
        set: &ValidatorSet,
    ) -> Result<(), Rejection> {
        let signed = commit.overlap_power(set, &self.next_validators);
        let needed = self.next_validators.vouching_power();
        if signed < needed {
            return Err(Rejection::Overlap { height, signed, needed });
        }
        Ok(())
    }
}
