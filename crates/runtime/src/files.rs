//! Writes files so that a reader sees the old content or the new one, never a mixture.
//!
//! # Invariants
//!
//! - **FILES-1** After [`write`] returns, the new content survives a power cut: the file is synced before
//!   the rename, the directory after it.
//! - **FILES-2** A secret is never readable by others, not even between creation and rename.
//! - **FILES-3** A file is read only up to the caller's limit, whatever its size on disk says.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::rng;

const MODE_PUBLIC: u32 = 0o644;
const MODE_SECRET: u32 = 0o600;
const MODE_OTHERS: u32 = 0o077;

/// Replaces the file at `path` with `bytes` (FILES-1).
///
/// # Errors
///
/// From the file system. The old content, if any, is then still in place, unless only the final
/// directory sync failed; treat that as fatal, because either content may survive a power cut.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, MODE_PUBLIC)
}

/// Like [`write`], for a file that only its owner may read (FILES-2).
///
/// # Errors
///
/// As for [`write`].
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, MODE_SECRET)
}

/// Reads a file of at most `bytes_max` bytes (FILES-3).
///
/// # Errors
///
/// From the file system, or [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_from(File::open(path)?, path, bytes_max)
}

/// Reads a secret of at most `bytes_max` bytes, wiped from memory when dropped.
///
/// # Errors
///
/// As for [`read`], and [`io::ErrorKind::PermissionDenied`] if the group or others have any access:
/// a user that could read the key may already have it.
pub fn read_secret(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        let path = path.display();
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{path} has mode {mode:04o}, expected 0600: run `chmod 600 {path}`"),
        ));
    }
    read_from(file, path, bytes_max).map(Zeroizing::new)
}

/// Makes renames and new files in `directory` survive a power cut.
///
/// # Errors
///
/// From the file system; treat as fatal.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    directory.sync_all()?;
    // ext4 reports success for a sync during which it turns read-only, and fails the next one.
    directory.sync_all()
}

/// The directory that holds `path`.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a file that is open, of at most `bytes_max` bytes (FILES-3); an error names it by `path`.
///
/// # Errors
///
/// As for [`read`].
pub fn read_from(file: File, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} is larger than the {bytes_max} bytes allowed", path.display()),
        ));
    }
    Ok(bytes)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let staged = staging_path(path)?;
    let written = stage(&staged, bytes, mode).and_then(|()| fs::rename(&staged, path));
    if let Err(error) = written {
        // Best effort: the rename may be what failed, and that error is the one to report.
        let _ = fs::remove_file(&staged);
        return Err(error);
    }
    sync_directory(parent(path))
}

fn stage(staged: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(staged)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Beside the target, because a rename is atomic only within one file system.
fn staging_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()))
    })?;
    let mut staged = std::ffi::OsString::from(".");
    staged.push(name);
    staged.push(format!(".{:016x}.tmp", rng::u64()));
    Ok(path.with_file_name(staged))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn content_is_replaced_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_target_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"new").is_err(), "a file cannot replace a directory");
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn secrets_are_private_and_must_stay_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_secret(&path, b"secret").unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read_secret(&path, 6).unwrap().as_slice(), b"secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_secret(&path, 6).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("mode 0640, expected 0600: run `chmod 600 "));
    }

    #[test]
    fn at_the_limit_and_over_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        write(&path, &[7; 100]).unwrap();
        assert_eq!(read(&path, 100).unwrap().len(), 100);
        assert_eq!(read(&path, 99).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
