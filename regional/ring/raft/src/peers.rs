//! The other members: connections to them, and the check that a peer is the member that the
//! membership names.
//!
//! A member that lost its disk has also lost its vote and the entries that it acknowledged. If it
//! restarted under its old name and voted again, two members with the same gap could elect a leader
//! that lacks committed entries. So the membership, which is itself in the log, names the instance
//! of every member, that is its disk: messages are for that instance, and a namesake with another
//! disk is refused, as sender and as receiver.
//!
//! After a member was removed and added again under the same name, a member that was down meanwhile
//! must accept it: the new member may be the leader, and then no other member reports the change.
//! So every message carries the index since when its sender belongs to the ring, and a sender that
//! joined after the newest membership known to be committed is accepted.
//!
//! Peers and their addresses come from the Raft membership, or from the configuration before the
//! ring is founded. This member's own overrides win, because only its operator knows its network.
//!
//! # Invariants
//!
//! - **LINK-1** A request is for the instance that the membership names, and only that instance's
//!   answer counts. So only the members of the membership, with their disks, count towards a
//!   quorum.
//! - **LINK-2** A name in the membership is accepted with the instance in the membership, or if it
//!   joined after the newest membership known to be committed.
//! - **LINK-3** A name that was removed by a membership known to be committed is refused.
//!
//! # Coverage
//!
//! - Covered: a member loses its disk at any moment after it joined. It cannot vote, be counted, or
//!   found a ring; replace it.
//! - Covered only from the first election on: a member whose data was restored from a backup. The
//!   restored membership names no instances; the first instance under each name is accepted, and
//!   the first leader records it.
//! - Not covered: the disks of a majority are lost. Restore the region from a snapshot or from the
//!   validators, as a new ring.

pub mod registry;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use satrap_identity::{
    mtls::{self, ConnectError, Credentials, PeerRule},
    pki::{PkiError, Role, SpiffeId},
};
use satrap_ring_storage::InstanceId;
use tonic::{Status, body::Body};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

pub use self::registry::{LostDisk, MemberRegistry, Refusal};
use super::{
    frames::Sender,
    locks::lock,
    setup::{RingId, RingSetup},
    types::{MemberName, Membership},
};

/// A connection to one member: HTTP/2 over mTLS, or a simulated one.
pub type Wire = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, WireError>;

/// The reason why a request or its answer was lost.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WireError(pub Box<dyn std::error::Error + Send + Sync>);

/// The two connections to one member.
#[derive(Clone)]
pub struct Link {
    /// Heartbeats, votes and other short requests that must not wait behind a snapshot.
    pub urgent: Wire,
    /// Entries and snapshots.
    pub bulk: Wire,
}

/// Creates links to members by name and address.
pub type Dial = Arc<dyn Fn(&MemberName, &str) -> Result<Link, PeerError> + Send + Sync>;

/// Dials over mTLS at the first request to a member, and accepts only that member's certificate.
#[must_use]
pub fn over_mtls(setup: &RingSetup, credentials: &Credentials) -> Dial {
    let (realm, region) = (setup.realm.clone(), setup.region.clone());
    let (overrides, credentials) = (setup.peer_url_overrides.clone(), credentials.clone());
    Arc::new(move |name, url| {
        let url = overrides.get(name).map_or(url, String::as_str);
        let role = Role::Member { region: region.clone(), name: name.to_string() };
        let rule = PeerRule::Exactly(SpiffeId::new(&realm, role)?);
        let connect = || {
            let channel = mtls::connect_lazy(url, &credentials, rule.clone())?;
            Ok::<_, PeerError>(BoxCloneSyncService::new(
                channel.map_err(|error| WireError(error.into())),
            ))
        };
        Ok(Link { urgent: connect()?, bulk: connect()? })
    })
}

/// The other members, as this member knows them. Clones share them.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    ring: RingId,
    instance: InstanceId,
    dial: Dial,
    links: Mutex<BTreeMap<MemberName, (String, Link)>>,
    registry: Mutex<MemberRegistry>,
    /// Members to which the last request failed.
    silent: Mutex<BTreeSet<MemberName>>,
}

