//! The edge's configuration file: raw TOML, then checked values.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_certify::{BundleName, Genesis, Label, limits::INTEREST_MAX};
use satrap_edge_core::Source;
use satrap_host::{
    config::{ConfigError, RawTls, check, check_count, check_url, load, read, refuse},
    mtls::CredentialFiles,
};
use serde::Deserialize;

/// More servers than any region and its fallbacks have.
const SERVERS_MAX: usize = 64;

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
    /// Who this edge is and whom it believes.
    pub credentials: CredentialFiles,
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

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field and what was expected.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (raw, base) = load::<RawConfig>(path)?;
        raw.check(&base)
    }
}

impl RawConfig {
    fn check(self, base: &Path) -> Result<Config, ConfigError> {
        let region = check("region", Label::new(&self.region))?;
        let bundles = self.bundles.iter().map(|b| BundleName::new(b));
        let mut bundles: Vec<_> = check("bundles", bundles.collect::<Result<_, _>>())?;
        bundles.sort();
        bundles.dedup();
        check_count("bundles", bundles.len(), INTEREST_MAX)?;
        let servers = self.servers.into_iter().map(|s| s.check(&region));
        let servers: Vec<_> = servers.collect::<Result<_, _>>()?;
        check_count("servers", servers.len(), SERVERS_MAX)?;
        Ok(Config {
            genesis: read(&base.join(self.genesis), Genesis::from_json)?,
            name: check("name", Label::new(&self.name))?,
            region,
            data_dir: base.join(self.data_dir),
            credentials: self.tls.under(base),
            bundles,
            servers,
            activate: self.activate.check(base)?,
            trusted_checkpoint: self.trusted_checkpoint.map(|path| base.join(path)),
        })
    }
}

impl RawServer {
    fn check(self, own_region: &Label) -> Result<Server, ConfigError> {
        let region = check("servers.region", Label::new(&self.region))?;
        let name = check("servers.name", Label::new(&self.name))?;
        let url = check_url("servers.url", self.url)?;
        let source = if region == *own_region { Source::Home } else { Source::Fallback };
        Ok(Server { region, name, url, source })
    }
}

impl RawActivate {
    fn check(self, base: &Path) -> Result<Activate, ConfigError> {
        let plain = |name: &String| {
            Path::new(name).components().count() == 1 && !matches!(name.as_str(), "." | "..")
        };
        if let Some(name) = self.combined_file.as_ref().filter(|name| !plain(name)) {
            let why = format!("`{name}` must be a plain file name");
            return Err(refuse("activate.combined_file", why));
        }
        Ok(Activate {
            dir: base.join(self.dir),
            combined_file: self.combined_file,
            hook: self.hook,
            hook_timeout: Duration::from_millis(self.hook_timeout_ms),
        })
    }
}
