//! The sink for files ([`crate::sink`]): writes one directory per version, moves one link per bundle, and runs a hook.
//!
//! ```text
//! <activate.dir>/pki+edge-trust ─▶ <data_dir>/versions/pki+edge-trust/42-9f3a…/
//!                                      a.pem  b.pem  …  [trust.pem, all values in one]
//! ```
//!
//! Names are made in [`crate::paths`], links in [`crate::links`], directories in
//! [`crate::versions`].
//!
//! # Invariants
//!
//! - **ACTIVATE-1** A workload that opens the link sees one complete version: the directory is written and
//!   synced before the link is renamed into place.
//! - **ACTIVATE-2** If the hook fails or takes too long, the link leads to the version from before when
//!   the activation ends, and the hook has been run for that one again.
//! - **ACTIVATE-6** A link that is gone, or leads to an older version than the active one, is made again.
//!   One that leads to a newer version is left: its activation is in flight, or was cut short and is
//!   resumed, and going back in between would be a rollback.

pub(crate) mod error;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use satrap_certify::BundleName;
use satrap_edge_core::{Active, Candidate};
use satrap_merkle::BundleTree;
use tokio::{
    process::Command,
    task::{self, JoinError},
    time::timeout,
};

pub(crate) use self::error::ActivateError;
use crate::{
    config::Activate,
    links::{Found, Links, OnDisk, VERSIONS},
    paths,
    sink::{Activating, Activation, Sink, SinkError},
    versions::{Versions, Wanted, interrupted},
};

impl From<ActivateError> for SinkError {
    fn from(error: ActivateError) -> Self {
        let why = error.to_string();
        match error {
            ActivateError::Path(_) | ActivateError::Hook(_) => Self::Version(why),
            ActivateError::Write { .. }
            | ActivateError::Foreign { .. }
            | ActivateError::Start { .. } => Self::Host(why),
        }
    }
}

/// Writes versions, makes links lead to them, and runs the hook.
#[derive(Debug)]
pub struct FileSink {
    config: Activate,
    links: Links,
    versions: Versions,
}

impl FileSink {
    /// A sink that keeps versions in `data_dir`.
    #[must_use]
    pub fn new(config: Activate, data_dir: &Path) -> Self {
        let links = Links::new(config.dir.clone());
        let versions = Versions::new(data_dir.join(VERSIONS), config.combined_file.clone());
        Self { config, links, versions }
    }

    async fn switch(self: Arc<Self>, activation: Activation) -> Result<(), ActivateError> {
        let Activation { candidate, before } = activation;
        let bundle = candidate.bundle.clone();
        let before = self.running(&bundle, before);
        let directory = self.versions.directory(&bundle, candidate.version);
        let kept = [Some(directory), before.as_ref().map(|(directory, _)| directory.clone())];
        let outcome = self.install(candidate, before).await;
        // Also after a failure: versions that fail one after the other must not fill the disk.
        self.versions.forget_others(&bundle, &kept);
        outcome
    }

    async fn install(
        self: &Arc<Self>,
        candidate: Candidate,
        before: Option<(PathBuf, u64)>,
    ) -> Result<(), ActivateError> {
        let (bundle, version) = (candidate.bundle.clone(), candidate.version.version);
        let old = before.as_ref().map(|(directory, _)| directory.clone());
        let directory = self.write(candidate, old).await?;
        self.links.lead(&bundle, &directory)?;
        let Err(error) = self.run_hook(&bundle, version).await else { return Ok(()) };
        match &before {
            Some((directory, version)) => {
                self.links.lead(&bundle, directory)?;
                // The workload may have read the new version before it complained.
                if let Err(again) = self.run_hook(&bundle, *version).await {
                    tracing::warn!(
                        %bundle, version,
                        "the hook also failed for the version that was restored: {again}"
                    );
                }
            }
            None => self.links.remove(&bundle)?,
        }
        Err(error)
    }

    /// Writes a version on another thread: it may have thousands of files, each of which is synced, and
    /// the edge goes on meanwhile (ACCEPT-4).
    async fn write(
        self: &Arc<Self>,
        candidate: Candidate,
        old: Option<PathBuf>,
    ) -> Result<PathBuf, ActivateError> {
        let Candidate { bundle, version, content } = candidate;
        let path = self.versions.directory(&bundle, version);
        let wanted = Wanted::default();
        let (sink, still) = (self.clone(), wanted.0.clone());
        let write = move || sink.versions.write(&bundle, version, &content, old.as_deref(), &still);
        match task::spawn_blocking(write).await.map_err(JoinError::try_into_panic) {
            Ok(written) => written,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // This process is stopping.
            Err(Err(_)) => Err(ActivateError::Write { path, source: interrupted() }),
        }
    }

