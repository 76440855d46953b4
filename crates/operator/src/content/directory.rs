//! Reads a directory as a bundle.
//!
//! Another process may change the directory meanwhile. So each directory and file is opened from the
//! directory above it, which is open, and not by its path; and the opened file is judged, not its name:
//! a file or directory that is replaced by a link in between is refused (CONTENT-3).

use std::{
    ffi::{CStr, OsStr},
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat},
    io::Errno,
};
use satrap_certify::limits::VALUE_BYTES_MAX;
use satrap_merkle::BundleTree;
use satrap_runtime::files;

use super::{Links, check_name, check_size, dangling};
use crate::{error::Error, text::one_line};

/// Keys have at most 512 bytes, so deeper files could not be published anyway.
const DEPTH_MAX: usize = 64;

/// Reads all files below `root`, which may itself be a link.
///
/// # Errors
///
/// [`Error`] names the file and what is wrong with it.
pub fn read(root: &Path, links: Links) -> Result<BundleTree, Error> {
    let dir = File::open(root).map_err(|e| Error::file("content", root, &e))?;
    let mut reader = Reader { root, tree: BundleTree::default(), links };
    reader.read(&dir, root, 0)?;
    Ok(reader.tree)
}

struct Reader<'a> {
    root: &'a Path,
    tree: BundleTree,
    links: Links,
}

/// One name in a directory that is open.
struct Entry<'a> {
    dir: &'a File,
    name: &'a CStr,
    path: &'a Path,
}

impl Reader<'_> {
    /// Reads the directory `dir`, which was found at `path`.
    fn read(&mut self, dir: &File, path: &Path, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(refuse(path, &format!("it is more than {DEPTH_MAX} levels deep")));
        }
        let unreadable = |e: Errno| Error::file("content", path, &e.into());
        for found in Dir::read_from(dir).map_err(unreadable)? {
            let found = found.map_err(unreadable)?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            let entry = Entry { dir, name, path: &path };
            match entry.kind()? {
                FileType::Directory => {
                    let inner = entry.open(OFlags::NOFOLLOW | OFlags::DIRECTORY)?;
                    self.read(&inner, &path, depth + 1)?;
                }
                FileType::RegularFile => self.value(&path, entry.open(OFlags::NOFOLLOW)?)?,
                FileType::Symlink => {
                    self.check_link(&path)?;
                    self.value(&path, entry.open(OFlags::empty())?)?;
                }
                _ => return Err(refuse(&path, NO_CONTENT)),
            }
        }
        Ok(())
    }

    /// CONTENT-3
    fn check_link(&self, path: &Path) -> Result<(), Error> {
        let target = fs::read_link(path).map_err(|e| match e.kind() {
            // The link was replaced meanwhile.
            io::ErrorKind::InvalidInput => replaced(path),
            _ => Error::file("content", path, &e),
        })?;
        let Ok(kind) = fs::metadata(path) else {
            return Err(dangling(path, &target));
        };
        match self.links {
            // A link to a directory could be a loop, and a device has no end.
            Links::Follow if !kind.is_file() => Err(refuse(path, NO_CONTENT)),
            Links::Follow => Ok(()),
            Links::Refuse { advice } => {
                let (path, target) = (path.display().to_string(), target.display().to_string());
                Err(Error::refused(format!(
                    "{} is a link to {}, and a link may lead to any file: {advice}",
                    one_line(&path),
                    one_line(&target)
                )))
            }
        }
    }

    fn value(&mut self, path: &Path, file: File) -> Result<(), Error> {
        let unreadable = |e| Error::file("content", path, &e);
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(refuse(path, NO_CONTENT));
        }
        let name = path.strip_prefix(self.root).expect("it was found below its root");
        let key = check_name(name.as_os_str().as_bytes()).map_err(|why| refuse(path, &why))?;
        let value = files::read_from(file, path, VALUE_BYTES_MAX as u64);
        let value = value.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => refuse(path, TOO_LARGE),
            _ => unreadable(error),
        })?;
        self.tree.insert(&key, Arc::from(value));
        check_size(&self.tree).map_err(|why| refuse(self.root, &why))
    }
}

impl Entry<'_> {
    /// Reads the type with `fstatat`, because some file systems do not return it from `readdir`.
    fn kind(&self) -> Result<FileType, Error> {
        let stat = statat(self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|e| Error::file("content", self.path, &e.into()))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn open(&self, flags: OFlags) -> Result<File, Error> {
        // Opening a pipe that replaced the file must not block.
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat(self.dir, self.name, flags, Mode::empty()) {
            Ok(fd) => Ok(File::from(fd)),
            // The directory was replaced by a link.
            Err(Errno::LOOP | Errno::NOTDIR) => Err(replaced(self.path)),
            Err(e) => Err(Error::file("content", self.path, &e.into())),
        }
    }
}

