//! Hands verified content to the workload: one directory per version, one symlink per bundle.
//!
//! ```text
//! <activate.dir>/pki/edge-trust ─▶ <data_dir>/versions/pki+edge-trust/42-9f3a…/
//!                                      a.pem  b.pem  …  [trust.pem, all values in one]
//! ```
//!
//! # Invariants
//!
//! - **S1** A workload that opens the symlink sees one complete version: the directory is written
//!   and synced before the symlink is renamed into place.
//! - **S2** If the hook fails or takes too long, the symlink points at the version from before when
//!   this returns, and the hook has been run for that one again.
//! - **S3** A key becomes a path only if it stays inside the version's directory.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
};

use satrap_certify::{BundleName, Head, Key};
use satrap_host::files;
use satrap_merkle::BundleTree;
use tokio::{process::Command, time::timeout};

use crate::config::Activate;

/// Why the workload does not run a version.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A key cannot be a file here (S3).
    #[error("key `{0}` is not a relative file path; publish keys like `dir/file.pem`")]
    Path(String),
    /// A directory or file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The hook said no.
    #[error("hook failed: {0}")]
    Hook(String),
}

/// Writes versions and swaps symlinks.
#[derive(Debug)]
pub struct Activator {
    config: Activate,
    versions: PathBuf,
}

impl Activator {
    /// An activator that keeps versions in `data_dir`.
    #[must_use]
    pub fn new(config: Activate, data_dir: &Path) -> Self {
        Self { config, versions: data_dir.join("versions") }
    }

    /// The symlink a workload opens.
    #[must_use]
    pub fn link(&self, bundle: &BundleName) -> PathBuf {
        self.config.dir.join(bundle.as_str())
    }

    /// Makes the workload run `tree`.
    ///
    /// # Errors
    ///
    /// [`ActivateError`]; the workload then runs what it ran before (S2).
    pub async fn activate(&self, head: &Head, tree: &BundleTree) -> Result<(), ActivateError> {
        let link = self.link(&head.name);
        let before = fs::read_link(&link).ok();
        let directory = self.write_version(head, tree, before.as_deref())?;
        self.swap(&directory, &link)?;
        if let Err(error) = self.run_hook(head, &link).await {
            match &before {
                Some(before) => {
                    self.swap(before, &link)?;
                    // The workload may have read the new version before it complained.
                    if let Err(again) = self.run_hook(head, &link).await {
                        tracing::warn!(bundle = %head.name, "hook failed after rollback: {again}");
                    }
                }
                None => self.write(&link, fs::remove_file(&link))?,
            }
            return Err(error);
        }
        self.forget_others(&head.name, &[Some(directory), before]);
        Ok(())
    }

    /// Checks at start that what is active is still what was activated, and repairs it if not.
    ///
    /// # Errors
    ///
    /// [`ActivateError`] if it cannot be repaired.
    pub fn ensure(
        &self,
        bundle: &BundleName,
        active: satrap_edge_core::Active,
        tree: &BundleTree,
    ) -> Result<(), ActivateError> {
        let head = Head {
            name: bundle.clone(),
            version: active.version,
            root: active.root,
            entries: tree.len() as u64,
            bytes: tree.bytes(),
            height: 0,
        };
        let directory = self.version_directory(&head);
        let link = self.link(bundle);
        let intact = fs::read_link(&link).is_ok_and(|target| target == directory)
            && self.files(tree)?.iter().all(|(path, bytes)| {
                fs::read(directory.join(path)).is_ok_and(|found| found == *bytes)
            });
        if !intact {
            tracing::warn!(%bundle, version = active.version, "active files were damaged; repaired");
            // Written beside the damaged files and swapped in: a reader never sees a mixture.
            if directory.exists() {
                let aside = directory.with_extension("damaged");
                let _ = fs::remove_dir_all(&aside);
                self.write(&directory, fs::rename(&directory, &aside))?;
            }
            let directory = self.write_version(&head, tree, None)?;
            self.swap(&directory, &link)?;
        }
        Ok(())
    }

    fn bundle_directory(&self, bundle: &BundleName) -> PathBuf {
        // `+` is in no bundle name, so two names never share a directory.
        self.versions.join(bundle.as_str().replace('/', "+"))
    }

    fn version_directory(&self, head: &Head) -> PathBuf {
        let name = format!("{}-{}", head.version, hex::encode(&head.root[..8]));
        self.bundle_directory(&head.name).join(name)
    }

