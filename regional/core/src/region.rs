//! The region's verified copy of the realm: what every member computes from adopted updates.
//!
//! Raft keeps honest members in step; it does not protect against a leader that was taken over.
//! So a member believes the log no more than an edge believes a region: [`Region::apply`] verifies
//! every adopted update again, and all members refuse the same one for the same reason, because
//! the time it is verified at is part of the command.
//!
//! A long way is adopted in parts. The last complete state is served; the parts after it
//! are kept beside it, so that a member that restarts in the middle holds what all others hold.
//!
//! # Invariants
//!
//! - **G1** Two members that applied the same commands hold equal replicas.
//! - **G2** Nothing enters the replica but what [`Replica::verify`] certified.
//! - **G3** The state that is served [is complete](Replica::is_complete).

use satrap_certify::{
    Genesis, Interest, Rejection, Replica, Snapshot, Timestamp, Update, limits::PARTS_MAX,
};
use satrap_merkle::codec::{DecodeError, Reader, Writer};

use crate::Command;

/// What adopting an update did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replica moved to this height, or got more of it.
    Adopted(u64),
    /// The update did not verify, or was overtaken; nothing changed.
    Refused(Rejection),
}

/// The certified state of one region.
#[derive(Clone, Debug)]
pub struct Region {
    genesis: Genesis,
    /// The last complete state (G3).
    served: Replica,
    /// Updates adopted after it that have not made a complete state yet.
    parts: Vec<Update>,
    /// `served` and `parts` together: where the next update must fit.
    replica: Replica,
}

impl Region {
    /// A region that has adopted nothing.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let replica = Replica::genesis(genesis, Interest::Everything);
        let (genesis, served) = (genesis.clone(), replica.clone());
        Self { genesis, served, parts: Vec::new(), replica }
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
        let advance = match self.replica.verify(update, now) {
            Ok(advance) => advance,
            Err(rejection) => return Outcome::Refused(rejection),
        };
        self.replica.advance(advance);
        if self.replica.is_complete() {
            self.served = self.replica.clone();
            self.parts.clear();
        } else if self.parts.len() < PARTS_MAX {
            self.parts.push(update.clone());
        } else {
            // An honest way is far shorter; another server is asked from the last complete state.
            self.replica = self.served.clone();
            self.parts.clear();
        }
        Outcome::Adopted(self.replica.height())
    }

    /// The newest verified state, which may still lack content: where to go on from.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The last complete state (G3).
    #[must_use]
    pub fn served(&self) -> &Replica {
        &self.served
    }

    /// The state for another member, or for a restart.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut w = Writer::tagged(SNAPSHOT_FORMAT);
        w.option(self.served.snapshot().as_ref());
        w.list(&self.parts);
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
        let served: Option<Snapshot> = r.option()?;
        let parts: Vec<Update> = r.list(PARTS_MAX)?;
        if r.remaining() != 0 {
            return Err(DecodeError::Trailing(r.remaining()).into());
        }
        let mut region = Self::genesis(genesis);
        if let Some(served) = served {
            region.served = Replica::restore(&region.genesis, Interest::Everything, &served)?;
            region.replica = region.served.clone();
        }
        for part in &parts {
            let advance = region.replica.verify_own(part)?;
            region.replica.advance(advance);
        }
        region.parts = parts;
        Ok(region)
    }
}

const SNAPSHOT_FORMAT: &str = "satrap/region/v2";
