//! Who the other members are: how to reach them, and under which instance they were first met.
//!
//! A member that lost its disk has also lost its vote and the entries it acknowledged. If it came
//! back under its old name and voted again, two members with the same gap could elect a leader that
//! lacks committed entries. So each member remembers the instance id of every peer it meets, and
//! refuses a namesake from another disk, as sender and as receiver.
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
use tonic::transport::Channel;

use super::{
    disk::{InstanceId, Record},
    frames::{ANY_INSTANCE, Sender},
    types::MemberName,
    writer::WriteHandle,
};

/// Two connections to one member.
#[derive(Clone)]
pub struct Link {
    /// Heartbeats, votes and other short requests that must not wait behind a snapshot.
    pub urgent: Channel,
    /// Entries and snapshots.
    pub bulk: Channel,
}

/// The other members, as seen from here. Clones share what is known.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    own: Sender,
    links: BTreeMap<MemberName, Link>,
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
    "member `{name}` lost its disk: it presents instance {}, but was met as {}; it may not take \
     part under this name, replace it by a member with a new one",
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

impl Peers {
    /// Peers at `urls` in `region`, of which some were `met` before.
    ///
    /// # Errors
    ///
    /// [`PeerError`] names what is wrong in the configuration.
    pub fn new(
        own: Sender,
        (chain, region): (&str, &str),
        urls: &BTreeMap<MemberName, String>,
        credentials: &Credentials,
        (met, writer): (BTreeMap<MemberName, InstanceId>, WriteHandle),
    ) -> Result<Self, PeerError> {
        let link = |(name, url): (&MemberName, &String)| {
            let role = Role::Member { region: region.to_owned(), name: name.to_string() };
            let rule = PeerRule::Exactly(SpiffeId::new(chain, role)?);
            let urgent = mtls::connect_lazy(url, credentials, rule.clone())?;
            let bulk = mtls::connect_lazy(url, credentials, rule)?;
            Ok::<_, PeerError>((name.clone(), Link { urgent, bulk }))
        };
        let links = urls.iter().map(link).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner { own, links, met: Mutex::new(met), writer })))
    }

    /// What this member puts on its messages.
    #[must_use]
    pub fn own(&self) -> &Sender {
        &self.0.own
    }

    /// How to reach `name`, if it is a member.
    #[must_use]
    pub fn link(&self, name: &MemberName) -> Option<&Link> {
        self.0.links.get(name)
    }

    /// The other members.
    pub fn names(&self) -> impl Iterator<Item = &MemberName> {
        self.0.links.keys()
    }

    /// The instance under which `name` was met, to address messages to.
    #[must_use]
    pub fn instance_of(&self, name: &MemberName) -> InstanceId {
        self.met().get(name).copied().unwrap_or(ANY_INSTANCE)
    }

    fn met(&self) -> MutexGuard<'_, BTreeMap<MemberName, InstanceId>> {
        self.0.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `name` with `instance` in, if it is who was met before; remembers it if nobody was.
    ///
    /// # Errors
    ///
    /// [`Refusal::LostDisk`] blames the peer.
    pub async fn meet(&self, name: &MemberName, instance: InstanceId) -> Result<(), Refusal> {
        let met = self.met().get(name).copied();
        if met.is_none() {
            // On disk before it counts, so that a restart does not forget whom we believed.
            self.0.writer.write(Record::Peer(name.clone(), instance)).await?;
        }
        let met = *self.met().entry(name.clone()).or_insert(instance);
        if met != instance {
            let lost = LostDisk { name: name.clone(), offered: instance, met };
            tracing::error!("{lost}");
            return Err(lost.into());
        }
        Ok(())
    }
}
