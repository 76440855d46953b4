//! The validator as a process: one thread decides, tasks carry frames to it and answers away.
//!
//! ```text
//!   mesh streams ─▶ inbox ─▶ consensus thread ─▶ links ─▶ mesh streams
//!   Submit ───────▶   │            │ watch: view, replica, dial targets
//!   Status, LightBlocks, Follow ◀──┘
//! ```
//!
//! The consensus thread is an operating system thread, because it waits for the disk. If it fails or
//! panics, the process stops: a validator that serves but no longer votes would look alive.

use std::{
    collections::BTreeMap, convert::Infallible, net::SocketAddr, path::Path, sync::Arc,
    time::Duration,
};

use ed25519_dalek::SigningKey;
use satrap_certify::{PublicKey, Replica, limits::VALIDATORS_MAX};
use satrap_host::{
    Fault, RunUntil, TaskGroup, Unusable,
    charges::{REQUESTS, RequestSeats},
    clock, files,
    follow::FollowService,
    introspect::{self, REALM_SERVICES},
    lock::DirectoryLock,
    mtls::{Credentials, FOREIGN_SCOPES, Limits, Listener, PeerRule, server_builder},
    pki,
};
use satrap_proto::v1::{
    control_server::ControlServer, mesh_server::MeshServer, sync_server::SyncServer,
};
use tokio::sync::watch;
use tonic::service::Routes;

use crate::{
    config::Config,
    guard::{Guard, SlotFile},
    inbox::{Inbox, Next, Reply},
    limits::{CONTROL_BYTES_MAX, FRAME_BYTES_MAX, KEY_BYTES_MAX, PEERS_MAX, TICK},
    malachite::{
        Engine, EngineEffect, EngineInput, Fatal, Setup, Signer as _, SoftSigner, TimerId,
    },
    mempool::Ticket,
    mesh::{Links, Mesh, Targets, now},
    services::{Control, ControlService, callers},
    store::Store,
    sync_service::Slots,
    view::View,
};

/// How long streams may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// Members of all regions, operators, and validators that look at each other's status. A region gets
/// three connections for each of 16 members, so that its CA cannot take the connections of others.
const CLIENT_LIMITS: Limits = Limits {
    connections_max: 2_048,
    connections_per_scope_max: 48,
    connections_own_scope_max: 512,
    ..Limits::PEERS
};
/// Each validator has one stream here, and a second one while it replaces the first.
const MESH_LIMITS: Limits = Limits {
    connections_max: 2 * PEERS_MAX,
    connections_own_scope_max: 2 * PEERS_MAX,
    connections_per_identity_max: 4,
    streams_per_connection_max: 2,
    ..Limits::PEERS
};
const _: () = assert!(CLIENT_LIMITS.keeps_room_for(FOREIGN_SCOPES));
const _: () = assert!(MESH_LIMITS.connections_own_scope_max >= 2 * VALIDATORS_MAX);

/// Where a validator listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For regions and operators.
    pub clients: SocketAddr,
    /// For the other validators.
    pub mesh: SocketAddr,
}

/// Why a validator cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting, or a file or address that one names.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] Fatal),
    /// A task or thread ended that should not have.
    #[error(transparent)]
    Task(#[from] satrap_host::Failure),
}

impl NodeError {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unusable(unusable) => unusable.fault(),
            Self::Engine(_) | Self::Task(_) => Fault::Machine,
        }
    }
}

/// Runs a validator until a signal, or the end of its parent.
///
/// # Errors
///
/// [`NodeError`] if it cannot start, or must not go on.
pub async fn run(config: Config, until: RunUntil) -> Result<(), NodeError> {
    let group = TaskGroup::new();
    until.apply(&group)?;
    group
        .clone()
        .serve(DRAIN, async {
            let Addresses { clients, mesh } = start(config, &group).await?;
            tracing::info!(%clients, %mesh, "validator is listening");
            Ok(())
        })
        .await
}

