//! The edge's configuration file: raw TOML, then checked values.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_certify::{BundleName, Genesis, Label, limits::INTEREST_MAX};
use satrap_edge_core::Source;
use satrap_identity::{
    config::{ConfigError, RawTls, check, check_count, check_url, load, read_named, refuse},
    mtls::CredentialFiles,
};
use serde::Deserialize;

use crate::{links::VERSIONS, paths};

/// Servers in one configuration: more than any region and its fallbacks have.
const SERVERS_MAX: usize = 64;

/// `edge.toml`: the configuration file of an edge, for `satrap edge run`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    /// The genesis file of the realm.
    genesis: PathBuf,
    /// This edge's region.
    region: String,
    /// This edge's name within its region. Its certificate must hold both.
    name: String,
    /// Where the edge keeps verified state, content and `status.json`.
    data_dir: PathBuf,
    /// The certificate, key and trust of this process.
    tls: RawTls,
    /// Names of the bundles to run; at least one.
    bundles: Vec<String>,
    /// Region members to ask, 1 to 64. Those of other regions are asked only when all of its own
    /// region fail.
    servers: Vec<RawServer>,
    /// How content reaches the workload.
    activate: RawActivate,
    /// A certificate (`satrap get --certificate`) from which an edge goes on that was away for
    /// longer than the trusting period. Used only where it is newer than what the edge verified.
    trusted_checkpoint: Option<PathBuf>,
}

/// A region member that the edge may ask.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    /// The member's region; its certificate must hold it.
    region: String,
    /// The member's name; its certificate must hold it.
    name: String,
    /// `https://HOST:PORT` of the member's `client_listen`.
    url: String,
}

/// How content reaches the workload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawActivate {
    /// Directory with one link for each bundle, to the directory of the active version. Outside of
    /// `data_dir`.
    dir: PathBuf,
    /// File name, in each version's directory, for all values of the bundle in key order, as
    /// OpenSSL reads CA files.
    combined_file: Option<String>,
    /// Command and arguments, run after the swap. If it fails, the previous version comes back.
    /// `SATRAP_BUNDLE`, `SATRAP_VERSION` and `SATRAP_DIR` are set.
    #[serde(default)]
    hook: Vec<String>,
    /// How long the hook may run before it is killed and counts as failed.
    #[serde(default = "default_hook_timeout_ms")]
    hook_timeout_ms: u64,
}

fn default_hook_timeout_ms() -> u64 {
    10_000
}

/// A member that this edge may follow.
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
    /// Holds one link per bundle, leading to the active version's directory.
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
    /// This edge's certificate and key, and the authorities that it trusts.
    pub credentials: CredentialFiles,
    /// The bundles to run. Ascending.
    pub bundles: Vec<BundleName>,
    /// The servers to follow.
    pub servers: Vec<Server>,
    /// How content reaches the workload.
    pub activate: Activate,
    /// An exported certificate, used where it is newer than the state that this edge verified: for
    /// an edge that was offline, or is provisioned, beyond the trusting period.
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
        let data_dir = base.join(self.data_dir);
        Ok(Config {
            genesis: read_named("genesis", &base.join(self.genesis), Genesis::from_json)?,
            name: check("name", Label::new(&self.name))?,
            region,
            credentials: self.tls.under(base),
            bundles,
            servers,
            activate: self.activate.check(base, &data_dir)?,
            data_dir,
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
    fn check(self, base: &Path, data_dir: &Path) -> Result<Activate, ConfigError> {
        if let Some(name) = self.combined_file.as_ref().filter(|name| !paths::is_plain(name)) {
            let why = format!("`{name}` must be a plain file name");
            return Err(refuse("activate.combined_file", why));
        }
        let dir = base.join(self.dir);
        // ACTIVATE-4: a bundle may be called `versions` or `edge.redb`.
        if data_dir.starts_with(&dir) || dir.starts_with(data_dir.join(VERSIONS)) {
            let (dir, data_dir) = (dir.display(), data_dir.display());
            let why = format!("`{dir}` would mix links with what is kept in `{data_dir}`");
            return Err(refuse("activate.dir", why));
        }
        Ok(Activate {
            dir,
            combined_file: self.combined_file,
            hook: self.hook,
            hook_timeout: Duration::from_millis(self.hook_timeout_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activate(dir: &str, combined_file: &str) -> Result<Activate, ConfigError> {
        let combined_file = Some(combined_file.to_owned());
        let raw =
            RawActivate { dir: dir.into(), combined_file, hook: Vec::new(), hook_timeout_ms: 1 };
        raw.check(Path::new("/etc"), Path::new("/var/data"))
    }

    #[test]
    fn links_and_what_is_kept_do_not_mix() {
        for good in ["active", "/var/active", "/var/data/active", "/var/data2"] {
            assert!(activate(good, "all.pem").is_ok(), "{good}");
        }
        for bad in ["/var/data", "/var", "/", "/var/data/versions", "/var/data/versions/x"] {
            let error = activate(bad, "all.pem").unwrap_err().to_string();
            assert!(error.contains("would mix links with what is kept in `/var/data`"), "{error}");
        }
        assert!(activate("active", "/").is_err(), "the root is no file name");
    }
}
