//! The certified replica: a region's verified copy of the realm. Every member computes it by applying
//! the updates in the ring's log.
//!
//! Raft replicates the log of a compromised leader as well as that of an honest one. So every member
//! verifies an update again when it applies the entry. All members refuse the same updates, because
//! the time that they verify at is part of the entry.
//!
//! A long update arrives in parts. The last complete state is served to edges. The parts after it are
//! stored beside it, so that a restarted member has the same replica as the others.
//!
//! # Invariants
//!
//! - **CERTIFIED-1** Two members that applied the same commands hold equal replicas.
//! - **CERTIFIED-2** The replica changes only by updates that [`Replica::verify`] accepted.
//! - **CERTIFIED-3** The state that is served [is complete](Replica::is_complete).

use std::sync::Arc;

use bytes::Bytes;
use satrap_certify::{
    Genesis, Interest, Rejection, Replica, Snapshot, Timestamp, Update, limits::PARTS_MAX,
};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};
use satrap_ring_core::{Command, Extension, Extensions, Registration, Rejected};

/// The tag of [`Adopt`] in the log of a ring.
pub const ADOPT: u8 = 0;
/// The page of the replica in checkpoints.
const PAGE: &str = "region";
/// The first bytes of that page.
const SNAPSHOT_FORMAT: &str = "satrap/region/v2";

/// The command that applies an update, which validators certified, to the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// The leader's clock when it proposed this. Members verify at this time, not at their own
    /// (CERTIFIED-1).
    pub now: Timestamp,
    /// The update, from the position of the replica.
    pub update: Update,
}

impl Adopt {
    /// The encoded command, for the ring's log.
    #[must_use]
    pub fn command(&self) -> Vec<u8> {
        Command::encode_for(ADOPT, self)
    }
}

impl Canonical for Adopt {
    fn encode(&self, w: &mut Writer) {
        self.now.encode(w);
        self.update.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { now: Timestamp::decode(r)?, update: Update::decode(r)? })
    }
}

/// The certified state of one region.
#[derive(Clone, Debug)]
pub struct CertifiedReplica {
    genesis: Genesis,
    /// The last complete state (CERTIFIED-3).
    served: Replica,
    /// Updates applied after `served`, which do not make a complete state yet.
    parts: Vec<Update>,
    /// `served` with `parts` applied; the next update must begin here.
    replica: Replica,
}

impl CertifiedReplica {
    /// The replica before the first update.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let replica = Replica::genesis(genesis, Interest::Everything);
        let (genesis, served) = (genesis.clone(), replica.clone());
        Self { genesis, served, parts: Vec::new(), replica }
    }

    /// The registration of the replica as an extension of a ring's state.
    #[must_use]
    pub fn registration(genesis: &Genesis) -> Registration {
        Registration { tag: ADOPT, page: PAGE, initial: Arc::new(Self::genesis(genesis)) }
    }

    /// The replica among the extensions of a region's ring.
    #[must_use]
    pub fn of(extensions: &Extensions) -> &Self {
        extensions.get()
    }

    /// Applies an update if it verifies at `now`, the proposer's clock (CERTIFIED-1, CERTIFIED-2).
    /// Returns the height of the replica.
    ///
    /// # Errors
    ///
    /// [`Rejection`]: the update does not verify, or does not begin at the replica's position;
    /// nothing changed.
    pub fn adopt(&mut self, update: &Update, now: Timestamp) -> Result<u64, Rejection> {
        let advance = self.replica.verify(update, now)?;
        self.replica.advance(advance);
        if self.replica.is_complete() {
            self.served = self.replica.clone();
            self.parts.clear();
        } else if self.parts.len() < PARTS_MAX {
            self.parts.push(update.clone());
        } else {
            // Honest updates need far fewer parts. The next update must begin at the last complete
            // state again.
            self.replica = self.served.clone();
            self.parts.clear();
        }
        Ok(self.replica.height())
    }

    /// The newest verified state, which may still lack content; the next update begins here.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The last complete state (CERTIFIED-3).
    #[must_use]
    pub fn served(&self) -> &Replica {
        &self.served
    }

    /// Encodes the state, for another member or for a restart.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut w = Writer::tagged(SNAPSHOT_FORMAT);
        w.option(self.served.snapshot().as_ref());
        w.list(&self.parts);
        w.finish()
    }

    /// Decodes a state, and verifies all of it again (CERTIFIED-2).
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names the part that does not verify.
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

fn rejected(rejection: &Rejection) -> Rejected {
    Rejected { rule: rejection.rule().to_owned(), why: rejection.to_string() }
}

impl Extension for CertifiedReplica {
    fn apply(&self, body: &Bytes) -> Result<Arc<dyn Extension>, Rejected> {
        let adopt = Adopt::from_canonical(body).map_err(|error| rejected(&error.into()))?;
        let mut next = self.clone();
        next.adopt(&adopt.update, adopt.now).map_err(|why| rejected(&why))?;
        Ok(Arc::new(next))
    }

    /// Of the served state: parts without a complete state say nothing about what edges get.
    fn version(&self) -> u64 {
        self.served.height()
    }

    fn snapshot(&self) -> Vec<u8> {
        Self::snapshot(self)
    }

    fn restore(&self, page: &[u8]) -> Result<Arc<dyn Extension>, Rejected> {
        let restored = Self::restore(&self.genesis, page).map_err(|why| rejected(&why))?;
        Ok(Arc::new(restored))
    }
}
