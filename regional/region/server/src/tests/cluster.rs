//! Test harness: whole members in this process, on loopback, with real mTLS and real databases, and
//! validators that can misbehave.
//!
//! A member runs on one thread ([`Running::start`]), or with the threads of production
//! ([`Running::start_with_production_threads`]).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use satrap_certify::{Label, Position, Replica};
use satrap_identity::{
    mtls::{CredentialFiles, Credentials, Limits, Listener, PeerRule, server_builder},
    pki::{Authority, Role, Scope, SpiffeId},
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::fault;
use satrap_proto::v1::{
    FollowReply, FollowRequest, GovernanceReply, GovernanceRequest, LightBlockReply,
    LightBlocksRequest, StatusReply, StatusRequest, SubmitReply, SubmitRequest, control_server,
    follow_request::Body, sync_server,
};
use satrap_region_core::CertifiedReplica;
use satrap_ring_api::listener::Addresses;
use satrap_ring_raft::{
    Compaction, Leading, MemberName, Ring, Timing, log_store::LogSize, snapshots::Watched,
};
use satrap_runtime::{Shutdown, TaskGroup, clock, files, ports::Reserved, runtime};
use satrap_sync::pieces::pieces;
use tempfile::TempDir;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::timeout,
};
use tonic::{Request, Response, Status, Streaming};

pub use super::realm::REGION;
use super::realm::{CHAIN, Realm, label, tampered};
use crate::{
    config::{Config, Endpoint},
    run::{Placement, clients_runtime, start},
};

const TTL: Duration = Duration::from_secs(3_600);
/// The bound on every wait. It is long because the machine may be busy; reaching it fails the test.
pub const WAIT: Duration = Duration::from_secs(60);

/// The output of `future`, which must be there within [`WAIT`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(WAIT, future)
        .await
        .unwrap_or_else(|_| panic!("timed out after {WAIT:?} while waiting for {what}"))
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime::current_thread().unwrap().block_on(future)
}

/// The behavior of a test validator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    Honest,
    /// Alters one value of every update.
    TampersUpdates,
    /// Accepts streams of followers and sends nothing on them.
    SendsNothing,
    /// Sends bytes that are no update.
    SendsNoise,
    /// Refuses changes because its mempool is full.
    MempoolFull,
    /// Refuses all changes of this region.
    ForbidsRegion,
    /// Refuses changes because they expect a later version than it holds.
    IsBehind,
}

/// The certificate authorities, directories and validators of one test.
pub struct World {
    pub dir: TempDir,
    pub realm: Mutex<Realm>,
    region: Authority,
    other_region: Authority,
    validators: Authority,
    operators: Authority,
    published: watch::Sender<Arc<Replica>>,
    /// The number of streams that members have opened to validators.
    pub streams_opened: watch::Sender<u64>,
    endpoints: Vec<Endpoint>,
    stop: Shutdown,
    threads: Vec<thread::JoinHandle<()>>,
    /// The ports of its rings. Holding them keeps other processes from taking them.
    ports: Mutex<Vec<Reserved>>,
}

