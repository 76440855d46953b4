//! Performs on disk what the [`Acceptor`] decides: an offer becomes durable, then active.
//!
//! ```text
//!   start:  open the cache ─▶ make links and files right ─▶ go on where a crash interrupted
//!   offer:  verify ─▶ stage ─▶ begin to activate ┄┄▶ activated: record it, begin the next
//! ```
//!
//! At start nothing is asked of any server: the edge comes up with its last known good. An
//! activation is a future that the [`Installer`] holds: offers are taken while it is in flight.
//!
//! # Invariants
//!
//! - **KEPT-6** Whatever the disk has lost or kept of an earlier time, and whatever was configured
//!   since: an edge starts with the version that runs, or a newer one, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, future,
    path::{Path, PathBuf},
    sync::Arc,
};

use satrap_certify::{
    BundleName, Genesis, Interest, Memory, Rejection, Replica, Snapshot, Timestamp, Update,
    limits::EDGE_UPDATE_BYTES_MAX,
};
use satrap_edge_core::{Acceptor, Active, Candidate, Effect, Event, Kept, kept::Versions};
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_runtime::{Fault, Unusable, files, store::StoreError};

use crate::{
    activate::FileSink,
    cache::{Cache, CacheError},
    config::Config,
    sink::{Activating, Activation, Sink, SinkError},
};

/// Why nothing can be installed here.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The memory cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The disk failed; going on could lose what was reported as running.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `data_dir` or `activate.dir` cannot be used.
    #[error("cannot use {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// The provisioned checkpoint is refused.
    #[error("trusted checkpoint {path}: {why}")]
    Checkpoint {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl InstallError {
    /// The same, as a fault of one of the settings in `config`.
    #[must_use]
    pub fn unusable(self, config: &Config) -> Unusable {
        match self {
            Self::Cache(CacheError::Store(error)) | Self::Store(error) => {
                error.unusable("data_dir", &config.data_dir)
            }
            Self::Cache(error @ CacheError::Damaged { .. }) => {
                let remedy = "the edge runs nothing older meanwhile";
                Unusable::new("data_dir", Fault::Machine, error, remedy)
            }
            Self::Cache(error @ CacheError::Realm { .. }) => {
                Unusable::new("data_dir", Fault::Setting, error, "nothing in it was changed")
            }
            Self::Directory { path, source } if path == config.data_dir => {
                Unusable::directory("data_dir", &path, &source)
            }
            Self::Directory { path, source } => Unusable::directory("activate.dir", &path, &source),
            Self::Checkpoint { path, why } => {
                let why = format!("{}: {why}", path.display());
                let remedy = "name a file from `satrap get --certificate` of this realm";
                Unusable::new("trusted_checkpoint", Fault::Setting, why, remedy)
            }
        }
    }
}

/// One edge's state, its disk, and the activation in flight.
#[derive(Debug)]
pub struct Installer {
    cache: Cache,
    sink: Arc<dyn Sink>,
    acceptor: Acceptor,
    activation: Option<InFlight>,
}

/// A version that the sink is activating.
struct InFlight {
    candidate: Candidate,
    outcome: Activating,
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Candidate { bundle, version, .. } = &self.candidate;
        f.debug_struct("InFlight")
            .field("bundle", bundle)
            .field("version", version)
            .finish_non_exhaustive()
    }
}

