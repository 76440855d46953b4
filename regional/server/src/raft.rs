//! The ring: one member's Raft, and the only place that names openraft.
//!
//! Everybody else sees a [`Ring`]: propose a command, watch the region, learn who leads.
//!
//! ```text
//!   propose ─▶ log store ─▶ writer thread ─▶ disk          (types, log_store, writer, disk)
//!      │            └─▶ network ─▶ other members            (network, frames, peers)
//!      │   ring_service ◀───────── other members
//!      └─ committed ─▶ state machine ─▶ views               (state_machine)
//!                           └─▶ snapshot, purge             (compaction)
//! ```
//!
//! # Timing
//!
//! A follower waits out the leader's lease (the longest election timeout) and then its own timeout,
//! so with 250 to 500 ms a dead leader costs about one second. Pre-vote keeps a member that was cut
//! off from deposing a healthy leader when it returns. No read relies on the lease.

pub mod compaction;
pub mod disk;
pub mod frames;
pub mod log_store;
pub mod network;
pub mod peers;
pub mod ring_service;
pub mod serve;
pub mod state_machine;
pub mod types;
pub mod writer;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    ConfigError, Raft, SnapshotPolicy,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, Fatal, RaftError},
};
use satrap_certify::{Digest, Genesis, Label};
use satrap_host::{TaskGroup, mtls::Credentials};
use satrap_merkle::codec::{Canonical as _, Writer as CanonicalWriter};
use satrap_regional_core::{Command, Region};
use tokio::sync::watch;

pub use self::{
    compaction::Compaction,
    types::{MemberName, Reply},
};
use self::{
    disk::{Disk, DiskError, Owner},
    frames::Sender,
    log_store::LogStore,
    network::Network,
    peers::{PeerError, Peers},
    state_machine::{SnapshotStore, StateMachine},
    types::{Payload, Types},
    writer::Writer,
};
use crate::limits::{COMMAND_BYTES_MAX, LOG_ENTRIES_MAX};

/// How long a leader waits for a snapshot to be installed.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

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
    /// All members, this one included, and where each listens for its peers.
    pub members: BTreeMap<Label, String>,
    /// Where the database goes.
    pub data_dir: PathBuf,
    /// Raft's clocks.
    pub timing: Timing,
    /// When the log is compacted.
    pub compaction: Compaction,
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
    Raft(#[from] Fatal<Types>),
    /// The operating system refused a thread.
    #[error("cannot start the log writer: {0}")]
    Thread(#[from] std::io::Error),
    /// The peer listener failed.
    #[error("peer listener: {0}")]
    Listener(#[from] tonic::transport::Error),
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
#[derive(Clone)]
pub struct Ring {
    raft: Raft<Types, StateMachine>,
    name: MemberName,
    views: watch::Receiver<Arc<Region>>,
}

/// What must be driven for a [`Ring`] to live; see [`serve`].
pub struct RingParts {
    ring: Ring,
    log: LogStore,
    peers: Peers,
    setup: RingSetup,
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
    /// Last applied entry.
    pub applied_index: u64,
    /// Last entry that a snapshot covers.
    pub snapshot_index: u64,
    /// Last entry that was purged.
    pub purged_index: u64,
    /// Entries that each other member lacks; only the leader knows.
    pub lag: BTreeMap<MemberName, u64>,
}

/// What a data directory and every message belong to: one region of one realm.
#[must_use]
pub fn ring_id(setup: &RingSetup) -> Digest {
    let mut w = CanonicalWriter::tagged("satrap/ring/v1");
    w.array(setup.genesis.realm().genesis_hash());
    setup.region.encode(&mut w);
    blake3::hash(&w.finish()).into()
}

fn raft_config(setup: &RingSetup) -> Result<Arc<openraft::Config>, ConfigError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: setup.region.to_string(),
        heartbeat_interval: ms(setup.timing.heartbeat),
        election_timeout_min: ms(setup.timing.election_min),
        election_timeout_max: ms(setup.timing.election_max),
        install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
        enable_pre_vote: Some(true),
        // `compaction` decides both, because openraft counts entries and not bytes.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: 2 * LOG_ENTRIES_MAX,
        ..openraft::Config::default()
    };
    config.validate().map(Arc::new)
}

impl Ring {
    /// Opens the data of this member and starts its Raft on the present runtime. It takes part once
    /// [`serve::run`] drives the parts.
    ///
    /// # Errors
    ///
    /// [`RingError`]; nothing was sent or voted then.
    pub async fn open(
        setup: RingSetup,
        credentials: &Credentials,
        group: &TaskGroup,
    ) -> Result<RingParts, RingError> {
        let name = MemberName::from(&setup.name);
        let config = raft_config(&setup)?;
        let owner = Owner { ring: ring_id(&setup), member: name.clone() };
        let (disk, mut loaded) = Disk::open(&setup.data_dir.join("ring.redb"), &owner)?;
        let disk = Arc::new(disk);
        let last = loaded.entries.last().map(|(entry, _)| entry.log_id).or(loaded.purged);
        let (writer, handle) = Writer::new(disk.clone(), loaded.committed, last.map(|id| id.index));
        group.spawn_thread("log-writer", move || writer.run())?;

        let own = Sender { ring: owner.ring, instance: loaded.instance };
        let urls = setup.members.iter().map(|(name, url)| (MemberName::from(name), url.clone()));
        let urls = urls.filter(|(member, _)| *member != name).collect();
        let scope = (setup.genesis.realm().chain_id(), setup.region.as_str());
        let met = (std::mem::take(&mut loaded.peers), handle.clone());
        let peers = Peers::new(own, scope, &urls, credentials, met)?;

        let log = LogStore::new(loaded, handle.clone());
        let snapshots = SnapshotStore::new(disk, handle);
        let (machine, views) = StateMachine::new(setup.genesis.clone(), snapshots);
        let network = Network(peers.clone());
        let raft = Raft::new(name.clone(), config, network, log.clone(), machine).await?;
        Ok(RingParts { ring: Self { raft, name, views }, log, peers, setup })
    }

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
        match self.raft.client_write(Payload(Bytes::from(bytes))).await {
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

impl RingParts {
    /// The handle for everybody else.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.ring.clone()
    }
}
