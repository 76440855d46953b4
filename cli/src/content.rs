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

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pem::{EncodeConfig, LineEnding, Pem};
use satrap_certify::{
    Key,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, VALUE_BYTES_MAX},
};
use satrap_host::files;
use satrap_merkle::BundleTree;
use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// A trust store with comments is larger than what is published of it.
const PEM_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Keys have at most 512 bytes, so deeper files could not be published anyway.
const DEPTH_MAX: usize = 64;
/// Hex digits of a certificate's SHA-256 in its key.
const KEY_DIGITS: usize = 16;

/// Reads the bundle at `path`.
///
/// # Errors
///
/// [`CliError`] names the file and what is wrong with it.
pub fn read(path: &Path) -> Result<BundleTree, CliError> {
    let kind = fs::metadata(path).map_err(|e| CliError::file("content", path, &e))?;
    if kind.is_dir() {
        let mut reader = DirectoryReader { root: path, tree: BundleTree::default() };
        reader.read(path, 0)?;
        return Ok(reader.tree);
    }
    let bytes =
        files::read(path, PEM_FILE_BYTES_MAX).map_err(|e| CliError::file("content", path, &e))?;
    split_pem(&bytes).map_err(|why| {
        let path = path.display();
        CliError::refused(format!(
            "{path}: {why}; a file must be PEM with certificates, put anything else into a \
             directory and publish that"
        ))
    })
}

/// Splits concatenated PEM certificates into entries. A certificate that is there twice is one.
///
/// # Errors
///
/// What is wrong (P1).
pub fn split_pem(bytes: &[u8]) -> Result<BundleTree, String> {
    let blocks = pem::parse_many(bytes).map_err(|e| format!("not PEM: {e}"))?;
    // The parser skips what it does not recognize; a damaged block must not vanish silently.
    let begun = bytes.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
    if begun != blocks.len() {
        return Err(format!("{} of {begun} PEM blocks are damaged", begun - blocks.len()));
    }
    let mut tree = BundleTree::default();
    for block in &blocks {
        if block.tag() != "CERTIFICATE" {
            return Err(format!("it holds a PEM block `{}`, expected `CERTIFICATE`", block.tag()));
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
        true => Err("it holds no PEM certificate".into()),
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

struct DirectoryReader<'a> {
    root: &'a Path,
    tree: BundleTree,
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
            } else {
                self.entry(&path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<(), CliError> {
        let unreadable = |e| CliError::file("content", path, &e);
        // Follows a symlink to a file. One to a directory could be a loop; a device never ends.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            let path = path.display();
            return Err(CliError::refused(format!(
                "{path} is neither a file nor a directory; only those can be published"
            )));
        }
        let name = path.strip_prefix(self.root).expect("read_dir stays below its directory");
        let key = Key::new(name.as_os_str().as_bytes())
            .map_err(|e| CliError::refused(format!("{}: {e}", path.display())))?;
        let value = files::read(path, VALUE_BYTES_MAX as u64).map_err(unreadable)?;
        self.tree.insert(&key, Arc::from(value));
        check_size(&self.tree)
            .map_err(|why| CliError::refused(format!("{}: {why}", self.root.display())))
    }
}

/// How one content differs from another, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Only in the second.
    pub added: Vec<String>,
    /// In both, with other values.
    pub changed: Vec<String>,
    /// Only in the first.
    pub removed: Vec<String>,
}

impl Difference {
    /// What turns `from` into `to`.
    #[must_use]
    pub fn between(from: &BundleTree, to: &BundleTree) -> Self {
        let text = |key: &Key| String::from_utf8_lossy(key.as_bytes()).into_owned();
        let mut difference = Self::default();
        for (key, value) in to.iter() {
            match from.get(key) {
                None => difference.added.push(text(key)),
                Some(before) if before != value => difference.changed.push(text(key)),
                Some(_) => {}
            }
        }
        let gone = from.iter().filter(|(key, _)| to.get(key).is_none());
        difference.removed = gone.map(|(key, _)| text(key)).collect();
        difference
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
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
    for (key, value) in tree.iter() {
        let path = dir.join(relative(key)?);
        let parent = files::parent(&path);
        fs::create_dir_all(parent).map_err(|e| CliError::file("directory", parent, &e))?;
        files::write(&path, value).map_err(|e| CliError::file("entry", &path, &e))?;
    }
    Ok(())
}

/// A key as a path that cannot leave the directory it is joined to.
fn relative(key: &Key) -> Result<PathBuf, CliError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(key.as_bytes()));
    let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if plain && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str() {
        return Ok(path.to_owned());
    }
    let key = String::from_utf8_lossy(key.as_bytes());
    Err(CliError::refused(format!(
        "key `{key}` is not a relative file path; read it alone with `satrap get BUNDLE KEY`"
    )))
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
            (String::new(), "no PEM certificate"),
            ("words".into(), "no PEM certificate"),
            (format!("{good}{secret}"), "PEM block `PRIVATE KEY`"),
            (format!("{good}{damaged}"), "1 of 2 PEM blocks are damaged"),
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
        let tree = read(&from).unwrap();
        assert_eq!(keys(&tree), ["a.json", "routes/b"]);
        let to = dir.path().join("to");
        write(&tree, &to).unwrap();
        assert_eq!(read(&to).unwrap().root(), tree.root());
        assert!(write(&tree, &to).unwrap_err().message.contains("is not empty"));
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("device")).unwrap();
        assert!(read(dir.path()).unwrap_err().message.contains("neither a file nor a directory"));
        fs::remove_file(dir.path().join("device")).unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("loop")).unwrap();
        assert!(read(dir.path()).unwrap_err().message.contains("neither a file nor a directory"));
        fs::remove_file(dir.path().join("loop")).unwrap();
        let file = dir.path().join("value");
        fs::write(&file, vec![0; VALUE_BYTES_MAX]).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);
        fs::write(&file, vec![0; VALUE_BYTES_MAX + 1]).unwrap();
        assert!(read(dir.path()).unwrap_err().message.contains("is larger than"));
    }

    #[test]
    fn keys_that_would_leave_the_directory_are_not_written() {
        for bad in ["../x", "/etc/x", "a/../b", "./a", "a//b", "a/"] {
            assert!(relative(&Key::new(bad.as_bytes()).unwrap()).is_err(), "{bad}");
        }
        assert!(relative(&Key::new(b"a/b.pem").unwrap()).is_ok());
    }

    #[test]
    fn differences_have_directions() {
        let tree = |entries: &[(&str, &str)]| {
            let mut tree = BundleTree::default();
            for (key, value) in entries {
                tree.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(value.as_bytes()));
            }
            tree
        };
        let found = Difference::between(
            &tree(&[("gone", "1"), ("kept", "1"), ("other", "1")]),
            &tree(&[("kept", "1"), ("new", "1"), ("other", "2")]),
        );
        let expected = Difference {
            added: vec!["new".into()],
            changed: vec!["other".into()],
            removed: vec!["gone".into()],
        };
        assert_eq!(found, expected);
    }
}
