//! Certified blocks with the sets that signed them, as a Tendermint light client reads them.

use satrap_certify::{
    Checkpoint, Commit, Realm, SignedChange, Step, Trusted, ValidatorSet, light_block,
};

use crate::realm::SimRealm;

/// One decided block and everything that is needed to verify it.
#[derive(Clone, Debug)]
pub struct CertifiedBlock {
    /// The header and the state that results.
    pub checkpoint: Checkpoint,
    /// The signatures over it.
    pub commit: Commit,
    /// The set that signed it.
    pub validators: ValidatorSet,
    /// The set it announces.
    pub next_validators: ValidatorSet,
}

impl CertifiedBlock {
    /// As a step of our own verification.
    #[must_use]
    pub fn step(&self) -> Step {
        Step {
            checkpoint: self.checkpoint.clone(),
            commit: self.commit.clone(),
            sets: vec![self.validators.clone(), self.next_validators.clone()],
        }
    }

    /// The trusted state of a process that has verified this block.
    #[must_use]
    pub fn trusted(&self, realm: &Realm) -> Trusted {
        let id = self.checkpoint.id(realm);
        Trusted {
            height: self.checkpoint.height,
            time: self.checkpoint.time,
            certified: Some((id, self.checkpoint.commitments.clone())),
            next_validators: self.next_validators.clone(),
        }
    }

    /// `tendermint.types.LightBlock` in protobuf.
    #[must_use]
    pub fn light_block(&self, realm: &Realm) -> Vec<u8> {
        light_block::light_block(realm, &self.checkpoint, &self.commit, &self.validators)
    }
}

impl SimRealm {
    /// Decides the next block with `changes` and returns it with its sets.
    ///
    /// # Panics
    ///
    /// If a change does not apply.
    pub fn certify(&mut self, changes: &[SignedChange]) -> CertifiedBlock {
        let validators = self.ledger.validators().clone();
        self.decide(changes).expect("the simulated change applies");
        let (block, commit) = self.blocks.last().expect("a block was decided one line above");
        CertifiedBlock {
            checkpoint: block.checkpoint.clone(),
            commit: commit.clone(),
            validators,
            next_validators: self.ledger.validators().clone(),
        }
    }

    /// Decides `heights` blocks with publishes and heartbeats; a third of the way validator `v4`
    /// joins the first four, after two thirds `v0` leaves.
    pub fn four_five_four(&mut self, heights: u64) -> Vec<CertifiedBlock> {
        let next = |height: u64| {
            let changes = match height {
                h if h == heights / 3 => vec![self.add_validator("v4")],
                h if h == 2 * heights / 3 => vec![self.remove_validator("v0")],
                h if h % 4 == 0 => {
                    vec![self.publish("config/routing", &[("height", &h.to_string())])]
                }
                _ => Vec::new(),
            };
            self.certify(&changes)
        };
        (1..=heights).map(next).collect()
    }
}
