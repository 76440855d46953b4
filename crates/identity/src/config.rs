//! Checks the parts of a configuration file that validators, members and edges have in common: paths, addresses and
//! credentials.
//!
//! Each deserializes a raw form (serde, `deny_unknown_fields`) and turns it into a checked one with
//! these functions, before it opens a socket. The adversary is a slip of the operator's hand, so
//! an error names the file or the key, what it says and what was expected.
//!
//! # Invariants
//!
//! - **CONFIG-1** A path is relative to the file that names it, and absolute from then on: what is stored
//!   or linked by it holds from any working directory.
//!
//! # Deliberately absent
//!
//! No defaults, no search path, no environment variables: the one file that a process was given
//! determines its behaviour. No genesis: [`read`] takes the caller's parser.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::mtls::{self, CredentialFiles};
use satrap_runtime::files;

/// Of a line that is not understood.
const LINE_CHARS_SHOWN: usize = 100;
/// Neither a person nor `satrap init` writes a larger configuration or genesis.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// From the file system.
        source: io::Error,
    },
    /// A file is not of the expected form.
    #[error("{path}: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
    /// A key has a value it must not have.
    #[error("`{key}`: {why}")]
    Key {
        /// Which.
        key: &'static str,
        /// The value, and what was expected.
        why: String,
    },
}

/// Where a process finds its mTLS credentials: the `[tls]` table of every configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    /// PEM file with the certificate chain of this process.
    cert: PathBuf,
    /// PEM file with its private key; mode 0600.
    key: PathBuf,
    /// PEM file with the CAs that this process trusts.
    trust: PathBuf,
}

impl RawTls {
    /// The same under `base` (CONFIG-1).
    #[must_use]
    pub fn under(self, base: &Path) -> CredentialFiles {
        CredentialFiles {
            certificate: base.join(self.cert),
            key: base.join(self.key),
            trust: base.join(self.trust),
        }
    }
}

/// Reads the TOML file at `path`. Also returns the directory that its paths are relative to (CONFIG-1).
///
/// # Errors
///
/// [`ConfigError::Read`] and [`ConfigError::Content`].
pub fn load<Raw: DeserializeOwned>(path: &Path) -> Result<(Raw, PathBuf), ConfigError> {
    let raw = read(path, |bytes| parse(bytes))?;
    let file = std::path::absolute(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok((raw, files::parent(&file).to_owned()))
}

/// An error of the TOML library takes five lines; a log takes one.
fn parse<Raw: DeserializeOwned>(bytes: &[u8]) -> Result<Raw, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = &text[..error.span().map_or(0, |span| span.start).min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let why = error.message().replace('\n', ", ");
        // The setting is on that line.
        let source = text.lines().nth(line - 1).unwrap_or_default().trim();
        let source: String =
            source.chars().filter(|char| !char.is_control()).take(LINE_CHARS_SHOWN).collect();
        format!("line {line}, column {column}, in `{source}`: {why}; correct that line")
    })
}

/// Reads the file at `path`, which the setting `key` names and which is in the form that `parse` takes.
///
/// # Errors
///
/// [`ConfigError::Key`].
pub fn read_named<T, E: Display>(
    key: &'static str,
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<T, ConfigError> {
    read(path, parse).map_err(|error| match error {
        ConfigError::Read { .. } => {
            refuse(key, format!("{error}; check the path, and that this user may read it"))
        }
        error => refuse(key, format!("{error}; install the file that belongs to this realm")),
    })
}

fn read<T, E: Display>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<T, ConfigError> {
    let bytes = files::read(path, FILE_BYTES_MAX)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&bytes)
        .map_err(|error| ConfigError::Content { path: path.to_owned(), why: error.to_string() })
}

/// Refuses the value of `key`.
pub fn refuse(key: &'static str, why: impl Display) -> ConfigError {
    ConfigError::Key { key, why: why.to_string() }
}

/// Names `key` in the error of parsing its value.
///
/// # Errors
///
/// [`ConfigError::Key`] if that failed.
pub fn check<T, E: Display>(key: &'static str, made: Result<T, E>) -> Result<T, ConfigError> {
    made.map_err(|why| refuse(key, why))
}

/// The value of `key`, if it is an address that [`mtls::connect`] takes.
///
/// # Errors
///
/// [`ConfigError::Key`]
pub fn check_url(key: &'static str, url: String) -> Result<String, ConfigError> {
    check(key, mtls::check_url(&url)).map(|()| url)
}

/// Limits the length of the list at `key`, which must not be empty either.
///
/// # Errors
///
/// [`ConfigError::Key`]
pub fn check_count(key: &'static str, found: usize, max: usize) -> Result<(), ConfigError> {
    if (1..=max).contains(&found) {
        return Ok(());
    }
    Err(refuse(key, format!("{found} entries: expected 1 to {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        tls: RawTls,
    }

    fn load_bytes(bytes: &[u8]) -> Result<(Raw, PathBuf), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.toml");
        std::fs::write(&path, bytes).unwrap();
        load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let (raw, base) =
            load_bytes(b"tls = { cert = 'a', key = '/b', trust = '../c' }").ok().unwrap();
        let files = raw.tls.under(&base);
        assert_eq!(files.certificate, base.join("a"));
        assert_eq!(files.key, Path::new("/b"));
        // A bare file name has a directory, too: tests run in that of the package.
        let (_, base) = load::<toml::Table>(Path::new("Cargo.toml")).unwrap();
        assert_eq!(base, Path::new(env!("CARGO_MANIFEST_DIR")));
    }

    #[test]
    fn a_mistake_is_located() {
        for (bytes, expected) in [
            (
                &b"tls = 1\nx = 2"[..],
                "some.toml: line 1, column 7, in `tls = 1`: invalid type: integer `1`",
            ),
            (b"x = 2", "unknown field `x`"),
            (b"tls = { cert = 'a', key = 'b', trust = 'c', more = 'd' }", "unknown field `more`"),
            (b"\xff", "some.toml: invalid utf-8"),
            (&vec![b'#'; 4 * 1024 * 1024 + 1], "cannot read "),
        ] {
            let error = load_bytes(bytes).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
        let absent = load::<toml::Table>(Path::new("absent.toml")).unwrap_err().to_string();
        assert!(absent.starts_with("cannot read absent.toml: "), "{absent}");
        let url = check_url("servers.url", "http://h:1".into()).unwrap_err().to_string();
        assert_eq!(
            url,
            "`servers.url`: \"http://h:1\" is not an address; expected https://HOST:PORT"
        );
        assert!(check_count("servers", 0, 2).is_err() && check_count("servers", 2, 2).is_ok());
        let many = check_count("servers", 3, 2).unwrap_err().to_string();
        assert_eq!(many, "`servers`: 3 entries: expected 1 to 2");
    }
}
