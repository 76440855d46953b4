//! The edge's loop: choose a server, follow it, install what verifies, report.
//!
//! ```text
//!   Pull::next ─▶ Session::open ─▶ Session::next ─▶ Acceptor::step ─▶ stage ─▶ activate ─▶ report
//!       ▲              │ lost            │ lost, broken     │ refused
//!       └──────────────┴─────────────────┴──────────────────┘
//! ```
//!
//! One update is performed from offer to activation before the next is read, so that at most one
//! is in flight (A4) and a server cannot make this edge queue anything.

use std::{sync::Arc, time::Duration};

use satrap_certify::{
    Interest, Replica, Report, Snapshot, Timestamp, Update, limits::EDGE_UPDATE_BYTES_MAX,
};
use satrap_edge_core::{
    Acceptor, Effect, Ended, Event, Pull, Refusals, pull::Attempt, refusals::Refusal,
};
use satrap_host::{TaskGroup, clock, files, mtls::Credentials, rng, store::StoreError};
use satrap_merkle::codec::Canonical as _;

use crate::{
    activate::Activator,
    cache::Cache,
    config::{Config, Server},
    session::{Session, SessionError},
    status::StatusFile,
};

/// A realm is silent when this many heartbeats are missing; one may be late.
const SILENT_HEARTBEATS: f64 = 2.5;
/// How long a stop may take: an activation in progress is finished or rolled back.
const DRAIN: Duration = Duration::from_secs(5);

