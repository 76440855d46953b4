//! Reads and writes content on disk: the files that an operator publishes and an edge activates.
//!
//! A directory is a bundle: every file below it is an entry, its relative path the key. A PEM file
//! is a bundle of certificates: each becomes an entry named after its own hash, so that adding,
//! removing or reordering certificates changes exactly the entries it should.
//!
//! # Invariants
//!
//! - **CONTENT-1** A PEM file with anything but certificates is refused whole: a private key in it would
//!   be copied to every edge.
//! - **CONTENT-2** Sizes are checked while reading, so a wrong path cannot fill memory.
//! - **CONTENT-3** Nothing is read through a link unless the caller asked for that: a link may lead to any
//!   file that the caller can read, which would be copied to every edge. This holds for a link that
//!   takes the place of a file or directory while it is read, too.
//! - **CONTENT-4** Every key is a name that each edge can make a file of, and that prints as one line.

mod difference;
mod directory;
mod hazards;

use std::{fs, path::Path, sync::Arc};

pub use difference::{Difference, key_text};
pub use hazards::hazards;

use pem::{EncodeConfig, LineEnding, Pem};
use satrap_certify::{
    Key,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX},
};
use satrap_edge_agent::paths;
use satrap_merkle::BundleTree;
use satrap_runtime::files;
use sha2::{Digest as _, Sha256};

use crate::{error::Error, text::one_line};

/// Larger than a bundle, because a PEM file can have comments that are not published.
const PEM_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Hex digits of a certificate's SHA-256 in its key.
const KEY_DIGITS: usize = 16;

/// The treatment of symbolic links in a directory (CONTENT-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// A link is an error, because it may lead to any file.
    Refuse {
        /// The remedy, which depends on the flags of the command.
        advice: &'static str,
    },
    /// A link to a file is read as that file, wherever it is.
    Follow,
}

impl Links {
    /// For a command without a flag for links.
    pub const REFUSE: Self = Self::Refuse { advice: "put the file itself there" };

    /// As the flag `--follow-links` says.
    #[must_use]
    pub fn by_flag(follow: bool) -> Self {
        let advice = "put the file itself there, or give --follow-links";
        if follow { Self::Follow } else { Self::Refuse { advice } }
    }
}

/// Reads the bundle at `path`, which may itself be a link.
///
/// # Errors
///
/// [`Error`] names the file and what is wrong with it.
pub fn read(path: &Path, links: Links) -> Result<BundleTree, Error> {
    let kind = fs::metadata(path).map_err(|e| match fs::read_link(path) {
        Ok(target) => dangling(path, &target),
        Err(_) => Error::file("content", path, &e),
    })?;
    if kind.is_dir() {
        return directory::read(path, links);
    }
    if !kind.is_file() {
        let path = path.display();
        return Err(Error::usage(format!(
            "content {path} is neither a directory nor a PEM file with certificates"
        )));
    }
    let bytes =
        files::read(path, PEM_FILE_BYTES_MAX).map_err(|e| Error::file("content", path, &e))?;
    split_pem(&bytes).map_err(|why| {
        let path = one_line(&path.display().to_string());
        Error::refused(format!("{path}: {why}"))
    })
}

/// The advice for a single file that is not PEM with certificates.
const ALTERNATIVE: &str = "a single file must be PEM with certificates and nothing else; other \
                           content is published as a directory of files";

/// Splits concatenated PEM certificates into entries. A certificate that is there twice is one.
///
/// # Errors
///
/// The fault of the file and its remedy (CONTENT-1).
pub fn split_pem(bytes: &[u8]) -> Result<BundleTree, String> {
    let blocks =
        pem::parse_many(bytes).map_err(|e| format!("it is not PEM ({e}); {ALTERNATIVE}"))?;
    // The parser skips blocks that it does not recognize; a damaged block must be an error.
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
        // Encoded again, so that comments and line lengths are not content.
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

fn dangling(path: &Path, target: &Path) -> Error {
    let (path, target) = (path.display().to_string(), target.display().to_string());
    Error::usage(format!(
        "content {} is a link to {}, which does not exist; mend or remove the link",
        one_line(&path),
        one_line(&target)
    ))
}

/// Why a file's name cannot be a key (CONTENT-4).
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

/// Writes the entries of `tree` below `dir`, which must not exist or be empty.
///
/// # Errors
///
/// If a key is no path inside `dir`, or the disk refuses.
pub fn write(tree: &BundleTree, dir: &Path) -> Result<(), Error> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        let dir = dir.display();
        return Err(Error::usage(format!(
            "{dir} is not empty; old entries would mix with new ones: choose another directory"
        )));
    }
    let entries = paths::files(tree, None).map_err(|e| {
        Error::refused(format!("{e}; one key alone is read with `satrap get BUNDLE KEY`"))
    })?;
    for (path, value) in entries {
        let path = dir.join(path);
        let parent = files::parent(&path);
        fs::create_dir_all(parent).map_err(|e| Error::file("directory", parent, &e))?;
        files::write(&path, &value).map_err(|e| Error::file("entry", &path, &e))?;
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
        let tree = read(&from, Links::REFUSE).unwrap();
        assert_eq!(keys(&tree), ["a.json", "routes/b"]);
        let to = dir.path().join("to");
        write(&tree, &to).unwrap();
        assert_eq!(read(&to, Links::REFUSE).unwrap().root(), tree.root());
        assert!(write(&tree, &to).unwrap_err().message.contains("is not empty"));
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
            let error = read(dir.path(), Links::REFUSE).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            assert!(!error.message.chars().any(char::is_control), "{error}");
        }
    }
}
