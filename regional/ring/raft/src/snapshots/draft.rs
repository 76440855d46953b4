//! Snapshot files in the making: a file gets its name only after it was written, synced and read
//! back.
//!
//! ```text
//!   Draft ── complete ──▶ synced, read back, rebuilt in memory ──▶ Whole ──▶ named
//!     └── dropped: removed               └── invalid: removed
//! ```
//!
//! There are two types, so that only a verified file can be named (SNAPSHOT-1).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use satrap_ring_core::StateSetup;
use satrap_runtime::files;

use crate::offline::{OfflineError, SnapshotFacts, read_snapshot};

/// A snapshot holds every value and the hashes of passwords.
const MODE: u32 = 0o600;

/// The reason why a snapshot was not named.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// The file system failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The error of the file system.
        error: io::Error,
    },
    /// A file with that name exists.
    #[error("{} exists; a snapshot is never overwritten", .0.display())]
    Exists(PathBuf),
    /// The file cannot be restored.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// Its temporary path.
        path: PathBuf,
        /// The fault.
        why: OfflineError,
    },
}

fn about(path: &Path) -> impl FnOnce(io::Error) -> DraftError {
    let path = path.to_owned();
    |error| DraftError::Io { path, error }
}

/// A file that is removed when this value is dropped.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Best effort: the file was renamed, or the next draft replaces it.
        let _ = fs::remove_file(&self.0);
    }
}

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Draft {
    partial: Partial,
    file: File,
}

impl Draft {
    /// Creates a draft under a temporary name, in its final directory.
    ///
    /// # Errors
    ///
    /// [`DraftError::Io`]
    pub fn create(partial: PathBuf) -> Result<Self, DraftError> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(MODE);
        let file = options.open(&partial).map_err(about(&partial))?;
        Ok(Self { partial: Partial(partial), file })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// [`DraftError::Io`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DraftError> {
        self.file.write_all(bytes).map_err(about(&self.partial.0))
    }

    /// Syncs the file, reads all of it back, compares every digest in it and rebuilds its state.
    ///
    /// # Errors
    ///
    /// [`DraftError`]; the file is then removed.
    pub fn verify(self, config: &StateSetup) -> Result<Whole, DraftError> {
        let Self { partial, file } = self;
        file.sync_all().map_err(about(&partial.0))?;
        drop(file);
        let file = File::open(&partial.0).map_err(about(&partial.0))?;
        match read_snapshot(&mut BufReader::new(file), config) {
            Ok(facts) => Ok(Whole { partial, facts }),
            Err(why) => Err(DraftError::Unusable { path: partial.0.clone(), why }),
        }
    }
}

/// A verified snapshot.
#[derive(Debug)]
pub struct Whole {
    partial: Partial,
    facts: SnapshotFacts,
}

impl Whole {
    /// The summary of its content.
    #[must_use]
    pub fn facts(&self) -> &SnapshotFacts {
        &self.facts
    }

    /// Renames the file to `path`, durably.
    ///
    /// # Errors
    ///
    /// [`DraftError`]
    pub fn name(self, path: &Path) -> Result<SnapshotFacts, DraftError> {
        let Self { partial, facts } = self;
        if path.try_exists().map_err(about(path))? {
            return Err(DraftError::Exists(path.to_owned()));
        }
        fs::rename(&partial.0, path).map_err(about(path))?;
        files::sync_directory(files::parent(path)).map_err(about(path))?;
        Ok(facts)
    }
}
