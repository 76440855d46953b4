//! Writes the content of each version of a bundle into a directory of its own, compares it with that content, and reads
//! it back.
//!
//! A directory appears under its name only when it is complete and synced. Other programs may add or alter files later,
//! so a directory is compared before it is used again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use satrap_certify::{
    BundleName, Key,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, VALUE_BYTES_MAX},
};
use satrap_edge_core::Active;
use satrap_merkle::BundleTree;
use satrap_runtime::files;

use crate::{
    activate::error::ActivateError,
    paths::{self, VersionFile},
};

/// The caller holds it while it waits for a version to be written; dropping it ends the writing.
pub(crate) struct Wanted(pub(crate) Arc<AtomicBool>);

impl Default for Wanted {
    fn default() -> Self {
        Self(Arc::new(true.into()))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The writing of a version was ended.
pub(crate) fn interrupted() -> io::Error {
    io::ErrorKind::Interrupted.into()
}

/// The directory that holds the versions of one agent.
#[derive(Debug)]
pub(crate) struct Versions {
    dir: PathBuf,
    combined_file: Option<String>,
}

impl Versions {
    pub(crate) fn new(dir: PathBuf, combined_file: Option<String>) -> Self {
        Self { dir, combined_file }
    }

    pub(crate) fn directory(&self, bundle: &BundleName, version: Active) -> PathBuf {
        self.of(bundle).join(paths::version_name(version))
    }

    fn of(&self, bundle: &BundleName) -> PathBuf {
        self.dir.join(paths::flat(bundle))
    }

    /// Whether every file of the version holds what it should.
    pub(crate) fn is_intact(
        &self,
        bundle: &BundleName,
        version: Active,
        tree: &BundleTree,
    ) -> Result<bool, ActivateError> {
        let directory = self.directory(bundle, version);
        let files = paths::files(tree, self.combined_file.as_deref())?;
        let same = |(path, bytes): &VersionFile| holds(&directory.join(path), bytes);
        Ok(directory.is_dir() && files.iter().all(same))
    }

    /// Writes and syncs the directory of a version under a temporary name, then renames it (ACTIVATE-1).
    /// One that is there and intact is left as it is, since a link may lead to it. Ends between two files
    /// when the version is not `wanted` any more.
    pub(crate) fn write(
        &self,
        bundle: &BundleName,
        version: Active,
        tree: &BundleTree,
        before: Option<&Path>,
        wanted: &AtomicBool,
    ) -> Result<PathBuf, ActivateError> {
        let directory = self.directory(bundle, version);
        if self.is_intact(bundle, version, tree)? {
            return Ok(directory);
        }
        let files = paths::files(tree, self.combined_file.as_deref())?;
        let name = paths::version_name(version);
        let [staging, aside] = ["staging", "damaged"]
            .map(|purpose| self.of(bundle).join(paths::temporary(&name, purpose)));
        at(&staging, remove_directory(&staging))?;
        self.stage(&staging, before, &files, wanted)?;
        if directory.exists() {
            // Moved aside rather than changed in place: a reader never sees a mixture.
            at(&aside, remove_directory(&aside))?;
            at(&directory, fs::rename(&directory, &aside))?;
        }
        at(&directory, fs::rename(&staging, &directory))?;
        at(&aside, remove_directory(&aside))?;
        let parent = files::parent(&directory);
        at(parent, files::sync_directory(parent))?;
        Ok(directory)
    }

    fn stage(
        &self,
        staging: &Path,
        before: Option<&Path>,
        files: &[VersionFile],
        wanted: &AtomicBool,
    ) -> Result<(), ActivateError> {
        at(staging, fs::create_dir_all(staging))?;
        let mut parents = vec![staging.to_owned()];
        for (name, bytes) in files {
            let path = staging.join(name);
            if !wanted.load(Ordering::Relaxed) {
                return at(&path, Err(interrupted()));
            }
            let parent = files::parent(&path).to_owned();
            at(&parent, fs::create_dir_all(&parent))?;
            write_or_link(&path, bytes, before.map(|old| old.join(name)))?;
            parents.push(parent);
        }
        parents.sort();
        parents.dedup();
        parents.iter().rev().try_for_each(|parent| at(parent, files::sync_directory(parent)))
    }

    /// The content of the version in `root`, read back from its files; `None` if it is too much for
    /// a bundle, or something else is among them.
    pub(crate) fn read(&self, root: &Path) -> Option<BundleTree> {
        let mut tree = BundleTree::default();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).ok()? {
                let entry = entry.ok()?;
                let path = entry.path();
                let name = path.strip_prefix(root).ok()?;
                // The type of the entry itself: this agent writes no links, devices or pipes.
                let kind = entry.file_type().ok()?;
                if kind.is_dir() {
                    directories.push(path);
                } else if !kind.is_file() {
                    return None;
                } else if self.combined_file.as_deref().map(Path::new) != Some(name) {
                    let key = Key::new(name.as_os_str().as_encoded_bytes()).ok()?;
                    let value = files::read(&path, VALUE_BYTES_MAX as u64).ok()?;
                    tree.insert(&key, Arc::from(value));
                }
                // This agent wrote no more than a bundle; others may have added to it.
                if tree.len() > BUNDLE_ENTRIES_MAX
                    || tree.bytes() > BUNDLE_BYTES_MAX
                    || directories.len() > BUNDLE_ENTRIES_MAX
                {
                    return None;
                }
            }
        }
        Some(tree)
    }

    /// Removes directories of versions that are neither active nor the one before.
    pub(crate) fn forget_others(&self, bundle: &BundleName, keep: &[Option<PathBuf>]) {
        let Ok(entries) = fs::read_dir(self.of(bundle)) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !keep.iter().flatten().any(|kept| *kept == path) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}

/// Writes and syncs a file. One that the version before holds byte for byte is linked instead: it
/// is on disk already, and most files of most versions are.
fn write_or_link(path: &Path, bytes: &[u8], before: Option<PathBuf>) -> Result<(), ActivateError> {
    // Compared, not assumed: another program may have written to it.
    let same = before.filter(|old| holds(old, bytes));
    let linked = same.is_some_and(|old| fs::hard_link(old, path).is_ok());
    if linked { Ok(()) } else { at(path, write_new(path, bytes)) }
}

fn holds(path: &Path, bytes: &[u8]) -> bool {
    files::read(path, bytes.len() as u64).is_ok_and(|found| found == bytes)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn at(path: &Path, result: io::Result<()>) -> Result<(), ActivateError> {
    result.map_err(|source| ActivateError::Write { path: path.to_owned(), source })
}
