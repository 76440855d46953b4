//! Content on disk: what an operator publishes and what an edge activates.
//!
//! A directory is a bundle: every file below it is an entry, its relative path the key. A PEM file
//! is a bundle of certificates: each becomes an entry named after its own hash, so that adding,
//! removing or reordering certificates changes exactly the entries it should.
//!
//! # Invariants
//!
//! - **P1** A PEM file with anything but certificates is refused whole: a private key in it would
//!   be copied to every edge.
//! - **P2** Sizes are checked while reading, so a wrong path cannot fill memory.
//! - **P3** Nothing is read through a link unless the caller asked for that: a link may lead to any
//!   file that the caller can read, and what it leads to would be copied to every edge.
//! - **P4** Every key is a name that each edge can make a file of, and that prints as one line.

mod difference;
mod hazards;

use std::{fs, os::unix::ffi::OsStrExt as _, path::Path, sync::Arc};

pub use difference::{Difference, key_text};
pub use hazards::hazards;

use pem::{EncodeConfig, LineEnding, Pem};
use satrap_certify::{
    Key,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, VALUE_BYTES_MAX},
};
use satrap_edge_agent::paths;
use satrap_host::files;
use satrap_merkle::BundleTree;
use sha2::{Digest as _, Sha256};

use crate::{error::CliError, output::one_line};

/// A trust store with comments is larger than what is published of it.
const PEM_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Keys have at most 512 bytes, so deeper files could not be published anyway.
const DEPTH_MAX: usize = 64;
/// Hex digits of a certificate's SHA-256 in its key.
const KEY_DIGITS: usize = 16;

/// The treatment of symbolic links in a directory (P3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// A link is an error, because it may lead to any file.
    Refuse,
    /// A link to a file is read as that file, wherever it is.
    Follow,
}

/// Reads the bundle at `path`, which may itself be a link.
///
/// # Errors
///
/// [`CliError`] names the file and what is wrong with it.
pub fn read(path: &Path, links: Links) -> Result<BundleTree, CliError> {
    let kind = fs::metadata(path).map_err(|e| match fs::read_link(path) {
        Ok(target) => dangling(path, &target),
        Err(_) => CliError::file("content", path, &e),
    })?;
    if kind.is_dir() {
        let mut reader = DirectoryReader { root: path, tree: BundleTree::default(), links };
        reader.read(path, 0)?;
        return Ok(reader.tree);
    }
    if !kind.is_file() {
        let path = path.display();
        return Err(CliError::usage(format!(
            "content {path} is neither a directory nor a PEM file with certificates"
        )));
    }
    let bytes =
        files::read(path, PEM_FILE_BYTES_MAX).map_err(|e| CliError::file("content", path, &e))?;
    split_pem(&bytes).map_err(|why| {
        let path = one_line(&path.display().to_string());
        CliError::refused(format!("{path}: {why}"))
    })
}

/// The advice for a single file that is not PEM with certificates.
const ALTERNATIVE: &str = "a single file must be PEM with certificates and nothing else; other \
                           content is published as a directory of files";

