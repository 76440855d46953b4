//! Puts one member together and runs it until a signal.
//!
//! ```text
//!   thread `ring`: Raft, its peers' listener      thread `main`: clients' listener, upstream
//!   thread `log-writer`: the log                  thread `etcd`: the listener of etcd's clients
//!   thread `checkpoints`: the state behind the log
//! ```
//!
//! Raft has a runtime and a listener of its own, so that a flood of edges cannot delay heartbeats
//! into an election. Stopping goes the other way round: upstream and clients end at once, leadership
//! is handed over, the peers' listener closes, the disk is written last.

use std::{fs, io, net::SocketAddr, sync::Arc, time::Duration};

use satrap_certify::Label;
use satrap_host::{
    Failure, Shutdown, TaskGroup,
    charges::{PeerSeats, REQUESTS, RequestSeats},
    follow::FollowService,
    introspect::{self, REALM_SERVICES},
    mtls::{CredentialError, Credentials, Limits, Listener, PeerRule, server_builder},
    runtime,
};
use satrap_proto::v1::{control_server::ControlServer, sync_server::SyncServer};
use satrap_regional_api::{api::RingMetrics, backend::Backend};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};
use tonic::service::Routes;

use crate::{
    config::Config,
    control::{ControlError, ControlService, Sources},
    etcd::{self, EtcdError, Served},
    limits::{FOLLOW_REQUEST_BYTES_MAX, STATUS_BYTES_MAX, SUBMIT_BYTES_MAX, SUBMIT_TIMEOUT},
    raft::{Ring, RingError, serve},
    refusals::Refusals,
    reports::Reports,
    snapshots::{Scheduler, Watched},
    sync_service::Audience,
    upstream::Upstream,
};

/// Handing over takes an election timeout, closing connections a little more.
const DRAIN: Duration = Duration::from_secs(10);
/// How soon rotated certificates are used.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// Why a member cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Certificate, key or trust file.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The certificate names somebody else.
    #[error("the certificate is for {found}, the configuration says {expected}")]
    Identity {
        /// What the certificate says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// A directory, socket or thread.
    #[error("{what}: {error}")]
    System {
        /// Which.
        what: String,
        /// From the operating system.
        error: io::Error,
    },
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The listener for clients of etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// An address or name in the configuration.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The client listener.
    #[error("client listener: {0}")]
    Listener(#[from] tonic::transport::Error),
    /// The ring's thread ended before it had started; the log says why.
    #[error("the ring did not start")]
    NotStarted,
    /// A task ended.
    #[error(transparent)]
    Task(#[from] Failure),
}

fn system(what: impl ToString) -> impl FnOnce(io::Error) -> RunError {
    let what = what.to_string();
    |error| RunError::System { what, error }
}

/// On which runtime Raft lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On a thread of its own.
    OwnThread,
    /// On the caller's runtime: dropping that runtime then stops everything at once, like a crash.
    Here,
}

/// A running member.
pub struct Member {
    /// Its Raft.
    pub ring: Ring,
    /// Where clients reach it.
    pub client_address: SocketAddr,
    /// Where peers reach it.
    pub peer_address: SocketAddr,
    /// Where clients of etcd and monitoring reach it, if anywhere.
    pub etcd: Option<etcd::Addresses>,
    /// How its scheduled snapshots are doing, if it makes any.
    pub snapshots: Option<Watched>,
}

/// Runs a member until SIGINT or SIGTERM.
///
/// # Errors
///
/// [`RunError`] says what stopped it.
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = runtime::current_thread().map_err(system("runtime"))?;
    runtime.block_on(async {
        let group = TaskGroup::new();
        group.shutdown_on_signal().map_err(system("signal handlers"))?;
        let started = start(config, &group, Placement::OwnThread).await;
        let member = match started {
            Ok(member) => member,
            Err(error) => {
                // The reason of a failed thread says more than that it failed.
                group.shutdown().request();
                group.run(DRAIN).await?;
                return Err(error);
            }
        };
        tracing::info!(
            member = %member.ring.name(), clients = %member.client_address,
            peers = %member.peer_address, "serving"
        );
        Ok(group.run(DRAIN).await?)
    })
}

