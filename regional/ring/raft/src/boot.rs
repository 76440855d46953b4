//! Assembles a member from the data on its disk, and starts its Raft.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use openraft::{
    ConfigError, Instant as _, Raft, SnapshotPolicy, async_runtime::WatchReceiver as _,
};
use satrap_identity::mtls::Credentials;
use satrap_ring_storage::{
    InstanceId, Reserve,
    files::{DirFiles, Files},
};
use satrap_runtime::TaskGroup;

use super::{
    checkpoint::{CheckpointRequest, Checkpoints, Shared},
    clock::RingClock,
    contact::QuorumContact,
    disk::{Disk, DiskError},
    error::RingError,
    health::Health,
    heartbeats::HeartbeatOrder,
    locks::lock,
    log_store::LogStore,
    members::Members,
    network::Network,
    node::Node,
    peers::{Dial, MemberRegistry, Peers, over_mtls},
    platform::{Platform, Real, draw},
    proposals::Proposer,
    reads::Reads,
    ring::{Ring, RingParts},
    setup::{RingSetup, owner},
    state_machine::StateMachine,
    types::{MemberName, Types},
    waiters::Waiters,
    writer::Writer,
};

/// Checkpoint requests that may wait for the checkpoint in progress.
const CHECKPOINT_REQUESTS_MAX: usize = 4;

/// Time limit of a leader for the installation of a snapshot.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

fn raft_config(setup: &RingSetup) -> Result<Arc<openraft::Config>, ConfigError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: setup.region.clone(),
        heartbeat_interval: ms(setup.timing.heartbeat),
        election_timeout_min: ms(setup.timing.election_min),
        election_timeout_max: ms(setup.timing.election_max),
        install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
        enable_pre_vote: Some(true),
        // A leader that has lost its quorum stops sending for as long as a follower waits before it
        // starts an election, then probes for as long, in turns.
        quorum_loss_probe_interval: Some(2 * ms(setup.timing.election_max)),
        // A leader sends entries before they are on its own disk. If it resumed its term after a
        // crash that lost some of them, it would give their indices to other entries, and peers
        // that hold the lost ones could not detect that.
        enable_leader_restore: Some(false),
        // `compaction` decides both, because openraft counts entries and not bytes.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: 2 * setup.compaction.max.entries,
        ..openraft::Config::default()
    };
    config.validate().map(Arc::new)
}

impl Ring {
    /// Opens the data of this member and starts its Raft on the current runtime; its writers run on
    /// threads of `group`. The member takes part once [`serve::run`] drives the parts.
    ///
    /// # Errors
    ///
    /// [`RingError`]; this member has then sent nothing and voted for no candidate.
    pub async fn open(
        setup: RingSetup,
        credentials: &Credentials,
        group: &TaskGroup,
    ) -> Result<RingParts, RingError> {
        let files = Arc::new(DirFiles::open(&setup.data_dir).map_err(DiskError::Directory)?);
        let dial = over_mtls(&setup, credentials);
        let mut fresh = InstanceId::default();
        Real::fill(&mut fresh);
        let owner = owner(&setup);
        let disk = Disk::open(files.clone(), setup.storage, &owner, fresh, &setup.state)?;
        let (opened, writers) = Opened::<Real>::new(setup, files, disk, dial)?;
        let Writers { log, checkpoints, requests } = writers;
        group.spawn_thread("log-writer", move || log.run())?;
        group.spawn_thread("checkpoints", move || checkpoints.run(&requests))?;
        opened.start().await
    }
}

/// The time since a quorum last answered this member, if it leads.
fn quorum_answered<P: Platform>(
    raft: &Raft<Types<P>, StateMachine<P>>,
    name: MemberName,
) -> impl Fn() -> Option<Duration> + Send + Sync + 'static {
    let (servers, data) = (raft.server_metrics(), raft.data_metrics());
    move || {
        let server = servers.borrow_watched();
        if !server.state.is_leader() {
            return None;
        }
        // openraft records the answers of other members only; a single voter is its own quorum.
        if server.membership_config.voter_ids().all(|voter| voter == name) {
            return Some(Duration::ZERO);
        }
        data.borrow_watched().last_quorum_acked.map(|at| at.elapsed())
    }
}

