//! Puts a member together from what is on its disk, and starts its Raft.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use openraft::{
    ConfigError, Instant as _, Raft, SnapshotPolicy, async_runtime::WatchReceiver as _,
};
use satrap_host::{TaskGroup, mtls::Credentials};
use satrap_regional_storage::{
    InstanceId, Reserve,
    files::{DirFiles, Files},
};

use super::{
    Ring, RingError, RingParts, RingSetup,
    checkpoint::{CheckpointRequest, Checkpoints, Shared},
    clock::RingClock,
    disk::{Disk, DiskError},
    lock,
    log_store::LogStore,
    network::Network,
    owner,
    peers::{Dial, Peers, Roll, over_mtls},
    platform::{Platform, Real, draw},
    ring_id,
    state_machine::StateMachine,
    touch::Touch,
    types::{MemberName, Types},
    waiters::Waiters,
    writer::Writer,
};

/// Requests for checkpoints that wait for the one under way.
const CHECKPOINT_REQUESTS_MAX: usize = 4;

/// How long a leader waits for a snapshot to be installed.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

fn raft_config(setup: &RingSetup) -> Result<Arc<openraft::Config>, ConfigError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: setup.region.to_string(),
        heartbeat_interval: ms(setup.timing.heartbeat),
        election_timeout_min: ms(setup.timing.election_min),
        election_timeout_max: ms(setup.timing.election_max),
        install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
        enable_pre_vote: Some(true),
        // A leader that has lost its quorum falls silent for as long as a follower waits before it
        // stands for election, then tries again for as long, and so on.
        quorum_loss_probe_interval: Some(2 * ms(setup.timing.election_max)),
        // A leader sends entries before they are on its own disk. If it went on in its term after a
        // crash lost some of them, it would give their indices to other entries, and peers that hold
        // the lost ones could not tell.
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
    /// Opens the data of this member and starts its Raft on the present runtime, its writers on
    /// threads of `group`. It takes part once [`serve::run`] drives the parts.
    ///
    /// # Errors
    ///
    /// [`RingError`]; nothing was sent or voted then.
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
        let disk = Disk::open(files.clone(), setup.storage, &owner, fresh, &setup.genesis)?;
        let (opened, writers) = Opened::<Real>::new(setup, files, disk, dial)?;
        let Writers { log, checkpoints, requests } = writers;
        group.spawn_thread("log-writer", move || log.run())?;
        group.spawn_thread("checkpoints", move || checkpoints.run(&requests))?;
        opened.start().await
    }
}

/// How long ago a quorum answered this member, if it leads.
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
        // openraft notes answers of others only, and a single voter is its own quorum.
        if server.membership_config.voter_ids().all(|voter| voter == name) {
            return Some(Duration::ZERO);
        }
        data.borrow_watched().last_quorum_acked.map(|at| at.elapsed())
    }
}

/// What writes to the disk of a member; each needs a thread.
pub struct Writers {
    /// The log.
    pub log: Writer,
    /// The state behind it.
    pub checkpoints: Checkpoints,
    /// Those who wait for a checkpoint.
    pub requests: mpsc::Receiver<CheckpointRequest>,
}

/// A member whose data is open, and whose Raft has not started: starting writes to the disk.
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
    /// A member whose data in `files` is `disk`; `dial` reaches its peers.
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
        let roll = Roll::new(setup.members.keys().map(MemberName::from).collect());
        let peers = Peers::new(ring_id(&setup), loaded.instance, dial, roll);
        let clock = Arc::new(Mutex::new(RingClock::default()));
        if restored.keyspace.now().0 > 0 {
            lock(&clock).applied(restored.keyspace.now().0, P::monotonic());
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

    /// Starts Raft on the present runtime. The writers must be running.
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
        let name = MemberName::from(&setup.name);
        let urls = setup.members.iter().map(|(name, url)| (MemberName::from(name), url.clone()));
        let configured: Arc<BTreeMap<_, _>> = Arc::new(urls.collect());
        for (peer, url) in configured.iter().filter(|(peer, _)| **peer != name) {
            peers.reach(peer, url)?;
        }
        let waiters = Waiters::new(draw::<P>());
        let (machine, views, applied) = StateMachine::new(
            shared.clone(),
            checkpoints.clone(),
            requests,
            clock.clone(),
            waiters.clone(),
        );
        let (touch, meters) = (Touch::default(), shared.meters.clone());
        let network = Network { peers: peers.clone(), meters, touch: touch.clone() };
        let raft = Raft::new(name.clone(), config, network.clone(), log.clone(), machine).await?;
        touch.ask(quorum_answered(&raft, name.clone()));
        let metrics = raft.server_metrics();
        let (logged, agreed) = {
            let metrics = metrics.borrow_watched();
            (metrics.membership_config.clone(), metrics.committed_membership_config.clone())
        };
        peers.follow(&logged, &agreed);
        let ring = Ring {
            raft,
            name,
            ring: peers.own().ring,
            region_name: setup.region.to_string(),
            timing: setup.timing,
            configured,
            views,
            applied,
            shared,
            checkpoints,
            clock,
            waiters,
            network,
            fresh_at: Arc::default(),
            reserve,
            changing: Arc::default(),
        };
        // One failure stops the process; more need not be heard.
        let (disk_alarm, disk_failures) = tokio::sync::mpsc::channel(1);
        Ok(RingParts { ring, log, peers, files, setup, disk_alarm, disk_failures })
    }
}