/// Starts a validator in `group`, and returns where it listens. Clients cannot take connections or
/// streams from the mesh: each side has its own listener and limits.
///
/// # Errors
///
/// [`NodeError`] if it cannot start.
pub async fn start(config: Config, group: &TaskGroup) -> Result<Addresses, NodeError> {
    let credentials = Credentials::load(config.credentials.clone()).map_err(Unusable::from)?;
    check_identity(&config, &credentials)?;
    let realm = config.genesis.realm().clone();
    let lock = take_data_dir(&config)?;
    let (engine, effects, store) = open(&config)?;

    let (view, views) = watch::channel(Arc::new(View::of(&engine)));
    let (replica, replicas) = watch::channel(engine.replica().clone());
    let (targets, dialed) = watch::channel(targets_of(&config, &engine));
    let (inbox, links) = (Inbox::default(), Links::default());
    let mesh = Mesh {
        name: config.name.clone(),
        realm: realm.clone(),
        inbox: inbox.clone(),
        links: links.clone(),
        credentials: credentials.clone(),
        group: group.clone(),
    };
    let control = Control::new(ControlService {
        name: config.name.clone(),
        realm,
        inbox: inbox.clone(),
        view: views,
        replica: replicas.clone(),
        store,
        links: links.clone(),
        group: group.clone(),
    });
    let follow = FollowService::new(replicas, Slots::default(), group);
    let clients = ("listen", config.listen);
    let (listener, clients) = bind(clients, &credentials, callers(), &CLIENT_LIMITS).await?;
    let server = server_builder(&CLIENT_LIMITS)
        .layer(RequestSeats::new(REQUESTS))
        .add_routes(introspect::add(Routes::default(), &REALM_SERVICES, &group.shutdown()))
        .add_service(ControlServer::new(control).max_decoding_message_size(CONTROL_BYTES_MAX))
        .add_service(SyncServer::new(follow).max_decoding_message_size(FRAME_BYTES_MAX));
    let stop = group.shutdown().requested();
    group.spawn("server", server.serve_with_incoming_shutdown(listener, stop));
    let (rule, listen) = (PeerRule::AnyValidator, ("mesh_listen", config.mesh_listen));
    let (listener, mesh_address) = bind(listen, &credentials, rule, &MESH_LIMITS).await?;
    let server = server_builder(&MESH_LIMITS)
        .add_service(MeshServer::new(mesh.clone()).max_decoding_message_size(FRAME_BYTES_MAX));
    let stop = group.shutdown().requested();
    group.spawn("mesh server", server.serve_with_incoming_shutdown(listener, stop));
    group.spawn("mesh", mesh.dial(dialed));
    credentials.keep_fresh(group);
    let (closing, stop) = (inbox.clone(), group.shutdown().requested());
    group.spawn("inbox", async move {
        stop.await;
        closing.close();
        Ok::<(), Infallible>(())
    });
    let consensus = Consensus {
        config,
        engine,
        inbox,
        links,
        view,
        replica,
        targets,
        timers: BTreeMap::new(),
        replies: BTreeMap::new(),
        tickets: 0,
        next_tick: clock::monotonic() + TICK,
        _lock: lock,
    };
    group
        .spawn_thread("consensus", move || consensus.run(effects))
        .map_err(|error| Unusable::resources("validator", &error))?;
    Ok(Addresses { clients, mesh: mesh_address })
}

async fn bind(
    (key, address): (&'static str, SocketAddr),
    credentials: &Credentials,
    rule: PeerRule,
    limits: &Limits,
) -> Result<(Listener, SocketAddr), Unusable> {
    let unusable = |error| Unusable::listen(key, address, &error);
    let listener = Listener::bind(address, credentials.clone(), rule, limits.clone());
    let listener = listener.await.map_err(unusable)?;
    let bound = listener.local_address().map_err(unusable)?;
    Ok((listener, bound))
}

fn take_data_dir(config: &Config) -> Result<DirectoryLock, Unusable> {
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|error| Unusable::directory("data_dir", &config.data_dir, &error))?;
    DirectoryLock::take(&config.data_dir).map_err(|error| Unusable::locked("data_dir", &error))
}

/// Restores the engine from the data directory.
fn open(config: &Config) -> Result<(Engine, Vec<EngineEffect>, Store), NodeError> {
    let data_dir = |error| Unusable::directory("data_dir", &config.data_dir, &error);
    let path = config.data_dir.join("validator.redb");
    let store = Store::open(&path, config.genesis.realm()).map_err(|e| e.unusable(&path))?;
    let slots = SlotFile::open(&config.data_dir.join("last-sign")).map_err(data_dir)?;
    let mut signer = SoftSigner::new(read_signing_key(&config.signing_key)?);
    self_test(&mut signer, &config.signing_key)?;
    let public = signer.public();
    let setup = Setup {
        genesis: config.genesis.clone(),
        signer: Box::new(signer),
        guard: Guard::load(Box::new(slots)).map_err(data_dir)?,
        store: Box::new(store.clone()),
        timing: config.timing,
    };
    let (engine, effects) = Engine::start(setup, now())?;
    check_key(config, &engine, &public);
    Ok((engine, effects, store))
}

fn check_identity(config: &Config, credentials: &Credentials) -> Result<(), Unusable> {
    let id = credentials.current().id.clone();
    let chain = config.genesis.realm().chain_id();
    let rule = PeerRule::Validator(config.name.to_string());
    if rule.admits(&id) && id.chain() == chain {
        return Ok(());
    }
    let expected = format!("validator {} of chain {chain}", config.name);
    let why = format!("the certificate is for {id}, this configuration for {expected}");
    let remedy =
        "install the certificate of this validator, or set `name` and `genesis` to its own";
    Err(Unusable::new("tls.cert", Fault::Setting, why, remedy))
}

fn unusable_key(path: &Path, why: impl std::fmt::Display, remedy: &str) -> Unusable {
    let why = format!("{}: {why}", path.display());
    Unusable::new("signing_key", Fault::Setting, why, remedy)
}