/// The disk writers of a member; each needs a thread.
pub struct Writers {
    /// The writer of the log.
    pub log: Writer,
    /// The writer of checkpoints.
    pub checkpoints: Checkpoints,
    /// The requests for checkpoints.
    pub requests: mpsc::Receiver<CheckpointRequest>,
}

/// A member whose data is open and whose Raft has not started yet: starting Raft writes to the
/// disk.
pub struct Opened<P: Platform> {
    setup: RingSetup,
    config: Arc<openraft::Config>,
    files: Arc<dyn Files>,
    log: LogStore<P>,
    peers: Peers,
    shared: Shared,
    checkpoints: Checkpoints,
    requests: mpsc::SyncSender<CheckpointRequest>,
    clock: Arc<Mutex<RingClock>>,
    reserve: Arc<Reserve>,
}

impl<P: Platform> Opened<P> {
    /// Assembles a member from `disk`, which was opened in `files`; `dial` reaches its peers.
    ///
    /// # Errors
    ///
    /// [`RingError::Timing`].
    pub fn new(
        setup: RingSetup,
        files: Arc<dyn Files>,
        disk: Disk,
        dial: Dial,
    ) -> Result<(Self, Writers), RingError> {
        let config = raft_config(&setup)?;
        let Disk { wal, state, reserve, log: loaded, restored } = disk;
        let registry = MemberRegistry::new(setup.members.keys().cloned().collect());
        let peers = Peers::new(setup.ring, loaded.instance, dial, registry);
        let clock = Arc::new(Mutex::new(RingClock::default()));
        let now = restored.state.keyspace().now();
        if now.0 > 0 {
            lock(&clock).applied(now.0, P::monotonic());
        }
        let shared = Shared::new(restored);
        let (writer, handle) = Writer::new(wal, loaded.committed, shared.meters.clone());
        let checkpoints = Checkpoints::new(shared.clone(), state, reserve.clone());
        let (requests, asked) = mpsc::sync_channel(CHECKPOINT_REQUESTS_MAX);
        let writers = Writers { log: writer, checkpoints: checkpoints.clone(), requests: asked };
        let log = LogStore::new(loaded, handle);
        let opened = Self {
            setup,
            config,
            files,
            log,
            peers,
            shared,
            checkpoints,
            requests,
            clock,
            reserve,
        };
        Ok((opened, writers))
    }

    /// Starts Raft on the current runtime. The writers must be running.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub async fn start(self) -> Result<RingParts<P>, RingError> {
        let Self {
            setup,
            config,
            files,
            log,
            peers,
            shared,
            checkpoints,
            requests,
            clock,
            reserve,
        } = self;
        let name = setup.name.clone();
        let configured = Arc::new(setup.members.clone());
        for (peer, url) in configured.iter().filter(|(peer, _)| **peer != name) {
            peers.reach(peer, url)?;
        }
        let run = draw::<P>();
        let waiters = Waiters::new(run);
        let (machine, views, applied) = StateMachine::new(
            shared.clone(),
            checkpoints.clone(),
            requests,
            clock.clone(),
            waiters.clone(),
        );
        let (contact, meters) = (QuorumContact::default(), shared.meters.clone());
        let (contact_of_peers, heartbeats) = (contact.clone(), HeartbeatOrder::default());
        let network =
            Network { peers: peers.clone(), meters, contact: contact_of_peers, heartbeats, run };
        let raft = Raft::new(name.clone(), config, network.clone(), log.clone(), machine).await?;
        contact.ask(quorum_answered(&raft, name.clone()));
        let metrics = raft.server_metrics();
        let (logged, agreed) = {
            let metrics = metrics.borrow_watched();
            (metrics.membership_config.clone(), metrics.committed_membership_config.clone())
        };
        peers.follow(&logged, &agreed);
        let node = Node { raft, name, timing: setup.timing, shared, applied, network };
        let proposer = Proposer::new(node.clone(), waiters.clone(), clock);
        let ring = Ring {
            reads: Reads::new(node.clone(), waiters),
            members: Members::new(node.clone(), proposer.clone(), peers.own().ring, configured),
            health: Health::new(node.clone(), proposer.clone(), reserve),
            node,
            proposer,
            views,
            checkpoints,
        };
        // The first failure stops the process, so there is room for one.
        let (disk_alarm, disk_failures) = tokio::sync::mpsc::channel(1);
        Ok(RingParts { ring, log, peers, files, setup, disk_alarm, disk_failures })
    }
}