impl World {
    /// Starts a validator for each of `behaviors`.
    pub fn new(behaviors: &[Behavior]) -> Self {
        let realm = Realm::new();
        let now = clock::now();
        let chain = || CHAIN.to_owned();
        let ca = |scope| Authority::create(scope, now, TTL).unwrap();
        let published = watch::Sender::new(Arc::new(realm.replica().clone()));
        let region = |region: &str| ca(Scope::Region { chain: chain(), region: region.into() });
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            realm: Mutex::new(realm),
            region: region(REGION),
            other_region: region("us"),
            validators: ca(Scope::Validators { chain: chain() }),
            operators: ca(Scope::Operators { chain: chain() }),
            published,
            streams_opened: watch::Sender::new(0),
            endpoints: Vec::new(),
            stop: Shutdown::default(),
            threads: Vec::new(),
            ports: Mutex::default(),
        };
        for (behavior, n) in behaviors.iter().zip(1..) {
            world.start_validator(&format!("v{n}"), *behavior);
        }
        world
    }

    /// Issues a certificate for `role` and writes it to disk, with its key and the trust file.
    pub fn files(&self, role: Role) -> CredentialFiles {
        let id = SpiffeId::new(CHAIN, role).unwrap();
        let authority = match id.scope() {
            Scope::Validators { .. } => &self.validators,
            Scope::Operators { .. } => &self.operators,
            Scope::Region { region, .. } if region == REGION => &self.region,
            Scope::Region { .. } => &self.other_region,
        };
        let leaf = authority.issue(&id, clock::now(), TTL).unwrap();
        let base = self.dir.path().join(id.to_string().replace(['/', ':'], "_"));
        let at = |ending: &str| base.with_added_extension(ending);
        let cas = [&self.region, &self.other_region, &self.validators, &self.operators];
        let trust: String = cas.iter().map(|ca| ca.certificate_pem()).collect();
        files::write(&at("crt"), leaf.certificate_pem.as_bytes()).unwrap();
        files::write_secret(&at("key"), leaf.key_pem.as_bytes()).unwrap();
        files::write(&at("trust"), trust.as_bytes()).unwrap();
        CredentialFiles { certificate: at("crt"), key: at("key"), trust: at("trust") }
    }

    pub fn credentials(&self, role: Role) -> Credentials {
        Credentials::load(self.files(role)).unwrap()
    }

    pub fn member(name: &str) -> Role {
        Role::Member { region: REGION.into(), name: name.into() }
    }

    pub fn edge(name: &str) -> Role {
        Role::Edge { region: REGION.into(), name: name.into() }
    }

    pub fn operator() -> Role {
        Role::Operator { name: "op".into() }
    }

    /// Changes the realm; the validators then send the update to their followers. Returns the new
    /// height.
    pub fn decide(&self, change: impl FnOnce(&mut Realm)) -> u64 {
        let mut realm = self.realm.lock().unwrap();
        change(&mut realm);
        self.published.send_replace(Arc::new(realm.replica().clone()));
        realm.height()
    }

    fn start_validator(&mut self, name: &str, behavior: Behavior) {
        let credentials = self.credentials(Role::Validator { name: name.into() });
        let (views, stop) = (self.published.subscribe(), self.stop.clone());
        let streams_opened = self.streams_opened.clone();
        let (started, ready) = oneshot::channel();
        self.threads.push(thread::spawn(move || {
            block_on(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let rule = PeerRule::AnyMember;
                let listener = Listener::bind(any, credentials, rule, Limits::EDGES).await.unwrap();
                started.send(listener.local_address().unwrap()).unwrap();
                let stopped = stop.clone();
                let validator = TestValidator { views, streams_opened, behavior, stop };
                let control = TestControl { behavior };
                let server = server_builder(&Limits::EDGES)
                    .add_service(sync_server::SyncServer::new(validator))
                    .add_service(control_server::ControlServer::new(control));
                server.serve_with_incoming_shutdown(listener, stopped.requested()).await.unwrap();
            });
        }));
        let address = ready.blocking_recv().unwrap();
        self.endpoints.push(Endpoint { name: label(name), url: format!("https://{address}") });
    }

    /// Stops the validators; their ports then refuse connections.
    pub fn stop_validators(&mut self) {
        self.stop.request();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }

    /// The configurations of a ring with members of these `names`, on free ports.
    pub fn ring(&self, names: &[&str]) -> Vec<Config> {
        let ports = Reserved::any(2 * names.len()).unwrap();
        let addresses = ports.addresses().chunks(2).map(|pair| (pair[0], pair[1]));
        let reserved: Vec<_> = names.iter().zip(addresses).collect();
        let reserved: Vec<_> = reserved
            .into_iter()
            .map(|(name, (client, peer))| (label(name), client, peer))
            .collect();
        self.ports.lock().unwrap().push(ports);
        let url = |address: &SocketAddr| format!("https://{address}");
        let members: Vec<_> = reserved
            .iter()
            .map(|(name, client, _)| Endpoint { name: name.clone(), url: url(client) })
            .collect();
        let peer_urls: BTreeMap<Label, String> =
            reserved.iter().map(|(name, _, peer)| (name.clone(), url(peer))).collect();
        let genesis = self.realm.lock().unwrap().genesis.clone();
        let config = |(name, client, peer): &(Label, SocketAddr, SocketAddr)| Config {
            region: label(REGION),
            name: name.clone(),
            data_dir: self.data_dir(name.as_str()),
            genesis: genesis.clone(),
            client_listen: *client,
            peer_listen: *peer,
            credentials: self.files(Self::member(name.as_str())),
            members: members.clone(),
            peer_urls: peer_urls.clone(),
            peer_url_overrides: BTreeMap::new(),
            validators: self.endpoints.clone(),
            other_regions: vec![label("us")],
            etcd: None,
            snapshots: None,
            timing: Timing::default(),
            compaction: Compaction {
                max: LogSize { entries: 8, bytes: usize::MAX },
                keep: LogSize { entries: 2, bytes: usize::MAX },
            },
            storage: satrap_ring_storage::Config::default(),
        };
        reserved.iter().map(config).collect()
    }

    pub fn data_dir(&self, member: &str) -> PathBuf {
        self.dir.path().join("data").join(member)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.request();
        for thread in self.threads.drain(..) {
            // A validator that panicked has already failed the test that needed it.
            let _ = thread.join();
        }
    }
}

