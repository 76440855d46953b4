//! Whom a member serves the sync protocol, and what it does with their reports. The protocol itself
//! is [`satrap_host::follow`]'s.

use std::sync::Arc;

use satrap_certify::{Genesis, Interest, Rejection, Replica};
use satrap_host::{
    follow::Followers,
    pki::{PeerIdentity, Role},
};
use satrap_regional_core::Region;
use tonic::Status;

use crate::{
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
}

impl Followers for Audience {
    type View = Region;
    type Guard = Option<Connected>;

    fn replica(view: &Region) -> &Replica {
        view.served()
    }

    fn admit(&self, peer: &PeerIdentity) -> Result<Option<Connected>, Status> {
        if matches!(peer.id.role(), Role::Validator { .. }) {
            return Err(status::denied("validators follow each other, not regions"));
        }
        Ok(reports::edge_key(peer).map(|edge| self.reports.connect(edge)))
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
        let genesis_hash = self.genesis.realm().genesis_hash();
        let (edge, report) = reports::judge(bytes, peer, genesis_hash)?;
        if !self.reports.keep(edge, report) {
            tracing::warn!(peer = %peer.id, "no room for the reports of another edge");
        }
        Ok(())
    }

    fn refused(&self, rejection: &Rejection) {
        self.refusals.count(rejection);
    }
}
