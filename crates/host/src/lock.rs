//! Makes sure that a directory has one owner, and says which process that is.
//!
//! The operating system gives the lock back when its owner is gone, whatever it died of, so a lock
//! file that is left behind means nothing.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

/// The lock file in the directory.
const NAME: &str = "lock";
/// No process id is longer.
const PID_BYTES_MAX: u64 = 20;

/// A directory that belongs to this process until the value is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why a directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by {}", .directory.display(), owner(*.pid))]
    InUse {
        /// Which directory.
        directory: PathBuf,
        /// Whose it is, if the lock file says so.
        pid: Option<u32>,
    },
    /// From the file system.
    #[error("cannot lock {}: {error}", .directory.display())]
    File {
        /// Which directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl DirectoryLock {
    /// Takes `directory`, which must exist.
    ///
    /// # Errors
    ///
    /// [`LockError`]
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let failed = |error| LockError::File { directory: directory.to_owned(), error };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(directory.join(NAME)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // What cannot be read names nobody.
                let _ = (&mut file).take(PID_BYTES_MAX).read_to_string(&mut text);
                let (directory, pid) = (directory.to_owned(), text.trim().parse().ok());
                return Err(LockError::InUse { directory, pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Only for people, and a full disk must not keep the owner out.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_and_the_next_one_reads_which() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, "99999999999 of a process that is gone").unwrap();
        let lock = DirectoryLock::take(dir.path()).unwrap();
        let error = DirectoryLock::take(dir.path()).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(error, format!("{} is in use by process {pid}", dir.path().display()));
        drop(lock);
        DirectoryLock::take(dir.path()).unwrap();
    }
}
