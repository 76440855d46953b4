//! The region's verified copy of the realm: what every member computes from adopted updates.
//!
//! Raft keeps honest members in step; it does not protect against a leader that was taken over.
//! So a member believes the log no more than an edge believes a region: [`Region::apply`] verifies
//! every adopted update again, and all members refuse the same one for the same reason, because
//! the time it is verified at is part of the command.
//!
//! # Invariants
//!
//! - **G1** Two members that applied the same commands hold equal replicas.
//! - **G2** Nothing enters the replica but what [`Replica::verify`] certified.

use satrap_certify::{Genesis, Interest, Rejection, Replica, Timestamp, Update};
use satrap_merkle::codec::{DecodeError, Reader, Writer};

use crate::Command;

/// What adopting an update did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replica moved to this height.
    Adopted(u64),
    /// The update did not verify, or was overtaken; nothing changed.
    Refused(Rejection),
}

/// The certified state of one region.
#[derive(Clone, Debug)]
pub struct Region {
    genesis: Genesis,
    replica: Replica,
}

impl Region {
    /// A region that has adopted nothing.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let replica = Replica::genesis(genesis, Interest::Everything);
        Self { genesis: genesis.clone(), replica }
    }

    /// Applies one committed command. A batch is the keyspace's business and refused here.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Adopt { update, now } => self.adopt(update, *now),
            Command::Batch(_) => Outcome::Refused(
                DecodeError::Invalid("update: a batch goes to the keyspace").into(),
            ),
        }
    }

    /// Takes over an update if it verifies at `now`, the proposer's clock (G1, G2).
    pub fn adopt(&mut self, update: &Update, now: Timestamp) -> Outcome {
        match self.replica.verify(update, now) {
            Ok(advance) => {
                self.replica.advance(advance);
                Outcome::Adopted(self.replica.height())
            }
            Err(rejection) => Outcome::Refused(rejection),
        }
    }

    /// The verified copy of the realm.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The state for another member, or for a restart.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut w = Writer::tagged(SNAPSHOT_FORMAT);
        w.option(self.replica.snapshot().as_ref());
        w.finish()
    }

    /// Rebuilds the state; everything in it is verified again (G2).
    ///
    /// # Errors
    ///
    /// The [`Rejection`] says what does not verify.
    pub fn restore(genesis: &Genesis, snapshot: &[u8]) -> Result<Self, Rejection> {
        let mut r = Reader::new(snapshot);
        if r.bytes(SNAPSHOT_FORMAT.len())? != SNAPSHOT_FORMAT.as_bytes() {
            return Err(DecodeError::Invalid("region snapshot format").into());
        }
        let update: Option<Update> = r.option()?;
        if r.remaining() != 0 {
            return Err(DecodeError::Trailing(r.remaining()).into());
        }
        let mut region = Self::genesis(genesis);
        if let Some(update) = update {
            region.replica = Replica::restore(&region.genesis, Interest::Everything, &update)?;
        }
        Ok(region)
    }
}

const SNAPSHOT_FORMAT: &str = "satrap/region/v1";