/// Splits concatenated PEM certificates into entries. A certificate that is there twice is one.
///
/// # Errors
///
/// The fault of the file and its remedy, as text (P1).
pub fn split_pem(bytes: &[u8]) -> Result<BundleTree, String> {
    let blocks =
        pem::parse_many(bytes).map_err(|e| format!("it is not PEM ({e}); {ALTERNATIVE}"))?;
    // The parser skips what it does not recognize; a damaged block must not vanish silently.
    let begun = bytes.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
    if begun != blocks.len() {
        let damaged = begun - blocks.len();
        return Err(format!("{damaged} of its {begun} PEM blocks are damaged; take a whole copy"));
    }
    let mut tree = BundleTree::default();
    for block in &blocks {
        match block.tag() {
            "CERTIFICATE" => {}
            tag if tag.contains("PRIVATE KEY") => {
                return Err(format!(
                    "it holds a private key (PEM block `{tag}`), and what is published is copied to \
                     every edge; take the key out"
                ));
            }
            tag => return Err(format!("it holds a PEM block `{tag}`; {ALTERNATIVE}")),
        }
        let name = hex::encode(Sha256::digest(block.contents()));
        let key = Key::new(format!("{}.pem", &name[..KEY_DIGITS]).as_bytes())
            .expect("20 printable bytes are a key");
        // Written anew, so that comments and line lengths are not content.
        let plain = Pem::new("CERTIFICATE", block.contents());
        let text = pem::encode_config(&plain, EncodeConfig::new().set_line_ending(LineEnding::LF));
        tree.insert(&key, Arc::from(text.into_bytes()));
    }
    match tree.is_empty() {
        true => Err(format!("it holds no PEM certificate; {ALTERNATIVE}")),
        false => check_size(&tree).map(|()| tree),
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";

fn check_size(tree: &BundleTree) -> Result<(), String> {
    if tree.len() > BUNDLE_ENTRIES_MAX || tree.bytes() > BUNDLE_BYTES_MAX {
        return Err(format!(
            "more than {BUNDLE_ENTRIES_MAX} entries or {BUNDLE_BYTES_MAX} bytes; keep large \
             artifacts elsewhere and publish their digests"
        ));
    }
    Ok(())
}

fn dangling(path: &Path, target: &Path) -> CliError {
    let (path, target) = (path.display().to_string(), target.display().to_string());
    CliError::usage(format!(
        "content {} is a link to {}, which does not exist; mend or remove the link",
        one_line(&path),
        one_line(&target)
    ))
}

/// Why a file's name cannot be a key (P4).
fn check_name(name: &[u8]) -> Result<Key, String> {
    let key = Key::new(name).map_err(|e| e.to_string())?;
    let Ok(text) = std::str::from_utf8(name) else {
        return Err("its name is not UTF-8, and edges take no other; rename it".to_owned());
    };
    if text.chars().any(char::is_control) {
        return Err(
            "its name holds a line break or another control character; rename it".to_owned()
        );
    }
    Ok(key)
}

struct DirectoryReader<'a> {
    root: &'a Path,
    tree: BundleTree,
    links: Links,
}

impl DirectoryReader<'_> {
    fn read(&mut self, dir: &Path, depth: usize) -> Result<(), CliError> {
        if depth > DEPTH_MAX {
            let path = dir.display();
            return Err(CliError::refused(format!("{path} is more than {DEPTH_MAX} levels deep")));
        }
        let unreadable = |e| CliError::file("content", dir, &e);
        for entry in fs::read_dir(dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(unreadable)?;
            if kind.is_dir() {
                self.read(&path, depth + 1)?;
                continue;
            }
            if kind.is_symlink() {
                self.check_link(&path)?;
            }
            self.entry(&path)?;
        }
        Ok(())
    }

    /// P3
    fn check_link(&self, path: &Path) -> Result<(), CliError> {
        let target = fs::read_link(path).map_err(|e| CliError::file("content", path, &e))?;
        if fs::metadata(path).is_err() {
            return Err(dangling(path, &target));
        }
        if self.links == Links::Follow {
            return Ok(());
        }
        let (path, target) = (path.display().to_string(), target.display().to_string());
        Err(CliError::refused(format!(
            "{} is a link to {}, and a link may lead to any file: put the file itself there, or, \
             with `publish`, `approve` and `verify`, give --follow-links",
            one_line(&path),
            one_line(&target)
        )))
    }

    fn entry(&mut self, path: &Path) -> Result<(), CliError> {
        let unreadable = |e| CliError::file("content", path, &e);
        let refuse = |why: &str| {
            let path = path.display().to_string();
            CliError::refused(format!("{}: {why}", one_line(&path)))
        };
        // A link to a directory could be a loop; a device never ends.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(refuse("neither a file nor a directory; only those can be published"));
        }
        let name = path.strip_prefix(self.root).expect("read_dir stays below its directory");
        let key = check_name(name.as_os_str().as_bytes()).map_err(|why| refuse(&why))?;
        let value = files::read(path, VALUE_BYTES_MAX as u64).map_err(unreadable)?;
        self.tree.insert(&key, Arc::from(value));
        check_size(&self.tree)
            .map_err(|why| CliError::refused(format!("{}: {why}", self.root.display())))
    }
}

