//! The ring: one member's Raft, and the only place that names openraft.
//!
//! Everybody else sees a [`Ring`]: propose a command, watch the region, learn who leads.
//!
//! ```text
//!   services ─▶ dispatch ─▶ proposals ─▶ log_store ─▶ writer ─▶ WAL
//!                  │            └─▶ network ─▶ the leader, the followers   (frames, peers)
//!                  └─▶ reads ─▶ a quorum         ring_service ◀── other members
//!   committed ─▶ state_machine ─▶ waiters, views, watches
//!                     └─▶ checkpoint ─▶ disk ─▶ snapshots, purge           (compaction)
//! ```
//!
//! # Timing
//!
//! A follower waits out the leader's lease (the longest election timeout) and then its own timeout,
//! so with 250 to 500 ms a dead leader costs about one second. Pre-vote keeps a member that was cut
//! off from deposing a healthy leader when it returns. A read relies on the lease only if its client
//! asked for that.

pub mod boot;
pub mod checkpoint;
pub mod clock;
pub mod compaction;
pub mod disk;
pub mod dispatch;
pub mod founding;
pub mod frames;
pub mod health;
pub mod inbox;
pub mod log_store;
pub mod members;
pub mod meters;
pub mod network;
pub mod orders;
pub mod peers;
pub mod platform;
pub mod proposals;
pub mod reads;
pub mod rebuild;
pub mod ring_service;
pub mod serve;
pub mod state_machine;
pub mod touch;
pub mod types;
pub mod waiters;
pub mod writer;

#[cfg(test)]
mod sim;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::{
    ConfigError, Raft,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, Fatal, RaftError},
};
use satrap_certify::{Digest, Genesis, Label};
use satrap_host::{Fault, Unusable};
use satrap_merkle::codec::{Canonical as _, Writer as CanonicalWriter};
use satrap_regional_api::backend::MemberIdentity;
use satrap_regional_core::{Command, Keyspace, Region, Request};
use satrap_regional_storage::{Owner, Reserve, StorageError, files::Files};
use tokio::sync::{mpsc, watch};

use self::{
    checkpoint::{Checkpoints, Shared},
    clock::RingClock,
    disk::DiskError,
    frames::ANY_INSTANCE,
    inbox::DiskAlarm,
    log_store::LogStore,
    members::cluster_id,
    network::Network,
    peers::{PeerError, Peers},
    platform::{Platform, Real},
    state_machine::{Marks, StateMachine},
    types::{Payload, Types},
    waiters::{Origin, Waiters},
};
pub use self::{
    compaction::Compaction,
    types::{MemberName, Reply},
};
use crate::limits::COMMAND_BYTES_MAX;

/// How late the leader notices that something is due.
pub const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// Raft's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// The shortest election timeout.
    pub election_min: Duration,
    /// The longest one; also the leader's lease.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(60),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(500),
        }
    }
}

/// What a member needs to take part in its ring.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// The realm.
    pub genesis: Arc<Genesis>,
    /// The region.
    pub region: Label,
    /// This member.
    pub name: Label,
    /// Who founds the ring or is there to be joined, this member included, and where each listens for
    /// its peers.
    pub members: BTreeMap<Label, String>,
    /// Addresses that only this member uses to reach the others.
    pub peer_url_overrides: BTreeMap<Label, String>,
    /// Where clients reach this member.
    pub client_urls: Vec<String>,
    /// Where the database goes.
    pub data_dir: PathBuf,
    /// Raft's clocks.
    pub timing: Timing,
    /// When the log is compacted.
    pub compaction: Compaction,
    /// How its files are laid out.
    pub storage: satrap_regional_storage::Config,
}