/// Starts a member whose tasks belong to `group`.
///
/// # Errors
///
/// [`RunError`]; the caller then stops the group.
pub async fn start(
    config: Config,
    group: &TaskGroup,
    placement: Placement,
) -> Result<Member, RunError> {
    fs::create_dir_all(&config.data_dir).map_err(system(config.data_dir.display()))?;
    let credentials = Credentials::load(config.credentials.clone())?;
    check_identity(&config, &credentials)?;
    let (ring, peer_address, services) =
        start_ring(&config, &credentials, group, placement).await?;
    let etcd = match &config.etcd {
        Some(etcd) => {
            let counting = ring.clone();
            let metrics = RingMetrics(Arc::new(move || counting.metrics()));
            let served = Served { services, timing: config.timing, metrics };
            Some(etcd::start(etcd, served, group).await?)
        }
        None => None,
    };
    let clients = client_rule(&config);
    let limits =
        Limits { request_timeout: SUBMIT_TIMEOUT + Duration::from_secs(5), ..Limits::EDGES };
    let listener =
        Listener::bind(config.client_listen, credentials.clone(), clients, limits.clone());
    let listener = listener.await.map_err(system(config.client_listen))?;
    let client_address = listener.local_address().map_err(system("client listener"))?;

    let (reports, refusals, shutdown) = (Reports::default(), Refusals::default(), group.shutdown());
    let upstream = Upstream::new(
        ring.clone(),
        config.validators.clone(),
        credentials.clone(),
        config.genesis.policy.heartbeat,
        refusals.clone(),
    );
    let (scheduler, snapshots) = Scheduler::new(&config, &ring).unzip();
    if let Some(scheduler) = scheduler {
        group.spawn("snapshots", scheduler.run(shutdown.clone()));
    }
    let sources = Sources {
        snapshots: snapshots.clone(),
        upstream_streams: upstream.streams(),
        reports: reports.clone(),
        refusals: refusals.clone(),
    };
    let control = ControlService::new(ring.clone(), &config, &credentials, sources)?;
    let control = ControlServer::new(control)
        .max_decoding_message_size(SUBMIT_BYTES_MAX)
        .max_encoding_message_size(STATUS_BYTES_MAX);
    let audience = Audience {
        genesis: config.genesis.clone(),
        reports,
        refusals,
        seats: PeerSeats::default(),
        own_scope: credentials.current().id.scope(),
    };
    let sync = FollowService::new(ring.views(), audience, group);
    let sync = SyncServer::new(sync).max_decoding_message_size(FOLLOW_REQUEST_BYTES_MAX);
    let server = server_builder(&limits)
        .layer(RequestSeats::new(REQUESTS))
        .add_routes(introspect::add(Routes::default(), &REALM_SERVICES, &shutdown))
        .add_service(sync)
        .add_service(control);
    group.spawn("clients", server.serve_with_incoming_shutdown(listener, shutdown.requested()));
    group.spawn("upstream", upstream.run(shutdown.clone()));
    group.spawn("credentials", reload(credentials, shutdown));
    Ok(Member { ring, client_address, peer_address, etcd, snapshots })
}

fn check_identity(config: &Config, credentials: &Credentials) -> Result<(), RunError> {
    let (chain, region) = (config.genesis.realm().chain_id(), &config.region);
    let expected = format!("spiffe://{chain}/region/{region}/member/{}", config.name);
    let found = credentials.current().id.to_string();
    if found != expected {
        return Err(RunError::Identity { found, expected });
    }
    Ok(())
}

/// Edges of this region, and of those that may fall back to it; operators; members of any region.
fn client_rule(config: &Config) -> PeerRule {
    let known = config.genesis.governance.region_keys.keys();
    let regions = known.chain(&config.other_regions).chain([&config.region]);
    let edges = regions.map(Label::to_string).map(PeerRule::Edge);
    PeerRule::AnyOf(edges.chain([PeerRule::AnyMember, PeerRule::Operator]).collect())
}

/// A ring, where it listens, and its services' end once it belongs to the ring.
type StartedRing = (Ring, SocketAddr, oneshot::Receiver<Backend>);

async fn start_ring(
    config: &Config,
    credentials: &Credentials,
    group: &TaskGroup,
    placement: Placement,
) -> Result<StartedRing, RunError> {
    let (started, ready) = oneshot::channel();
    let body = drive_ring(config.clone(), credentials.clone(), group.clone(), started);
    match placement {
        Placement::Here => group.spawn("ring", body),
        Placement::OwnThread => {
            let runtime = runtime::current_thread().map_err(system("runtime"))?;
            group
                .spawn_thread("ring", move || runtime.block_on(body))
                .map_err(system("thread of the ring"))?;
        }
    }
    ready.await.map_err(|_| RunError::NotStarted)
}

/// Everything of the ring, from opening its data to handing over.
async fn drive_ring(
    config: Config,
    credentials: Credentials,
    group: TaskGroup,
    started: oneshot::Sender<StartedRing>,
) -> Result<(), RunError> {
    let rule = PeerRule::Member(config.region.to_string());
    let listener =
        Listener::bind(config.peer_listen, credentials.clone(), rule, Limits::PEERS).await;
    let listener = listener.map_err(system(config.peer_listen))?;
    let address = listener.local_address().map_err(system("peer listener"))?;
    let parts = Ring::open(config.ring_setup(), &credentials, &group).await?;
    let (backend, services) = oneshot::channel();
    if started.send((parts.ring(), address, services)).is_err() {
        // Whoever was waiting gave up, and stops the group.
        tracing::warn!("the ring started after nobody waited for it");
    }
    Ok(serve::run(parts, listener, Limits::PEERS, backend, group.shutdown()).await?)
}

/// Certificates live shorter than processes.
async fn reload(credentials: Credentials, shutdown: Shutdown) -> Result<(), RunError> {
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.requested() => return Ok(()),
        }
        if let Err(error) = credentials.reload() {
            tracing::error!(%error, "kept the old credentials");
        }
    }
}
