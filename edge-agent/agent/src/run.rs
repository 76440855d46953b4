//! The edge's loop: one event, one step, and no wait for anything else.
//!
//! ```text
//!   next_event ─▶ Due ───────▶ Follower::due ─▶ open a session, or leave a stale server
//!       ▲         Opened ────▶ report, read the first update
//!       │         Received ──▶ Installer::offer: verify, store, begin to activate ─▶ report, read
//!       │         Activated ─▶ Installer::conclude: record, begin the next ─▶ report
//!       │         Signed ────▶ send the report
//!       │         Stop ──────▶ end
//!       └──────────────────────────┘
//! ```
//!
//! A session can be left in the middle of an update, and activations and signatures are futures that
//! the edge holds, so a server that is silent, a hook that hangs and a key that does not answer hold
//! up neither each other nor a stop. The next update is read when the last one is
//! stored, so that at most one is in flight (ACCEPT-4) and a server cannot make this edge queue anything.

use std::{collections::BTreeSet, future, pin::Pin, time::Duration};

use satrap_certify::{BundleName, Report, Timestamp, Update, limits::REPORT_REFUSALS_MAX};
use satrap_edge_core::{Due, Ended, Failure, Follower, Refusals, refusals::Refusal, report::named};
use satrap_identity::{mtls::Credentials, pki::Role};
use satrap_pressure::Seen;
use satrap_runtime::{
    Fault, RunUntil, TaskGroup, Unusable, clock, lock::DirectoryLock, rng, store::StoreError,
};

use crate::{
    config::{Config, Server},
    install::Installer,
    links::OnDisk,
    reporter::{Reporter, Signed},
    session::{Session, SessionError},
    sink::SinkError,
    status::{StatusFile, View, absent},
};

/// How long a stop may take. An activation in flight is cut short, and resumed at the next start.
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
    Task(#[from] satrap_runtime::Failure),
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
            let edge = Edge::start(config, Box::pin(shutdown.requested()))?;
            edge.credentials.keep_fresh(&group);
            group.spawn("edge", edge.follow());
            Ok(())
        })
        .await
}

/// A future that the edge holds until it is ready.
type Held<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Everything that this loop acts on.
enum Event {
    /// The process is to stop.
    Stop,
    /// A server's turn to be asked came, or the patience with the followed one is over.
    Due,
    /// A session was opened, or not.
    Opened(Result<Session, SessionError>),
    /// The session brought an update, or ended.
    Received(Result<Box<Update>, SessionError>),
    /// An activation ended.
    Activated(Result<(), SinkError>),
    /// A report was signed, or not.
    Signed(Signed),
}

/// The connection to the followed server.
enum Link {
    /// No server is followed.
    None,
    /// A session is being opened.
    Opening(Held<Result<Session, SessionError>>),
    /// Updates come and reports go.
    Open(Session),
}

struct Edge {
    /// Tells this process from another one with its identity.
    started: Timestamp,
    config: Config,
    credentials: Credentials,
    installer: Installer,
    follower: Follower,
    link: Link,
    reporter: Reporter,
    stop: Held<()>,
    refusals: Refusals,
    status: StatusFile,
    /// Bundles of the configuration that are proven not to exist.
    absent: BTreeSet<BundleName>,
    _lock: DirectoryLock,
}

impl Edge {
    /// Comes up with the last known good config, before anything is asked of any server.
    fn start(config: Config, stop: Held<()>) -> Result<Self, EdgeError> {
        let credentials = Credentials::load(config.credentials.clone()).map_err(Unusable::from)?;
        let (region, name) = (config.region.to_string(), config.name.to_string());
        credentials.check_name(config.genesis.realm().chain_id(), Role::Edge { region, name })?;
        let data_dir = |error| Unusable::directory("data_dir", &config.data_dir, &error);
        std::fs::create_dir_all(&config.data_dir).map_err(data_dir)?;
        let lock = DirectoryLock::take(&config.data_dir);
        let lock = lock.map_err(|error| Unusable::locked("data_dir", &error))?;
        let installer = Installer::start(&config, now());
        let installer = installer.map_err(|error| error.unusable(&config))?;
        let sources: Vec<_> = config.servers.iter().map(|server| server.source).collect();
        let heartbeat = config.genesis.policy.heartbeat;
        let follower = Follower::new(&sources, heartbeat, clock::monotonic(), rng::u64());
        let status =
            StatusFile::new(&config.data_dir, config.region.as_str(), config.name.as_str());
        let edge = Self {
            started: now(),
            credentials,
            installer,
            follower,
            link: Link::None,
            reporter: Reporter::default(),
            stop,
            refusals: Refusals::default(),
            status,
            absent: BTreeSet::new(),
            config,
            _lock: lock,
        };
        edge.write_status();
        Ok(edge)
    }

