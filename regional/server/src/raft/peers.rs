//! Who the other members are: how to reach them, and under which instance they were first met.
//!
//! A member that lost its disk has also lost its vote and the entries it acknowledged. If it came
//! back under its old name and voted again, two members with the same gap could elect a leader that
//! lacks committed entries. So each member remembers the instance id of every peer it meets, and
//! refuses a namesake from another disk, as sender and as receiver.
//!
//! Whom there is to reach is what the ring's membership says, and before the ring is founded what the
//! configuration says. Addresses come from the same place; this member's own overrides win, because
//! only it knows what lies between.
//!
//! # What this covers, and what not
//!
//! - Covered: one member at a time loses its disk, at any moment after its peers met it. It cannot
//!   found a second ring either: founding needs every member to say that it has not seen one.
//! - Not covered: the disks of a majority are lost together; a member is restored from an old copy
//!   of its own disk (same instance, forgotten votes), which no protocol among three can notice.
//!   Both mean: restore the region from the validators, as a new ring.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use satrap_host::{
    mtls::{self, ConnectError, Credentials, PeerRule},
    pki::{PkiError, Role, SpiffeId},
};
use satrap_regional_storage::InstanceId;
use tonic::body::Body;
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use super::{
    RingSetup,
    frames::{ANY_INSTANCE, Sender},
    types::MemberName,
    writer::WriteHandle,
};

/// A connection to one member: HTTP/2 over mTLS, or what a simulation has instead.
pub type Wire = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, WireError>;

/// Why a request did not reach a peer, or its answer did not come back.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WireError(pub Box<dyn std::error::Error + Send + Sync>);

/// Two connections to one member.
#[derive(Clone)]
pub struct Link {
    /// Heartbeats, votes and other short requests that must not wait behind a snapshot.
    pub urgent: Wire,
    /// Entries and snapshots.
    pub bulk: Wire,
}

/// Makes links to members by name and address.
pub type Dial = Arc<dyn Fn(&MemberName, &str) -> Result<Link, PeerError> + Send + Sync>;

/// Connects over mTLS when a member is first spoken to, and believes only that member.
#[must_use]
pub fn over_mtls(setup: &RingSetup, credentials: &Credentials) -> Dial {
    let (chain, region) = (setup.genesis.realm().chain_id().to_owned(), setup.region.to_string());
    let (overrides, credentials) = (setup.peer_url_overrides.clone(), credentials.clone());
    let overrides: BTreeMap<MemberName, String> =
        overrides.into_iter().map(|(name, url)| ((&name).into(), url)).collect();
    Arc::new(move |name, url| {
        let url = overrides.get(name).map_or(url, String::as_str);
        let role = Role::Member { region: region.clone(), name: name.to_string() };
        let rule = PeerRule::Exactly(SpiffeId::new(&chain, role)?);
        let connect = || {
            let channel = mtls::connect_lazy(url, &credentials, rule.clone())?;
            Ok::<_, PeerError>(BoxCloneSyncService::new(
                channel.map_err(|error| WireError(error.into())),
            ))
        };
        Ok(Link { urgent: connect()?, bulk: connect()? })
    })
}

/// The other members, as seen from here. Clones share what is known.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    own: Sender,
    dial: Dial,
    links: Mutex<BTreeMap<MemberName, (String, Link)>>,
    met: Mutex<BTreeMap<MemberName, InstanceId>>,
    writer: WriteHandle,
}

/// Why a peer cannot be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Its address is not one.
    #[error(transparent)]
    Address(#[from] ConnectError),
    /// Its name is not one.
    #[error(transparent)]
    Name(#[from] PkiError),
}

/// A peer with the right name and another disk.
#[derive(Debug, thiserror::Error)]
#[error(
    "member `{name}` lost its disk: it presents instance {}, but was met as {}; replace it \
     (`satrap member replace`), its old vote and log must not be taken for its new ones",
    hex::encode(offered),
    hex::encode(met)
)]
pub struct LostDisk {
    name: MemberName,
    offered: InstanceId,
    met: InstanceId,
}

/// Why a peer is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// See there.
    #[error(transparent)]
    LostDisk(#[from] LostDisk),
    /// This process is stopping.
    #[error(transparent)]
    Stopping(#[from] std::io::Error),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Critical sections only move values, so what is locked is whole even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// Nobody to reach yet; some were `met` before.
    #[must_use]
    pub fn new(
        own: Sender,
        dial: Dial,
        met: BTreeMap<MemberName, InstanceId>,
        writer: WriteHandle,
    ) -> Self {
        let (links, met) = (Mutex::default(), Mutex::new(met));
        Self(Arc::new(Inner { own, dial, links, met, writer }))
    }

    /// What this member puts on its messages.
    #[must_use]
    pub fn own(&self) -> &Sender {
        &self.0.own
    }

    /// How to reach `name`, which listens at `url` unless this member's configuration says otherwise.
    /// Connects anew only if that changed.
    ///
    /// # Errors
    ///
    /// [`PeerError`] says what is wrong with the address or the name.
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

    /// How to reach `name`, if it was reached before.
    #[must_use]
    pub fn link(&self, name: &MemberName) -> Option<Link> {
        lock(&self.0.links).get(name).map(|(_, link)| link.clone())
    }

    /// The members that were reached.
    #[must_use]
    pub fn names(&self) -> Vec<MemberName> {
        lock(&self.0.links).keys().cloned().collect()
    }

    /// The instance under which `name` was met, to address messages to.
    #[must_use]
    pub fn instance_of(&self, name: &MemberName) -> InstanceId {
        lock(&self.0.met).get(name).copied().unwrap_or(ANY_INSTANCE)
    }

    /// Lets `name` with `instance` in, if it is who was met before; remembers it if nobody was.
    ///
    /// # Errors
    ///
    /// [`Refusal::LostDisk`] blames the peer.
    pub async fn meet(&self, name: &MemberName, instance: InstanceId) -> Result<(), Refusal> {
        let met = lock(&self.0.met).get(name).copied();
        if met.is_none() {
            // On disk before it counts, so that a restart does not forget whom we believed.
            self.0.writer.peer(name, Some(instance)).await?;
        }
        let met = *lock(&self.0.met).entry(name.clone()).or_insert(instance);
        if met != instance {
            let lost = LostDisk { name: name.clone(), offered: instance, met };
            tracing::error!("{lost}");
            return Err(lost.into());
        }
        Ok(())
    }

    /// Forgets `name`, which is no member any more: a new member may come under that name.
    ///
    /// # Errors
    ///
    /// If this process is stopping.
    pub async fn forget(&self, name: &MemberName) -> std::io::Result<()> {
        if lock(&self.0.met).contains_key(name) {
            self.0.writer.peer(name, None).await?;
        }
        lock(&self.0.met).remove(name);
        lock(&self.0.links).remove(name);
        Ok(())
    }
}
