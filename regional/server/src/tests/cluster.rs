//! Whole members on loopback: real mTLS, real databases, one thread each.

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
use satrap_host::{
    Shutdown, TaskGroup, clock, files, follow,
    mtls::{CredentialFiles, Credentials, Limits, Listener, PeerRule, server_builder},
    pki::{Authority, Role, Scope, SpiffeId},
    ports::Reserved,
    runtime,
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{
    FollowReply, FollowRequest, GovernanceReply, GovernanceRequest, LightBlockReply,
    LightBlocksRequest, StatusReply, StatusRequest, SubmitReply, SubmitRequest, control_server,
    follow_request::Body, sync_server,
};
use tempfile::TempDir;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tonic::{Request, Response, Status, Streaming};

use super::realm::{CHAIN, Realm, label, tampered};
use crate::{
    config::{Config, Endpoint},
    etcd::Addresses,
    raft::{Compaction, MemberName, Ring, Timing, log_store::LogSize},
    run::{Placement, start},
    snapshots::Watched,
};

pub const REGION: &str = "eu";
const TTL: Duration = Duration::from_secs(3_600);
/// Generous, because the machine may be busy; reaching it is a failure.
pub const WAIT: Duration = Duration::from_secs(60);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(WAIT, future).await.unwrap_or_else(|_| panic!("{what} did not happen in {WAIT:?}"))
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime::current_thread().unwrap().block_on(future)
}

/// How a test validator answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Honesty {
    Honest,
    /// Alters one value of every update.
    Tampers,
    /// Takes followers and sends them nothing.
    Silent,
    /// Has no room for changes.
    Busy,
    /// Takes no changes from this region.
    Forbids,
}

/// Certificates, directories and validators of one test.
pub struct World {
    pub dir: TempDir,
    pub realm: Mutex<Realm>,
    region: Authority,
    elsewhere: Authority,
    validators: Authority,
    operators: Authority,
    published: watch::Sender<Arc<Replica>>,
    /// Streams that validators were asked for.
    pub follows: watch::Sender<u64>,
    endpoints: Vec<Endpoint>,
    stop: Shutdown,
    threads: Vec<thread::JoinHandle<()>>,
    /// Those of its rings, which no other process gets meanwhile.
    ports: Mutex<Vec<Reserved>>,
}

impl World {
    /// A world with validators of these kinds, serving.
    pub fn new(honesty: &[Honesty]) -> Self {
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
            elsewhere: region("us"),
            validators: ca(Scope::Validators { chain: chain() }),
            operators: ca(Scope::Operators { chain: chain() }),
            published,
            follows: watch::Sender::new(0),
            endpoints: Vec::new(),
            stop: Shutdown::default(),
            threads: Vec::new(),
            ports: Mutex::default(),
        };
        for (honesty, n) in honesty.iter().zip(1..) {
            world.start_validator(&format!("v{n}"), *honesty);
        }
        world
    }

    /// Credentials for `role`, on disk.
    pub fn files(&self, role: Role) -> CredentialFiles {
        let id = SpiffeId::new(CHAIN, role).unwrap();
        let authority = match id.scope() {
            Scope::Validators { .. } => &self.validators,
            Scope::Operators { .. } => &self.operators,
            Scope::Region { region, .. } if region == REGION => &self.region,
            Scope::Region { .. } => &self.elsewhere,
        };
        let leaf = authority.issue(&id, clock::now(), TTL).unwrap();
        let base = self.dir.path().join(id.to_string().replace(['/', ':'], "_"));
        let at = |ending: &str| base.with_added_extension(ending);
        let cas = [&self.region, &self.elsewhere, &self.validators, &self.operators];
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

    /// Changes the realm and tells the followers of its validators.
    pub fn decide(&self, change: impl FnOnce(&mut Realm)) -> u64 {
        let mut realm = self.realm.lock().unwrap();
        change(&mut realm);
        self.published.send_replace(Arc::new(realm.replica().clone()));
        realm.height()
    }

    fn start_validator(&mut self, name: &str, honesty: Honesty) {
        let credentials = self.credentials(Role::Validator { name: name.into() });
        let (views, stop) = (self.published.subscribe(), self.stop.clone());
        let follows = self.follows.clone();
        let (started, ready) = oneshot::channel();
        self.threads.push(thread::spawn(move || {
            block_on(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let rule = PeerRule::AnyMember;
                let listener = Listener::bind(any, credentials, rule, Limits::EDGES).await.unwrap();
                started.send(listener.local_address().unwrap()).unwrap();
                let validator = TestValidator { views, follows, honesty, stop: stop.clone() };
                let server = server_builder(&Limits::EDGES)
                    .add_service(sync_server::SyncServer::new(validator))
                    .add_service(control_server::ControlServer::new(Judge { honesty }));
                server.serve_with_incoming_shutdown(listener, stop.requested()).await.unwrap();
            });
        }));
        let address = ready.blocking_recv().unwrap();
        self.endpoints.push(Endpoint { name: label(name), url: format!("https://{address}") });
    }

    /// The validators go away; their ports refuse connections.
    pub fn stop_validators(&mut self) {
        self.stop.request();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }

    /// Configurations of a ring of these members, on free ports.
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
            storage: satrap_regional_storage::Config::default(),
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
            // A failed validator has already failed the test that needed it.
            let _ = thread.join();
        }
    }
}