    /// Runs until it is to stop, or the disk fails.
    async fn follow(mut self) -> Result<(), EdgeError> {
        loop {
            match self.next_event().await {
                Event::Stop => return Ok(()),
                event => self.step(event)?,
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let patience = self.follower.patience(clock::monotonic());
        // Without this, a timer of zero would still let in an update that is there already.
        if patience.is_zero() {
            return Event::Due;
        }
        tokio::select! {
            biased;
            () = &mut self.stop => Event::Stop,
            outcome = self.installer.activated() => Event::Activated(outcome),
            signed = self.reporter.signed() => Event::Signed(signed),
            event = self.link.event() => event,
            () = tokio::time::sleep(patience) => Event::Due,
        }
    }

    fn step(&mut self, event: Event) -> Result<(), EdgeError> {
        match event {
            Event::Stop => {}
            Event::Due => match self.follower.due(clock::monotonic(), rng::u64()) {
                Due::Open(server) => self.link = self.open(server),
                Due::Leave(limit) => {
                    let peer = self.close();
                    tracing::warn!(
                        peer,
                        "left a server that sent no fresh and complete state for {limit:?}; trying another one"
                    );
                }
            },
            Event::Opened(Ok(session)) => {
                self.link = Link::Open(session);
                self.tell();
            }
            Event::Opened(Err(error)) | Event::Received(Err(error)) => self.ended(error),
            Event::Received(Ok(update)) => match self.installer.offer(*update, now())? {
                Ok(()) => {
                    self.follower.observe(clock::monotonic(), self.seen());
                    self.installer.keep();
                    self.note_absent();
                    self.tell();
                }
                Err(rejection) => {
                    let (rule, detail) = (rejection.rule(), rejection.to_string());
                    self.ended(SessionError::Broken { rule, detail });
                }
            },
            Event::Activated(outcome) => {
                self.installer.conclude(outcome, now())?;
                self.tell();
            }
            Event::Signed(signed) => self.signed(signed),
        }
        Ok(())
    }

    fn open(&self, server: usize) -> Link {
        let target = self.config.servers[server].clone();
        let credentials = self.credentials.clone();
        let position = self.installer.acceptor().position();
        let session = async move { Session::open(&target, &credentials, &position).await };
        Link::Opening(Box::pin(session))
    }

    /// Drops the session, and returns the name of its server.
    fn close(&mut self) -> String {
        let peer = self.follower.server().map(|server| peer_name(&self.config.servers[server]));
        self.link = Link::None;
        self.write_status();
        peer.unwrap_or_default()
    }

    /// The session was not opened, or ended.
    fn ended(&mut self, error: SessionError) {
        let server = self.follower.server();
        let peer = server.map(|server| peer_name(&self.config.servers[server]));
        let peer = peer.unwrap_or_default();
        let (now, random) = (clock::monotonic(), rng::u64());
        match error {
            SessionError::Broken { rule, detail } => {
                tracing::warn!(
                    peer,
                    rule,
                    "refused an update, and trying another server: {detail}"
                );
                self.refusals.record(Refusal { time: self::now(), peer, rule, detail });
                self.follower.ended(now, random, Failure::Lied);
            }
            SessionError::Lost(why) => match self.follower.ended(now, random, Failure::Lost) {
                Ended::Lost => tracing::info!(peer, "lost the connection to a server: {why}"),
                Ended::Stale | Ended::Lied => tracing::warn!(
                    peer,
                    "lost the connection to a server before it sent anything fresh: {why}"
                ),
            },
        }
        self.close();
    }

    /// Tells the operator and the followed server the state of this edge.
    fn tell(&mut self) {
        self.write_status();
        self.reporter.set_due(matches!(self.link, Link::Open(_)));
        self.sign_report();
    }

    /// Begins to sign a report if one is due and none is being signed.
    fn sign_report(&mut self) {
        if self.reporter.may_begin() {
            let (report, identity) = (self.report(), self.credentials.current());
            self.reporter.begin(report, identity.leaf_der.to_vec(), identity.signer.clone());
        }
    }

    fn signed(&mut self, signed: Signed) {
        match (signed, &self.link) {
            (Ok(signed), Link::Open(session)) => session.report(&signed),
            // The server that it was for is not followed any more.
            (Ok(_), Link::None | Link::Opening(_)) => {}
            (Err(error), _) => {
                tracing::warn!("cannot sign a report: {error}; trying again with the next update");
            }
        }
        self.sign_report();
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

    fn report(&self) -> Report {
        let replica = self.installer.acceptor().replica();
        let (active, sink) = (self.installer.acceptor().active(), self.installer.sink());
        // The versions that the workload reads, not those it was once given.
        let running = active
            .iter()
            .filter(|(name, version)| sink.on_disk(name, **version) == OnDisk::Current);
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
    }

    fn write_status(&self) {
        let server = self.follower.server().filter(|_| matches!(self.link, Link::Open(_)));
        let server = server.map(|server| peer_name(&self.config.servers[server]));
        let view = View {
            acceptor: self.installer.acceptor(),
            sink: self.installer.sink(),
            refusals: &self.refusals,
            bundles: &self.config.bundles,
            server: server.as_deref(),
        };
        self.status.write(view, now());
    }
}

impl Link {
    /// The next event of the session; never, if there is none. The step that follows replaces a
    /// link whose opening is over.
    async fn event(&mut self) -> Event {
        match self {
            Self::None => future::pending().await,
            Self::Opening(opening) => Event::Opened(opening.await),
            Self::Open(session) => Event::Received(session.next().await.map(Box::new)),
        }
    }
}

fn now() -> Timestamp {
    Timestamp(clock::now())
}

fn peer_name(server: &Server) -> String {
    format!("{}/{}", server.region, server.name)
}