/// [`VALUE_BYTES_MAX`], in words.
const TOO_LARGE: &str = "larger than 256 KiB, which one entry may have; keep large artifacts elsewhere and \
                         publish their digests";
const _: () = assert!(VALUE_BYTES_MAX == 256 * 1024);
const NO_CONTENT: &str = "neither a file nor a directory; only those can be published";

fn refuse(path: &Path, why: &str) -> Error {
    Error::refused(format!("{}: {why}", one_line(&path.display().to_string())))
}

fn replaced(path: &Path) -> Error {
    let why = "another process replaced it while it was read; see which one, and give the command \
               again";
    refuse(path, why)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Duration,
    };

    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use satrap_runtime::clock;

    use super::*;

    fn keys(tree: &BundleTree) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        tree.iter().map(|(key, _)| text(key.as_bytes())).collect()
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (target, name) in [("/dev/null", "device"), (".", "loop")] {
            symlink(target, dir.path().join(name)).unwrap();
            let error = read(dir.path(), Links::Follow).unwrap_err();
            assert!(error.message.contains(NO_CONTENT), "{error}");
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = read(dir.path(), Links::Follow).unwrap_err();
        assert!(error.message.contains(NO_CONTENT), "{error}");
        fs::remove_file(socket).unwrap();
        let file = dir.path().join("value");
        fs::write(&file, vec![0; VALUE_BYTES_MAX]).unwrap();
        assert_eq!(read(dir.path(), Links::REFUSE).unwrap().len(), 1);
        fs::write(&file, vec![0; VALUE_BYTES_MAX + 1]).unwrap();
        let error = read(dir.path(), Links::REFUSE).unwrap_err();
        assert!(error.message.contains("larger than 256 KiB"), "{error}");
    }

    #[test]
    fn a_link_is_read_only_if_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "secret").unwrap();
        let from = dir.path().join("from");
        fs::create_dir(&from).unwrap();
        symlink(&outside, from.join("link")).unwrap();
        for (links, has_flag) in [(Links::REFUSE, false), (Links::by_flag(false), true)] {
            let error = read(&from, links).unwrap_err();
            assert!(error.message.contains("link is a link to"), "{error}");
            assert!(error.message.contains("outside"), "{error}");
            assert_eq!(error.message.contains("--follow-links"), has_flag, "{error}");
        }
        assert_eq!(keys(&read(&from, Links::by_flag(true)).unwrap()), ["link"]);
        fs::remove_file(&outside).unwrap();
        for links in [Links::REFUSE, Links::Follow] {
            let error = read(&from, links).unwrap_err();
            assert!(error.message.contains("which does not exist"), "{error}");
        }
        // The directory itself may be a link: the active version of an edge is one.
        fs::remove_file(from.join("link")).unwrap();
        fs::write(from.join("a"), "1").unwrap();
        symlink(&from, dir.path().join("current")).unwrap();
        assert_eq!(keys(&read(&dir.path().join("current"), Links::REFUSE).unwrap()), ["a"]);
    }

    /// Reads `from` while another thread puts `there` and `other` in each other's place, until it was
    /// both read and refused often enough.
    fn read_while_exchanged(from: &Path, there: &Path, other: &Path) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let exchange = RenameFlags::EXCHANGE;
                    renameat_with(CWD, there, CWD, other, exchange).unwrap();
                }
            });
            let (mut taken, mut refused, begun) = (0, 0, clock::monotonic());
            let mut secrets = 0;
            while taken.min(refused) < 3_000 && clock::monotonic() - begun < Duration::from_secs(60)
            {
                match read(from, Links::REFUSE) {
                    Ok(tree) => {
                        taken += 1;
                        secrets += tree.iter().filter(|(_, value)| value[..] == *b"secret").count();
                    }
                    Err(error) => {
                        refused += 1;
                        assert_eq!(error.kind, crate::error::Kind::Refused, "{error}");
                    }
                }
            }
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(secrets, 0, "of {taken} bundles that were read");
            assert!(taken.min(refused) >= 3_000, "{taken} read, {refused} refused");
        });
    }

    #[test]
    fn a_link_that_takes_the_place_of_a_file_or_directory_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [from, outside, other] = ["from", "outside", "other"].map(|name| dir.path().join(name));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a"), "secret").unwrap();
        fs::write(from.join("sub/a"), "1").unwrap();

        symlink(outside.join("a"), &other).unwrap();
        read_while_exchanged(&from, &from.join("sub/a"), &other);
        fs::remove_dir_all(from.join("sub")).unwrap();
        fs::create_dir(from.join("sub")).unwrap();
        fs::write(from.join("sub/a"), "1").unwrap();
        let _ = fs::remove_file(&other);
        symlink(&outside, &other).unwrap();
        read_while_exchanged(&from, &from.join("sub"), &other);
    }
}
