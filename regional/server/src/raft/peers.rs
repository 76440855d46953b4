//! Who the other members are: how to reach them, and which of those that ever had a name is meant.
//!
//! A member that lost its disk has also lost its vote and the entries it acknowledged. If it came
//! back under its old name and voted again, two members with the same gap could elect a leader that
//! lacks committed entries. So the membership, which is itself in the log, names the instance of
//! every member, that is its disk: messages are for that instance, and its namesake from another disk
//! is refused, as sender and as receiver.
//!
//! A namesake that the ring has taken in anew is another member. One that slept through the change
//! must believe that: the newcomer may be the leader, and then nobody else will tell it. So every
//! message says since when its sender belongs to the ring, and later than anything that this member
//! knows to be agreed is right.
//!
//! Whom there is to reach is what the ring's membership says, and before the ring is founded what the
//! configuration says. Addresses come from the same place; this member's own overrides win, because
//! only it knows what lies between.
//!
//! # Invariants
//!
//! - **P1** A request is for the instance that the membership names, and only that one's answer
//!   counts. So whoever counts towards a quorum is who was meant by it.
//! - **P2** A name in the membership is let in with the instance that stands there, or if the ring has
//!   taken it in later than all that is agreed here.
//! - **P3** A name that was removed, as far as is agreed here, is not let in.
//!
//! # What this covers, and what not
//!
//! - Covered: a member loses its disk at any moment after it was taken in. It cannot vote, be counted,
//!   or found a ring; replace it.
//! - Covered only from the first election on: a member whose data was made from a backup. There the
//!   instances are not known; whoever comes first is let in, and the first leader has them recorded.
//! - Not covered: disks of a majority are lost. Restore the region from a snapshot or from the
//!   validators, as a new ring.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use satrap_certify::Digest;
use satrap_host::{
    mtls::{self, ConnectError, Credentials, PeerRule},
    pki::{PkiError, Role, SpiffeId},
};
use satrap_regional_storage::InstanceId;
use tonic::{Status, body::Body};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use super::{
    RingSetup,
    frames::{ANY_INSTANCE, Sender},
    types::{MemberName, MemberNode, Membership},
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
    ring: Digest,
    instance: InstanceId,
    dial: Dial,
    links: Mutex<BTreeMap<MemberName, (String, Link)>>,
    roll: Mutex<Roll>,
    /// Those to which the last request failed.
    silent: Mutex<BTreeSet<MemberName>>,
}

/// Who belongs to the ring, as far as this member knows.
#[derive(Clone, Debug, Default)]
pub struct Roll {
    /// Who may speak before there is a ring.
    configured: BTreeSet<MemberName>,
    /// By the newest membership in the log, which may yet be undone.
    logged: BTreeMap<MemberName, Seat>,
    /// By the newest one that is committed, as far as is known here, and its index.
    agreed: Option<(u64, BTreeMap<MemberName, Seat>)>,
    /// Who came first where the membership does not say who is meant.
    first: BTreeMap<MemberName, InstanceId>,
}

/// What the membership says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    instance: InstanceId,
    since: u64,
}

fn seats(membership: &Membership) -> BTreeMap<MemberName, Seat> {
    let seat = |node: &MemberNode| Seat { instance: node.instance, since: node.since };
    membership.nodes().map(|(name, node)| (name.clone(), seat(node))).collect()
}

impl Roll {
    /// Before anything is known but the configuration.
    #[must_use]
    pub fn new(configured: BTreeSet<MemberName>) -> Self {
        Self { configured, ..Self::default() }
    }

    /// The newest membership in the log.
    pub fn follow(&mut self, membership: &Membership) {
        self.logged = seats(membership);
    }

    /// The newest membership that is committed.
    pub fn agree(&mut self, membership: &Membership) {
        if let Some(log_id) = membership.log_id() {
            self.agreed = Some((log_id.index, seats(membership)));
        }
    }

    fn seats(&self, name: &MemberName) -> impl Iterator<Item = &Seat> {
        let agreed = self.agreed.as_ref().and_then(|(_, seats)| seats.get(name));
        self.logged.get(name).into_iter().chain(agreed)
    }

    /// Since when `instance` belongs to the ring; zero if it does not know.
    fn since_of(&self, instance: &InstanceId) -> u64 {
        let agreed = self.agreed.iter().flat_map(|(_, seats)| seats.values());
        let seats = self.logged.values().chain(agreed).filter(|seat| seat.instance == *instance);
        seats.map(|seat| seat.since).max().unwrap_or(0)
    }

    /// Whom a message to `name` is for.
    fn instance_of(&self, name: &MemberName) -> InstanceId {
        let known = self.seats(name).map(|seat| seat.instance).find(|i| *i != ANY_INSTANCE);
        known.or_else(|| self.first.get(name).copied()).unwrap_or(ANY_INSTANCE)
    }

