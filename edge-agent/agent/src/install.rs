//! Performs on disk what the [`Acceptor`] decides: an offer becomes durable, then active.
//!
//! ```text
//!   start:  open the cache ─▶ make links and files right ─▶ go on where a crash interrupted
//!   offer:  verify ─▶ stage ─▶ activate, bundle by bundle
//! ```
//!
//! At start nothing is asked of any server: the edge comes up with its last known good.
//!
//! # Invariants
//!
//! - **K6** Whatever the disk has lost or kept of an earlier time, and whatever was configured
//!   since: an edge starts with the version that runs, or a newer one, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use satrap_certify::{
    BundleName, Genesis, Head, Interest, Memory, Rejection, Replica, Snapshot, Timestamp, Update,
    limits::EDGE_UPDATE_BYTES_MAX,
};
use satrap_edge_core::{Acceptor, Effect, Event, Kept, kept::Versions};
use satrap_host::{Fault, Unusable, files, store::StoreError};
use satrap_merkle::{BundleTree, codec::Canonical as _};

use crate::{
    activate::Activator,
    cache::{Cache, CacheError},
    config::Config,
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
    /// The data directory, or the one of links, cannot be used.
    #[error("cannot use {path}: {source}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
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

/// One edge's state and its disk.
#[derive(Debug)]
pub struct Installer {
    cache: Cache,
    activator: Activator,
    acceptor: Acceptor,
}

impl Installer {
    /// Comes up with the last known good config, before anything is asked of any server.
    ///
    /// # Errors
    ///
    /// [`InstallError`] if that could mean an older version than the one that ran (K6).
    pub async fn start(config: &Config, now: Timestamp) -> Result<Self, InstallError> {
        for directory in [&config.data_dir, &config.activate.dir] {
            let made = std::fs::create_dir_all(directory);
            made.map_err(|source| InstallError::Directory { path: directory.clone(), source })?;
        }
        let mut cache = Cache::open(&config.data_dir, &config.genesis)?;
        let activator = Activator::new(config.activate.clone(), &config.data_dir);
        adopt_links(&mut cache, &activator, &config.bundles)?;
        let contents = cache.contents(&config.bundles, |b, v| activator.read_back(b, v))?;
        for rejection in &contents.damage {
            tracing::warn!(rule = rejection.rule(), "cache refused: {rejection}");
        }
        let mut kept = cache.kept().clone();
        if let Some(path) = &config.trusted_checkpoint {
            kept.raise(provisioned(path, &config.genesis)?).expect("restored for this genesis");
        }
        ensure(&activator, &kept.active, &contents.active);
        let interest = Interest::Bundles(config.bundles.clone());
        let replica = Replica::resume(&config.genesis, interest, kept.memory, contents.newest);
        let replica = replica.expect("the cache was opened for this genesis");
        let acceptor = Acceptor::new(replica, kept.active, kept.quarantine);
        let mut installer = Self { cache, activator, acceptor };
        let effect = installer.acceptor.resume(&kept.ready);
        installer.perform(effect, now).await?;
        Ok(installer)
    }

    /// The edge's state.
    #[must_use]
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// The versions and links on disk.
    #[must_use]
    pub fn activator(&self) -> &Activator {
        &self.activator
    }

    /// Takes one update from offer to activation. The inner error blames its sender.
    ///
    /// # Errors
    ///
    /// [`StoreError`], after which the process must stop.
    pub async fn offer(
        &mut self,
        update: Update,
        now: Timestamp,
    ) -> Result<Result<(), Rejection>, StoreError> {
        match self.acceptor.step(now, Event::Offered(Box::new(update))) {
            Ok(effect) => self.perform(effect, now).await.map(Ok),
            Err(rejection) => Ok(Err(rejection)),
        }
    }

    /// S6: a link or files that somebody removed are made again; what cannot be is said, here and
    /// in the status.
    pub fn relink(&self) {
        for (bundle, version) in self.acceptor.active() {
            let content = self.acceptor.replica().content(bundle);
            let content = content.filter(|content| content.root() == version.root);
            let made = self.activator.relink(bundle, *version).or_else(|error| match content {
                Some(content) => self.activator.ensure(bundle, *version, content),
                None => Err(error),
            });
            if let Err(e) = made {
                tracing::error!(%bundle, version = version.version, "link is not right: {e}");
            }
        }
    }

    async fn perform(&mut self, mut effect: Effect, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let event = match effect {
                Effect::Settled => return Ok(()),
                Effect::Stage(staged) => {
                    self.cache.stage(&staged)?;
                    Event::Staged
                }
                Effect::Activate(head, tree) => self.activate(&head, &tree).await?,
            };
            let next = self.acceptor.step(now, event);
            effect = next.expect("only offers are rejected, and this is an outcome");
        }
    }

    async fn activate(&mut self, head: &Head, tree: &BundleTree) -> Result<Event, StoreError> {
        let (bundle, version) = (&head.name, head.version);
        let before = self.acceptor.active().get(bundle).copied();
        match self.activator.activate(head, tree, before).await {
            Ok(()) => {
                self.cache.activated(head)?;
                tracing::info!(%bundle, version, "activated");
                Ok(Event::Activated)
            }
            Err(error) if error.blames_version() => {
                self.cache.quarantined(head)?;
                tracing::error!(%bundle, version, "not activated: {error}");
                Ok(Event::ActivationFailed)
            }
            Err(error) => {
                tracing::error!(%bundle, version, "not activated yet: {error}");
                Ok(Event::ActivationDeferred)
            }
        }
    }
}

/// Comes up with the last known good config.
fn ensure(activator: &Activator, active: &Versions, contents: &BTreeMap<BundleName, BundleTree>) {
    for (bundle, version) in active {
        let made = match contents.get(bundle) {
            Some(content) => activator.ensure(bundle, *version, content),
            None => activator.relink(bundle, *version),
        };
        let version = version.version;
        match made {
            Ok(()) => tracing::info!(%bundle, version, "running last known good"),
            Err(e) => tracing::error!(%bundle, version, "last known good is not right: {e}"),
        }
    }
}

/// A link that leads to a version above all that the database knows says that the database is the
/// older one, or new: what runs is taken for active, so that nothing older replaces it (A3).
fn adopt_links(
    cache: &mut Cache,
    activator: &Activator,
    bundles: &[BundleName],
) -> Result<(), StoreError> {
    let active = cache.kept().active.keys().cloned();
    let names: BTreeSet<_> = bundles.iter().cloned().chain(active).collect();
    for bundle in names {
        let Kept { memory, active, .. } = cache.kept();
        let floor = memory.floors.get(&bundle).map_or(0, |head| head.version);
        let known = active.get(&bundle).map_or(0, |active| active.version).max(floor);
        if let Some(found) = activator.linked(&bundle).filter(|found| found.version > known) {
            let version = found.version;
            tracing::warn!(
                %bundle, version, known,
                "the link leads to a version newer than any in the database; it stays active"
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
