//! The two traits through which this crate touches a disk, and their implementation on a real
//! directory.
//!
//! All data of a member lies in one directory, under plain names. The storage code names files and
//! asks for effects; [`DirFiles`] performs them on a real directory, [`crate::sim::SimDisk`] on a
//! simulated disk that loses power, fails and fills up on command.
//!
//! # Contract
//!
//! - Written bytes survive a power cut only after [`File::sync_data`] returned, and a created,
//!   renamed or removed name only after [`Files::sync_dir`] returned. Until then any subset of the
//!   changes may survive, in units of a 512-byte sector or one name.
//! - After a failed write or sync the content is unknown. Callers stop and never retry.
//! - A file system that turns read-only during a sync may lose names, and what was written where nothing
//!   had been written before, and still report success: ext4 (Linux 6.18) does not return the error when
//!   the conversion of an allocated extent fails. Bytes that replace synced ones are not affected, and
//!   every later write, sync or rename fails. So such a sync counts once a later call has succeeded:
//!   [`File::sync_twice`]; [`Files::sync_dir`] makes that call itself. This holds for a file system that
//!   writes in place, as ext4 and XFS do, and turns read-only after an error (`errors=remount-ro`).

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FallocateFlags, OFlags},
    io::Errno,
    process::{Pid, test_kill_process},
};

use crate::limits::ZERO_BYTES;

const MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// The lock file; a process holds its lock for as long as it uses the directory.
const LOCK: &str = "lock";
/// The longest process id.
const PID_BYTES_MAX: u64 = 20;

/// One directory of a member.
pub trait Files: fmt::Debug + Send + Sync {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`], or from the file system.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Creates an empty file, replacing one of that name.
    ///
    /// # Errors
    ///
    /// From the file system.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Renames a file, replacing one at `to`. Atomic, also when power fails.
    ///
    /// # Errors
    ///
    /// From the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. A reader that has it open can go on reading it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`], or from the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// All names, sorted.
    ///
    /// # Errors
    ///
    /// From the file system.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    ///
    /// From the file system; which names survive is then unknown.
    fn sync_dir(&self) -> io::Result<()>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    ///
    /// From the file system.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file. All methods may be called from several threads.
#[expect(clippy::len_without_is_empty, reason = "no caller asks whether a file is empty")]
pub trait File: fmt::Debug + Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    ///
    /// From the file system.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if the file is too short, or from the file system.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// From the file system; any part may then have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros that need not have room on the disk.
    ///
    /// # Errors
    ///
    /// From the file system.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Extends the file to `bytes` with zeros that have room on the disk.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`], or from the file system.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Returns once all written bytes, and the length, survive a power cut; see the contract above for
    /// bytes in space that was never written before.
    ///
    /// # Errors
    ///
    /// From the file system; what survives is then unknown, and stays so.
    fn sync_data(&self) -> io::Result<()>;

    /// As [`File::sync_data`], also for bytes in space that was never written before.
    ///
    /// # Errors
    ///
    /// As for [`File::sync_data`].
    fn sync_twice(&self) -> io::Result<()> {
        self.sync_data()?;
        self.sync_data()
    }
}

/// Whether `error` says that the disk or the quota is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A real directory, locked against other processes.
#[derive(Debug)]
pub struct DirFiles {
    root: PathBuf,
    directory: fs::File,
    _lock: fs::File,
}

impl DirFiles {
    /// Locks the directory at `root`, creating it if there is none.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::ResourceBusy`] if another process uses it, or from the file system.
    pub fn open(root: &Path) -> io::Result<Self> {
        if !root.try_exists()? {
            fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(root)?;
            if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::File::open(parent)?.sync_all()?;
            }
        }
        // Through a link, this would write into a file of another directory.
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = options();
        options.create(true).truncate(false).custom_flags(flags);
        let lock =
            options.open(root.join(LOCK)).map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::LOOP) => io::Error::other(format!(
                    "`{LOCK}` in {} is a symbolic link; remove the link",
                    root.display()
                )),
                _ => error,
            })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let message = match owner_in(&lock) {
                    Some(pid) => format!("process {pid} uses {}", root.display()),
                    None => format!("another process uses {}", root.display()),
                };
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // The id is only for people to read, so a disk without room for it does no harm.
        let _ = lock.set_len(0).and_then(|()| writeln!(&lock, "{}", std::process::id()));
        Ok(Self { root: root.to_owned(), directory: fs::File::open(root)?, _lock: lock })
    }
}

/// The process that the lock file names, unless it has ended: a new owner writes its id after it
/// got the lock, so until then the file names the previous owner.
fn owner_in(lock: &fs::File) -> Option<i32> {
    let mut text = String::new();
    lock.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    let pid = text.trim().parse().ok()?;
    let runs = test_kill_process(Pid::from_raw(pid)?) != Err(Errno::SRCH);
    runs.then_some(pid)
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(MODE);
    options
}

impl Files for DirFiles {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(options().open(self.root.join(name))?)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = options().create(true).truncate(true).open(self.root.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            // This crate gives only UTF-8 names, so any other name is a foreign file.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.directory.sync_all()?;
        // A file system that turned read-only during the first sync fails this one (see the contract).
        self.directory.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            // The file system cannot reserve space, but writing zeros allocates it.
            Err(rustix::io::Errno::OPNOTSUPP) => zero(self, self.len()?, bytes),
            done => Ok(done?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Writes zeros over `from..to`.
///
/// # Errors
///
/// From the file system.
pub(crate) fn zero(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; ZERO_BYTES];
    let mut at = from;
    while at < to {
        let bytes = ZERO_BYTES.min(usize::try_from(to - at).unwrap_or(ZERO_BYTES));
        file.write_at(at, &zeros[..bytes])?;
        at += bytes as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DirFiles::open(dir.path()).unwrap();
        let error = DirFiles::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn a_lock_file_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, lock) = (dir.path().join("target"), dir.path().join(LOCK));
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, lock).unwrap();
        let error = DirFiles::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is a symbolic link; remove the link"), "{error}");
        assert_eq!(fs::read_to_string(target).unwrap(), "precious");
    }

    #[test]
    fn allocated_bytes_are_zero_and_count() {
        let dir = tempfile::tempdir().unwrap();
        let files = DirFiles::open(&dir.path().join("data")).unwrap();
        let file = files.create("a").unwrap();
        file.write_at(0, b"x").unwrap();
        file.allocate(8192).unwrap();
        let mut read = [1; 3];
        file.read_at(0, &mut read).unwrap();
        assert_eq!((file.len().unwrap(), read), (8192, [b'x', 0, 0]));
        assert!(file.read_at(8191, &mut read).is_err());
        assert!(files.free_bytes().unwrap() > 0);
        files.rename("a", "b").unwrap();
        files.sync_dir().unwrap();
        assert_eq!(files.list().unwrap(), ["b", LOCK]);
    }
}
