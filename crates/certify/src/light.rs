//! Light-client steps: from one verified checkpoint to a newer one.
//!
//! The rules are Tendermint's (light-client specification, sequential and skipping verification):
//! the offered checkpoint must carry more than two thirds of its own set (C5, C6). If it is the
//! very next one, that set is the one announced before (C4); if heights were skipped, more than
//! one third of the announced set must be among the signers (C7), so at least one honest
//! validator of a set we trust vouches for it. Keys of a set are believed only for the trusting
//! period (C8).
//!
//! A relay proves each change of the set to its own followers, so it takes no skip that leaves one
//! out: every step it takes is signed by the set that was announced (C12).

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    checkpoint::{BlockId, Checkpoint, Commitments},
    commit::Commit,
    genesis::{Genesis, Policy, Realm},
    rejection::Rejection,
    timestamp::Timestamp,
    update::Step,
    validators::ValidatorSet,
};

/// Whether the clock rules (C8, C9) apply. They judge strangers; a process that goes on from what
/// it decided or stored itself must not depend on how long it was off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// They do, by this clock.
    Now(Timestamp),
    /// They do not.
    Ignored,
}

/// The validators whose signatures on a step that skips heights are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// The announced set (C12): for relays, which miss no change of the set.
    Announced,
    /// Any set of which a third of the announced power is part (C7): for edges.
    Overlap,
}

/// How a step is judged beyond its signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRules {
    /// By the caller's clock, or by none.
    pub clock: Clock,
    /// The validator sets that may have signed it.
    pub linkage: Linkage,
}

/// The newest verified checkpoint and the set it announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// 0 for the genesis itself.
    pub height: u64,
    /// Certified time; the genesis time at height 0.
    pub time: Timestamp,
    /// Certified block and its roots; `None` at height 0.
    pub certified: Option<(BlockId, Commitments)>,
    /// The validators that sign the next height.
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
    /// # Errors
    ///
    /// [`Rejection`] C2 to C10, and C12.
    pub fn step(
        &self,
        realm: &Realm,
        policy: &Policy,
        step: &Step,
        rules: StepRules,
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
        if let Clock::Now(now) = rules.clock {
            self.check_clock(policy, checkpoint, now)?;
        }
        let adjacent = height == self.height + 1;
        if checkpoint.validators_hash != self.next_validators.hash() {
            let set = checkpoint.validators_hash;
            match rules.linkage {
                _ if adjacent => return Err(Rejection::UnknownSet { height, set }),
                Linkage::Announced => return Err(Rejection::Unannounced { height, set }),
                Linkage::Overlap => {}
            }
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

    /// C7
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

impl Canonical for Trusted {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.height);
        self.time.encode(w);
        w.option(self.certified.as_ref().map(|(id, _)| id));
        w.option(self.certified.as_ref().map(|(_, commitments)| commitments));
        self.next_validators.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (height, time) = (r.u64()?, Timestamp::decode(r)?);
        let (id, commitments): (Option<BlockId>, Option<Commitments>) = (r.option()?, r.option()?);
        if id.is_some() != (height > 0) || commitments.is_some() != (height > 0) {
            return Err(DecodeError::Invalid("trusted checkpoint: certified above height 0 only"));
        }
        let next_validators = ValidatorSet::decode(r)?;
        Ok(Self { height, time, certified: id.zip(commitments), next_validators })
    }
}