    /// The files of a version, in key order.
    fn files(&self, tree: &BundleTree) -> Result<Vec<(PathBuf, Vec<u8>)>, ActivateError> {
        let mut all = Vec::new();
        let mut files = Vec::new();
        for (key, value) in tree.iter() {
            files.push((relative_path(key)?, value.to_vec()));
            if self.config.combined_file.is_some() {
                all.extend_from_slice(value);
                if !value.ends_with(b"\n") {
                    all.push(b'\n');
                }
            }
        }
        if let Some(name) = &self.config.combined_file {
            files.push((PathBuf::from(name), all));
        }
        Ok(files)
    }

    /// Writes and syncs the directory of a version under a temporary name, then renames it (S1).
    fn write_version(
        &self,
        head: &Head,
        tree: &BundleTree,
        before: Option<&Path>,
    ) -> Result<PathBuf, ActivateError> {
        let directory = self.version_directory(head);
        let files = self.files(tree)?;
        let staging = directory.with_extension("staging");
        let _ = fs::remove_dir_all(&staging);
        self.write(&staging, fs::create_dir_all(&staging))?;
        let mut parents = vec![staging.clone()];
        for (path, _) in &files {
            let parent = files::parent(&staging.join(path)).to_owned();
            self.write(&parent, fs::create_dir_all(&parent))?;
            parents.push(parent);
        }
        self.write_files(&staging, before, &files)?;
        parents.sort();
        parents.dedup();
        for parent in parents.iter().rev() {
            self.write(parent, files::sync_directory(parent))?;
        }
        if directory.exists() {
            // Left by an activation that failed or was cut off; nothing points at it for sure
            // only if the symlink does not, so it is moved aside rather than changed in place.
            let aside = directory.with_extension("old");
            let _ = fs::remove_dir_all(&aside);
            self.write(&directory, fs::rename(&directory, &aside))?;
        }
        self.write(&directory, fs::rename(&staging, &directory))?;
        let parent = files::parent(&directory);
        self.write(parent, files::sync_directory(parent))?;
        Ok(directory)
    }

    /// Writes and syncs the files. One that the version before holds byte for byte is linked
    /// instead: it is on disk already, and most files of most versions are.
    fn write_files(
        &self,
        directory: &Path,
        before: Option<&Path>,
        files: &[(PathBuf, Vec<u8>)],
    ) -> Result<(), ActivateError> {
        files.iter().try_for_each(|(name, bytes)| {
            let path = directory.join(name);
            let same = before.map(|before| before.join(name)).filter(|old| {
                // Compared, not assumed: somebody may have written to it.
                fs::read(old).is_ok_and(|found| found == *bytes)
            });
            let linked = same.is_some_and(|old| fs::hard_link(old, &path).is_ok());
            if linked { Ok(()) } else { self.write(&path, write_new(&path, bytes)) }
        })
    }

    fn swap(&self, target: &Path, link: &Path) -> Result<(), ActivateError> {
        let parent = files::parent(link);
        self.write(parent, fs::create_dir_all(parent))?;
        let mut name = link.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = parent.join(name);
        let _ = fs::remove_file(&temporary);
        self.write(&temporary, symlink(target, &temporary))?;
        self.write(link, fs::rename(&temporary, link))?;
        self.write(parent, files::sync_directory(parent))
    }

    async fn run_hook(&self, head: &Head, link: &Path) -> Result<(), ActivateError> {
        let Some((program, arguments)) = self.config.hook.split_first() else { return Ok(()) };
        let child = Command::new(program)
            .args(arguments)
            .env("SATRAP_BUNDLE", head.name.as_str())
            .env("SATRAP_VERSION", head.version.to_string())
            .env("SATRAP_DIR", link)
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

    /// Removes directories of versions that are neither active nor the one before.
    fn forget_others(&self, bundle: &BundleName, keep: &[Option<PathBuf>]) {
        let Ok(entries) = fs::read_dir(self.bundle_directory(bundle)) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !keep.iter().flatten().any(|kept| *kept == path) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    fn write(&self, path: &Path, result: io::Result<()>) -> Result<(), ActivateError> {
        result.map_err(|source| ActivateError::Write { path: path.to_owned(), source })
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// S3
fn relative_path(key: &Key) -> Result<PathBuf, ActivateError> {
    let refused = || ActivateError::Path(key.to_string());
    let text = std::str::from_utf8(key.as_bytes()).map_err(|_| refused())?;
    let path = Path::new(text);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    // `components` forgives `a//b` and `a/`; two keys must not become one file.
    if plain && path.components().collect::<PathBuf>().as_os_str() == text {
        Ok(path.to_owned())
    } else {
        Err(refused())
    }
}
