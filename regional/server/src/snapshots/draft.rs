//! How a snapshot file comes to have its name.
//!
//! ```text
//!   Draft ── all of it arrived ──▶ synced, read back, rebuilt in memory ──▶ Whole ──▶ named
//!     └── dropped: removed               └── it does not: removed
//! ```
//!
//! Two types instead of one, so that nothing else can be given a name (N1).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use satrap_certify::Genesis;
use satrap_host::files;

use crate::offline::{OfflineError, SnapshotFacts, read_snapshot};

/// A snapshot holds every value and the hashes of passwords.
const MODE: u32 = 0o600;

/// Why a snapshot has no name.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// From the file system.
    #[error("{}: {error}", path.display())]
    Io {
        /// About this.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The name is taken.
    #[error("{} exists; a snapshot is never overwritten", .0.display())]
    Exists(PathBuf),
    /// What was written cannot be restored.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// Under the name that it has for now.
        path: PathBuf,
        /// What is wrong with it.
        why: OfflineError,
    },
}

fn about(path: &Path) -> impl FnOnce(io::Error) -> DraftError {
    let path = path.to_owned();
    |error| DraftError::Io { path, error }
}

/// A file that goes away with this value.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Best effort: it was renamed, or the next draft takes its place.
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
    /// Begins one under a name that is for now only, in the directory where it will stay.
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

    /// Adds what comes next.
    ///
    /// # Errors
    ///
    /// [`DraftError::Io`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DraftError> {
        self.file.write_all(bytes).map_err(about(&self.partial.0))
    }

    /// Makes it durable, reads all of it back, compares every digest in it and rebuilds its state.
    ///
    /// # Errors
    ///
    /// [`DraftError`]; it is gone then.
    pub fn verify(self, genesis: &Genesis) -> Result<Whole, DraftError> {
        let Self { partial, file } = self;
        file.sync_all().map_err(about(&partial.0))?;
        drop(file);
        let file = File::open(&partial.0).map_err(about(&partial.0))?;
        match read_snapshot(&mut BufReader::new(file), genesis) {
            Ok(facts) => Ok(Whole { partial, facts }),
            Err(why) => Err(DraftError::Unusable { path: partial.0.clone(), why }),
        }
    }
}

/// A snapshot that can be restored.
#[derive(Debug)]
pub struct Whole {
    partial: Partial,
    facts: SnapshotFacts,
}

impl Whole {
    /// What is in it.
    #[must_use]
    pub fn facts(&self) -> &SnapshotFacts {
        &self.facts
    }

    /// Gives it its name, durably.
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