/// Why an edge stops.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The certificates or keys cannot be used.
    #[error(transparent)]
    Credentials(#[from] satrap_host::mtls::CredentialError),
    /// The credentials are another process's.
    #[error("the certificate names {found}, the config says edge `{edge}` of region `{region}`")]
    Identity {
        /// In the certificate.
        found: String,
        /// In the config.
        region: String,
        /// In the config.
        edge: String,
    },
    /// The disk failed; going on could lose what was reported as running.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data directory or a file in it cannot be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The provisioned checkpoint is refused.
    #[error("trusted checkpoint {path}: {why}")]
    Checkpoint {
        /// Its path.
        path: String,
        /// Why.
        why: String,
    },
    /// A task ended that should not have.
    #[error(transparent)]
    Task(#[from] satrap_host::Failure),
}

/// Runs the edge until it is told to stop.
///
/// # Errors
///
/// [`EdgeError`] if it cannot start, or must not go on.
pub async fn run(config: Config) -> Result<(), EdgeError> {
    let group = TaskGroup::new();
    let signals = group.shutdown_on_signal();
    signals.map_err(|source| EdgeError::File { path: "signal handlers".into(), source })?;
    let shutdown = group.shutdown();
    let mut edge = Edge::start(config).await?;
    group.spawn("edge", async move {
        tokio::select! {
            () = shutdown.requested() => Ok(()),
            never = edge.follow() => never,
        }
    });
    Ok(group.run(DRAIN).await?)
}

struct Edge {
    config: Config,
    credentials: Credentials,
    cache: Cache,
    activator: Activator,
    acceptor: Acceptor,
    pull: Pull,
    refusals: Refusals,
    status: StatusFile,
}

impl Edge {
    /// Comes up with the last known good config, before anything is asked of any server.
    async fn start(config: Config) -> Result<Self, EdgeError> {
        let credentials = Credentials::load(config.credentials.clone())?;
        check_identity(&config, &credentials)?;
        for directory in [&config.data_dir, &config.activate.dir] {
            std::fs::create_dir_all(directory).map_err(|source| EdgeError::File {
                path: directory.display().to_string(),
                source,
            })?;
        }
        let cache = Cache::open(&config.data_dir)?;
        let interest = Interest::Bundles(config.bundles.clone());
        let mut restored = cache.restore(&config.genesis, &interest)?;
        for rejection in &restored.damage {
            tracing::warn!(rule = rejection.rule(), "cache refused: {rejection}");
        }
        if restored.replica.height() == 0 {
            restored.replica = provisioned(&config, &interest)?.unwrap_or(restored.replica);
        }
        let activator = Activator::new(config.activate.clone(), &config.data_dir);
        let mut active = std::collections::BTreeMap::new();
        for (bundle, (version, tree)) in restored.active {
            match activator.ensure(&bundle, version, &tree) {
                Ok(()) => {
                    tracing::info!(%bundle, version = version.version, "running last known good");
                    active.insert(bundle, version);
                }
                Err(e) => tracing::error!(%bundle, "last known good cannot be restored: {e}"),
            }
        }
        let sources: Vec<_> = config.servers.iter().map(|server| server.source).collect();
        let status =
            StatusFile::new(&config.data_dir, config.region.as_str(), config.name.as_str());
        let mut edge = Self {
            credentials,
            cache,
            activator,
            acceptor: Acceptor::new(restored.replica, active, restored.quarantine),
            pull: Pull::new(&sources),
            refusals: Refusals::default(),
            status,
            config,
        };
        let effect = edge.acceptor.resume();
        edge.perform(effect).await?;
        edge.write_status(None);
        Ok(edge)
    }

    /// Follows one server after the other. Returns only if the disk fails.
    async fn follow(&mut self) -> Result<(), EdgeError> {
        loop {
            let Attempt { server, delay } = self.pull.next(clock::monotonic(), rng::u64());
            tokio::time::sleep(delay).await;
            let started = clock::monotonic();
            let target = self.config.servers[server].clone();
            let ended = match self.follow_one(server, &target).await? {
                SessionError::Lost(why) => {
                    tracing::info!(peer = %peer_name(&target), "lost: {why}");
                    Ended::Lost
                }
                SessionError::Broken { rule, detail } => {
                    tracing::warn!(peer = %peer_name(&target), rule, "refused: {detail}");
                    self.refusals.record(Refusal {
                        time: now(),
                        peer: peer_name(&target),
                        rule,
                        detail,
                    });
                    Ended::Lied
                }
            };
            self.write_status(None);
            let now = clock::monotonic();
            self.pull.ended(server, now, now.saturating_sub(started), ended);
        }
    }

    /// Follows one server for as long as it is honest and there.
    async fn follow_one(
        &mut self,
        server: usize,
        target: &Server,
    ) -> Result<SessionError, EdgeError> {
        let position = self.acceptor.position();
        let mut session = match Session::open(target, &self.credentials, &position).await {
            Ok(session) => session,
            Err(error) => return Ok(error),
        };
        self.write_status(Some(target));
        session.report(&self.report());
        let heartbeat = self.config.genesis.policy.heartbeat;
        let silence_max = heartbeat.mul_f64(SILENT_HEARTBEATS);
        loop {
            let update = match session.next(silence_max).await {
                Ok(update) => update,
                Err(error) => return Ok(error),
            };
            if let Err(error) = self.install(update).await? {
                return Ok(error);
            }
            self.pull.useful(server);
            self.write_status(Some(target));
            session.report(&self.report());
        }
    }

    /// Takes one update from offer to activation.
    async fn install(&mut self, update: Update) -> Result<Result<(), SessionError>, EdgeError> {
        match self.acceptor.step(now(), Event::Offered(Box::new(update))) {
            Ok(effect) => self.perform(effect).await.map(Ok),
            Err(rejection) => {
                let (rule, detail) = (rejection.rule(), rejection.to_string());
                Ok(Err(SessionError::Broken { rule, detail }))
            }
        }
    }

    async fn perform(&mut self, mut effect: Effect) -> Result<(), EdgeError> {
        loop {
            let event = match effect {
                Effect::Settled => return Ok(()),
                Effect::Stage(staged) => {
                    self.cache.stage(&staged)?;
                    Event::Staged
                }
                Effect::Activate(head, tree) => match self.activator.activate(&head, &tree).await {
                    Ok(()) => {
                        self.cache.activated(&head, self.acceptor.replica())?;
                        let (bundle, version) = (&head.name, head.version);
                        tracing::info!(%bundle, version, "activated");
                        Event::Activated
                    }
                    Err(error) => {
                        self.cache.quarantined(&head)?;
                        let (bundle, version) = (&head.name, head.version);
                        tracing::error!(%bundle, version, "not activated: {error}");
                        Event::ActivationFailed
                    }
                },
            };
            let next = self.acceptor.step(now(), event);
            effect = next.expect("only offers are rejected, and this is an outcome");
        }
    }

    fn report(&self) -> satrap_certify::SignedReport {
        let identity = self.credentials.current();
        let replica = self.acceptor.replica();
        let active = self.acceptor.active().iter();
        Report {
            genesis_hash: *self.config.genesis.realm().genesis_hash(),
            region: self.config.region.clone(),
            edge: self.config.name.clone(),
            time: now(),
            height: replica.height(),
            certified_time: replica.certified_time(),
            running: active.map(|(name, v)| (name.clone(), v.version, v.root)).collect(),
            refusals: self.refusals.counts().iter().map(|(r, n)| ((*r).to_owned(), *n)).collect(),
        }
        .sign(&identity.signing_key, identity.leaf_der.to_vec())
    }

    fn write_status(&self, server: Option<&Server>) {
        let server = server.map(peer_name);
        self.status.write(&self.acceptor, &self.refusals, server.as_deref());
    }
}

fn now() -> Timestamp {
    Timestamp(clock::now())
}

fn peer_name(server: &Server) -> String {
    format!("{}/{}", server.region, server.name)
}

fn check_identity(config: &Config, credentials: &Credentials) -> Result<(), EdgeError> {
    let identity: Arc<_> = credentials.current();
    let id = &identity.id;
    let expected = satrap_host::pki::SpiffeId::new(
        config.genesis.realm().chain_id(),
        satrap_host::pki::Role::Edge {
            region: config.region.to_string(),
            name: config.name.to_string(),
        },
    );
    if expected.ok().as_ref() == Some(id) {
        return Ok(());
    }
    Err(EdgeError::Identity {
        found: id.to_string(),
        region: config.region.to_string(),
        edge: config.name.to_string(),
    })
}

/// The state of an exported certificate, if one was provisioned.
fn provisioned(config: &Config, interest: &Interest) -> Result<Option<Replica>, EdgeError> {
    let Some(path) = &config.trusted_checkpoint else { return Ok(None) };
    let refused = |why: String| EdgeError::Checkpoint { path: path.display().to_string(), why };
    let bytes = files::read(path, EDGE_UPDATE_BYTES_MAX as u64);
    let bytes = bytes.map_err(|e| refused(e.to_string()))?;
    let snapshot = Snapshot::from_canonical(&bytes).map_err(|e| refused(e.to_string()))?;
    Replica::restore(&config.genesis, interest.clone(), &snapshot)
        .map(Some)
        .map_err(|e| refused(e.to_string()))
}
