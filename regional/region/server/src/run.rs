//! Starts the parts of one member, and stops them on a signal.
//!
//! ```text
//!   thread `ring`: Raft, its peers' listener      threads `clients`: edges, operators, upstream
//!   thread `log-writer`: the log                  thread `etcd`: the listener for etcd clients
//!   thread `checkpoints`: the state behind the log
//! ```
//!
//! Raft has a runtime and a listener of its own, so that a flood of edges cannot delay heartbeats
//! and cause an election. Several threads serve edges, so that encoding an update of megabytes for
//! one edge does not delay the others. A stop takes the reverse order: following sources and serving
//! clients end at once, a leader transfers its leadership, the peers' listener closes, and the last
//! checkpoint is written.

use std::{fs, io, net::SocketAddr, num::NonZero, sync::Arc, thread, time::Duration};

use satrap_certify::Label;
use satrap_identity::{
    charges::{PeerPermits, REQUESTS, RequestPermits},
    mtls::{Credentials, Limits, Listener, PeerRule, server_builder},
    pki::Role,
};
use satrap_proto::v1::{control_server::ControlServer, sync_server::SyncServer};
use satrap_ring_api::{
    api::RingMetrics,
    backend::Backend,
    listener::{self, Served},
};
use satrap_ring_raft::{
    Ring, RingError, RingParts, serve,
    snapshots::{Scheduler, Watched},
};
use satrap_runtime::introspect::{self, REALM_SERVICES};
use satrap_runtime::{Failure, Fault, RunUntil, TaskGroup, Unusable, runtime};
use satrap_sync::server::FollowService;
use tokio::{runtime::Runtime, sync::oneshot};
use tonic::service::Routes;

use crate::{
    config::Config,
    control::{ControlError, ControlService, Sources},
    limits::{
        CLIENT_WORKERS, FOLLOW_REQUEST_BYTES_MAX, STATUS_BYTES_MAX, SUBMIT_BYTES_MAX,
        SUBMIT_TIMEOUT,
    },
    refusals::Refusals,
    reports::Reports,
    source::SourceSet,
    sync_service::RegionFollowers,
    upstream::Upstream,
};

/// Time limit of a stop. Transferring leadership takes an election timeout, closing connections a
/// little more.
const DRAIN: Duration = Duration::from_secs(10);

/// The reason why a member cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting, or a file or address that it names, cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The ring failed.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// An address or a name in the configuration is invalid.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The client listener failed.
    #[error("client listener: {0}")]
    Listener(#[from] tonic::transport::Error),
    /// The ring's thread ended before it had started; the log says why.
    #[error("the ring did not start")]
    NotStarted,
    /// A task ended.
    #[error(transparent)]
    Task(#[from] Failure),
}

impl RunError {
    /// Whether the configuration or the machine is at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unusable(unusable) => unusable.fault(),
            Self::Ring(ring) => ring.fault(),
            Self::Control(_) => Fault::Setting,
            Self::Listener(_) | Self::NotStarted | Self::Task(_) => Fault::Machine,
        }
    }
}

/// The runtime that Raft runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// A runtime on a thread of its own.
    OwnThread,
    /// The caller's runtime. Dropping it stops the whole member at once, like a crash.
    Here,
}

/// A running member.
pub struct Member {
    /// Its member of the ring.
    pub ring: Ring,
    /// The address for edges and operators.
    pub client_address: SocketAddr,
    /// The address for other members of the ring.
    pub peer_address: SocketAddr,
    /// The addresses for etcd clients and for monitoring, if it has any.
    pub etcd: Option<listener::Addresses>,
    /// The state of its scheduled snapshots, if it makes any.
    pub snapshots: Option<Watched>,
}

/// Runs a member until a signal, or the end of its parent.
///
/// # Errors
///
/// [`RunError`] says what stopped it.
pub fn run(config: Config, until: RunUntil) -> Result<(), RunError> {
    let runtime = clients_runtime().map_err(|e| Unusable::resources("region", &e))?;
    runtime.block_on(async {
        let group = TaskGroup::new();
        until.apply(&group)?;
        group
            .clone()
            .serve(DRAIN, async {
                let member = start(config, &group, Placement::OwnThread).await?;
                tracing::info!(
                    member = %member.ring.name(), clients = %member.client_address,
                    peers = %member.peer_address, "serving"
                );
                Ok(())
            })
            .await
    })
}