enum Stop {
    Crash,
    Graceful,
}

/// A member on a thread of its own.
pub struct Running {
    pub name: MemberName,
    pub ring: Ring,
    pub client_address: SocketAddr,
    pub peer_address: SocketAddr,
    pub etcd: Option<Addresses>,
    pub snapshots: Option<Watched>,
    /// The runtime that serves its clients.
    pub clients: Handle,
    stop: oneshot::Sender<Stop>,
    thread: thread::JoinHandle<()>,
}

impl Running {
    /// Starts a member on one thread, whose runtime [`Running::crash`] drops.
    pub fn start(config: &Config) -> Self {
        Self::start_at(config, Placement::Here)
    }

    /// Starts a member with the threads of production: Raft has one of its own.
    pub fn start_with_production_threads(config: &Config) -> Self {
        Self::start_at(config, Placement::OwnThread)
    }

    fn start_at(config: &Config, placement: Placement) -> Self {
        let config = config.clone();
        let (stop, stopped) = oneshot::channel();
        let (started, ready) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = match placement {
                Placement::Here => runtime::current_thread(),
                Placement::OwnThread => clients_runtime(),
            };
            let (runtime, group) = (runtime.unwrap(), TaskGroup::new());
            let handle = runtime.handle().clone();
            runtime.block_on(async {
                let member = start(config, &group, placement).await.unwrap();
                assert!(started.send((member, handle)).is_ok());
                if let Stop::Graceful = stopped.await.unwrap() {
                    group.shutdown().request();
                    group.clone().run(WAIT).await.unwrap();
                }
            });
            // Ends all tasks at once, wherever they are.
            drop(runtime);
            group.shutdown().request();
            // Waits until the database is closed. After a crash the tasks may end with any error.
            let _ = block_on(group.run(WAIT));
        });
        let (member, clients) = ready.blocking_recv().expect("the member starts");
        Self {
            name: member.ring.name().clone(),
            ring: member.ring,
            client_address: member.client_address,
            peer_address: member.peer_address,
            etcd: member.etcd,
            snapshots: member.snapshots,
            clients,
            stop,
            thread,
        }
    }

    fn end(self, how: Stop) {
        let Self { ring, stop, thread, .. } = self;
        drop(ring);
        assert!(stop.send(how).is_ok());
        thread.join().unwrap();
    }

    pub fn crash(self) {
        self.end(Stop::Crash);
    }

    pub fn stop(self) {
        self.end(Stop::Graceful);
    }

    pub async fn wait_for_height(&self, height: u64) {
        let mut views = self.ring.views();
        let reached =
            views.wait_for(|view| CertifiedReplica::of(view).replica().height() >= height);
        soon(&format!("{} at height {height}", self.name), reached).await.unwrap();
    }
}

