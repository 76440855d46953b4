//! Makes sure that a directory has one owner, and says which process that is.
//!
//! The operating system releases the lock when its owner ends, for whatever cause, so a lock file that is left behind
//! locks nothing. The process id in it is only for people.
//!
//! A member of a ring locks its directory in `satrap_ring_storage::files`, by the same file: that
//! crate depends on no other of this program, and on no runtime.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::OFlags,
    io::Errno,
    process::{Pid, test_kill_process},
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

/// Why a directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by {}", .directory.display(), owner(*.pid))]
    InUse {
        /// Which directory.
        directory: PathBuf,
        /// The owner, if the lock file names it.
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
        // Through a link, this would write into a file of another directory.
        let options = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file =
            options.open(directory.join(NAME)).map_err(|error| {
                match Errno::from_io_error(&error) {
                    Some(Errno::LOOP) => failed(io::Error::other(format!(
                        "`{NAME}` in it is a symbolic link; remove the link"
                    ))),
                    _ => failed(error),
                }
            })?;
        Self::hold(file, directory)
    }

    fn hold(mut file: File, directory: &Path) -> Result<Self, LockError> {
        let failed = |error| LockError::File { directory: directory.to_owned(), error };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let (directory, pid) = (directory.to_owned(), owner_in(&file));
                return Err(LockError::InUse { directory, pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // A disk that is full keeps the owner out only of a directory that had no lock file before.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

/// The process that `file` names, unless it has ended: a new owner writes its id after it got the lock,
/// and until then the file names the owner before.
fn owner_in(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let runs = test_kill_process(process) != Err(Errno::SRCH);
    runs.then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_has_ended_is_not_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        std::fs::write(&path, format!("{}\n", ended.id())).unwrap();
        // The next owner has the lock, and has not written yet.
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.try_lock().unwrap();
        let error = DirectoryLock::take(dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("{} is in use by another process", dir.path().display()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_without_room_for_the_process_id_keeps_no_owner_out() {
        let dir = tempfile::tempdir().unwrap();
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        DirectoryLock::hold(full, dir.path()).unwrap();
    }

    #[test]
    fn a_lock_file_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("target"), dir.path().join(NAME));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = DirectoryLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("`lock` in it is a symbolic link; remove the link"), "{error}");
        assert_eq!(std::fs::read_to_string(target).unwrap(), "precious");
    }

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
