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

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use satrap_certify::{BundleName, Report, Timestamp, limits::REPORT_REFUSALS_MAX};
use satrap_edge_core::{Ended, Pull, Refusals, pull::Attempt, refusals::Refusal, report::named};
use satrap_host::{
    Fault, RunUntil, TaskGroup, Unusable, clock, lock::DirectoryLock, mtls::Credentials, rng,
    store::StoreError,
};
use satrap_pressure::{Freshness, Seen};

use crate::{
    config::{Config, Server},
    install::Installer,
    links::OnDisk,
    session::{Session, SessionError, within},
    status::{StatusFile, View, absent},
};

/// How long a stop may take: an activation in progress is finished or rolled back.
const DRAIN: Duration = Duration::from_secs(5);

/// Why an edge stops.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A setting, or a file that one names.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The disk failed; going on could lose what was reported as running.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task ended that should not have.
    #[error(transparent)]
    Task(#[from] satrap_host::Failure),
}

impl EdgeError {
    /// The party at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unusable(unusable) => unusable.fault(),
            Self::Store(_) | Self::Task(_) => Fault::Machine,
        }
    }
}

/// Runs the edge until a signal, or the end of its parent.
///
/// # Errors
///
/// [`EdgeError`] if it cannot start, or must not go on.
pub async fn run(config: Config, until: RunUntil) -> Result<(), EdgeError> {
    let group = TaskGroup::new();
    until.apply(&group)?;
    let shutdown = group.shutdown();
    group
        .clone()
        .serve(DRAIN, async {
            let mut edge = Edge::start(config).await?;
            edge.credentials.keep_fresh(&group);
            group.spawn("edge", async move {
                tokio::select! {
                    () = shutdown.requested() => Ok(()),
                    never = edge.follow() => never,
                }
            });
            Ok(())
        })
        .await
}

struct Edge {
    /// Tells this process from another one with its identity.
    started: Timestamp,
    config: Config,
    credentials: Credentials,
    installer: Installer,
    pull: Pull,
    refusals: Refusals,
    status: StatusFile,
    /// Bundles of the configuration that are proven not to exist.
    absent: BTreeSet<BundleName>,
    _lock: DirectoryLock,
}