/// Waits for an election; returns the index of the leader in `members`.
pub async fn leader(members: &[Running]) -> usize {
    let leads =
        members.iter().map(|member| Box::pin(async { member.ring.until(Leading::Yes).await }));
    let (led, index, _) = soon("an election", futures::future::select_all(leads)).await;
    assert!(led);
    index
}

/// Sends the realm's updates to followers, or misbehaves.
struct TestValidator {
    views: watch::Receiver<Arc<Replica>>,
    streams_opened: watch::Sender<u64>,
    behavior: Behavior,
    stop: Shutdown,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl sync_server::Sync for TestValidator {
    type FollowStream = Replies<FollowReply>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|message| message.body);
        let Some(Body::Position(bytes)) = first else { panic!("no position first") };
        let position = Position::from_canonical(&bytes).unwrap();
        let behavior = self.behavior;
        self.streams_opened.send_modify(|opened| *opened += 1);
        if behavior == Behavior::SendsNothing {
            let silence = stream::pending().take_until(self.stop.requested());
            return Ok(Response::new(Box::pin(silence)));
        }
        if behavior == Behavior::SendsNoise {
            let noise = stream::iter(pieces(b"noise".to_vec().into()).map(Ok));
            return Ok(Response::new(Box::pin(noise)));
        }
        let state = (self.views.clone(), position, inbound);
        let replies =
            stream::unfold(state, move |(mut views, mut position, mut inbound)| async move {
                loop {
                    let replica = views.borrow_and_update().clone();
                    if let Some(answer) = replica.answer(&position).unwrap() {
                        let update = answer.update;
                        position = answer.leads_to;
                        let tampers = behavior == Behavior::TampersUpdates;
                        let update = match tampers && !update.contents.is_empty() {
                            true => tampered(update),
                            false => update,
                        };
                        let pieces = pieces(update.to_canonical().into()).map(Ok);
                        return Some((stream::iter(pieces), (views, position, inbound)));
                    }
                    tokio::select! {
                        changed = views.changed() => changed.ok()?,
                        message = inbound.next() => drop(message?.ok()?),
                    }
                }
            });
        let replies = replies.flatten().take_until(self.stop.requested());
        Ok(Response::new(Box::pin(replies)))
    }
}

/// The `Control` service of a test validator: refuses every change, for the reason of its behavior.
struct TestControl {
    behavior: Behavior,
}

/// The refusal of an honest validator.
pub const VERDICT: &str = "[V7] expected version 41, the bundle is at 42; fetch and sign again";

#[tonic::async_trait]
impl control_server::Control for TestControl {
    type LightBlocksStream = Replies<LightBlockReply>;

    async fn submit(&self, _: Request<SubmitRequest>) -> Result<Response<SubmitReply>, Status> {
        match self.behavior {
            Behavior::MempoolFull => return Err(Status::resource_exhausted("the mempool is full")),
            Behavior::ForbidsRegion => {
                return Err(Status::permission_denied("not from this region"));
            }
            Behavior::IsBehind => return Err(fault::behind("V4", "it is at version 41")),
            Behavior::Honest
            | Behavior::TampersUpdates
            | Behavior::SendsNothing
            | Behavior::SendsNoise => {}
        }
        Err(Status::failed_precondition(VERDICT))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Err(Status::unimplemented("not asked by members"))
    }

    async fn light_blocks(
        &self,
        _: Request<LightBlocksRequest>,
    ) -> Result<Response<Self::LightBlocksStream>, Status> {
        Err(Status::unimplemented("not asked by members"))
    }

    async fn governance(
        &self,
        _: Request<GovernanceRequest>,
    ) -> Result<Response<GovernanceReply>, Status> {
        Ok(Response::new(GovernanceReply { governance: vec![7].into(), height: 3 }))
    }
}
