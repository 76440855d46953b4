//! Decides which peers may follow this member through the sync protocol, and stores the reports of
//! edges. [`satrap_sync::server`] implements the protocol.
//!
//! # Invariants
//!
//! - **CHARGE-6** No region can use up the streams of another: every scope (the names that one CA can
//!   sign) has a quota of its own, which all its names share.

use std::sync::Arc;

use satrap_certify::{Genesis, Interest, Rejection, Replica, Timestamp};
use satrap_identity::{
    charges::{PeerPermit, PeerPermits, take_permit},
    pki::{PeerIdentity, Role, Scope},
};
use satrap_region_core::CertifiedReplica;
use satrap_ring_core::Extensions;
use satrap_runtime::clock;
use satrap_sync::server::Followers;
use tonic::Status;

use crate::{
    limits::{FOREIGN_FOLLOWERS, OWN_FOLLOWERS},
    refusals::Refusals,
    reports::{self, Connected, Reports},
    status,
};

/// The followers of this member: edges of any region, operators, and members of other regions.
#[derive(Clone)]
pub struct RegionFollowers {
    /// The realm.
    pub genesis: Arc<Genesis>,
    /// The reports of edges.
    pub reports: Reports,
    /// The counts of refused messages.
    pub refusals: Refusals,
    /// The permits for open streams.
    pub permits: PeerPermits,
    /// The names that this region's CA can sign.
    pub own_scope: Scope,
}

/// Belongs to one stream: its permit, and the mark that its edge is connected.
pub struct FollowerGuard {
    _connected: Option<Connected>,
    _permit: PeerPermit,
}

impl Followers for RegionFollowers {
    type View = Extensions;
    type Guard = FollowerGuard;

    fn replica(view: &Extensions) -> &Replica {
        CertifiedReplica::of(view).served()
    }

    fn admit(&self, peer: &PeerIdentity) -> Result<FollowerGuard, Status> {
        if matches!(peer.id.role(), Role::Validator { .. }) {
            return Err(status::denied(
                "a validator may not follow a region; validators follow each other",
            ));
        }
        let quota =
            if peer.id.scope() == self.own_scope { OWN_FOLLOWERS } else { FOREIGN_FOLLOWERS };
        let permit = take_permit(&self.permits, peer, quota, "follow streams")?;
        let connected = reports::edge_key(peer).map(|edge| self.reports.connect(edge));
        Ok(FollowerGuard { _connected: connected, _permit: permit })
    }

    fn may_ask(&self, peer: &PeerIdentity, interest: &Interest) -> Result<(), Status> {
        match (peer.id.role(), interest) {
            (Role::Edge { .. }, Interest::Everything) => {
                Err(status::denied("an edge asks for bundles by name, not for everything"))
            }
            _ => Ok(()),
        }
    }

    fn is_own(&self, scope: &Scope) -> bool {
        *scope == self.own_scope
    }

    fn report(&self, peer: &PeerIdentity, bytes: &[u8]) -> Result<(), Rejection> {
        let now = Timestamp(clock::now());
        let (edge, report) = match reports::judge(bytes, peer, &self.genesis, now) {
            Ok(judged) => judged,
            // R2: an edge whose clock is wrong still gets updates.
            Err(why @ (Rejection::ReportFuture { .. } | Rejection::ReportStart { .. })) => {
                tracing::warn!(
                    peer = %peer.id, rule = why.rule(),
                    "refused the report of an edge; see that its clock is right: {why}"
                );
                self.refused(&why);
                return Ok(());
            }
            Err(why) => return Err(why),
        };
        if !self.reports.keep(edge, report) {
            tracing::warn!(
                peer = %peer.id,
                "dropped the report of an edge: the connected edges of its region take all the room"
            );
        }
        Ok(())
    }

    fn refused(&self, rejection: &Rejection) {
        self.refusals.count(rejection);
    }
}

#[cfg(test)]
mod tests {
    use satrap_certify::Genesis;

    use super::*;
    use crate::tests::realm::Realm;

    fn peer(id: &str) -> PeerIdentity {
        let id = Arc::new(format!("spiffe://c/{id}").parse().unwrap());
        PeerIdentity { id, leaf_der: Arc::from([]), public_key: [0; 32] }
    }

    fn followers(genesis: Arc<Genesis>) -> RegionFollowers {
        RegionFollowers {
            genesis,
            reports: Reports::new("eu"),
            refusals: Refusals::default(),
            permits: PeerPermits::default(),
            own_scope: "spiffe://c/region/eu".parse().unwrap(),
        }
    }

    #[test]
    fn streams_of_a_name_and_of_another_region_are_limited() {
        let followers = followers(Realm::new().genesis);
        let mut held = Vec::new();
        for n in 0..=FOREIGN_FOLLOWERS.group_max {
            held.extend(followers.admit(&peer(&format!("region/evil/edge/e{n}"))));
        }
        assert_eq!(
            held.len(),
            FOREIGN_FOLLOWERS.group_max,
            "all names of a region share its quota"
        );
        assert!(followers.admit(&peer("region/evil/member/m")).is_err());
        for other in ["region/eu/edge/e", "region/us/edge/e", "region/us/member/m", "operator/o"] {
            for _ in 0..OWN_FOLLOWERS.holder_max {
                held.push(followers.admit(&peer(other)).unwrap());
            }
            assert!(followers.admit(&peer(other)).is_err(), "{other} over its limit");
        }
        assert_eq!(followers.reports.connected("eu").len(), FOREIGN_FOLLOWERS.group_max + 2);
        held.clear();
        assert!(followers.reports.connected("eu").is_empty());
        followers.admit(&peer("region/evil/member/m")).unwrap();
    }
}