impl Edge {
    /// Comes up with the last known good config, before anything is asked of any server.
    async fn start(config: Config) -> Result<Self, EdgeError> {
        let credentials = Credentials::load(config.credentials.clone()).map_err(Unusable::from)?;
        check_identity(&config, &credentials)?;
        let data_dir = |error| Unusable::directory("data_dir", &config.data_dir, &error);
        std::fs::create_dir_all(&config.data_dir).map_err(data_dir)?;
        let lock = DirectoryLock::take(&config.data_dir);
        let lock = lock.map_err(|error| Unusable::locked("data_dir", &error))?;
        let installer = Installer::start(&config, now()).await;
        let installer = installer.map_err(|error| error.unusable(&config))?;
        let sources: Vec<_> = config.servers.iter().map(|server| server.source).collect();
        let status =
            StatusFile::new(&config.data_dir, config.region.as_str(), config.name.as_str());
        let edge = Self {
            started: now(),
            credentials,
            installer,
            pull: Pull::new(&sources),
            refusals: Refusals::default(),
            status,
            absent: BTreeSet::new(),
            config,
            _lock: lock,
        };
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
            let mut freshness = Freshness::new(self.config.genesis.policy.heartbeat, started);
            let ended = match self.follow_one(server, &target, &mut freshness).await? {
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
                SessionError::Lost(why) if freshness.was_fresh() => {
                    tracing::info!(peer = %peer_name(&target), "lost: {why}");
                    Ended::Lost
                }
                // P3: a server that ends a connection before it is left brought nothing either.
                useless => {
                    tracing::warn!(peer = %peer_name(&target), "left: {useless}");
                    Ended::Stale
                }
            };
            self.write_status(None);
            let now = clock::monotonic();
            self.pull.ended(server, now, now.saturating_sub(started), ended);
        }
    }

    /// Follows one server for as long as it is honest, there, and not stale.
    async fn follow_one(
        &mut self,
        server: usize,
        target: &Server,
        freshness: &mut Freshness,
    ) -> Result<SessionError, EdgeError> {
        let position = self.installer.acceptor().position();
        let session = Session::open(target, &self.credentials, &position);
        let mut session = match within(freshness, session).await {
            Ok(session) => session,
            Err(error) => return Ok(error),
        };
        self.write_status(Some(target));
        session.report(&self.report());
        loop {
            let update = match within(freshness, session.next()).await {
                Ok(update) => update,
                Err(error) => return Ok(error),
            };
            if let Err(rejection) = self.installer.offer(update, now()).await? {
                let (rule, detail) = (rejection.rule(), rejection.to_string());
                return Ok(SessionError::Broken { rule, detail });
            }
            freshness.observe(clock::monotonic(), self.seen());
            self.pull.useful(server);
            self.installer.relink();
            self.note_absent();
            self.write_status(Some(target));
            session.report(&self.report());
        }
    }

    /// Logs, once for each bundle, that there is none of a configured name: a name is mistyped more
    /// often than a bundle is published later.
    fn note_absent(&mut self) {
        let acceptor = self.installer.acceptor();
        let absent = absent(acceptor, &self.config.bundles);
        for bundle in absent.difference(&self.absent) {
            let height = acceptor.replica().height();
            match acceptor.active().get(bundle) {
                Some(active) => {
                    let version = active.version;
                    tracing::info!(%bundle, height, version, "retired; its last version keeps running");
                }
                None => tracing::info!(
                    %bundle, height,
                    "the realm has no bundle of this name; nothing runs for it until one is published"
                ),
            }
        }
        self.absent = absent;
    }

    fn seen(&self) -> Seen {
        let replica = self.installer.acceptor().replica();
        Seen { age: now().since(replica.certified_time()), complete: replica.is_complete() }
    }

    fn report(&self) -> satrap_certify::SignedReport {
        let identity = self.credentials.current();
        let replica = self.installer.acceptor().replica();
        let (active, activator) = (self.installer.acceptor().active(), self.installer.activator());
        // The versions that the workload reads, not those it was once given.
        let running = active
            .iter()
            .filter(|(name, version)| activator.on_disk(name, **version) == OnDisk::Current);
        let failed = self.installer.acceptor().quarantine().iter();
        let failed = failed.map(|(name, version)| (name, version));
        let (wanted, time) = (&self.config.bundles, now());
        let refusals = self.refusals.counts().iter().take(REPORT_REFUSALS_MAX);
        Report {
            genesis_hash: *self.config.genesis.realm().genesis_hash(),
            region: self.config.region.clone(),
            edge: self.config.name.clone(),
            time,
            // R2: the clock may have been set back since.
            started: self.started.min(time),
            height: replica.height(),
            certified_time: replica.certified_time(),
            running: named(running, wanted),
            failed: named(failed, wanted),
            refusals: refusals.map(|(rule, n)| ((*rule).to_owned(), *n)).collect(),
        }
        .sign(&identity.signing_key, identity.leaf_der.to_vec())
    }

    fn write_status(&self, server: Option<&Server>) {
        let server = server.map(peer_name);
        let view = View {
            acceptor: self.installer.acceptor(),
            activator: self.installer.activator(),
            refusals: &self.refusals,
            bundles: &self.config.bundles,
            server: server.as_deref(),
        };
        self.status.write(view, now());
    }
}

fn now() -> Timestamp {
    Timestamp(clock::now())
}

fn peer_name(server: &Server) -> String {
    format!("{}/{}", server.region, server.name)
}

fn check_identity(config: &Config, credentials: &Credentials) -> Result<(), Unusable> {
    let identity: Arc<_> = credentials.current();
    let id = &identity.id;
    let (region, name) = (config.region.to_string(), config.name.to_string());
    let chain = config.genesis.realm().chain_id();
    let expected =
        satrap_host::pki::SpiffeId::new(chain, satrap_host::pki::Role::Edge { region, name });
    if expected.ok().as_ref() == Some(id) {
        return Ok(());
    }
    let (region, name) = (&config.region, &config.name);
    let why = format!(
        "the certificate is for {id}, this configuration for edge `{name}` of region `{region}` in \
         {chain}"
    );
    let remedy = "install the certificate of this edge, or set `region`, `name` and `genesis` to its \
                  own";
    Err(Unusable::new("tls.cert", Fault::Setting, why, remedy))
}
