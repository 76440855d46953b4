//! The validator's configuration file: raw TOML, then checked values.

use std::{
    collections::BTreeMap,
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_certify::{Genesis, Label};
use satrap_identity::{
    config::{ConfigError, RawTls, check, check_url, load, read_named, refuse},
    mtls::CredentialFiles,
};
use serde::Deserialize;

use crate::malachite::Timing;

/// `validator.toml`: the configuration file of a validator, for `satrap validator run`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    /// This validator's name. Its certificate must hold it, and governance names its key.
    name: String,
    /// The genesis file of the realm.
    genesis: PathBuf,
    /// Where the validator keeps its blocks, write-ahead log and last-sign state.
    data_dir: PathBuf,
    /// Address for regions and operators. Port 0 takes a free one.
    listen: String,
    /// Address for the other validators. Must differ from `listen`.
    mesh_listen: String,
    /// The Ed25519 key that signs votes: 64 hex digits (the seed) or PKCS#8 PEM; mode 0600.
    signing_key: PathBuf,
    /// The certificate, key and trust of this process.
    tls: RawTls,
    /// Validators that are reached elsewhere than governance says, by name: `https://HOST:PORT`. A
    /// name that governance does not know is dialed too, which is how a validator that is about to
    /// join finds the others.
    #[serde(default)]
    peer_urls: BTreeMap<String, String>,
    /// Timeouts and clock bounds of consensus.
    #[serde(default)]
    timing: RawTiming,
}

/// Each key left out has the value of [`Timing::default`].
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTiming {
    /// How long a validator waits for a proposal in round 0; 10 ms to 60 s, as the next three.
    ///
    /// Default: `Timing::propose`.
    propose_ms: Option<u64>,
    /// How long it waits for more prevotes once two thirds disagree.
    ///
    /// Default: `Timing::prevote`.
    prevote_ms: Option<u64>,
    /// How long it waits for more precommits once two thirds disagree.
    ///
    /// Default: `Timing::precommit`.
    precommit_ms: Option<u64>,
    /// How often a validator that makes no progress sends its votes again.
    ///
    /// Default: `Timing::rebroadcast`.
    rebroadcast_ms: Option<u64>,
    /// By how much the timeouts grow with each failed round, in percent.
    ///
    /// Default: `Timing::growth_percent_per_round`.
    growth_percent_per_round: Option<u32>,
    /// How far the clocks of two correct validators may differ.
    ///
    /// Default: `Timing::clock_precision`.
    clock_precision_ms: Option<u64>,
    /// How long a proposal may travel. At least `propose_ms`.
    ///
    /// Default: `Timing::message_delay`.
    message_delay_ms: Option<u64>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The root of trust.
    pub genesis: Genesis,
    /// This validator's name; its certificate must hold it.
    pub name: Label,
    /// Database and last-sign file.
    pub data_dir: PathBuf,
    /// Where regions and operators connect: control and sync.
    pub listen: SocketAddr,
    /// Where the other validators connect, and only they. Governance names its URL.
    pub mesh_listen: SocketAddr,
    /// The key that votes: 64 hex digits (the seed) or PKCS#8 PEM, mode 0600.
    pub signing_key: PathBuf,
    /// The certificate and key of this validator, and the CAs that it trusts.
    pub credentials: CredentialFiles,
    /// Where validators are reached from here, if not where governance says. Names that governance
    /// does not know are dialed, too: that is how a validator that is about to join finds the rest.
    pub peer_urls: BTreeMap<Label, String>,
    /// Timeouts and clock bounds.
    pub timing: Timing,
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
        let mut peer_urls = BTreeMap::new();
        for (name, url) in self.peer_urls {
            let name = check("peer_urls", Label::new(&name))?;
            peer_urls.insert(name, check_url("peer_urls", url)?);
        }
        let (listen, mesh_listen) =
            (address("listen", &self.listen)?, address("mesh_listen", &self.mesh_listen)?);
        if listen == mesh_listen && listen.port() != 0 {
            let why = format!("{mesh_listen} is `listen` too; each listener needs its own");
            return Err(refuse("mesh_listen", why));
        }
        Ok(Config {
            genesis: read_named("genesis", &base.join(self.genesis), Genesis::from_json)?,
            name: check("name", Label::new(&self.name))?,
            data_dir: base.join(self.data_dir),
            listen,
            mesh_listen,
            signing_key: base.join(self.signing_key),
            credentials: self.tls.under(base),
            peer_urls,
            timing: self.timing.check()?,
        })
    }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|e: AddrParseError| {
        refuse(key, format!("{e}; expected IP:PORT, such as 0.0.0.0:7700"))
    })
}

