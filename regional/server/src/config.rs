//! The configuration of one member: TOML as it was written, then checked.
//!
//! Paths are relative to the file. Everything is checked before a socket is opened; an error names
//! the key, what it says and what was expected.

mod etcd;

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use satrap_certify::{Genesis, Label};
use satrap_host::{
    config::{ConfigError, RawTls, check, check_count, check_url, load, read_named, refuse},
    mtls::CredentialFiles,
};
use serde::Deserialize;

use self::etcd::RawEtcd;
use crate::{
    etcd::EtcdConfig,
    limits::{
        LOG_ENTRIES, LOG_ENTRIES_MAX, LOG_SEGMENT_MIB, MEMBERS_MAX, MIB, RESERVE_MIB_MAX,
        SNAPSHOT_INTERVAL_S, SNAPSHOTS_KEPT_MAX, VALIDATORS_MAX,
    },
    raft::{Compaction, RingSetup, Timing},
    snapshots::Schedule,
};

/// Another process and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The name in its certificate.
    pub name: Label,
    /// `https://HOST:PORT`.
    pub url: String,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member's region.
    pub region: Label,
    /// This member.
    pub name: Label,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// The realm.
    pub genesis: Arc<Genesis>,
    /// For edges, operators and other members' questions.
    pub client_listen: SocketAddr,
    /// For the ring.
    pub peer_listen: SocketAddr,
    /// Who this member is and whom it believes.
    pub credentials: CredentialFiles,
    /// All members with their client addresses, this one included.
    pub members: Vec<Endpoint>,
    /// All members' peer addresses.
    pub peer_urls: BTreeMap<Label, String>,
    /// Those that this member dials elsewhere.
    pub peer_url_overrides: BTreeMap<Label, String>,
    /// Validators to follow and to forward to, in the order to try them.
    pub validators: Vec<Endpoint>,
    /// Regions besides this one whose edges may fall back to this member.
    pub other_regions: Vec<Label>,
    /// Where clients of etcd reach this member; if nowhere, its keyspace serves only the others'.
    pub etcd: Option<EtcdConfig>,
    /// When this member saves the ring's state to files, if it does.
    pub snapshots: Option<Schedule>,
    /// Raft's clocks.
    pub timing: Timing,
    /// When the Raft log is compacted.
    pub compaction: Compaction,
    /// How the files of the ring are laid out.
    pub storage: satrap_regional_storage::Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    region: String,
    name: String,
    data_dir: PathBuf,
    genesis: PathBuf,
    client_listen: SocketAddr,
    peer_listen: SocketAddr,
    tls: RawTls,
    members: Vec<RawMember>,
    validators: Vec<RawEndpoint>,
    #[serde(default)]
    other_regions: Vec<String>,
    #[serde(default)]
    peer_url_overrides: BTreeMap<String, String>,
    etcd: Option<RawEtcd>,
    snapshots: Option<RawSnapshots>,
    #[serde(default)]
    raft: RawRaft,
    #[serde(default)]
    disk: RawDisk,
}