/// 64 hex digits, or PKCS#8 PEM.
fn read_signing_key(path: &Path) -> Result<SigningKey, Unusable> {
    let bytes = files::read_secret(path, KEY_BYTES_MAX).map_err(|error| {
        unusable_key(path, error, "name the key that `satrap init` made for this validator")
    })?;
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    match hex::decode_to_slice(bytes.trim_ascii(), &mut *seed) {
        Ok(()) => Ok(SigningKey::from_bytes(&seed)),
        Err(_) => pki::signing_key(&bytes).map_err(|_| {
            let expected = "name a file with 64 hex digits, or an Ed25519 key in PKCS#8 PEM";
            unusable_key(path, "it holds no signing key", expected)
        }),
    }
}

/// A key that signs wrongly must be found before the first vote.
fn self_test(signer: &mut SoftSigner, path: &Path) -> Result<(), Unusable> {
    let message = b"satrap/self-test/v1";
    let signature = signer.sign(message);
    if signature.is_ok_and(|signature| signer.public().verifies(message, &signature)) {
        return Ok(());
    }
    let why = "the key makes signatures that do not verify";
    Err(unusable_key(path, why, "restore it from its backup"))
}

/// A validator with another key than governance names follows, but cannot vote.
fn check_key(config: &Config, engine: &Engine, public: &PublicKey) {
    let listed = engine.ledger().governance().validators.iter().find(|v| v.name == config.name);
    match listed {
        Some(v) if v.public != *public => {
            let (expected, found) = (v.public, public);
            tracing::error!(%expected, %found, "governance names another signing key; not voting");
        }
        Some(_) => {}
        None => tracing::info!(key = %public, "not in the validator set; following it"),
    }
}

/// Governance says where validators are, the configuration where it is wrong.
fn targets_of(config: &Config, engine: &Engine) -> Targets {
    let validators = engine.ledger().governance().validators.iter();
    let mut targets: Targets = validators.map(|v| (v.name.clone(), v.url.clone())).collect();
    targets.extend(config.peer_urls.clone());
    targets.remove(&config.name);
    targets
}

/// The state of the consensus thread.
struct Consensus {
    config: Config,
    engine: Engine,
    inbox: Inbox,
    links: Links,
    view: watch::Sender<Arc<View>>,
    replica: watch::Sender<Arc<Replica>>,
    targets: watch::Sender<Targets>,
    timers: BTreeMap<TimerId, Duration>,
    replies: BTreeMap<Ticket, Reply>,
    tickets: Ticket,
    next_tick: Duration,
    _lock: DirectoryLock,
}

impl Consensus {
    fn run(mut self, effects: Vec<EngineEffect>) -> Result<(), Fatal> {
        self.perform(effects);
        while let Some(input) = self.next_input() {
            let effects = self.engine.step(now(), input)?;
            self.perform(effects);
        }
        Ok(())
    }

    /// What is due, else what arrives first; `None` when the process stops.
    fn next_input(&mut self) -> Option<EngineInput> {
        loop {
            let now = clock::monotonic();
            let due =
                self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            if let Some((timer, _)) = due.filter(|(_, at)| *at <= now) {
                self.timers.remove(&timer);
                return Some(EngineInput::Timer(timer));
            }
            if self.next_tick <= now {
                self.next_tick = now + TICK;
                // Whoever hung up no longer waits.
                self.replies.retain(|_, reply| !reply.is_closed());
                return Some(EngineInput::Tick);
            }
            let until = due.map_or(self.next_tick, |(_, at)| at.min(self.next_tick));
            match self.inbox.next(until - now) {
                Next::Frame(from, frame) => return Some(EngineInput::Frame(from, frame)),
                Next::Submit(change, reply) => {
                    self.tickets += 1;
                    self.replies.insert(self.tickets, reply);
                    return Some(EngineInput::Submit(change, self.tickets));
                }
                Next::Idle => {}
                Next::Closed => return None,
            }
        }
    }

    fn perform(&mut self, effects: Vec<EngineEffect>) {
        for effect in effects {
            match effect {
                EngineEffect::Broadcast(frame) => self.links.broadcast(&frame.to_wire()),
                EngineEffect::Send(to, frame) => self.links.send(&to, frame.to_wire()),
                EngineEffect::Disconnect(peer) => self.links.cut(&peer),
                EngineEffect::Schedule(timer, delay) => {
                    self.timers.insert(timer, clock::monotonic() + delay);
                }
                EngineEffect::Cancel(timer) => drop(self.timers.remove(&timer)),
                EngineEffect::CancelAll => self.timers.clear(),
                EngineEffect::Decided(height) => self.decided(height),
                EngineEffect::Answer((ticket, answer)) => {
                    if let Some(reply) = self.replies.remove(&ticket) {
                        // Whoever asked may have hung up.
                        let _ = reply.send(answer);
                    }
                }
            }
        }
        // Not in one expression: the borrow would still be held while the view is replaced.
        let refreshed = self.view.borrow().refreshed(&self.engine);
        if let Some(view) = refreshed {
            self.view.send_replace(Arc::new(view));
        }
    }

    fn decided(&mut self, height: u64) {
        tracing::info!(height, "decided");
        self.replica.send_replace(self.engine.replica().clone());
        let targets = targets_of(&self.config, &self.engine);
        self.targets.send_if_modified(|held| {
            let changed = *held != targets;
            *held = targets;
            changed
        });
    }
}
