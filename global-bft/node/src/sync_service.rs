//! Whom a validator serves the sync protocol, and how many. The protocol itself is
//! [`satrap_host::follow`]'s.

use std::sync::Arc;

use satrap_certify::{Interest, Rejection, Replica};
use satrap_host::{follow::Followers, mtls::PeerIdentity};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::{limits::FOLLOWERS_MAX, services::callers, status};

/// Room for [`FOLLOWERS_MAX`] of those who may call a validator.
#[derive(Clone)]
pub struct Slots(Arc<Semaphore>);

impl Default for Slots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FOLLOWERS_MAX)))
    }
}

impl Followers for Slots {
    type View = Replica;
    type Guard = OwnedSemaphorePermit;

    fn replica(view: &Replica) -> &Replica {
        view
    }

    fn admit(&self, peer: &PeerIdentity) -> Result<OwnedSemaphorePermit, Status> {
        status::admit(peer, &callers())?;
        let slot = self.0.clone().try_acquire_owned();
        slot.map_err(|_| status::busy("too many followers; ask another server"))
    }

    /// Regions and validators relay all of it, and operators may read all of it.
    fn may_ask(&self, _: &PeerIdentity, _: &Interest) -> Result<(), Status> {
        Ok(())
    }

    /// Reports are for regions; this tier has no edges.
    fn report(&self, _: &PeerIdentity, _: &[u8]) -> Result<(), Rejection> {
        Ok(())
    }
}