/// Space that a member takes before there is anything in it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawDisk {
    log_segment_mib: Option<u64>,
    reserve_mib: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSnapshots {
    interval_s: u64,
    dir: PathBuf,
    keep: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    name: String,
    client_url: String,
    peer_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEndpoint {
    name: String,
    url: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawRaft {
    heartbeat_ms: Option<u64>,
    election_ms_min: Option<u64>,
    election_ms_max: Option<u64>,
    log_entries_max: Option<u64>,
}

fn label(key: &'static str, text: &str) -> Result<Label, ConfigError> {
    check(key, Label::new(text))
}

impl Config {
    /// Reads and checks the file at `path`, and the genesis it names.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] says which key or file is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (raw, base) = load::<RawConfig>(path)?;
        raw.check(&base)
    }

    /// What the ring needs of this.
    #[must_use]
    pub fn ring_setup(&self) -> RingSetup {
        RingSetup {
            genesis: self.genesis.clone(),
            region: self.region.clone(),
            name: self.name.clone(),
            members: self.peer_urls.clone(),
            peer_url_overrides: self.peer_url_overrides.clone(),
            client_urls: self.etcd.as_ref().map_or_else(Vec::new, |etcd| etcd.urls.clone()),
            data_dir: self.data_dir.clone(),
            timing: self.timing,
            compaction: self.compaction,
            storage: self.storage,
        }
    }
}

impl RawConfig {
    fn check(self, base: &Path) -> Result<Config, ConfigError> {
        let (region, name) = (label("region", &self.region)?, label("name", &self.name)?);
        let mut peer_urls = BTreeMap::new();
        let mut members = Vec::new();
        for member in self.members {
            let name = label("members.name", &member.name)?;
            let peer_url = check_url("members.peer_url", member.peer_url)?;
            if peer_urls.insert(name.clone(), peer_url).is_some() {
                return Err(refuse("members", format!("`{name}` is listed twice")));
            }
            let url = check_url("members.client_url", member.client_url)?;
            members.push(Endpoint { name, url });
        }
        check_count("members", members.len(), MEMBERS_MAX)?;
        if !peer_urls.contains_key(&name) {
            return Err(refuse("members", format!("this member, `{name}`, is not listed")));
        }
        let mut peer_url_overrides = BTreeMap::new();
        for (name, url) in self.peer_url_overrides {
            let name = label("peer_url_overrides", &name)?;
            peer_url_overrides.insert(name, check_url("peer_url_overrides", url)?);
        }
        let data_dir = base.join(self.data_dir);
        let snapshots = self.snapshots.map(|raw| raw.check(base, &data_dir)).transpose()?;
        let regions = self.other_regions.iter().map(|text| label("other_regions", text));
        Ok(Config {
            region,
            name,
            data_dir,
            genesis: Arc::new(read_named("genesis", &base.join(self.genesis), Genesis::from_json)?),
            client_listen: self.client_listen,
            peer_listen: self.peer_listen,
            credentials: self.tls.under(base),
            members,
            peer_urls,
            peer_url_overrides,
            validators: check_validators(self.validators)?,
            other_regions: regions.collect::<Result<_, _>>()?,
            etcd: self.etcd.map(|etcd| etcd.check(base)).transpose()?,
            snapshots,
            timing: self.raft.timing()?,
            compaction: self.raft.compaction()?,
            storage: self.disk.check()?,
        })
    }
}

fn check_range<T: PartialOrd + Display>(
    key: &'static str,
    unit: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (min, max) = range.into_inner();
    Err(refuse(key, format!("{value} {unit}: expected {min} to {max} {unit}")))
}

impl RawSnapshots {
    fn check(self, base: &Path, data_dir: &Path) -> Result<Schedule, ConfigError> {
        let Self { interval_s, dir, keep } = self;
        check_range("snapshots.interval_s", "s", interval_s, SNAPSHOT_INTERVAL_S)?;
        check_count("snapshots.keep", keep, SNAPSHOTS_KEPT_MAX)?;
        let dir = base.join(dir);
        if dir.starts_with(data_dir) {
            let why = format!(
                "{} is in the data directory, and would be lost with it: expected another place",
                dir.display()
            );
            return Err(refuse("snapshots.dir", why));
        }
        Ok(Schedule { interval: Duration::from_secs(interval_s), dir, keep })
    }
}

fn check_validators(raw: Vec<RawEndpoint>) -> Result<Vec<Endpoint>, ConfigError> {
    check_count("validators", raw.len(), VALIDATORS_MAX)?;
    let endpoint = |raw: RawEndpoint| {
        let name = label("validators.name", &raw.name)?;
        Ok(Endpoint { name, url: check_url("validators.url", raw.url)? })
    };
    raw.into_iter().map(endpoint).collect()
}

impl RawDisk {
    fn check(&self) -> Result<satrap_regional_storage::Config, ConfigError> {
        let mut config = satrap_regional_storage::Config::default();
        if let Some(mib) = self.log_segment_mib {
            if !LOG_SEGMENT_MIB.contains(&mib) {
                let (min, max) = LOG_SEGMENT_MIB.into_inner();
                let why = format!("{mib} MiB: expected {min} to {max}");
                return Err(refuse("disk.log_segment_mib", why));
            }
            config.wal.segment_bytes = mib * MIB;
        }
        if let Some(mib) = self.reserve_mib {
            config.space.reserve_bytes = mib.saturating_mul(MIB);
        }
        let (reserve, segment) = (config.space.reserve_bytes / MIB, config.wal.segment_bytes / MIB);
        if !(segment..=RESERVE_MIB_MAX).contains(&reserve) {
            let why = format!(
                "{reserve} MiB: expected {segment}, the size of a log segment, to {RESERVE_MIB_MAX}; \
                 on a full disk the next segment is made from it"
            );
            return Err(refuse("disk.reserve_mib", why));
        }
        Ok(config)
    }
}

impl RawRaft {
    fn compaction(&self) -> Result<Compaction, ConfigError> {
        let entries = self.log_entries_max.unwrap_or(LOG_ENTRIES_MAX);
        check_range("raft.log_entries_max", "entries", entries, LOG_ENTRIES)?;
        Ok(Compaction::beyond(entries))
    }

    fn timing(&self) -> Result<Timing, ConfigError> {
        let default = Timing::default();
        let ms = |raw: Option<u64>, default| raw.map_or(default, Duration::from_millis);
        let timing = Timing {
            heartbeat: ms(self.heartbeat_ms, default.heartbeat),
            election_min: ms(self.election_ms_min, default.election_min),
            election_max: ms(self.election_ms_max, default.election_max),
        };
        if timing.heartbeat.is_zero() || timing.election_min < 3 * timing.heartbeat {
            let why = format!(
                "heartbeat {:?} and shortest election timeout {:?}: expected at least three \
                 heartbeats in it, or one lost packet is an election",
                timing.heartbeat, timing.election_min
            );
            return Err(refuse("raft", why));
        }
        if timing.election_max <= timing.election_min {
            let why = format!(
                "election timeouts {:?} to {:?}: expected a range, or all members run at once",
                timing.election_min, timing.election_max
            );
            return Err(refuse("raft", why));
        }
        Ok(timing)
    }
}

#[cfg(test)]
mod tests {
    use satrap_regional_api::api::RequestLimits;

    use super::*;
    use crate::etcd::TlsVersion;
    use crate::tests::realm::Realm;

    const GOOD: &str = r#"
        region = "eu"
        name = "m1"
        data_dir = "data"
        genesis = "genesis.json"
        client_listen = "127.0.0.1:7001"
        peer_listen = "127.0.0.1:7002"
        other_regions = ["us"]
        [tls]
        cert = "m1.pem"
        key = "m1.key"
        trust = "trust.pem"
        [[members]]
        name = "m1"
        client_url = "https://127.0.0.1:7001"
        peer_url = "https://127.0.0.1:7002"
        [[members]]
        name = "m2"
        client_url = "https://127.0.0.1:7003"
        peer_url = "https://127.0.0.1:7004"
        [[validators]]
        name = "v1"
        url = "https://127.0.0.1:7005"
        [peer_url_overrides]
        m2 = "https://127.0.0.1:7999"
        [snapshots]
        interval_s = 3600
        dir = "backup"
        keep = 24
        [etcd]
        listen = "127.0.0.1:2379"
        urls = ["https://127.0.0.1:2379"]
        metrics_listen = "0.0.0.0:2381"
        request_bytes_max = 4194304
        txn_ops_max = 512
        watch_progress_interval_s = 60
        [etcd.tls]
        cert = "etcd.crt"
        key = "etcd.key"
        client_ca = "etcd-ca.crt"
        min_tls_version = "1.3"
        [disk]
        log_segment_mib = 4
        reserve_mib = 8
        [raft]
        heartbeat_ms = 50
        log_entries_max = 100
    "#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("region.toml");
        std::fs::write(&path, text).unwrap();
        let genesis = Realm::new().genesis.to_json();
        std::fs::write(dir.path().join("genesis.json"), genesis).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_good_file_gives_every_field() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.name.as_str(), "m1");
        assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
        assert!(config.credentials.key.ends_with("m1.key"));
        let m2 = Label::new("m2").unwrap();
        assert_eq!(config.peer_urls[&m2], "https://127.0.0.1:7004");
        assert_eq!(config.peer_url_overrides[&m2], "https://127.0.0.1:7999");
        assert_eq!(config.members[1].url, "https://127.0.0.1:7003");
        assert_eq!(config.timing.heartbeat, Duration::from_millis(50));
        assert_eq!(config.timing.election_max, Timing::default().election_max);
        let Compaction { max, keep } = config.ring_setup().compaction;
        assert_eq!((max.entries, keep.entries), (100, 25));
        assert_eq!(config.ring_setup().members.len(), 2);
        let storage = config.ring_setup().storage;
        assert_eq!((storage.wal.segment_bytes, storage.space.reserve_bytes), (4 << 20, 8 << 20));
        let Schedule { interval, dir, keep } = config.snapshots.unwrap();
        assert_eq!((interval, keep), (Duration::from_secs(3600), 24));
        assert!(dir.is_absolute() && dir.ends_with("backup"));
        let etcd = config.etcd.unwrap();
        assert_eq!(etcd.requests, RequestLimits { bytes_max: 4 << 20, txn_ops_max: 512 });
        assert_eq!(etcd.watch_progress_interval, Duration::from_secs(60));
        assert_eq!(etcd.metrics_listen, Some("0.0.0.0:2381".parse().unwrap()));
        assert_eq!(etcd.tls.unwrap().min_version, TlsVersion::Tls13);
    }

    #[test]
    fn without_a_word_clients_get_what_etcd_gives() {
        let lines = GOOD.lines().filter(|line| {
            let setting = line.trim_start().split(' ').next().unwrap_or_default();
            !["metrics_listen", "request_bytes_max", "txn_ops_max", "min_tls_version"]
                .contains(&setting)
                && setting != "watch_progress_interval_s"
        });
        let etcd = load(&lines.collect::<Vec<_>>().join("\n")).unwrap().etcd.unwrap();
        let limits = RequestLimits { bytes_max: 1536 * 1024, txn_ops_max: 128 };
        assert_eq!((etcd.requests, etcd.metrics_listen), (limits, None));
        assert_eq!(etcd.watch_progress_interval, Duration::from_mins(10));
        assert_eq!(etcd.tls.unwrap().min_version, TlsVersion::Tls12);
    }

    #[test]
    fn each_mistake_is_named() {
        for (from, to, expected) in [
            ("name = \"m1\"", "name = \"m9\"", "`m9`, is not listed"),
            ("name = \"m2\"", "name = \"m1\"", "`m1` is listed twice"),
            ("region = \"eu\"", "region = \"EU\"", "`region`"),
            ("https://127.0.0.1:7005", "127.0.0.1:7005", "`validators.url`: \"127.0.0.1:7005\""),
            ("m2 = \"https", "m2 = \"htps", "`peer_url_overrides`"),
            ("heartbeat_ms = 50", "heartbeat_ms = 100", "three heartbeats"),
            ("heartbeat_ms = 50", "election_ms_max = 250", "expected a range"),
            ("heartbeat_ms = 50", "heartbeat = 50", "unknown field"),
            ("log_entries_max = 100", "log_entries_max = 9", "9 entries: expected 16 to"),
            ("log_segment_mib = 4", "log_segment_mib = 0", "0 MiB: expected 1 to 1024"),
            ("reserve_mib = 8", "reserve_mib = 3", "3 MiB: expected 4, the size of a log segment"),
            ("interval_s = 3600", "interval_s = 9", "9 s: expected 60 to"),
            ("keep = 24", "keep = 0", "0 snapshots.keep"),
            ("bytes_max = 4194304", "bytes_max = 9", "9 bytes: expected 1024 to 6291456"),
            ("txn_ops_max = 512", "txn_ops_max = 0", "0 operations: expected 1 to 4096"),
            ("interval_s = 60", "interval_s = 0", "`etcd.watch_progress_interval_s`: 0 s"),
            ("\"1.3\"", "\"1.1\"", "`etcd.tls.min_tls_version`: \"1.1\": expected"),
            ("dir = \"backup\"", "dir = \"data/backup\"", "would be lost with it"),
            ("genesis = \"genesis.json\"", "genesis = \"none.json\"", "none.json"),
            ("7001\"\n        peer_listen", "x\"\n        peer_listen", "socket address"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = load(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let none = GOOD.split("[[validators]]").next().unwrap();
        let error = load(&none.replacen("region =", "validators = []\nregion =", 1)).unwrap_err();
        assert!(error.to_string().contains("0 validators"), "{error}");
    }
}
