//! Whom a member serves the sync protocol, and what it does with their reports. The protocol itself
//! is [`satrap_host::follow`]'s.
//!
//! # Invariants
//!
//! - **U6** A region can follow whatever the others do: every scope has streams of its own, and the
//!   names that its CA mints share them.

use std::sync::Arc;

use satrap_certify::{Genesis, Interest, Rejection, Replica, Timestamp};
use satrap_host::{
    charges::{PeerSeat, PeerSeats, take_seat},
    clock,
    follow::Followers,
    pki::{PeerIdentity, Role, Scope},
};
use satrap_regional_core::Region;
use tonic::Status;

use crate::{
    limits::{FOREIGN_FOLLOWERS, OWN_FOLLOWERS},
    refusals::Refusals,
    reports::{self, Connected, Reports},
    status,
};

/// Edges of any region, operators, and members of other rings.
#[derive(Clone)]
pub struct Audience {
    /// The realm.
    pub genesis: Arc<Genesis>,
    /// Where reports are kept.
    pub reports: Reports,
    /// Where refused messages are counted.
    pub refusals: Refusals,
    /// Who has streams.
    pub seats: PeerSeats,
    /// The names that this region's CA can sign.
    pub own_scope: Scope,
}

/// A stream's seat, and its being connected if it is an edge's.
pub struct Attending {
    _connected: Option<Connected>,
    _seat: PeerSeat,
}

impl Followers for Audience {
    type View = Region;
    type Guard = Attending;

    fn replica(view: &Region) -> &Replica {
        view.served()
    }

    fn admit(&self, peer: &PeerIdentity) -> Result<Attending, Status> {
        if matches!(peer.id.role(), Role::Validator { .. }) {
            return Err(status::denied("validators follow each other, not regions"));
        }
        let quota =
            if peer.id.scope() == self.own_scope { OWN_FOLLOWERS } else { FOREIGN_FOLLOWERS };
        let seat = take_seat(&self.seats, peer, quota, "follow streams")?;
        let connected = reports::edge_key(peer).map(|edge| self.reports.connect(edge));
        Ok(Attending { _connected: connected, _seat: seat })
    }

    fn may_ask(&self, peer: &PeerIdentity, interest: &Interest) -> Result<(), Status> {
        match (peer.id.role(), interest) {
            (Role::Edge { .. }, Interest::Everything) => {
                Err(status::denied("an edge asks for bundles by name, not for everything"))
            }
            _ => Ok(()),
        }
    }

    fn report(&self, peer: &PeerIdentity, bytes: &[u8]) -> Result<(), Rejection> {
        let now = Timestamp(clock::now());
        let (edge, report) = match reports::judge(bytes, peer, &self.genesis, now) {
            Ok(judged) => judged,
            // R2: an edge whose clock is wrong still gets news.
            Err(why @ (Rejection::ReportFuture { .. } | Rejection::ReportStart { .. })) => {
                tracing::warn!(peer = %peer.id, rule = why.rule(), "refused: {why}");
                self.refused(&why);
                return Ok(());
            }
            Err(why) => return Err(why),
        };
        if !self.reports.keep(edge, report) {
            tracing::warn!(peer = %peer.id, "no room for the reports of another edge");
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

    fn audience(genesis: Arc<Genesis>) -> Audience {
        Audience {
            genesis,
            reports: Reports::default(),
            refusals: Refusals::default(),
            seats: PeerSeats::default(),
            own_scope: "spiffe://c/region/eu".parse().unwrap(),
        }
    }

    #[test]
    fn streams_of_a_name_and_of_another_region_at_the_limit_and_over_it() {
        let audience = audience(Realm::new().genesis);
        let mut held = Vec::new();
        for n in 0..=FOREIGN_FOLLOWERS.group_max {
            held.extend(audience.admit(&peer(&format!("region/evil/edge/e{n}"))));
        }
        assert_eq!(held.len(), FOREIGN_FOLLOWERS.group_max, "minted names share their region's");
        assert!(audience.admit(&peer("region/evil/member/m")).is_err());
        for other in ["region/eu/edge/e", "region/us/edge/e", "region/us/member/m", "operator/o"] {
            for _ in 0..OWN_FOLLOWERS.holder_max {
                held.push(audience.admit(&peer(other)).unwrap());
            }
            assert!(audience.admit(&peer(other)).is_err(), "{other} over its limit");
        }
        assert_eq!(audience.reports.connected("eu").len(), FOREIGN_FOLLOWERS.group_max + 2);
        held.clear();
        assert!(audience.reports.connected("eu").is_empty());
        audience.admit(&peer("region/evil/member/m")).unwrap();
    }
}
