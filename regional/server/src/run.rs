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

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use satrap_certify::Label;
use satrap_host::{
    Failure, Fault, RunUntil, TaskGroup, Unusable,
    charges::{PeerSeats, REQUESTS, RequestSeats},
    follow::FollowService,
    introspect::{self, REALM_SERVICES},
    mtls::{Credentials, Limits, Listener, PeerRule, server_builder},
    runtime,
};
use satrap_proto::v1::{control_server::ControlServer, sync_server::SyncServer};
use satrap_regional_api::{api::RingMetrics, backend::Backend};
use tokio::sync::oneshot;
use tonic::service::Routes;

use crate::{
    config::Config,
    control::{ControlError, ControlService, Sources},
    etcd::{self, Served},
    limits::{FOLLOW_REQUEST_BYTES_MAX, STATUS_BYTES_MAX, SUBMIT_BYTES_MAX, SUBMIT_TIMEOUT},
    raft::{Ring, RingError, RingParts, serve},
    refusals::Refusals,
    reports::Reports,
    snapshots::{Scheduler, Watched},
    sync_service::Audience,
    upstream::Upstream,
};

/// Handing over takes an election timeout, closing connections a little more.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a member cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting, or a file or address that one names.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
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

impl RunError {
    /// Whose fault it is.
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

/// Runs a member until a signal, or the end of its parent.
///
/// # Errors
///
/// [`RunError`] says what stopped it.
pub fn run(config: Config, until: RunUntil) -> Result<(), RunError> {
    let runtime = runtime::current_thread().map_err(|e| Unusable::resources("region", &e))?;
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
    check_identity(&config, &credentials)?;
    // Before the ring, so that a wrong setting ends this process before it takes part in an election.
    let (serve_etcd, served) = oneshot::channel();
    let etcd = match &config.etcd {
        Some(etcd) => Some(etcd::start(etcd, config.timing, served, group).await?),
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
        // The thread that serves etcd has ended only if it stopped the group.
        let _ = serve_etcd.send(Served { services, metrics });
    }

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
    group.spawn("upstream", upstream.run(shutdown));
    credentials.keep_fresh(group);
    Ok(Member { ring, client_address, peer_address, etcd, snapshots })
}

fn check_identity(config: &Config, credentials: &Credentials) -> Result<(), RunError> {
    let (chain, region) = (config.genesis.realm().chain_id(), &config.region);
    let expected = format!("spiffe://{chain}/region/{region}/member/{}", config.name);
    let found = credentials.current().id.to_string();
    if found != expected {
        let why = format!("the certificate is for {found}, this configuration for {expected}");
        let remedy =
            "install the certificate of this member, or set `region` and `name` to its own";
        return Err(Unusable::new("tls.cert", Fault::Setting, why, remedy).into());
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
        Placement::OwnThread => group
            .spawn_thread("ring", move || {
                let unusable = |error| Unusable::resources("region", &error);
                runtime::current_thread().map_err(unusable)?.block_on(body)
            })
            .map_err(|error| Unusable::resources("region", &error))?,
    }
    ready.await.map_err(|_| RunError::NotStarted)?
}

/// Everything of the ring, from opening its data to handing over. If it cannot start, `started` gets
/// the reason, and the group is stopped: the caller says it once.
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
        tracing::warn!("the ring started although the start of this member was given up");
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