/// The runtime that serves edges and operators.
///
/// # Errors
///
/// If the operating system refuses the threads.
pub fn clients_runtime() -> io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let workers = cores.clamp(*CLIENT_WORKERS.start(), *CLIENT_WORKERS.end());
    runtime::multi_thread("clients", workers)
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
    fs::create_dir_all(&config.data_dir)
        .map_err(|error| Unusable::directory("data_dir", &config.data_dir, &error))?;
    let credentials = Credentials::load(config.credentials.clone()).map_err(Unusable::from)?;
    let (region, name) = (config.region.to_string(), config.name.to_string());
    credentials.check_name(config.genesis.realm().chain_id(), Role::Member { region, name })?;
    // First, so that a wrong setting ends this process before it takes part in an election.
    let (serve_etcd, served) = oneshot::channel();
    let etcd = match &config.etcd {
        Some(etcd) => Some(listener::start(etcd, config.timing.election_max, served, group).await?),
        None => None,
    };
    let clients = client_rule(&config);
    let limits =
        Limits { request_timeout: SUBMIT_TIMEOUT + Duration::from_secs(5), ..Limits::EDGES };
    let listener =
        Listener::bind(config.client_listen, credentials.clone(), clients, limits.clone());
    let unusable = |error| Unusable::listen("client_listen", config.client_listen, &error);
    let listener = listener.await.map_err(unusable)?;
    let client_address = listener.local_address().map_err(unusable)?;
    let (ring, peer_address, services) =
        start_ring(&config, &credentials, group, placement).await?;
    if etcd.is_some() {
        let counting = ring.clone();
        let metrics = RingMetrics(Arc::new(move || counting.metrics()));
        // The thread that serves etcd clients has ended only if it stopped the group.
        let _ = serve_etcd.send(Served { services, metrics });
    }

    let reports = Reports::new(config.region.as_str());
    let (refusals, shutdown) = (Refusals::default(), group.shutdown());
    let upstream = Upstream::new(
        ring.clone(),
        SourceSet::validators(config.genesis.realm().chain_id(), &config.validators)
            .map_err(ControlError::from)?,
        credentials.clone(),
        config.genesis.policy.heartbeat,
        refusals.clone(),
    );
    let schedule = config.snapshots.clone();
    let (scheduler, snapshots) =
        schedule.map(|schedule| Scheduler::new(schedule, &config.ring_setup(), &ring)).unzip();
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
    let followers = RegionFollowers {
        genesis: config.genesis.clone(),
        reports,
        refusals,
        permits: PeerPermits::default(),
        own_scope: credentials.current().id.scope(),
    };
    let sync = FollowService::new(ring.views(), followers, group);
    let sync = SyncServer::new(sync).max_decoding_message_size(FOLLOW_REQUEST_BYTES_MAX);
    let server = server_builder(&limits)
        .layer(RequestPermits::new(REQUESTS))
        .add_routes(introspect::add(Routes::default(), &REALM_SERVICES, &shutdown))
        .add_service(sync)
        .add_service(control);
    group.spawn("clients", server.serve_with_incoming_shutdown(listener, shutdown.requested()));
    group.spawn("upstream", upstream.run(shutdown));
    credentials.keep_fresh(group);
    Ok(Member { ring, client_address, peer_address, etcd, snapshots })
}

/// Accepts edges of this region and of regions that may fall back to it, operators, and members of
/// any region.
fn client_rule(config: &Config) -> PeerRule {
    let known = config.genesis.governance.region_keys.keys();
    let regions = known.chain(&config.other_regions).chain([&config.region]);
    let edges = regions.map(Label::to_string).map(PeerRule::Edge);
    PeerRule::AnyOf(edges.chain([PeerRule::AnyMember, PeerRule::Operator]).collect())
}

/// The ring, its peer address, and its backend for etcd clients, which arrives once this member
/// belongs to the ring.
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
        Placement::OwnThread => group
            .spawn_thread("ring", move || {
                let unusable = |error| Unusable::resources("region", &error);
                runtime::current_thread().map_err(unusable)?.block_on(body)
            })
            .map_err(|error| Unusable::resources("region", &error))?,
    }
    ready.await.map_err(|_| RunError::NotStarted)?
}

/// Runs the member of the ring, from opening its data to transferring its leadership. If it cannot
/// start, it stops the group and sends the reason to `started`; the caller reports it.
async fn drive_ring(
    config: Config,
    credentials: Credentials,
    group: TaskGroup,
    started: oneshot::Sender<Result<StartedRing, RunError>>,
) -> Result<(), RunError> {
    let opened = open_ring(&config, &credentials, &group).await;
    let (parts, listener, address) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            group.shutdown().request();
            // A caller that is gone has stopped the group itself.
            let _ = started.send(Err(error));
            return Ok(());
        }
    };
    let (backend, services) = oneshot::channel();
    if started.send(Ok((parts.ring(), address, services))).is_err() {
        // The caller has stopped the group.
        tracing::warn!("the ring started after the start of this member had been canceled");
    }
    Ok(serve::run(parts, listener, Limits::PEERS, backend, group.shutdown()).await?)
}

async fn open_ring(
    config: &Config,
    credentials: &Credentials,
    group: &TaskGroup,
) -> Result<(RingParts, Listener, SocketAddr), RunError> {
    let rule = PeerRule::Member(config.region.to_string());
    let listener = Listener::bind(config.peer_listen, credentials.clone(), rule, Limits::PEERS);
    let unusable = |error| Unusable::listen("peer_listen", config.peer_listen, &error);
    let listener = listener.await.map_err(unusable)?;
    let address = listener.local_address().map_err(unusable)?;
    let parts = Ring::open(config.ring_setup(), credentials, group).await.map_err(|error| {
        match error.in_data_dir(&config.data_dir) {
            Ok(unusable) => unusable.into(),
            Err(error) => RunError::Ring(error),
        }
    })?;
    Ok((parts, listener, address))
}