impl Installer {
    /// Comes up with the last known good config, before anything is asked of any server, and begins
    /// to activate what a crash interrupted.
    ///
    /// # Errors
    ///
    /// [`InstallError`] if that could mean an older version than the one that ran (KEPT-6).
    pub fn start(config: &Config, now: Timestamp) -> Result<Self, InstallError> {
        for directory in [&config.data_dir, &config.activate.dir] {
            let made = std::fs::create_dir_all(directory);
            made.map_err(|source| InstallError::Directory { path: directory.clone(), source })?;
        }
        let mut cache = Cache::open(&config.data_dir, &config.genesis)?;
        let sink = Arc::new(FileSink::new(config.activate.clone(), &config.data_dir));
        adopt_found(&mut cache, &*sink, &config.bundles)?;
        let ready = interrupted(cache.kept(), &*sink, &config.bundles);
        let contents = cache.contents(&config.bundles, &ready, |b, v| sink.read_back(b, v))?;
        for rejection in &contents.damage {
            tracing::warn!(
                rule = rejection.rule(),
                "content in this edge's database is damaged; it is read from the workload's files, \
                 or from a server: {rejection}"
            );
        }
        let mut kept = cache.kept().clone();
        if let Some(path) = &config.trusted_checkpoint {
            kept.raise(provisioned(path, &config.genesis)?).expect("restored for this genesis");
        }
        ensure(&*sink, &kept.active, &contents.active);
        let interest = Interest::Bundles(config.bundles.clone());
        let replica = Replica::resume(&config.genesis, interest, kept.memory, contents.newest);
        let replica = replica.expect("the cache was opened for this genesis");
        let acceptor = Acceptor::new(replica, kept.active, kept.quarantine);
        let mut installer = Self { cache, sink, acceptor, activation: None };
        let effect = installer.acceptor.resume(&ready, &contents.ready);
        installer.perform(effect, now)?;
        Ok(installer)
    }

    /// The edge's state.
    #[must_use]
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// The sink, to look at what the workload reads.
    #[must_use]
    pub fn sink(&self) -> &dyn Sink {
        &*self.sink
    }

    /// Verifies one update, makes it durable, and begins to activate it if nothing else is being
    /// activated. The inner error blames its sender.
    ///
    /// # Errors
    ///
    /// [`StoreError`], after which the process must stop.
    pub fn offer(
        &mut self,
        update: Update,
        now: Timestamp,
    ) -> Result<Result<(), Rejection>, StoreError> {
        match self.acceptor.step(now, Event::Offered(Box::new(update))) {
            Ok(effect) => self.perform(effect, now).map(Ok),
            Err(rejection) => Ok(Err(rejection)),
        }
    }

    /// Waits for the end of the activation in flight; for ever if there is none. May be dropped and
    /// called again. The result is for [`Installer::conclude`].
    pub async fn activated(&mut self) -> Result<(), SinkError> {
        match &mut self.activation {
            Some(activation) => activation.outcome.as_mut().await,
            None => future::pending().await,
        }
    }

    /// Records how the activation in flight ended, and begins the next one.
    ///
    /// # Errors
    ///
    /// [`StoreError`], after which the process must stop.
    ///
    /// # Panics
    ///
    /// If none is in flight: `outcome` is not from [`Installer::activated`].
    pub fn conclude(
        &mut self,
        outcome: Result<(), SinkError>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let InFlight { candidate, .. } =
            self.activation.take().expect("BUG: an outcome without an activation");
        let (bundle, version) = (&candidate.bundle, candidate.version.version);
        let event = match outcome {
            Ok(()) => {
                self.cache.activated(&candidate)?;
                tracing::info!(%bundle, version, "activated");
                Event::Activated
            }
            Err(SinkError::Version(why)) => {
                self.cache.quarantined(bundle, candidate.version)?;
                tracing::error!(
                    %bundle, version,
                    "the workload cannot run this version, and the edge waits for the next one: {why}"
                );
                Event::ActivationFailed
            }
            Err(SinkError::Host(why)) => {
                tracing::error!(
                    %bundle, version,
                    "this version was not activated, and is tried again with the next update: {why}"
                );
                Event::ActivationDeferred
            }
        };
        let next = self.acceptor.step(now, event);
        self.perform(next.expect("only offers are rejected, and this is an outcome"), now)
    }

    /// ACTIVATE-6: has the sink repair what was removed since; what it cannot repair is in the log and in
    /// the status.
    pub fn keep(&self) {
        for (bundle, version) in self.acceptor.active() {
            let content = self.acceptor.replica().content(bundle);
            let content = content.filter(|content| content.root() == version.root);
            if let Err(e) = self.sink.keep(bundle, *version, content) {
                let version = version.version;
                tracing::error!(%bundle, version, "the workload does not read the active version: {e}");
            }
        }
    }