enum Stop {
    Crash,
    Gracefully,
}

/// A member on a thread of its own.
pub struct Running {
    pub name: MemberName,
    pub ring: Ring,
    pub client_address: SocketAddr,
    pub peer_address: SocketAddr,
    pub etcd: Option<Addresses>,
    pub snapshots: Option<Watched>,
    stop: oneshot::Sender<Stop>,
    thread: thread::JoinHandle<()>,
}

impl Running {
    /// On one runtime, so that it can crash.
    pub fn start(config: &Config) -> Self {
        Self::start_at(config, Placement::Here)
    }

    /// With Raft on a thread of its own, as in production.
    pub fn start_apart(config: &Config) -> Self {
        Self::start_at(config, Placement::OwnThread)
    }

    fn start_at(config: &Config, placement: Placement) -> Self {
        let config = config.clone();
        let (stop, stopped) = oneshot::channel();
        let (started, ready) = oneshot::channel();
        let thread = thread::spawn(move || {
            let (runtime, group) = (runtime::current_thread().unwrap(), TaskGroup::new());
            runtime.block_on(async {
                let member = start(config, &group, placement).await.unwrap();
                assert!(started.send(member).is_ok());
                if let Stop::Gracefully = stopped.await.unwrap() {
                    group.shutdown().request();
                    group.clone().run(WAIT).await.unwrap();
                }
            });
            // All tasks end here, in the middle of whatever they did.
            drop(runtime);
            group.shutdown().request();
            // The outcome of a crash is no news; what counts is that the database is closed.
            let _ = block_on(group.run(WAIT));
        });
        let member = ready.blocking_recv().expect("the member starts");
        Self {
            name: member.ring.name().clone(),
            ring: member.ring,
            client_address: member.client_address,
            peer_address: member.peer_address,
            etcd: member.etcd,
            snapshots: member.snapshots,
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
        self.end(Stop::Gracefully);
    }

    pub async fn reaches(&self, height: u64) {
        let mut views = self.ring.views();
        let reached = views.wait_for(|region| region.replica().height() >= height);
        soon(&format!("{} at height {height}", self.name), reached).await.unwrap();
    }
}

/// The position in `members` of the leader, once there is one.
pub async fn leader(members: &[Running]) -> usize {
    let leads = members
        .iter()
        .map(|member| Box::pin(async { member.ring.until(crate::raft::Leading::Yes).await }));
    let (led, index, _) = soon("an election", futures::future::select_all(leads)).await;
    assert!(led);
    index
}

/// Serves what the realm decided.
struct TestValidator {
    views: watch::Receiver<Arc<Replica>>,
    follows: watch::Sender<u64>,
    honesty: Honesty,
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
        let honesty = self.honesty;
        self.follows.send_modify(|follows| *follows += 1);
        if honesty == Honesty::Silent {
            let silence = stream::pending().take_until(self.stop.requested());
            return Ok(Response::new(Box::pin(silence)));
        }
        let state = (self.views.clone(), position, inbound);
        let replies =
            stream::unfold(state, move |(mut views, mut position, mut inbound)| async move {
                loop {
                    let replica = views.borrow_and_update().clone();
                    if let Some(answer) = replica.answer(&position).unwrap() {
                        let update = answer.update;
                        position = answer.leads_to;
                        let lies = honesty == Honesty::Tampers && !update.contents.is_empty();
                        let update = if lies { tampered(update) } else { update };
                        let pieces = follow::pieces(update.to_canonical().into()).map(Ok);
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

/// Refuses every change, by name, or for want of room.
struct Judge {
    honesty: Honesty,
}

pub const VERDICT: &str = "[V7] expected version 41, the bundle is at 42; fetch and sign again";

#[tonic::async_trait]
impl control_server::Control for Judge {
    type LightBlocksStream = Replies<LightBlockReply>;

    async fn submit(&self, _: Request<SubmitRequest>) -> Result<Response<SubmitReply>, Status> {
        match self.honesty {
            Honesty::Busy => return Err(Status::resource_exhausted("the mempool is full")),
            Honesty::Forbids => return Err(Status::permission_denied("not from this region")),
            Honesty::Honest | Honesty::Tampers | Honesty::Silent => {}
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
