//! Decides which name becomes which path, before anything is written.
//!
//! Names come from operators (bundles and keys) and from the administrator of the host
//! (`combined_file`). All of them are well formed, and still two of them may mean one file:
//! `app` and `app/conf` as paths, or a key and the directory of another. Such a pair must never
//! overwrite each other's files.
//!
//! ```text
//! <activate.dir>/pki+edge-trust          link of the bundle pki/edge-trust
//! <activate.dir>/.pki+edge-trust.new     the same before it is renamed
//! <data_dir>/versions/pki+edge-trust/42-9f3a…             a version
//! <data_dir>/versions/pki+edge-trust/.42-9f3a….staging    the same before it is renamed
//! ```
//!
//! # Invariants
//!
//! - **ACTIVATE-3** A key becomes a path only if it stays inside the version's directory.
//! - **ACTIVATE-4** No two names share a path. A bundle is one flat name, since `+` is in no bundle name;
//!   temporary names start with `.`, which no bundle name does; keys of a bundle and its combined
//!   file are neither equal nor one a directory of the other.

use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use satrap_certify::{BundleName, Key};
use satrap_edge_core::Active;
use satrap_merkle::BundleTree;

/// The bytes that Linux file systems allow for one part of a path.
const FILE_NAME_BYTES_MAX: usize = 255;
/// Bytes of a root in the name of a version's directory: enough to tell versions apart by sight.
const ROOT_PREFIX_BYTES: usize = 8;

/// A file of a version: its path in the version's directory, and what it holds.
pub type VersionFile = (PathBuf, Arc<[u8]>);

/// Why a bundle cannot be files here.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The key does not stay inside the version's directory (ACTIVATE-3).
    #[error("key `{0}` is not a relative file path; publish keys like `dir/file.pem`")]
    NotAPath(String),
    /// File systems have no room for a name that long (ACTIVATE-3).
    #[error(
        "key `{key}` has a part of {bytes} bytes, file systems allow {FILE_NAME_BYTES_MAX}; \
         publish it under a shorter key"
    )]
    TooLong {
        /// Which key.
        key: String,
        /// How long its longest part is.
        bytes: usize,
    },
    /// Two keys need the same path, once as a file and once as a directory (ACTIVATE-4).
    #[error(
        "keys `{0}` and `{1}` cannot both be files, since one names a directory of the other; \
         publish one of them under another key"
    )]
    Keys(String, String),
    /// A key and the combined file need the same path (ACTIVATE-4).
    #[error(
        "key `{key}` and `activate.combined_file` `{combined}` name the same path; configure \
         another name for the combined file"
    )]
    Combined {
        /// Which key.
        key: String,
        /// The configured name.
        combined: String,
    },
}

/// A bundle's name as one part of a path (ACTIVATE-4).
#[must_use]
pub fn flat(bundle: &BundleName) -> String {
    bundle.as_str().replace('/', "+")
}

/// The name of a version's directory.
#[must_use]
pub fn version_name(version: Active) -> String {
    format!("{}-{}", version.version, hex::encode(&version.root[..ROOT_PREFIX_BYTES]))
}

/// The version in a name that [`version_name`] made; `None` for any other name.
#[must_use]
pub fn version_in(name: &str) -> Option<u64> {
    let (number, prefix) = name.split_once('-')?;
    let version = number.parse::<u64>().ok().filter(|version| version.to_string() == number)?;
    let digits = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (prefix.len() == 2 * ROOT_PREFIX_BYTES && digits(prefix)).then_some(version)
}

/// A name for a file or directory that becomes `name` when it is complete (ACTIVATE-4).
#[must_use]
pub fn temporary(name: &str, purpose: &str) -> String {
    format!(".{name}.{purpose}")
}

/// Whether `text` is one plain part of a path, as a combined file must be.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    text.len() <= FILE_NAME_BYTES_MAX && inner_path(text).is_some_and(|p| p.iter().count() == 1)
}

/// The files of a version: one per key, in key order, then the combined one.
///
/// # Errors
///
/// [`PathError`] for keys that cannot be files (ACTIVATE-3) or not together (ACTIVATE-4).
pub fn files(tree: &BundleTree, combined: Option<&str>) -> Result<Vec<VersionFile>, PathError> {
    let mut files = Vec::new();
    let mut all = Vec::new();
    for (key, value) in tree.iter() {
        files.push((relative_path(key)?, value.clone()));
        if combined.is_some() {
            all.extend_from_slice(value);
            if !value.ends_with(b"\n") {
                all.push(b'\n');
            }
        }
    }
    if let Some(name) = combined {
        files.push((PathBuf::from(name), Arc::from(all)));
    }
    check_apart(&files, combined)?;
    Ok(files)
}

/// ACTIVATE-4
fn check_apart(files: &[VersionFile], combined: Option<&str>) -> Result<(), PathError> {
    let mut paths: Vec<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
    // Part by part, so a directory comes right before what is in it.
    paths.sort_unstable();
    let Some([outer, inner]) = paths.array_windows().find(|[a, b]| b.starts_with(a)) else {
        return Ok(());
    };
    let [outer, inner] = [outer, inner].map(|path| path.display().to_string());
    Err(match combined {
        Some(name) if outer == name => {
            PathError::Combined { key: inner, combined: name.to_owned() }
        }
        _ => PathError::Keys(outer, inner),
    })
}

/// ACTIVATE-3
fn relative_path(key: &Key) -> Result<PathBuf, PathError> {
    let refused = || PathError::NotAPath(key.to_string());
    let text = std::str::from_utf8(key.as_bytes()).map_err(|_| refused())?;
    let path = inner_path(text).ok_or_else(refused)?;
    let bytes = path.iter().map(|part| part.len()).max().unwrap_or_default();
    if bytes > FILE_NAME_BYTES_MAX {
        return Err(PathError::TooLong { key: key.to_string(), bytes });
    }
    Ok(path.to_owned())
}

/// `text` as a path, if it leads inside whatever it is joined to and is spelled in the one way.
fn inner_path(text: &str) -> Option<&Path> {
    let path = Path::new(text);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    // `components` forgives `a//b` and `a/`; two keys must not become one file.
    let one_way = path.components().collect::<PathBuf>().as_os_str() == text;
    (plain && one_way && !text.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_names_are_read_back_and_nothing_else_is() {
        for version in [1, 42, u64::MAX] {
            let name = version_name(Active { version, root: [0x9f; 32] });
            assert_eq!(version_in(&name), Some(version), "{name}");
        }
        for other in [
            "",
            "5",
            "5-",
            "5-9f",
            "05-9f9f9f9f9f9f9f9f",
            "+5-9f9f9f9f9f9f9f9f",
            "5-9F9f9f9f9f9f9f9f",
            "5-9f9f9f9f9f9f9f9f.old",
            ".5-9f9f9f9f9f9f9f9f.staging",
        ] {
            assert_eq!(version_in(other), None, "{other}");
        }
    }

    #[test]
    fn a_combined_file_is_one_plain_part() {
        assert!(is_plain("trust.pem") && is_plain(&"a".repeat(FILE_NAME_BYTES_MAX)));
        for bad in ["", ".", "..", "/", "a/", "a/b", "/a", &"a".repeat(FILE_NAME_BYTES_MAX + 1)] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