    /// Makes the link lead to the active version, if it should (ACTIVATE-6) and the files are there.
    fn relink(&self, bundle: &BundleName, active: Active) -> Result<(), ActivateError> {
        let directory = self.versions.directory(bundle, active);
        let newer = |version: u64| version > active.version;
        match self.links.find(bundle) {
            Found::Own(target, _) if target == directory && directory.is_dir() => return Ok(()),
            Found::Own(_, version) if newer(version) => return Ok(()),
            Found::Foreign => {
                return Err(ActivateError::Foreign { path: self.links.path(bundle) });
            }
            Found::Own(..) | Found::Nothing => {}
        }
        if !directory.is_dir() {
            let source = io::ErrorKind::NotFound.into();
            return Err(ActivateError::Write { path: directory, source });
        }
        tracing::warn!(
            %bundle, version = active.version,
            "the link was gone or led to another version; it leads to the active one again"
        );
        self.links.lead(bundle, &directory)
    }

    /// Makes the files and the link of the active version right.
    fn repair(
        &self,
        bundle: &BundleName,
        active: Active,
        content: &BundleTree,
    ) -> Result<(), ActivateError> {
        if !self.versions.is_intact(bundle, active, content)? {
            let version = active.version;
            tracing::warn!(%bundle, version, "files of the active version were damaged; repaired");
            self.versions.write(bundle, active, content, None, &Wanted::default().0)?;
        }
        self.relink(bundle, active)
    }

    /// The directory and version to go back to: the one that is recorded as active, else the one
    /// that the link leads to.
    fn running(&self, bundle: &BundleName, active: Option<Active>) -> Option<(PathBuf, u64)> {
        let recorded =
            active.map(|active| (self.versions.directory(bundle, active), active.version));
        recorded.filter(|(directory, _)| directory.is_dir()).or_else(|| {
            match self.links.find(bundle) {
                Found::Own(target, version) => Some((target, version)),
                Found::Nothing | Found::Foreign => None,
            }
        })
    }

    /// Runs the hook after the link was made to lead to `version`.
    async fn run_hook(&self, bundle: &BundleName, version: u64) -> Result<(), ActivateError> {
        let Some((program, arguments)) = self.config.hook.split_first() else { return Ok(()) };
        let child = Command::new(program)
            .args(arguments)
            .env("SATRAP_BUNDLE", bundle.as_str())
            .env("SATRAP_VERSION", version.to_string())
            .env("SATRAP_DIR", self.links.path(bundle))
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .status();
        let limit = self.config.hook_timeout;
        match timeout(limit, child).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(ActivateError::Hook(format!("`{program}` ended with {status}"))),
            Ok(Err(source)) => Err(ActivateError::Start { program: program.clone(), source }),
            Err(_) => Err(ActivateError::Hook(format!("`{program}` took longer than {limit:?}"))),
        }
    }
}

impl Sink for FileSink {
    fn activate(self: Arc<Self>, activation: Activation) -> Activating {
        Box::pin(async move { Ok(self.switch(activation).await?) })
    }

    fn ensure(
        &self,
        bundle: &BundleName,
        active: Active,
        content: Option<&BundleTree>,
    ) -> Result<(), SinkError> {
        let repaired = match content {
            Some(content) => self.repair(bundle, active, content),
            None => self.relink(bundle, active),
        };
        Ok(repaired?)
    }

    fn keep(
        &self,
        bundle: &BundleName,
        active: Active,
        content: Option<&BundleTree>,
    ) -> Result<(), SinkError> {
        let kept = self.relink(bundle, active).or_else(|error| match content {
            Some(content) => self.repair(bundle, active, content),
            None => Err(error),
        });
        Ok(kept?)
    }

    fn on_disk(&self, bundle: &BundleName, active: Active) -> OnDisk {
        let directory = self.versions.directory(bundle, active);
        match self.links.find(bundle) {
            Found::Foreign => OnDisk::Foreign,
            Found::Own(target, _) if target != directory => OnDisk::Other,
            Found::Own(..) if directory.is_dir() => OnDisk::Current,
            Found::Own(..) | Found::Nothing => OnDisk::Missing,
        }
    }

    fn found(&self, bundle: &BundleName) -> Option<Active> {
        let Found::Own(target, version) = self.links.find(bundle) else { return None };
        let found = Active { version, root: self.versions.read(&target)?.root() };
        target.ends_with(paths::version_name(found)).then_some(found)
    }

    fn read_back(&self, bundle: &BundleName, version: Active) -> Option<BundleTree> {
        let read = |directory: &Path| {
            self.versions.read(directory).filter(|tree| tree.root() == version.root)
        };
        read(&self.versions.directory(bundle, version)).or_else(|| {
            match self.links.find(bundle) {
                // In another data directory, if that was configured before.
                Found::Own(target, _) => read(&target),
                Found::Nothing | Found::Foreign => None,
            }
        })
    }

    fn link(&self, bundle: &BundleName) -> PathBuf {
        self.links.path(bundle)
    }
}
