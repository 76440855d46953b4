//! Hands verified content to the workload: one directory per version, one link per bundle.
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
//! - **S1** A workload that opens the link sees one complete version: the directory is written and
//!   synced before the link is renamed into place.
//! - **S2** If the hook fails or takes too long, the link leads to the version from before when
//!   this returns, and the hook has been run for that one again.
//! - **S6** A link that is gone, or leads to an older version than the active one, is made again.
//!   One that leads to a newer version is left: its activation was cut short and is resumed, and
//!   going back in between would be a rollback.

use std::{
    io,
    path::{Path, PathBuf},
};

use satrap_certify::{BundleName, Head};
use satrap_edge_core::Active;
use satrap_merkle::BundleTree;
use tokio::{process::Command, time::timeout};

use crate::{
    config::Activate,
    links::{Found, Links, OnDisk, VERSIONS},
    paths::{self, PathError},
    versions::Versions,
};

/// Why the workload does not run a version.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The keys cannot be files here (S3, S4).
    #[error(transparent)]
    Path(#[from] PathError),
    /// The hook said no.
    #[error("hook failed: {0}")]
    Hook(String),
    /// A directory or file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is where a link belongs (S5).
    #[error("{path} is not a link of this agent; move it away, and the agent makes its own")]
    Foreign {
        /// Where.
        path: PathBuf,
    },
}

impl ActivateError {
    /// Whether this version cannot run here; otherwise the host is at fault, and the same version
    /// may be tried again.
    #[must_use]
    pub fn blames_version(&self) -> bool {
        match self {
            Self::Path(_) | Self::Hook(_) => true,
            Self::Write { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// Writes versions and makes links lead to them.
#[derive(Debug)]
pub struct Activator {
    config: Activate,
    links: Links,
    versions: Versions,
}

impl Activator {
    /// An activator that keeps versions in `data_dir`.
    #[must_use]
    pub fn new(config: Activate, data_dir: &Path) -> Self {
        let links = Links::new(config.dir.clone());
        let versions = Versions::new(data_dir.join(VERSIONS), config.combined_file.clone());
        Self { config, links, versions }
    }

    /// The link a workload opens.
    #[must_use]
    pub fn link(&self, bundle: &BundleName) -> PathBuf {
        self.links.path(bundle)
    }

    /// Makes the workload run `tree` in place of `before`.
    ///
    /// # Errors
    ///
    /// [`ActivateError`]; the workload then runs what it ran before (S2).
    pub async fn activate(
        &self,
        head: &Head,
        tree: &BundleTree,
        before: Option<Active>,
    ) -> Result<(), ActivateError> {
        let bundle = &head.name;
        let before = self.running(bundle, before);
        let directory = self.versions.write(bundle, Active::of(head), tree, before.as_deref())?;
        self.links.lead(bundle, &directory)?;
        if let Err(error) = self.run_hook(head).await {
            match &before {
                Some(before) => {
                    self.links.lead(bundle, before)?;
                    // The workload may have read the new version before it complained.
                    if let Err(again) = self.run_hook(head).await {
                        tracing::warn!(%bundle, "hook failed after rollback: {again}");
                    }
                }
                None => self.links.remove(bundle)?,
            }
            return Err(error);
        }
        self.versions.forget_others(bundle, &[Some(directory), before]);
        Ok(())
    }

    /// Checks that the files of what is active are those that were activated, and that the link
    /// leads there; repairs what is not so (S6).
    ///
    /// # Errors
    ///
    /// [`ActivateError`] if it cannot be repaired.
    pub fn ensure(
        &self,
        bundle: &BundleName,
        active: Active,
        tree: &BundleTree,
    ) -> Result<(), ActivateError> {
        if !self.versions.is_intact(bundle, active, tree)? {
            tracing::warn!(%bundle, version = active.version, "active files were damaged; repaired");
            self.versions.write(bundle, active, tree, None)?;
        }
        self.relink(bundle, active)
    }

    /// Makes the link lead to what is active, if it should (S6) and the files are there.
    ///
    /// # Errors
    ///
    /// [`ActivateError`] if it cannot be made.
    pub fn relink(&self, bundle: &BundleName, active: Active) -> Result<(), ActivateError> {
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
        tracing::warn!(%bundle, version = active.version, "link was gone or astray; made again");
        self.links.lead(bundle, &directory)
    }

    /// Whether the link leads to what is active.
    #[must_use]
    pub fn on_disk(&self, bundle: &BundleName, active: Active) -> OnDisk {
        let directory = self.versions.directory(bundle, active);
        match self.links.find(bundle) {
            Found::Foreign => OnDisk::Foreign,
            Found::Own(target, _) if target != directory => OnDisk::Other,
            Found::Own(..) if directory.is_dir() => OnDisk::Current,
            Found::Own(..) | Found::Nothing => OnDisk::Missing,
        }
    }

    /// The version that the link leads to, if its files are whole.
    #[must_use]
    pub fn linked(&self, bundle: &BundleName) -> Option<Active> {
        let Found::Own(target, version) = self.links.find(bundle) else { return None };
        let found = Active { version, root: self.versions.read(&target)?.root() };
        target.ends_with(paths::version_name(found)).then_some(found)
    }

    /// The content of a version, read back from its files, or from where the link leads; `None`
    /// unless it has its root.
    #[must_use]
    pub fn read_back(&self, bundle: &BundleName, version: Active) -> Option<BundleTree> {
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

    /// Where to go back to: what is recorded as active, else what the link leads to.
    fn running(&self, bundle: &BundleName, active: Option<Active>) -> Option<PathBuf> {
        let recorded = active.map(|active| self.versions.directory(bundle, active));
        recorded.filter(|directory| directory.is_dir()).or_else(|| match self.links.find(bundle) {
            Found::Own(target, _) => Some(target),
            Found::Nothing | Found::Foreign => None,
        })
    }

    async fn run_hook(&self, head: &Head) -> Result<(), ActivateError> {
        let Some((program, arguments)) = self.config.hook.split_first() else { return Ok(()) };
        let child = Command::new(program)
            .args(arguments)
            .env("SATRAP_BUNDLE", head.name.as_str())
            .env("SATRAP_VERSION", head.version.to_string())
            .env("SATRAP_DIR", self.links.path(&head.name))
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .status();
        let limit = self.config.hook_timeout;
        match timeout(limit, child).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(ActivateError::Hook(format!("`{program}` ended with {status}"))),
            Ok(Err(e)) => Err(ActivateError::Hook(format!("`{program}` did not start: {e}"))),
            Err(_) => Err(ActivateError::Hook(format!("`{program}` took longer than {limit:?}"))),
        }
    }
}
