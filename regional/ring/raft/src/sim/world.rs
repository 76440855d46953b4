//! The members of one simulated ring: their disks, their processes, and the faults of both.

use std::{
    collections::BTreeMap,
    future::pending,
    hash::Hasher as _,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use satrap_history::{Operation, random::Random};
use satrap_proto::v1::ring_server::RingServer;
use satrap_ring_api::Backend;
use satrap_ring_storage::{
    Config, InstanceId, SpaceConfig, StateConfig, WalConfig,
    limits::SEGMENT_BYTES_MIN,
    sim::{Faults, SimDisk, Survival},
};
use satrap_runtime::Shutdown;
use tokio::{sync::oneshot, time};

use super::{
    bug::Bug,
    checks::Recorder,
    net::{Net, dial},
    runtime::{Node, Sim},
    trace::Trace,
};
use crate::{
    Compaction, Ring, RingSetup, Timing,
    boot::{Opened, Writers},
    checkpoint::{CheckpointRequest, Checkpoints},
    disk::Disk,
    frames::ANY_INSTANCE,
    log_store::{LogSize, LogStore},
    owner,
    ring_service::RingService,
    serve,
    tests::register,
    types::MemberName,
    writer::Writer,
};

/// The maximum duration of a write to a disk that is not slow, in milliseconds.
pub const WRITE_MS_MAX: u64 = 2;
/// The realm in the members' certificates.
pub const REALM: &str = "test-realm";
/// The region in the members' certificates.
pub const REGION: &str = "eu";

/// The reason why a process ended; `None` while it runs.
type Death = Option<String>;

/// One run of a member's process.
pub struct Process {
    /// The node it runs on.
    pub node: Arc<Node>,
    /// The running member, once it has started.
    pub live: Option<Live>,
    /// The backend of its clients, once it belongs to the ring.
    pub backend: Option<Backend>,
    /// The reason why it ended by itself.
    pub death: Death,
}

/// The observable parts of a running process.
#[derive(Clone)]
pub struct Live {
    /// The member's ring.
    pub ring: Ring<Sim>,
    /// The member's log.
    pub log: LogStore<Sim>,
    service: RingServer<RingService<Sim>>,
}

/// One member's machine.
pub struct Host {
    /// The disk, which outlives processes.
    pub disk: SimDisk,
    /// Number of starts.
    pub boots: u64,
    /// Number of times that the disk was replaced by an empty one.
    pub losses: u64,
    /// Whether it lost its disk, and the ring has not added it again.
    pub banned: bool,
    /// The maximum duration of a write in milliseconds.
    pub write_ms_max: u64,
    /// The running process.
    pub process: Option<Process>,
}

/// The state of a simulation.
pub struct World {
    /// The seed of all choices.
    pub seed: u64,
    /// The injected bug.
    pub bug: Option<Bug>,
    /// Whether clocks run at different speeds.
    pub skewed: bool,
    founders: BTreeMap<MemberName, String>,
    net: Mutex<Net>,
    hosts: Mutex<BTreeMap<MemberName, Host>>,
    trace: Mutex<Trace>,
    started: time::Instant,
    recorder: Mutex<Recorder>,
    operations: Mutex<Vec<Operation>>,
    stamps: AtomicU64,
    calm: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address of a member.
pub fn url(name: &str) -> String {
    format!("https://{name}:7000")
}

impl World {
    /// A world of machines for `founders` members; none runs.
    pub fn new(seed: u64, founders: u64, bug: Option<Bug>) -> Arc<Self> {
        let names = (1..=founders).map(MemberName::from);
        Arc::new(Self {
            seed,
            bug,
            skewed: !seed.is_multiple_of(4),
            founders: names.map(|name| (name.clone(), url(name.as_str()))).collect(),
            net: Net::new(seed).into(),
            hosts: Mutex::default(),
            trace: Mutex::default(),
            started: time::Instant::now(),
            recorder: Mutex::default(),
            operations: Mutex::default(),
            stamps: AtomicU64::new(0),
            calm: AtomicBool::new(false),
        })
    }

    /// The network.
    pub fn net(&self) -> MutexGuard<'_, Net> {
        lock(&self.net)
    }

    /// The machines.
    pub fn hosts(&self) -> MutexGuard<'_, BTreeMap<MemberName, Host>> {
        lock(&self.hosts)
    }

    /// The recorder of revisions.
    pub fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }

    /// The operations of clients.
    pub fn operations(&self) -> MutexGuard<'_, Vec<Operation>> {
        lock(&self.operations)
    }

    /// A new number for an operation.
    pub fn next_id(&self) -> u64 {
        self.operations().len() as u64 + 1
    }

    /// Ends the clients' part.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Whether the clients' part has ended.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// A timestamp that is later than all before: the checkers need the order of events.
    pub fn stamp(&self) -> u64 {
        let now = self.now_ns();
        let before = |last: u64| now.max(last + 1);
        let last = self.stamps.load(Ordering::Relaxed);
        self.stamps.store(before(last), Ordering::Relaxed);
        before(last)
    }

    /// Every member that ever existed.
    pub fn names(&self) -> Vec<MemberName> {
        self.hosts().keys().cloned().collect()
    }

    /// The founders' names.
    pub fn founders(&self) -> Vec<MemberName> {
        self.founders.keys().cloned().collect()
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Adds an event to the trace.
    pub fn note(&self, what: &str) {
        lock(&self.trace).note(self.started.elapsed(), what);
    }

    /// The trace.
    pub fn trace(&self) -> MutexGuard<'_, Trace> {
        lock(&self.trace)
    }

    /// A number derived from the seed and the given purpose.
    pub fn number(&self, name: &MemberName, boots: u64) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(name.as_str().as_bytes());
        hasher.write_u64(boots);
        hasher.write_u64(self.seed);
        hasher.finish()
    }

    /// The service that receives requests to `name`, if it runs.
    pub fn service(&self, name: &MemberName) -> Option<(Arc<Node>, RingServer<RingService<Sim>>)> {
        let hosts = self.hosts();
        let process = hosts.get(name)?.process.as_ref()?;
        Some((process.node.clone(), process.live.as_ref()?.service.clone()))
    }

    /// The running members, by name.
    pub fn running(&self) -> Vec<(MemberName, Live)> {
        let hosts = self.hosts();
        let live = |host: &Host| host.process.as_ref().and_then(|process| process.live.clone());
        hosts.iter().filter_map(|(name, host)| Some((name.clone(), live(host)?))).collect()
    }

    /// The backend of `name`'s clients, if it serves them.
    pub fn backend(&self, name: &MemberName) -> Option<Backend> {
        let hosts = self.hosts();
        let process = hosts.get(name)?.process.as_ref()?;
        process.death.is_none().then(|| process.backend.clone()).flatten()
    }

    /// The members whose process ended by itself, and the reason.
    pub fn exited(&self) -> Vec<(MemberName, String)> {
        let hosts = self.hosts();
        let death = |host: &Host| host.process.as_ref().and_then(|process| process.death.clone());
        hosts.iter().filter_map(|(name, host)| Some((name.clone(), death(host)?))).collect()
    }

    /// Adds a machine for `name`, which runs nothing yet.
    pub fn add_machine(&self, name: &MemberName) {
        self.hosts().entry(name.clone()).or_insert_with(|| Host {
            disk: SimDisk::new(self.number(name, 0)),
            boots: 0,
            losses: 0,
            banned: false,
            write_ms_max: WRITE_MS_MAX,
            process: None,
        });
    }

    /// Starts the process of `name`; adds its machine if there is none.
    pub fn boot(self: &Arc<Self>, name: &MemberName) {
        self.add_machine(name);
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(name) else { return };
        assert!(host.process.is_none(), "{name} runs already");
        host.boots += 1;
        let mut chance = Random::new(self.number(name, host.boots));
        let rate = if self.skewed { chance.between(800, 1_200) } else { 1_000 };
        let node = Node::new(chance.number(), rate);
        self.note(&format!("{name} boots, clock at {rate}/1000"));
        let (world, of, disk) = (self.clone(), name.clone(), host.disk.clone());
        let same_instance = self.bug == Some(Bug::LostDiskVotes);
        let fresh = if same_instance { self.number(name, 0) } else { chance.number() };
        let living = self.clone().live(name.clone(), disk, fresh);
        drop(node.spawn(async move { world.until_death(&of, living).await }));
        host.process = Some(Process { node, live: None, backend: None, death: None });
    }

    /// Waits for `future`, which ends with the process or ends the process.
    pub async fn until_death(
        &self,
        name: &MemberName,
        task: impl Future<Output = Result<(), String>>,
    ) {
        let ended = AssertUnwindSafe(task).catch_unwind().await;
        self.died(name, ended.unwrap_or_else(|_| Err("a task panicked".into())));
    }

    fn died(&self, name: &MemberName, ended: Result<(), String>) {
        let why = ended.err().unwrap_or_else(|| "it ended".into());
        self.note(&format!("{name} dies: {why}"));
        if let Some(process) = self.hosts().get_mut(name).and_then(|host| host.process.as_mut()) {
            process.death.get_or_insert(why);
        }
    }

    /// Ends the process of `name`, as a power cut does: `survival` of the unsynced writes are kept.
    pub async fn crash(&self, name: &MemberName, survival: Survival) {
        self.note(&format!("{name} crashes, {survival:?}"));
        self.end(name, |disk| disk.crash(survival)).await;
    }

    /// Kills only the process of `name`: all its writes are kept, synced or not.
    pub async fn kill(&self, name: &MemberName) {
        self.note(&format!("{name} is killed"));
        self.end(name, SimDisk::kill).await;
    }

    async fn end(&self, name: &MemberName, fate: impl FnOnce(&SimDisk)) {
        let process = self.hosts().get_mut(name).and_then(|host| {
            fate(&host.disk);
            host.process.take()
        });
        if let Some(Process { node, live, backend, .. }) = process {
            drop((live, backend));
            node.kill().await;
        }
    }

    /// As [`World::crash`], and the disk is replaced by an empty one.
    pub async fn lose_disk(&self, name: &MemberName) {
        self.crash(name, Survival::None).await;
        let mut hosts = self.hosts();
        if let Some(host) = hosts.get_mut(name) {
            host.losses += 1;
            host.banned = true;
            host.disk = SimDisk::new(self.number(name, 1_000 + host.losses));
            self.note(&format!("{name} lost its disk"));
        }
    }

    /// Whether all members run, and each knows the disks of all. A member that no entry has reached could
    /// found a second ring with one that lost its disk (docs/adr/0013).
    pub fn all_on_record(&self) -> bool {
        let knows = |live: &Live| {
            let nodes = live.ring.node.nodes();
            !nodes.is_empty() && nodes.iter().all(|(_, node)| node.instance != ANY_INSTANCE)
        };
        let running = self.running();
        running.len() == self.hosts().len() && running.iter().all(|(_, live)| knows(live))
    }

    fn setup(&self, name: &MemberName) -> RingSetup {
        let mut members = self.founders.clone();
        members.entry(name.clone()).or_insert_with(|| url(name.as_str()));
        RingSetup {
            ring: [1; 32],
            realm: REALM.to_owned(),
            region: REGION.to_owned(),
            state: register::config(),
            name: name.clone(),
            members,
            peer_url_overrides: BTreeMap::new(),
            client_urls: vec![url(name.as_str())],
            data_dir: std::path::PathBuf::new(),
            timing: Timing::default(),
            compaction: Compaction {
                max: LogSize { entries: 60, bytes: usize::MAX },
                keep: LogSize { entries: 10, bytes: usize::MAX },
            },
            storage: Config::default(),
        }
    }

    /// One run of one member, as the server does it in production.
    async fn live(
        self: Arc<Self>,
        name: MemberName,
        sim: SimDisk,
        fresh: u64,
    ) -> Result<(), String> {
        let setup = self.setup(&name);
        let files = Arc::new(sim);
        let wal = WalConfig { segment_bytes: SEGMENT_BYTES_MIN };
        let space = SpaceConfig { reserve_bytes: 64 * 1024, low_bytes: 128 * 1024 };
        let config = Config { wal, space, state: StateConfig { cache_bytes: 1024 * 1024 } };
        let mut instance = InstanceId::default();
        instance[..8].copy_from_slice(&fresh.to_be_bytes());
        let owner = owner(&setup);
        let disk = Disk::open(files.clone(), config, &owner, instance, &setup.state);
        let mut disk = disk.map_err(|error| error.to_string())?;
        if self.bug == Some(Bug::VoteForgotten) {
            disk.log.vote = None;
        }
        if self.bug == Some(Bug::AcknowledgedBeforeSync) {
            files.set_faults(self.faults_at_rest());
        }
        let opened = Opened::<Sim>::new(setup, files, disk, dial(&self, &name));
        let (opened, writers) = opened.map_err(|error| error.to_string())?;
        self.start_writers(&name, writers);
        let parts = opened.start().await.map_err(|error| error.to_string())?;
        let live = Live {
            ring: parts.ring(),
            log: parts.log.clone(),
            service: parts.service(Shutdown::default()),
        };
        let (backend, ready) = oneshot::channel();
        self.with_process(&name, |process| process.live = Some(live));
        let serve =
            serve::drive(parts, pending(), Shutdown::default(), backend, Shutdown::default());
        let publish = async {
            if let Ok(backend) = ready.await {
                self.note(&format!("{name} serves"));
                self.with_process(&name, |process| process.backend = Some(backend));
            }
            pending::<()>().await;
        };
        tokio::select! {
            biased;
            ended = serve => ended.map_err(|error| error.to_string()),
            () = publish => Ok(()),
        }
    }

    /// The state of a disk without injected faults.
    pub fn faults_at_rest(&self) -> Faults {
        let lying_sync = self.bug == Some(Bug::AcknowledgedBeforeSync);
        Faults { lying_sync, ..Faults::default() }
    }

    fn with_process(&self, name: &MemberName, change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.hosts().get_mut(name).and_then(|host| host.process.as_mut()) {
            change(process);
        }
    }

    fn start_writers(self: &Arc<Self>, name: &MemberName, writers: Writers) {
        let Writers { log, checkpoints, requests } = writers;
        let Some(node) =
            self.hosts().get(name).and_then(|h| Some(h.process.as_ref()?.node.clone()))
        else {
            return;
        };
        let (world, of) = (self.clone(), name.clone());
        drop(node.spawn(async move {
            world.until_death(&of, world.write_log(&of, log)).await;
        }));
        let (world, of) = (self.clone(), name.clone());
        drop(node.spawn(async move {
            let writing = world.write_checkpoints(&of, checkpoints, requests);
            world.until_death(&of, writing).await;
        }));
    }

    /// Waits for the duration of a write.
    async fn write_delay(&self, name: &MemberName) {
        let ms_max = self.hosts().get(name).map_or(0, |host| host.write_ms_max);
        let ms = self.net().below(ms_max + 1);
        time::sleep(Duration::from_millis(ms)).await;
    }

    /// The body of the log's thread.
    async fn write_log(&self, name: &MemberName, mut log: Writer) -> Result<(), String> {
        while let Some(first) = log.next().await {
            self.write_delay(name).await;
            log.commit(first).map_err(|error| error.to_string())?;
        }
        log.finish().map_err(|error| error.to_string())
    }

    /// The body of the checkpoints' thread.
    async fn write_checkpoints(
        &self,
        name: &MemberName,
        checkpoints: Checkpoints,
        requests: std::sync::mpsc::Receiver<CheckpointRequest>,
    ) -> Result<(), String> {
        for round in 0_u64.. {
            time::sleep(Duration::from_millis(25)).await;
            let done = match requests.try_recv() {
                Ok(request) => {
                    self.write_delay(name).await;
                    checkpoints.serve(request)
                }
                Err(_) if round % 20 == 0 => checkpoints.step(),
                Err(_) => Ok(()),
            };
            done.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