/// Why the ring cannot run. Always fatal.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The data of this member cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A peer's address or name is wrong.
    #[error("members: {0}")]
    Peer(#[from] PeerError),
    /// The clocks contradict each other.
    #[error("raft timing: {0}")]
    Timing(#[from] ConfigError),
    /// openraft stopped.
    #[error("raft: {0}")]
    Raft(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The peer listener failed.
    #[error("peer listener: {0}")]
    Listener(#[from] tonic::transport::Error),
}

impl RingError {
    /// What is wrong with the data directory, with its path, or the error itself if nothing is.
    ///
    /// # Errors
    ///
    /// `self`, if the data directory is not why the ring cannot run.
    pub fn in_data_dir(self, data_dir: &Path) -> Result<Unusable, Self> {
        match self {
            Self::Disk(error) => Ok(error.unusable(data_dir)),
            error => Err(error),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Peer(_) | Self::Timing(_) => Fault::Setting,
            Self::Disk(_) | Self::Raft(_) | Self::Thread(_) | Self::Listener(_) => Fault::Machine,
        }
    }
}

/// Why a command was not proposed, or its fate is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or none does.
    #[error("this member does not lead its ring (leader: {})", .0.as_ref().map_or("none", MemberName::as_str))]
    NotLeader(Option<MemberName>),
    /// The command is longer than the log takes.
    #[error("a command of {0} bytes exceeds {COMMAND_BYTES_MAX}")]
    TooLong(usize),
    /// openraft refused or stopped.
    #[error("raft: {0}")]
    Raft(String),
}

/// A handle to one member's Raft. Clones share it; it works from any runtime.
pub struct Ring<P: Platform = Real> {
    raft: Raft<Types<P>, StateMachine<P>>,
    name: MemberName,
    /// Digest of genesis and region.
    ring: Digest,
    region_name: String,
    timing: Timing,
    /// Who is configured; counts until there is a membership.
    configured: Arc<BTreeMap<MemberName, String>>,
    views: watch::Receiver<Arc<Region>>,
    applied: Marks<P>,
    shared: Shared,
    checkpoints: Checkpoints,
    clock: Arc<Mutex<RingClock>>,
    waiters: Waiters,
    network: Network,
    /// When the last proof began that this member's state was the newest.
    fresh_at: Arc<Mutex<Option<Duration>>>,
    reserve: Arc<Reserve>,
    /// Held by whoever changes the membership.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl<P: Platform> Clone for Ring<P> {
    fn clone(&self) -> Self {
        Self {
            raft: self.raft.clone(),
            name: self.name.clone(),
            ring: self.ring,
            region_name: self.region_name.clone(),
            timing: self.timing,
            configured: self.configured.clone(),
            views: self.views.clone(),
            applied: self.applied.clone(),
            shared: self.shared.clone(),
            checkpoints: self.checkpoints.clone(),
            clock: self.clock.clone(),
            waiters: self.waiters.clone(),
            network: self.network.clone(),
            fresh_at: self.fresh_at.clone(),
            reserve: self.reserve.clone(),
            changing: self.changing.clone(),
        }
    }
}

/// What must be driven for a [`Ring`] to live; see [`serve`].
pub struct RingParts<P: Platform = Real> {
    ring: Ring<P>,
    log: LogStore<P>,
    peers: Peers,
    files: Arc<dyn Files>,
    setup: RingSetup,
    disk_alarm: DiskAlarm,
    disk_failures: mpsc::Receiver<StorageError>,
}

/// What this member knows about its ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingStatus {
    /// Who leads, if anybody.
    pub leader: Option<MemberName>,
    /// The present term.
    pub term: u64,
    /// Last entry in the log.
    pub log_index: u64,
    /// Last entry that is known to be committed.
    pub committed_index: u64,
    /// Last applied entry.
    pub applied_index: u64,
    /// Last entry that a snapshot covers.
    pub snapshot_index: u64,
    /// Last entry that was purged.
    pub purged_index: u64,
    /// Entries that each other member lacks; only the leader knows.
    pub lag: BTreeMap<MemberName, u64>,
}

/// Whose data this is.
#[must_use]
pub fn owner(setup: &RingSetup) -> Owner {
    Owner { ring: ring_id(setup), member: setup.name.to_string() }
}

/// What a data directory and every message belong to: one region of one realm.
#[must_use]
pub fn ring_id(setup: &RingSetup) -> Digest {
    let mut w = CanonicalWriter::tagged("satrap/ring/v1");
    w.array(setup.genesis.realm().genesis_hash());
    setup.region.encode(&mut w);
    blake3::hash(&w.finish()).into()
}

impl<P: Platform> From<Fatal<Types<P>>> for RingError {
    fn from(fatal: Fatal<Types<P>>) -> Self {
        Self::Raft(Box::new(fatal))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Critical sections only move values, so what is locked is whole even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P: Platform> Ring<P> {
    /// The region as this member has applied it, again after every change.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<Region>> {
        self.views.clone()
    }

    /// The region as this member has applied it.
    #[must_use]
    pub fn region(&self) -> Arc<Region> {
        self.views.borrow().clone()
    }

    /// Looks at the keyspace as this member has applied it.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        self.shared.read(f)
    }

    /// Who this member is to clients; waits until the ring has taken it in, and its disk is on record:
    /// from then on, none that lost it can be taken for it.
    pub async fn identity(&self) -> MemberIdentity {
        let mut metrics = self.raft.server_metrics();
        loop {
            drop(metrics.borrow_and_update());
            let own = self.nodes().into_iter().find(|(name, _)| *name == self.name);
            let recorded = own.filter(|(_, node)| node.instance != ANY_INSTANCE);
            if let Some((name, node)) = recorded {
                let cluster_id = cluster_id(&self.ring);
                return MemberIdentity { cluster_id, member_id: node.id, name: name.to_string() };
            }
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn clock(&self) -> MutexGuard<'_, RingClock> {
        lock(&self.clock)
    }

    /// What makes time pass, if something is due and this member leads.
    #[must_use]
    pub fn tick_if_due(&self) -> Option<impl Future<Output = ()> + Send + use<P>> {
        if !self.leads() {
            return None;
        }
        let due = self.shared.read(Keyspace::next_expiry)?;
        let ring = self.clone();
        (due.0 <= self.now_ms()).then_some(async move {
            if let Err(error) = ring.ask(Request::Tick).await {
                tracing::debug!(%error, "time did not pass");
            }
        })
    }

    /// This member.
    #[must_use]
    pub fn name(&self) -> &MemberName {
        &self.name
    }

    /// Whether this member leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state.is_leader()
    }

    /// Whether this member is in touch with a leader that a quorum follows, itself included.
    #[must_use]
    pub fn in_touch(&self) -> bool {
        // The longest that a follower waits before it stands for election: the lease, and its own
        // timeout.
        let patience = 2 * self.timing.election_max;
        self.network.touch.silence().is_some_and(|silence| silence <= patience)
    }

    /// Completes once this member leads, or stops leading. `false` if raft has stopped.
    pub async fn until(&self, leading: Leading) -> bool {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leads = metrics.borrow_and_update().state.is_leader();
            if leads == (leading == Leading::Yes) {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Completes once the status is as wanted. `false` if raft has stopped.
    pub async fn until_status(&self, wanted: impl Fn(&RingStatus) -> bool) -> bool {
        let mut metrics = self.raft.metrics();
        loop {
            drop(metrics.borrow_and_update());
            if wanted(&self.status()) {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Proposes a command and waits until this member has applied it. Leader only.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]. After a change of leaders the command may still come to be applied.
    pub async fn propose(&self, command: &Command) -> Result<Reply, ProposeError> {
        let bytes = command.to_canonical();
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLong(bytes.len()));
        }
        match self.raft.client_write(Payload::new(Origin::default(), &bytes)).await {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
            )) => Err(ProposeError::NotLeader(to.leader_id)),
            Err(error) => Err(ProposeError::Raft(error.to_string())),
        }
    }

    /// What this member knows about its ring.
    #[must_use]
    pub fn status(&self) -> RingStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<types::LogId>| id.map_or(0, |id| id.index);
        let log_index = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.iter().flatten();
        let lag = replication
            .filter(|(name, _)| **name != self.name)
            .map(|(name, matched)| (name.clone(), log_index.saturating_sub(index(matched))));
        RingStatus {
            leader: metrics.current_leader.clone(),
            term: metrics.current_term,
            log_index,
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            snapshot_index: index(&metrics.snapshot),
            purged_index: index(&metrics.purged),
            lag: lag.collect(),
        }
    }
}

/// Which way leadership is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leading {
    /// Until this member leads.
    Yes,
    /// Until it does not.
    No,
}

impl<P: Platform> RingParts<P> {
    /// The handle for everybody else.
    #[must_use]
    pub fn ring(&self) -> Ring<P> {
        self.ring.clone()
    }
}
