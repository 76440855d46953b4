//! The links in `activate.dir`: one per bundle, each leading to the directory of one version.
//!
//! The directory may be shared: a person or another program may have put a file where a link
//! belongs, or have removed one. So this module looks before it writes.
//!
//! # Invariants
//!
//! - **ACTIVATE-5** Nothing is replaced or removed that this agent did not make. A link is its own if it
//!   leads to a version of that very bundle, in whatever data directory.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use satrap_certify::BundleName;
use satrap_runtime::files;
use serde::{Deserialize, Serialize};

use crate::{activate::error::ActivateError, paths};

/// The directory that holds all versions, in the data directory.
pub const VERSIONS: &str = "versions";

/// The state of the place where a bundle's link belongs, compared with the version that should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisk {
    /// The link leads to that version's directory.
    Current,
    /// There is no link, or the directory it leads to is gone.
    Missing,
    /// The link leads to another version.
    Other,
    /// Something this agent did not make, or cannot read.
    Foreign,
}

/// The entry found where a link belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// A link of this agent: its target, and the version in the target's name.
    Own(PathBuf, u64),
    Foreign,
}

/// The links of one agent.
#[derive(Debug)]
pub(crate) struct Links {
    dir: PathBuf,
}

impl Links {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn path(&self, bundle: &BundleName) -> PathBuf {
        self.dir.join(paths::flat(bundle))
    }

    pub(crate) fn find(&self, bundle: &BundleName) -> Found {
        found(&self.path(bundle), bundle)
    }

    /// Makes the link of `bundle` lead to `target`, in one step (ACTIVATE-1).
    pub(crate) fn lead(&self, bundle: &BundleName, target: &Path) -> Result<(), ActivateError> {
        let link = self.path(bundle);
        let temporary = self.dir.join(paths::temporary(&paths::flat(bundle), "new"));
        for path in [&link, &temporary] {
            if found(path, bundle) == Found::Foreign {
                return Err(ActivateError::Foreign { path: path.clone() });
            }
        }
        let made = fs::create_dir_all(&self.dir)
            .and_then(|()| remove_if_there(&temporary))
            .and_then(|()| symlink(target, &temporary))
            .and_then(|()| fs::rename(&temporary, &link))
            .and_then(|()| files::sync_directory(&self.dir));
        made.map_err(|source| ActivateError::Write { path: link, source })
    }

    /// Removes the link of `bundle`, if it is one of this agent.
    pub(crate) fn remove(&self, bundle: &BundleName) -> Result<(), ActivateError> {
        let path = self.path(bundle);
        match found(&path, bundle) {
            Found::Nothing => Ok(()),
            Found::Foreign => Err(ActivateError::Foreign { path }),
            Found::Own(..) => fs::remove_file(&path)
                .and_then(|()| files::sync_directory(&self.dir))
                .map_err(|source| ActivateError::Write { path, source }),
        }
    }
}

/// ACTIVATE-5
fn found(path: &Path, bundle: &BundleName) -> Found {
    match fs::read_link(path) {
        Ok(target) => match version_of(&target, bundle) {
            Some(version) => Found::Own(target, version),
            None => Found::Foreign,
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Found::Nothing,
        // Not a link, or not readable: the agent replaces neither.
        Err(_) => Found::Foreign,
    }
}

/// The version in `<anywhere>/versions/<bundle>/<version>-<root>`.
fn version_of(target: &Path, bundle: &BundleName) -> Option<u64> {
    let parent = target.parent()?;
    let of_bundle = parent.ends_with(Path::new(VERSIONS).join(paths::flat(bundle)));
    let version = paths::version_in(target.file_name()?.to_str()?)?;
    of_bundle.then_some(version)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
