//! The state machine of one regional ring: what every member computes from the same Raft log.
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
//!
//! # Deliberately absent
//!
//! The key-value store, leases and watches, which have not been built yet.

use satrap_certify::{Genesis, Interest, Rejection, Replica, Timestamp, Update};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take over what the validators certified.
    Adopt {
        /// From the replica's present position.
        update: Box<Update>,
        /// The leader's clock when it proposed this; the only time there is (G1).
        now: Timestamp,
    },
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replica moved to this height.
    Adopted(u64),
    /// The update did not verify, or was overtaken; nothing changed.
    Refused(Rejection),
}

/// The state of one region.
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

    /// Applies one committed command.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let Command::Adopt { update, now } = command;
        match self.replica.verify(update, *now) {
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

impl Canonical for Command {
    fn encode(&self, w: &mut Writer) {
        let Self::Adopt { update, now } = self;
        w.u8(0);
        now.encode(w);
        update.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => {
                let now = Timestamp::decode(r)?;
                Ok(Self::Adopt { update: Box::new(Update::decode(r)?), now })
            }
            _ => Err(DecodeError::Invalid("regional command")),
        }
    }
}