    /// Lets in whoever says that it is the `instance` of `name` and belongs to the ring `since` then.
    fn judge(
        &mut self,
        name: &MemberName,
        instance: InstanceId,
        since: u64,
    ) -> Result<(), Refusal> {
        let seats: Vec<Seat> = self.seats(name).copied().collect();
        // P2
        let agreed_index = self.agreed.as_ref().map_or(0, |(index, _)| *index);
        if seats.iter().any(|seat| seat.instance == instance) || since > agreed_index {
            return Ok(());
        }
        let nobody_known = self.logged.is_empty() && self.agreed.is_none();
        match seats.iter().find(|seat| seat.instance != ANY_INSTANCE) {
            Some(seat) => lost(name, instance, seat.instance),
            None if !seats.is_empty() => {
                match *self.first.entry(name.clone()).or_insert(instance) {
                    first if first == instance => Ok(()),
                    first => lost(name, instance, first),
                }
            }
            None if nobody_known && self.configured.contains(name) => Ok(()),
            // P3
            None => Err(Refusal::Stranger(name.clone())),
        }
    }
}

fn lost(name: &MemberName, offered: InstanceId, known: InstanceId) -> Result<(), Refusal> {
    let lost = LostDisk { name: name.clone(), offered, known };
    tracing::error!("{lost}");
    Err(lost.into())
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

/// For a member whose old vote and log must not be taken for its new ones.
pub const LOST_DISK_REMEDY: &str = "run `satrap member replace` for it at another member, then start \
                                    it with an empty data directory";

/// A peer with the right name and another disk.
#[derive(Debug, thiserror::Error)]
#[error(
    "member `{name}` lost its disk: it presents instance {}, but the ring knows it as {}; {}",
    hex::encode(offered),
    hex::encode(known),
    LOST_DISK_REMEDY
)]
pub struct LostDisk {
    name: MemberName,
    offered: InstanceId,
    known: InstanceId,
}

/// Why a peer is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It does not belong to the ring, or not any more.
    #[error("`{0}` is not a member of this ring; invite it first")]
    Stranger(MemberName),
    /// See there.
    #[error(transparent)]
    LostDisk(#[from] LostDisk),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Critical sections only move values, so what is locked is whole even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// Nobody to reach yet.
    #[must_use]
    pub fn new(ring: Digest, instance: InstanceId, dial: Dial, roll: Roll) -> Self {
        let (links, roll) = (Mutex::default(), Mutex::new(roll));
        Self(Arc::new(Inner { ring, instance, dial, links, roll, silent: Mutex::default() }))
    }

    /// What this member puts on its messages.
    #[must_use]
    pub fn own(&self) -> Sender {
        let Inner { ring, instance, roll, .. } = &*self.0;
        Sender { ring: *ring, instance: *instance, since: lock(roll).since_of(instance) }
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

    /// Tells operators when requests to `name` begin to fail and when they succeed again.
    pub fn note<T>(&self, name: &MemberName, answer: &Result<T, Status>) {
        let mut silent = lock(&self.0.silent);
        match answer {
            Err(status) => {
                if silent.insert(name.clone()) {
                    tracing::warn!(member = %name, "requests to it fail: {}", status.message());
                }
            }
            Ok(_) => {
                if silent.remove(name) {
                    tracing::debug!(member = %name, "requests to it succeed again");
                }
            }
        }
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

    /// The instance of `name` that messages are for, as far as it is known.
    #[must_use]
    pub fn instance_of(&self, name: &MemberName) -> InstanceId {
        lock(&self.0.roll).instance_of(name)
    }

    /// Lets `name` in, which presents itself as `sender`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] blames the peer.
    pub fn meet(&self, name: &MemberName, sender: &Sender) -> Result<(), Refusal> {
        lock(&self.0.roll).judge(name, sender.instance, sender.since)
    }

    /// As [`Peers::meet`], but whoever is not known is let in too: to say who is here, and to ask to
    /// be taken in.
    ///
    /// # Errors
    ///
    /// [`Refusal::LostDisk`] blames the peer.
    pub fn greet(&self, name: &MemberName, sender: &Sender) -> Result<(), Refusal> {
        match self.meet(name, sender) {
            Err(Refusal::Stranger(_)) => Ok(()),
            met => met,
        }
    }

    /// `logged` is the newest membership in the log, `agreed` the newest one that is committed.
    pub fn follow(&self, logged: &Membership, agreed: &Membership) {
        if logged.log_id().is_none() {
            return;
        }
        let mut roll = lock(&self.0.roll);
        let before = std::mem::take(&mut roll.logged);
        roll.follow(logged);
        roll.agree(agreed);
        for left in before.keys().filter(|name| !roll.logged.contains_key(*name)) {
            tracing::info!(member = %left, "has left the ring");
        }
        lock(&self.0.links).retain(|name, _| roll.logged.contains_key(name));
        lock(&self.0.silent).retain(|name| roll.logged.contains_key(name));
    }

    /// Whom the membership names without their instances, and who they turned out to be.
    #[must_use]
    pub fn identified(&self) -> BTreeMap<MemberName, InstanceId> {
        lock(&self.0.roll).first.clone()
    }
}

#[cfg(test)]
mod tests;