/// The reason why a peer cannot be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Its address is invalid.
    #[error(transparent)]
    Address(#[from] ConnectError),
    /// Its name is invalid.
    #[error(transparent)]
    Name(#[from] PkiError),
}

impl Peers {
    /// Peers without links yet.
    #[must_use]
    pub fn new(ring: RingId, instance: InstanceId, dial: Dial, registry: MemberRegistry) -> Self {
        let (links, registry) = (Mutex::default(), Mutex::new(registry));
        Self(Arc::new(Inner { ring, instance, dial, links, registry, silent: Mutex::default() }))
    }

    /// The sender that this member puts on its messages.
    #[must_use]
    pub fn own(&self) -> Sender {
        let Inner { ring, instance, registry, .. } = &*self.0;
        Sender { ring: *ring, instance: *instance, since: lock(registry).since_of(instance) }
    }

    /// The link to `name`, which listens at `url` unless this member's configuration overrides
    /// that. Connects anew only if the address changed.
    ///
    /// # Errors
    ///
    /// [`PeerError`] names the fault in the address or the name.
    pub fn reach(&self, name: &MemberName, url: &str) -> Result<Link, PeerError> {
        let mut links = lock(&self.0.links);
        if let Some((known, link)) = links.get(name)
            && known == url
        {
            return Ok(link.clone());
        }
        let link = (self.0.dial)(name, url)?;
        links.insert(name.clone(), (url.to_owned(), link.clone()));
        Ok(link)
    }

    /// Logs when requests to `name` begin to fail, and when they succeed again.
    pub fn note<T>(&self, name: &MemberName, answer: &Result<T, Status>) {
        let mut silent = lock(&self.0.silent);
        match answer {
            Err(status) => {
                if silent.insert(name.clone()) {
                    tracing::warn!(member = %name, "requests to this member fail: {}", status.message());
                }
            }
            Ok(_) => {
                if silent.remove(name) {
                    tracing::debug!(member = %name, "requests to this member succeed again");
                }
            }
        }
    }

    /// The link to `name`, if there is one.
    #[must_use]
    pub fn link(&self, name: &MemberName) -> Option<Link> {
        lock(&self.0.links).get(name).map(|(_, link)| link.clone())
    }

    /// The names of all members with a link.
    #[must_use]
    pub fn names(&self) -> Vec<MemberName> {
        lock(&self.0.links).keys().cloned().collect()
    }

    /// The instance of `name` that messages are for; [`ANY_INSTANCE`](super::frames::ANY_INSTANCE)
    /// if unknown.
    #[must_use]
    pub fn instance_of(&self, name: &MemberName) -> InstanceId {
        lock(&self.0.registry).instance_of(name)
    }

    /// Accepts or refuses `name`, which presents itself as `sender`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] blames the peer.
    pub fn admit(&self, name: &MemberName, sender: &Sender) -> Result<(), Refusal> {
        let admitted = lock(&self.0.registry).admit(name, sender.instance, sender.since);
        admitted.inspect_err(|refusal| {
            if let Refusal::LostDisk(lost) = refusal {
                tracing::error!("{lost}");
            }
        })
    }

    /// As [`Peers::admit`], but also accepts a peer outside the membership: it may ask for this
    /// member's identity, and to join.
    ///
    /// # Errors
    ///
    /// [`Refusal::LostDisk`] blames the peer.
    pub fn admit_any(&self, name: &MemberName, sender: &Sender) -> Result<(), Refusal> {
        match self.admit(name, sender) {
            Err(Refusal::Stranger(_)) => Ok(()),
            result => result,
        }
    }

    /// Updates the peers: `logged` is the newest membership in the log, `agreed` the newest
    /// committed one.
    pub fn follow(&self, logged: &Membership, agreed: &Membership) {
        if logged.log_id().is_none() {
            return;
        }
        let mut registry = lock(&self.0.registry);
        for left in registry.follow(logged) {
            tracing::info!(member = %left, "the member has left the ring");
        }
        registry.agree(agreed);
        lock(&self.0.links).retain(|name, _| registry.contains(name));
        lock(&self.0.silent).retain(|name| registry.contains(name));
    }

    /// The first instances seen under names without an instance in the membership.
    #[must_use]
    pub fn identified(&self) -> BTreeMap<MemberName, InstanceId> {
        lock(&self.0.registry).identified().clone()
    }
}