    fn perform(&mut self, mut effect: Effect, now: Timestamp) -> Result<(), StoreError> {
        loop {
            match effect {
                Effect::Wait => return Ok(()),
                Effect::Stage(staged) => {
                    self.cache.stage(&staged)?;
                    let next = self.acceptor.step(now, Event::Staged);
                    effect = next.expect("only offers are rejected, and this is an outcome");
                }
                Effect::Activate(candidate) => {
                    self.activate(candidate);
                    return Ok(());
                }
            }
        }
    }

    fn activate(&mut self, candidate: Candidate) {
        let Candidate { bundle, version, .. } = &candidate;
        tracing::info!(%bundle, version = version.version, "activating");
        let before = self.acceptor.active().get(bundle).copied();
        let activation = Activation { candidate: candidate.clone(), before };
        let outcome = self.sink.clone().activate(activation);
        self.activation = Some(InFlight { candidate, outcome });
    }
}

/// Makes sure that the workload has the last known good config.
fn ensure(sink: &dyn Sink, active: &Versions, contents: &BTreeMap<BundleName, BundleTree>) {
    for (bundle, version) in active {
        let ensured = sink.ensure(bundle, *version, contents.get(bundle));
        let version = version.version;
        match ensured {
            Ok(()) => tracing::info!(%bundle, version, "running the last known good version"),
            Err(e) => {
                tracing::error!(%bundle, version, "cannot run the last known good version: {e}");
            }
        }
    }
}

/// The versions of the newest complete state that the workload was not given, or not to the end
/// (ACCEPT-2). A link that leads beyond one of them says that the database is of an earlier time: that
/// bundle waits for a server, because its version would be a step back (KEPT-6).
fn interrupted(kept: &Kept, sink: &dyn Sink, wanted: &[BundleName]) -> Versions {
    let new = |(bundle, version): &(&BundleName, &Active)| {
        wanted.contains(*bundle) && kept.active.get(*bundle) != Some(*version)
    };
    let beyond = |(bundle, version): &(&BundleName, &Active)| {
        sink.found(bundle).is_some_and(|found| found.version > version.version)
    };
    let ready = kept.ready.iter().filter(new).filter(|ready| !beyond(ready));
    ready.map(|(bundle, version)| (bundle.clone(), *version)).collect()
}

/// A workload that reads a version above all that the database knows says that the database is the
/// older one, or new: that version is taken for active, so that nothing older replaces it (ACCEPT-3).
fn adopt_found(
    cache: &mut Cache,
    sink: &dyn Sink,
    bundles: &[BundleName],
) -> Result<(), StoreError> {
    let active = cache.kept().active.keys().cloned();
    let names: BTreeSet<_> = bundles.iter().cloned().chain(active).collect();
    for bundle in names {
        let Kept { memory, active, .. } = cache.kept();
        let floor = memory.floors.get(&bundle).map_or(0, |head| head.version);
        let known = active.get(&bundle).map_or(0, |active| active.version).max(floor);
        if let Some(found) = sink.found(&bundle).filter(|found| found.version > known) {
            let version = found.version;
            tracing::warn!(
                %bundle, version, known,
                "the workload reads a version newer than any in the database; it stays active"
            );
            cache.runs(&bundle, found)?;
        }
    }
    Ok(())
}

/// The state of an exported certificate: its checkpoint, and its versions of what it holds.
fn provisioned(path: &Path, genesis: &Genesis) -> Result<Memory, InstallError> {
    let refused = |why: String| InstallError::Checkpoint { path: path.to_owned(), why };
    let bytes = files::read(path, EDGE_UPDATE_BYTES_MAX as u64);
    let bytes = bytes.map_err(|e| refused(e.to_string()))?;
    let snapshot = Snapshot::from_canonical(&bytes).map_err(|e| refused(e.to_string()))?;
    let mut names: Vec<_> = snapshot.0.contents.iter().map(|d| d.bundle.clone()).collect();
    names.sort();
    names.dedup();
    let replica = Replica::restore(genesis, Interest::Bundles(names), &snapshot);
    replica.map(|replica| replica.memory()).map_err(|e| refused(e.to_string()))
}