impl RawTiming {
    fn check(self) -> Result<Timing, ConfigError> {
        let default = Timing::default();
        let ms = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
        let timing = Timing {
            propose: ms(self.propose_ms, default.propose),
            prevote: ms(self.prevote_ms, default.prevote),
            precommit: ms(self.precommit_ms, default.precommit),
            rebroadcast: ms(self.rebroadcast_ms, default.rebroadcast),
            growth_percent_per_round: self
                .growth_percent_per_round
                .unwrap_or(default.growth_percent_per_round),
            clock_precision: ms(self.clock_precision_ms, default.clock_precision),
            message_delay: ms(self.message_delay_ms, default.message_delay),
        };
        let waits = [timing.propose, timing.prevote, timing.precommit, timing.rebroadcast];
        let (min, max) = (Duration::from_millis(10), Duration::from_secs(60));
        if let Some(wait) = waits.into_iter().find(|wait| !(min..=max).contains(wait)) {
            return Err(refuse("timing", format!("{wait:?} is not between {min:?} and {max:?}")));
        }
        if timing.message_delay < timing.propose {
            let (delay, propose) = (timing.message_delay, timing.propose);
            let why = format!(
                "message_delay_ms is {delay:?}, shorter than propose_ms ({propose:?}); proposals \
                 that arrive in time would count as stale"
            );
            return Err(refuse("timing", why));
        }
        Ok(timing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENESIS: &str = r#"{
        "chain_id": "test", "genesis_time": "2026-01-01T00:00:00Z",
        "policy": { "heartbeat_ms": 60000, "trusting_period_s": 7776000, "clock_drift_ms": 10000,
                    "leader_rotation_heights": 100 },
        "governance_approvals": 1,
        "operators": [{ "principal": "alice", "public_key": "KEY" }],
        "classes": [{ "prefix": "", "approvals": 1, "kind": "opaque" }],
        "validators": [{ "name": "v1", "public_key": "KEY", "power": 1, "jurisdiction": "eu",
                         "url": "https://127.0.0.1:7700" }]
    }"#;
    /// The public key of RFC 8032, test 1.
    const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn load(extra: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let genesis = GENESIS.replace("KEY", KEY);
        std::fs::write(dir.path().join("genesis.json"), genesis).unwrap();
        let text = format!(
            "name = \"v1\"\ngenesis = \"genesis.json\"\ndata_dir = \"data\"\nlisten = \
             \"127.0.0.1:7700\"\nmesh_listen = \"127.0.0.1:7701\"\nsigning_key = \"signing.key\"\n{extra}\n[tls]\ncert = \
             \"c\"\nkey = \"k\"\ntrust = \"t\"\n"
        );
        let path = dir.path().join("validator.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_overrides() {
        let config = load("").unwrap();
        assert_eq!(config.timing, Timing::default());
        assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
        let config =
            load("peer_urls = { v2 = \"https://10.0.0.2:7700\" }\ntiming = { propose_ms = 400 }")
                .unwrap();
        assert_eq!(config.timing.propose, Duration::from_millis(400));
        assert_eq!(config.peer_urls[&Label::new("v2").unwrap()], "https://10.0.0.2:7700");
    }

    #[test]
    fn mistakes_are_named() {
        for (extra, expected) in [
            ("timing = { propose_ms = 0 }", "`timing`: 0ns is not between 10ms and 60s"),
            (
                "timing = { message_delay_ms = 100 }",
                "`timing`: message_delay_ms is 100ms, shorter than propose_ms (500ms)",
            ),
            ("peer_urls = { v2 = \"http://x:1\" }", "expected https://HOST:PORT"),
            ("peer_urls = { \"../x\" = \"https://x:1\" }", "is not a valid name"),
            ("surprise = 1", "unknown field `surprise`"),
        ] {
            let error = load(extra).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