/// Writes the entries of `tree` below `dir`, which must not exist or be empty.
///
/// # Errors
///
/// If a key is no path inside `dir`, or the disk refuses.
pub fn write(tree: &BundleTree, dir: &Path) -> Result<(), CliError> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        let dir = dir.display();
        return Err(CliError::usage(format!(
            "{dir} is not empty; old entries would mix with new ones: choose another directory"
        )));
    }
    let entries = paths::files(tree, None).map_err(|e| {
        CliError::refused(format!("{e}; one key alone is read with `satrap get BUNDLE KEY`"))
    })?;
    for (path, value) in entries {
        let path = dir.join(path);
        let parent = files::parent(&path);
        fs::create_dir_all(parent).map_err(|e| CliError::file("directory", parent, &e))?;
        files::write(&path, &value).map_err(|e| CliError::file("entry", &path, &e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(der: &[u8]) -> String {
        pem::encode(&Pem::new("CERTIFICATE", der))
    }

    fn keys(tree: &BundleTree) -> Vec<String> {
        let text = |key: &Key| String::from_utf8(key.as_bytes().to_vec()).unwrap();
        tree.iter().map(|(key, _)| text(key)).collect()
    }

    #[test]
    fn each_certificate_becomes_an_entry_named_by_its_hash() {
        let (a, b) = (certificate(b"first"), certificate(b"second"));
        let bundle = format!("# a comment\n{a}\nanother\n{b}{a}");
        let tree = split_pem(bundle.as_bytes()).unwrap();
        let name = |der: &[u8]| format!("{}.pem", &hex::encode(Sha256::digest(der))[..16]);
        let mut expected = vec![name(b"first"), name(b"second")];
        expected.sort();
        assert_eq!(keys(&tree), expected, "duplicates are merged");
        // Order, comments and line endings do not matter.
        let other = format!("{b}{}", a.replace("\r\n", "\n"));
        assert_eq!(split_pem(other.as_bytes()).unwrap().root(), tree.root());
        let key = Key::new(name(b"first").as_bytes()).unwrap();
        let value = String::from_utf8(tree.get(&key).unwrap().to_vec()).unwrap();
        assert_eq!(value, "-----BEGIN CERTIFICATE-----\nZmlyc3Q=\n-----END CERTIFICATE-----\n");
    }

    #[test]
    fn a_pem_file_holds_certificates_only() {
        let good = certificate(b"x");
        let secret = pem::encode(&Pem::new("PRIVATE KEY", b"secret"));
        let damaged = "-----BEGIN CERTIFICATE-----\nZmly";
        for (bytes, expected) in [
            (String::new(), "no PEM certificate; a single file must be PEM"),
            ("words".into(), "no PEM certificate"),
            (format!("{good}{secret}"), "a private key (PEM block `PRIVATE KEY`)"),
            (pem::encode(&Pem::new("X509 CRL", b"x")), "`X509 CRL`; a single file must be"),
            (format!("{good}{damaged}"), "1 of its 2 PEM blocks are damaged"),
        ] {
            let error = split_pem(bytes.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn a_directory_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("routes")).unwrap();
        fs::write(from.join("a.json"), b"1").unwrap();
        fs::write(from.join("routes/b"), b"").unwrap();
        let tree = read(&from, Links::Refuse).unwrap();
        assert_eq!(keys(&tree), ["a.json", "routes/b"]);
        let to = dir.path().join("to");
        write(&tree, &to).unwrap();
        assert_eq!(read(&to, Links::Refuse).unwrap().root(), tree.root());
        assert!(write(&tree, &to).unwrap_err().message.contains("is not empty"));
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (target, name) in [("/dev/null", "device"), (".", "loop")] {
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
            let error = read(dir.path(), Links::Follow).unwrap_err();
            assert!(error.message.contains("neither a file nor a directory"), "{error}");
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        let file = dir.path().join("value");
        fs::write(&file, vec![0; VALUE_BYTES_MAX]).unwrap();
        assert_eq!(read(dir.path(), Links::Refuse).unwrap().len(), 1);
        fs::write(&file, vec![0; VALUE_BYTES_MAX + 1]).unwrap();
        let error = read(dir.path(), Links::Refuse).unwrap_err();
        assert!(error.message.contains("is larger than"), "{error}");
    }

    #[test]
    fn keys_that_would_leave_the_directory_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/etc/x", "a/../b", "./a", "a//b", "a/"] {
            let mut tree = BundleTree::default();
            tree.insert(&Key::new(bad.as_bytes()).unwrap(), Arc::from(&b"1"[..]));
            let error = write(&tree, &dir.path().join("to")).unwrap_err();
            assert!(error.message.contains("is not a relative file path"), "{error}");
        }
    }

    #[test]
    fn names_that_edges_cannot_use_are_refused() {
        use std::os::unix::ffi::OsStringExt as _;
        for (name, expected) in [
            (&b"caf\xe9.conf"[..], "is not UTF-8"),
            (b"a\nb 1", "a line break"),
            (b"a\x1b[2J", "another control character"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let name = std::ffi::OsString::from_vec(name.to_vec());
            fs::write(dir.path().join(name), "1").unwrap();
            let error = read(dir.path(), Links::Refuse).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            assert!(!error.message.chars().any(char::is_control), "{error}");
        }
    }

    #[test]
    fn a_link_is_read_only_if_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "secret").unwrap();
        let from = dir.path().join("from");
        fs::create_dir(&from).unwrap();
        std::os::unix::fs::symlink(&outside, from.join("link")).unwrap();
        let error = read(&from, Links::Refuse).unwrap_err();
        assert!(error.message.contains("link is a link to") && error.message.contains("outside"));
        assert!(error.message.contains("--follow-links"), "{error}");
        assert_eq!(keys(&read(&from, Links::Follow).unwrap()), ["link"]);
        fs::remove_file(&outside).unwrap();
        for links in [Links::Refuse, Links::Follow] {
            let error = read(&from, links).unwrap_err();
            assert!(error.message.contains("which does not exist"), "{error}");
        }
        // The directory itself may be a link: the active version of an edge is one.
        fs::remove_file(from.join("link")).unwrap();
        fs::write(from.join("a"), "1").unwrap();
        std::os::unix::fs::symlink(&from, dir.path().join("current")).unwrap();
        assert_eq!(keys(&read(&dir.path().join("current"), Links::Refuse).unwrap()), ["a"]);
    }
}
