//! The validator as a process: one thread decides, tasks carry frames to it and answers away.
//!
//! ```text
//!   mesh streams ─▶ inbox ─▶ consensus thread ─▶ links ─▶ mesh streams
//!   Submit ───────▶   ▲            │ watch: view, replica, dial targets
//!   Status, LightBlocks, Follow ◀──┤
//!                  signer task ◀───┘
//! ```
//!
//! The consensus thread is an operating system thread, because it waits for the disk. If it fails or
//! panics, the process stops: a validator that serves but no longer votes would look alive.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use satrap_certify::{PublicKey, Replica, limits::VALIDATORS_MAX};
use satrap_identity::{
    charges::{REQUESTS, RequestPermits},
    mtls::{Credentials, FOREIGN_SCOPES, Limits, Listener, PeerRule, server_builder},
    pki::Role,
    signer::{KeyFileError, Signer, SignerError, SoftSigner, sign},
};
use satrap_proto::v1::{
    control_server::ControlServer, mesh_server::MeshServer, sync_server::SyncServer,
};
use satrap_runtime::introspect::{self, REALM_SERVICES};
use satrap_runtime::{Fault, RunUntil, TaskGroup, Unusable, clock, lock::DirectoryLock};
use satrap_sync::server::FollowService;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::{
    config::Config,
    guard::{Guard, SlotFile},
    inbox::{Inbox, Next},
    limits::{CONTROL_BYTES_MAX, FRAME_BYTES_MAX, PEERS_MAX, SIGN_TIMEOUT, TICK},
    malachite::{Engine, EngineEffect, EngineInput, Fatal, Setup, TimerId},
    mempool::Ticket,
    mesh::{Links, Mesh, Targets, now},
    services::{Control, ControlService, callers},
    signer::{self, SignQueue},
    store::Store,
    submissions::Reply,
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
    Task(#[from] satrap_runtime::Failure),
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

/// Starts a validator in `group` that signs with the key file of its configuration; returns where it
/// listens.
///
/// # Errors
///
/// [`NodeError`] if it cannot start.
pub async fn start(config: Config, group: &TaskGroup) -> Result<Addresses, NodeError> {
    let key = |config: &Config| match SoftSigner::read(&config.signing_key) {
        Ok(signer) => Ok(signer.shared()),
        Err(error) => Err(refuse_key(config, &error)),
    };
    launch(config, key, group).await
}

/// Starts a validator in `group` that signs with `signer`; the key file is not read.
///
/// # Errors
///
/// [`NodeError`] if it cannot start.
pub async fn start_with(
    config: Config,
    signer: Arc<dyn Signer>,
    group: &TaskGroup,
) -> Result<Addresses, NodeError> {
    launch(config, |_| Ok(signer), group).await
}

/// Clients cannot take connections or streams from the mesh: each side has its own listener and limits.
async fn launch(
    config: Config,
    signer: impl FnOnce(&Config) -> Result<Arc<dyn Signer>, Unusable>,
    group: &TaskGroup,
) -> Result<Addresses, NodeError> {
    let credentials = Credentials::load(config.credentials.clone()).map_err(Unusable::from)?;
    let role = Role::Validator { name: config.name.to_string() };
    credentials.check_name(config.genesis.realm().chain_id(), role)?;
    let realm = config.genesis.realm().clone();
    let lock = take_data_dir(&config)?;
    let signer = signer(&config)?;
    self_test(&*signer, &config).await?;
    let (engine, effects, store) = open(&config, signer.public())?;

    let (view, views) = watch::channel(Arc::new(View::of(&engine)));
    let (replica, replicas) = watch::channel(engine.replica().clone());
    let (targets, dialed) = watch::channel(targets_of(&config, &engine));
    let (inbox, links, signatures) = (Inbox::default(), Links::default(), SignQueue::default());
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
        signatures: signatures.clone(),
        group: group.clone(),
    });
    let follow = FollowService::new(replicas, Slots::default(), group);
    let clients = ("listen", config.listen);
    let (listener, clients) = bind(clients, &credentials, callers(), &CLIENT_LIMITS).await?;
    let server = server_builder(&CLIENT_LIMITS)
        .layer(RequestPermits::new(REQUESTS))
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
    let stop = group.shutdown().requested();
    group.spawn("signer", signer::run(signatures.clone(), signer, inbox.clone(), stop));
    let consensus = Consensus {
        config,
        engine,
        inbox,
        links,
        signatures,
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
fn open(
    config: &Config,
    public: PublicKey,
) -> Result<(Engine, Vec<EngineEffect>, Store), NodeError> {
    let data_dir = |error| Unusable::directory("data_dir", &config.data_dir, &error);
    let path = config.data_dir.join("validator.redb");
    let store = Store::open(&path, config.genesis.realm()).map_err(|e| e.unusable(&path))?;
    let slots = SlotFile::open(&config.data_dir.join("last-sign")).map_err(data_dir)?;
    let setup = Setup {
        genesis: config.genesis.clone(),
        public,
        guard: Guard::load(Box::new(slots)).map_err(data_dir)?,
        store: Box::new(store.clone()),
        timing: config.timing,
    };
    let (engine, effects) = Engine::start(setup, now())?;
    check_key(config, &engine, &public);
    Ok((engine, effects, store))
}

fn unusable_key(config: &Config, why: impl std::fmt::Display, remedy: &str) -> Unusable {
    let why = format!("{}: {why}", config.signing_key.display());
    Unusable::new("signing_key", Fault::Setting, why, remedy)
}

fn refuse_key(config: &Config, error: &KeyFileError) -> Unusable {
    match error {
        KeyFileError::File(error) => {
            unusable_key(config, error, "name the key that `satrap init` made for this validator")
        }
        KeyFileError::Content => {
            let expected = "name a file with 64 hex digits, or an Ed25519 key in PKCS#8 PEM";
            unusable_key(config, "it holds no signing key", expected)
        }
    }
}

/// Finds a key that signs wrongly before the first vote. A signer that does not answer now may answer
/// later, so the validator starts without it.
async fn self_test(signer: &dyn Signer, config: &Config) -> Result<(), Unusable> {
    let tested = tokio::time::timeout(SIGN_TIMEOUT, sign(signer, b"satrap/self-test/v1")).await;
    let error = match tested {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(SignerError::Invalid(_))) => {
            let why = "the key makes signatures that do not verify";
            return Err(unusable_key(config, why, "restore it from its backup"));
        }
        Ok(Err(error @ SignerError::Unavailable(_))) => error.to_string(),
        Err(_) => format!("it did not answer within {SIGN_TIMEOUT:?}"),
    };
    tracing::warn!(%error, "the signer failed its test; this validator votes once it answers");
    Ok(())
}

/// A validator with another key than governance names follows, but cannot vote.
fn check_key(config: &Config, engine: &Engine, public: &PublicKey) {
    let listed = engine.ledger().governance().validators.iter().find(|v| v.name == config.name);
    match listed {
        Some(v) if v.public != *public => {
            let (expected, found) = (v.public, public);
            tracing::error!(
                %expected, %found,
                "governance names another signing key for this validator; it follows and does not \
                 vote"
            );
        }
        Some(_) => {}
        None => {
            tracing::info!(key = %public, "this validator is not in the validator set; it follows")
        }
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
    signatures: SignQueue,
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

    /// The input that is due, else the one that arrives first; `None` when the process stops.
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
                // A caller that hung up no longer waits.
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
                Next::Signed(place, signature) => {
                    return Some(EngineInput::Signed(place, signature));
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
                EngineEffect::Sign(request) => self.signatures.request(request),
                EngineEffect::Decided(height) => self.decided(height),
                EngineEffect::Answer((ticket, answer)) => {
                    if let Some(reply) = self.replies.remove(&ticket) {
                        // The caller may have hung up.
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
        self.signatures.withdraw(height);
        self.replica.send_replace(self.engine.replica().clone());
        let targets = targets_of(&self.config, &self.engine);
        self.targets.send_if_modified(|held| {
            let changed = *held != targets;
            *held = targets;
            changed
        });
    }
}
