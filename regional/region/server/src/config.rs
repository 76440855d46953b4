//! The configuration of one member: TOML as it was written, then checked.
//!
//! Paths are relative to the file. Everything is checked before a socket is opened; an error names
//! the key, what it says and what was expected.

mod etcd;
#[cfg(test)]
mod tests;

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
use satrap_identity::{
    config::{ConfigError, RawTls, check, check_count, check_url, load, read_named, refuse},
    mtls::CredentialFiles,
};
use satrap_region_core::{ring_id, state_setup};
use satrap_ring_api::listener::EtcdConfig;
use satrap_ring_raft::{
    Compaction, MemberName, RingSetup, Timing,
    limits::{
        LOG_ENTRIES, LOG_ENTRIES_MAX, LOG_SEGMENT_MIB, MEMBERS_MAX, MIB, RESERVE_MIB_MAX,
        SNAPSHOT_INTERVAL_S, SNAPSHOTS_KEPT_MAX,
    },
    snapshots::Schedule,
};
use serde::Deserialize;

use self::etcd::RawEtcd;
use crate::limits::VALIDATORS_MAX;

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
    /// The directory of its data.
    pub data_dir: PathBuf,
    /// The realm.
    pub genesis: Arc<Genesis>,
    /// For edges, operators and other members' questions.
    pub client_listen: SocketAddr,
    /// For the ring.
    pub peer_listen: SocketAddr,
    /// This member's certificate and key, and its trust roots.
    pub credentials: CredentialFiles,
    /// All members with their client addresses, this one included.
    pub members: Vec<Endpoint>,
    /// All members' peer addresses.
    pub peer_urls: BTreeMap<Label, String>,
    /// The addresses that only this member uses for some of them.
    pub peer_url_overrides: BTreeMap<Label, String>,
    /// Validators to follow and to forward to, in the order to try them.
    pub validators: Vec<Endpoint>,
    /// Regions besides this one whose edges may fall back to this member.
    pub other_regions: Vec<Label>,
    /// The client listener, for etcd clients. A member without one takes part in the ring all the same.
    pub etcd: Option<EtcdConfig>,
    /// When this member saves the ring's state to files, if it does.
    pub snapshots: Option<Schedule>,
    /// Raft's clocks.
    pub timing: Timing,
    /// When the Raft log is compacted.
    pub compaction: Compaction,
    /// The layout of the ring's files.
    pub storage: satrap_ring_storage::Config,
}

/// `region.toml`: the configuration file of a region member, for `satrap region run`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    /// The region of this member.
    region: String,
    /// This member's name within the region. Its certificate must hold both.
    name: String,
    /// Where the member keeps its log, state and identity.
    data_dir: PathBuf,
    /// The genesis file of the realm.
    genesis: PathBuf,
    /// Address for edges, operators and other members' questions. Port 0 takes a free one.
    client_listen: SocketAddr,
    /// Address for the other members of the ring.
    peer_listen: SocketAddr,
    /// The certificate, key and trust of this process.
    tls: RawTls,
    /// All founding members of the ring, this one included; 1 to 7.
    members: Vec<RawMember>,
    /// Validators to follow and to forward changes to, in the order to try them.
    validators: Vec<RawEndpoint>,
    /// Regions whose edges may fall back to this member.
    #[serde(default)]
    other_regions: Vec<String>,
    /// Members that this one dials elsewhere than their peer URL says, by name:
    /// `https://HOST:PORT`.
    #[serde(default)]
    peer_url_overrides: BTreeMap<String, String>,
    /// The etcd API for clients of the keyspace. Without it this member serves none.
    etcd: Option<RawEtcd>,
    /// When this member saves the state of the ring to files. Without it, only when asked.
    snapshots: Option<RawSnapshots>,
    /// Clocks and log of the ring.
    #[serde(default)]
    raft: RawRaft,
    /// Space that the member allocates in advance.
    #[serde(default)]
    disk: RawDisk,
}

/// Space that a member takes before there is anything in it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawDisk {
    /// Size of a segment of the log; 1 to 1024.
    ///
    /// Default: `WalConfig::segment_bytes`.
    log_segment_mib: Option<u64>,
    /// Space held back for a full disk; at least a segment, at most 4096.
    ///
    /// Default: `SpaceConfig::reserve_bytes`.
    reserve_mib: Option<u64>,
}

/// When a member saves the state of the ring to files.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSnapshots {
    /// How often; 60 s to 30 days.
    interval_s: u64,
    /// Directory for the files. Outside of `data_dir`.
    dir: PathBuf,
    /// How many files are kept; 1 to 10 000. Older ones are deleted.
    keep: usize,
}

/// A member of the ring.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    /// The member's name.
    name: String,
    /// `https://HOST:PORT` of its `client_listen`.
    client_url: String,
    /// `https://HOST:PORT` of its `peer_listen`.
    peer_url: String,
}

/// A validator.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEndpoint {
    /// The validator's name; its certificate must hold it.
    name: String,
    /// `https://HOST:PORT` of its `listen`.
    url: String,
}

/// Clocks and log of the ring.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawRaft {
    /// How often the leader sends heartbeats.
    ///
    /// Default: `Timing::heartbeat`.
    heartbeat_ms: Option<u64>,
    /// Shortest election timeout; at least three heartbeats.
    ///
    /// Default: `Timing::election_min`.
    election_ms_min: Option<u64>,
    /// Longest election timeout; above the shortest.
    ///
    /// Default: `Timing::election_max`.
    election_ms_max: Option<u64>,
    /// Entries after which the log is compacted; 16 to 1 000 000.
    ///
    /// Default: `LOG_ENTRIES_MAX`.
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

    /// The settings that the ring needs.
    #[must_use]
    pub fn ring_setup(&self) -> RingSetup {
        let named = |urls: &BTreeMap<Label, String>| {
            urls.iter().map(|(name, url)| (member_name(name), url.clone())).collect()
        };
        RingSetup {
            ring: ring_id(&self.genesis, &self.region),
            realm: self.genesis.realm().chain_id().to_owned(),
            region: self.region.to_string(),
            state: state_setup(&self.genesis),
            name: member_name(&self.name),
            members: named(&self.peer_urls),
            peer_url_overrides: named(&self.peer_url_overrides),
            client_urls: self.etcd.as_ref().map_or_else(Vec::new, |etcd| etcd.urls.clone()),
            data_dir: self.data_dir.clone(),
            timing: self.timing,
            compaction: self.compaction,
            storage: self.storage,
        }
    }
}

fn member_name(label: &Label) -> MemberName {
    MemberName::new(label.as_str()).expect("every label is a member name")
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
        check_range("snapshots.keep", "files", keep, 1..=SNAPSHOTS_KEPT_MAX)?;
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
    fn check(&self) -> Result<satrap_ring_storage::Config, ConfigError> {
        let mut config = satrap_ring_storage::Config::default();
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
        let heartbeat = ms(self.heartbeat_ms, default.heartbeat);
        // A default gives way to what is set.
        let shortest = default.election_min.max(3 * heartbeat);
        let election_min = ms(self.election_ms_min, shortest);
        let range = default.election_max - default.election_min;
        let longest = default.election_max.max(election_min + range);
        let election_max = ms(self.election_ms_max, longest);
        let timing = Timing { heartbeat, election_min, election_max };
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
