//! The edge's configuration file: raw TOML, then checked values.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_certify::{BundleName, Genesis, Label, limits::INTEREST_MAX};
use satrap_edge_core::Source;
use serde::Deserialize;

/// A genesis of more bytes was not written by `satrap init`.
const GENESIS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A config of more bytes was not written by a person.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// More servers than any region and its fallbacks have.
const SERVERS_MAX: usize = 64;

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML of the expected form.
    #[error("{path}: {source}")]
    Toml {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// The genesis is refused.
    #[error("{path}: {source}")]
    Genesis {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: satrap_certify::genesis::GenesisError,
    },
    /// A value that must not be.
    #[error("`{field}`: {why}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong and what is expected.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    genesis: PathBuf,
    region: String,
    name: String,
    data_dir: PathBuf,
    tls: RawTls,
    bundles: Vec<String>,
    servers: Vec<RawServer>,
    activate: RawActivate,
    trusted_checkpoint: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: PathBuf,
    key: PathBuf,
    trust: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    region: String,
    name: String,
    url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawActivate {
    dir: PathBuf,
    combined_file: Option<String>,
    #[serde(default)]
    hook: Vec<String>,
    #[serde(default = "default_hook_timeout_ms")]
    hook_timeout_ms: u64,
}

fn default_hook_timeout_ms() -> u64 {
    10_000
}

/// A member this edge may ask.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its region, which its certificate must name.
    pub region: Label,
    /// Its name, which its certificate must hold.
    pub name: Label,
    /// Where it listens.
    pub url: String,
    /// Own region, or another one.
    pub source: Source,
}

/// Paths of the edge's mTLS credentials.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Leaf certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
    /// CAs of this realm, PEM.
    pub trust: PathBuf,
}

/// How content reaches the workload.
#[derive(Clone, Debug)]
pub struct Activate {
    /// Holds one symlink per bundle, pointing at the active version's directory.
    pub dir: PathBuf,
    /// Also write all values, in key order, into one file of this name.
    pub combined_file: Option<String>,
    /// Command run after the swap; if it fails, the swap is undone.
    pub hook: Vec<String>,
    /// How long the command may take.
    pub hook_timeout: Duration,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The root of trust.
    pub genesis: Genesis,
    /// This edge's region.
    pub region: Label,
    /// This edge's name.
    pub name: Label,
    /// Cache, versions, status file.
    pub data_dir: PathBuf,
    /// See there.
    pub tls: Tls,
    /// What to run. Ascending.
    pub bundles: Vec<BundleName>,
    /// Whom to ask.
    pub servers: Vec<Server>,
    /// See there.
    pub activate: Activate,
    /// An exported certificate to start from, for an edge that is provisioned when the genesis is
    /// older than the trusting period.
    pub trusted_checkpoint: Option<PathBuf>,
}

fn value(field: &'static str, why: impl ToString) -> ConfigError {
    ConfigError::Value { field, why: why.to_string() }
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field and what was expected.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path, CONFIG_BYTES_MAX)?;
        let text = String::from_utf8(text).map_err(|e| value("config file", e))?;
        let raw: RawConfig = toml::from_str(&text).map_err(|source| ConfigError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        // Symlinks to versions must hold from anywhere, so every path becomes absolute.
        let base = std::path::absolute(path.parent().unwrap_or(Path::new(".")))
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        raw.check(&base)
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ConfigError> {
    satrap_host::files::read(path, bytes_max)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

impl RawConfig {
    fn check(self, base: &Path) -> Result<Config, ConfigError> {
        let genesis_path = base.join(&self.genesis);
        let genesis = Genesis::from_json(&read(&genesis_path, GENESIS_BYTES_MAX)?)
            .map_err(|source| ConfigError::Genesis { path: genesis_path, source })?;
        let region = Label::new(&self.region).map_err(|e| value("region", e))?;
        let bundles = self.bundles.iter().map(|b| BundleName::new(b));
        let mut bundles: Vec<_> =
            bundles.collect::<Result<_, _>>().map_err(|e| value("bundles", e))?;
        bundles.sort();
        bundles.dedup();
        if !(1..=INTEREST_MAX).contains(&bundles.len()) {
            let why = format!("expected 1 to {INTEREST_MAX} bundle names, found {}", bundles.len());
            return Err(value("bundles", why));
        }
        let servers = self.servers.into_iter().map(|s| s.check(&region));
        let servers: Vec<_> = servers.collect::<Result<_, _>>()?;
        if !(1..=SERVERS_MAX).contains(&servers.len()) {
            let why = format!("expected 1 to {SERVERS_MAX} servers, found {}", servers.len());
            return Err(value("servers", why));
        }
        Ok(Config {
            genesis,
            name: Label::new(&self.name).map_err(|e| value("name", e))?,
            region,
            data_dir: base.join(self.data_dir),
            tls: Tls {
                cert: base.join(self.tls.cert),
                key: base.join(self.tls.key),
                trust: base.join(self.tls.trust),
            },
            bundles,
            servers,
            activate: self.activate.check(base)?,
            trusted_checkpoint: self.trusted_checkpoint.map(|path| base.join(path)),
        })
    }
}

impl RawServer {
    fn check(self, own_region: &Label) -> Result<Server, ConfigError> {
        let region = Label::new(&self.region).map_err(|e| value("servers.region", e))?;
        let name = Label::new(&self.name).map_err(|e| value("servers.name", e))?;
        if !self.url.starts_with("https://") {
            let why = format!("`{}` must start with https://", self.url);
            return Err(value("servers.url", why));
        }
        let source = if region == *own_region { Source::Home } else { Source::Fallback };
        Ok(Server { region, name, url: self.url, source })
    }
}

impl RawActivate {
    fn check(self, base: &Path) -> Result<Activate, ConfigError> {
        let plain = |name: &String| {
            Path::new(name).components().count() == 1 && !matches!(name.as_str(), "." | "..")
        };
        if let Some(name) = self.combined_file.as_ref().filter(|name| !plain(name)) {
            let why = format!("`{name}` must be a plain file name");
            return Err(value("activate.combined_file", why));
        }
        Ok(Activate {
            dir: base.join(self.dir),
            combined_file: self.combined_file,
            hook: self.hook,
            hook_timeout: Duration::from_millis(self.hook_timeout_ms),
        })
    }
}
