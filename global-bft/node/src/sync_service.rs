//! Limits the followers that a validator serves the sync protocol, which is [`satrap_sync::server`].
//!
//! # Invariants
//!
//! - **CHARGE-6** A region can follow, however the others behave: every scope has streams of its own, and the
//!   names that its CA mints share them.

use satrap_certify::{Interest, Rejection, Replica};
use satrap_identity::{
    charges::{PeerPermit, PeerPermits, take_permit},
    mtls::PeerIdentity,
};
use satrap_sync::server::Followers;
use tonic::Status;

use crate::{limits::FOLLOWERS_PER_SCOPE, services::callers, status};

/// Room for those who may call a validator (CHARGE-6).
#[derive(Clone, Default)]
pub struct Slots(PeerPermits);

impl Followers for Slots {
    type View = Replica;
    type Guard = PeerPermit;

    fn replica(view: &Replica) -> &Replica {
        view
    }

    fn admit(&self, peer: &PeerIdentity) -> Result<PeerPermit, Status> {
        status::admit(peer, &callers())?;
        take_permit(&self.0, peer, FOLLOWERS_PER_SCOPE, "follow streams")
    }

    /// Regions and validators relay all of it, and operators may read all of it.
    fn may_ask(&self, _: &PeerIdentity, _: &Interest) -> Result<(), Status> {
        Ok(())
    }

    /// This tier has no edges.
    fn report(&self, _: &PeerIdentity, _: &[u8]) -> Result<(), Rejection> {
        Err(Rejection::Report("validators take none; report to a region"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn peer(id: &str) -> PeerIdentity {
        let id = Arc::new(format!("spiffe://c/{id}").parse().unwrap());
        PeerIdentity { id, leaf_der: Arc::from([]), public_key: [0; 32] }
    }

    /// One member's certificate used to take all streams of a validator.
    #[test]
    fn a_region_takes_its_own_streams_and_no_others() {
        let slots = Slots::default();
        let mut held = Vec::new();
        let mut minted = 0;
        for n in 0..2 * FOLLOWERS_PER_SCOPE.group_max {
            let one = (0..=FOLLOWERS_PER_SCOPE.holder_max)
                .map(|_| slots.admit(&peer(&format!("region/evil/member/m{n}"))));
            held.extend(one.filter_map(Result::ok));
            minted += 1;
        }
        assert_eq!(held.len(), FOLLOWERS_PER_SCOPE.group_max, "by {minted} minted names");
        for other in ["region/good/member/a", "operator/alice", "validator/v2"] {
            let own = (0..FOLLOWERS_PER_SCOPE.holder_max).map(|_| slots.admit(&peer(other)));
            let own: Result<Vec<_>, _> = own.collect();
            assert!(own.is_ok(), "{other}");
            assert!(slots.admit(&peer(other)).is_err(), "{other} over its limit");
        }
        assert!(slots.admit(&peer("region/good/edge/e")).is_err(), "edges follow their region");
        held.pop();
        slots.admit(&peer("region/evil/member/m")).unwrap();
    }
}
