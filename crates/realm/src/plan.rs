//! The plan of a realm, and the checks that it passes before anything is created.
//!
//! The plan comes from a person (`satrap init realm.toml`) or from `satrap dev`. It is checked as
//! a whole before a single key is made, so that `create` can fail only for reasons of the disk.
//!
//! # Deliberately absent
//!
//! Keys and certificates: a plan is not secret and may be kept in version control.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    ops::RangeInclusive,
    time::Duration,
};

use satrap_certify::{
    BundleName, ChainId, Class, Label, Policy,
    limits::{INTEREST_MAX, URL_BYTES_MAX, VALIDATORS_MAX},
};
use serde::{Deserialize, Serialize};

/// Sizes of a segment that a member accepts.
const LOG_SEGMENT_MIB: RangeInclusive<u64> = 1..=1024;
/// The largest reserve that a member accepts.
const RESERVE_MIB_MAX: u64 = 4096;

/// The plan of a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmPlan {
    /// Its name; part of every signature and every SPIFFE id.
    pub chain_id: ChainId,
    /// The settings that all its processes must agree on.
    pub policy: Policy,
    /// Principals that must approve a governance change.
    pub governance_approvals: u32,
    /// How long certificates last.
    pub lifetimes: Lifetimes,
    /// The global quorum.
    pub validators: Vec<ValidatorPlan>,
    /// The regional rings.
    pub regions: Vec<RegionPlan>,
    /// The agents beside workloads.
    pub edges: Vec<EdgePlan>,
    /// The operators who may sign changes. The first one's credentials are the default of the other verbs.
    pub operators: Vec<Label>,
    /// The rules for bundles.
    pub classes: Vec<Class>,
    /// Space that every member takes; by default as much as busy rings need.
    pub disk: Option<DiskPlan>,
}

/// Space that a member takes before there is anything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskPlan {
    /// Size of a segment of the log, in MiB; one is allocated at first.
    pub log_segment_mib: u64,
    /// Held back for a full disk, in MiB; at least a segment.
    pub reserve_mib: u64,
}

/// How long certificates last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// CAs.
    pub authority: Duration,
    /// Leaves of processes and operators.
    pub leaf: Duration,
}

/// One validator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatorPlan {
    /// Name in its SPIFFE id.
    pub name: Label,
    /// The address it binds for regions and operators.
    pub listen: SocketAddr,
    /// Where regions and operators reach it.
    pub url: String,
    /// The address it binds for the other validators.
    pub mesh_listen: SocketAddr,
    /// Where the other validators reach it; the genesis holds this one.
    pub mesh_url: String,
    /// The legal area it operates in.
    pub jurisdiction: Label,
    /// Voting power.
    pub power: u64,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionPlan {
    /// Its name.
    pub name: Label,
    /// Its ring; 3 or 5 members survive 1 or 2 failures.
    pub members: Vec<MemberPlan>,
}

impl RegionPlan {
    /// Whether etcd clients reach it.
    #[must_use]
    pub fn serves_etcd(&self) -> bool {
        self.members.iter().any(|member| member.etcd.is_some())
    }
}

/// One member of a regional ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPlan {
    /// Name within the region.
    pub name: Label,
    /// The address it binds for edges and operators.
    pub client_listen: SocketAddr,
    /// Where edges and operators reach it.
    pub client_url: String,
    /// The address it binds for the other members.
    pub peer_listen: SocketAddr,
    /// Where the other members reach it.
    pub peer_url: String,
    /// Its client listener, if it has one.
    pub etcd: Option<EtcdPlan>,
}

/// The client listener of a member, for etcd clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdPlan {
    /// The address it binds.
    pub listen: SocketAddr,
    /// Where clients reach it.
    pub url: String,
}

impl EtcdPlan {
    /// The host in the URL.
    pub(crate) fn host(&self) -> &str {
        let authority = self.url.strip_prefix("https://").unwrap_or(&self.url);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// One edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgePlan {
    /// The region it belongs to.
    pub region: Label,
    /// Name within the region.
    pub name: Label,
    /// The bundles that it runs.
    pub bundles: Vec<BundleName>,
    /// Regions it may ask when its own does not answer or lies.
    pub fallback_regions: Vec<Label>,
    /// Also write all values, in key order, into one file of this name.
    pub combined_file: Option<String>,
    /// Command run after a new version is in place; empty for none.
    pub hook: Vec<String>,
}

/// Why a plan is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not TOML of the expected form.
    #[error("not a realm description: {0}see `satrap init --example`")]
    Toml(#[from] Box<toml::de::Error>),
    /// A value that is not allowed.
    #[error("`{field}`: {why}")]
    Value {
        /// Which field.
        field: &'static str,
        /// The fault, and what is expected.
        why: String,
    },
}

pub(crate) fn value(field: &'static str, why: impl ToString) -> PlanError {
    PlanError::Value { field, why: why.to_string() }
}

impl RealmPlan {
    /// Checks what the types do not: that names are unique and refer to something, that addresses
    /// are usable, and that every bundle an edge runs can be published.
    ///
    /// # Errors
    ///
    /// [`PlanError`] names the field and what was expected.
    pub fn check(&self) -> Result<(), PlanError> {
        self.check_counts()?;
        unique("validators.name", self.validators.iter().map(|v| &v.name))?;
        unique("regions.name", self.regions.iter().map(|r| &r.name))?;
        unique("operators", &self.operators)?;
        unique("classes.prefix", self.classes.iter().map(|c| &c.prefix))?;
        for region in &self.regions {
            unique("regions.members.name", region.members.iter().map(|m| &m.name))?;
        }
        let members = || self.regions.iter().flat_map(|r| &r.members);
        let urls = self.validators.iter().flat_map(|v| [&v.url, &v.mesh_url]);
        let urls: Vec<_> =
            urls.chain(members().flat_map(|m| [&m.client_url, &m.peer_url])).collect();
        let etcds = || members().filter_map(|m| m.etcd.as_ref());
        let urls: Vec<_> = urls.into_iter().chain(etcds().map(|etcd| &etcd.url)).collect();
        urls.iter().try_for_each(|url| check_url(url))?;
        unique("url", urls)?;
        let listens = self.listens().into_iter().map(|(_, address)| address);
        // Processes on different machines may share a wildcard address.
        unique("listen", listens.filter(|a| a.ip().is_loopback()).collect::<Vec<_>>().iter())?;
        self.edges.iter().try_for_each(|edge| self.check_edge(edge))?;
        unique("edges", self.edges.iter().map(|e| format!("{}/{}", e.region, e.name)))
    }

    /// Every address that a process of the realm binds, with the process and its setting.
    #[must_use]
    pub fn listens(&self) -> Vec<(String, SocketAddr)> {
        let validators = self.validators.iter().flat_map(|v| {
            let of = |key| format!("`{key}` of validator {}", v.name);
            [(of("listen"), v.listen), (of("mesh_listen"), v.mesh_listen)]
        });
        let members = self.regions.iter().flat_map(|r| r.members.iter().map(move |m| (r, m)));
        let members = members.flat_map(|(r, m)| {
            let of = move |key| format!("`{key}` of member {}-{}", r.name, m.name);
            let etcd = m.etcd.as_ref().map(|etcd| (of("etcd.listen"), etcd.listen));
            [(of("client_listen"), m.client_listen), (of("peer_listen"), m.peer_listen)]
                .into_iter()
                .chain(etcd)
        });
        validators.chain(members).collect()
    }

    fn check_counts(&self) -> Result<(), PlanError> {
        if !(1..=VALIDATORS_MAX).contains(&self.validators.len()) {
            let why = format!(
                "expected 1 to {VALIDATORS_MAX} validators (4 survive one that lies), found {}",
                self.validators.len()
            );
            return Err(value("validators", why));
        }
        if self.operators.is_empty() {
            return Err(value(
                "operators",
                "expected at least one, because a realm without operators takes no change",
            ));
        }
        if let Some(DiskPlan { log_segment_mib, reserve_mib }) = self.disk {
            if !LOG_SEGMENT_MIB.contains(&log_segment_mib) {
                let (least, most) = LOG_SEGMENT_MIB.into_inner();
                let why = format!("expected {least} to {most}, found {log_segment_mib}");
                return Err(value("disk.log_segment_mib", why));
            }
            if !(log_segment_mib..=RESERVE_MIB_MAX).contains(&reserve_mib) {
                let why = format!(
                    "expected {log_segment_mib} (a segment) to {RESERVE_MIB_MAX}, found {reserve_mib}"
                );
                return Err(value("disk.reserve_mib", why));
            }
        }
        if let Some(region) = self.regions.iter().find(|r| r.members.is_empty()) {
            let why = format!("region `{}` has none; 3 survive one failure", region.name);
            return Err(value("regions.members", why));
        }
        if self.lifetimes.leaf.is_zero() || self.lifetimes.leaf > self.lifetimes.authority {
            let days = |d: Duration| d.as_secs() / 86_400;
            let (leaf, ca) = (days(self.lifetimes.leaf), days(self.lifetimes.authority));
            let why = format!("{leaf} must be above 0 and at most ca_days ({ca})");
            return Err(value("pki.leaf_days", why));
        }
        Ok(())
    }

    fn check_edge(&self, edge: &EdgePlan) -> Result<(), PlanError> {
        let EdgePlan { region, name, bundles, fallback_regions, .. } = edge;
        let known: BTreeSet<_> = self.regions.iter().map(|r| &r.name).collect();
        if let Some(missing) =
            [region].into_iter().chain(fallback_regions).find(|r| !known.contains(r))
        {
            let why =
                format!("edge `{name}` names region `{missing}`, which is not in [[regions]]");
            return Err(value("edges.region", why));
        }
        unique("edges.fallback_regions", [region].into_iter().chain(fallback_regions))?;
        if !(1..=INTEREST_MAX).contains(&bundles.len()) {
            let why = format!(
                "edge `{name}` runs {} bundles, expected 1 to {INTEREST_MAX}",
                bundles.len()
            );
            return Err(value("edges.bundles", why));
        }
        let covered =
            |b: &BundleName| self.classes.iter().any(|class| b.as_str().starts_with(&class.prefix));
        if let Some(bundle) = bundles.iter().find(|b| !covered(b)) {
            let why = format!(
                "no class covers `{bundle}` of edge `{name}`, so no operator could publish it; add one \
                 to [[classes]]"
            );
            return Err(value("edges.bundles", why));
        }
        Ok(())
    }

    /// The members of a region that exists.
    pub(crate) fn members(&self, region: &Label) -> &[MemberPlan] {
        let found = self.regions.iter().find(|r| r.name == *region);
        &found.expect("check() refuses edges of unknown regions").members
    }

    /// Classes by prefix.
    pub(crate) fn classes_by_prefix(&self) -> BTreeMap<String, Class> {
        self.classes.iter().map(|class| (class.prefix.clone(), class.clone())).collect()
    }
}

fn unique<T: Ord + Display>(
    field: &'static str,
    items: impl IntoIterator<Item = T>,
) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(value(field, format!("`{item}` is there twice")));
        }
        seen.insert(item);
    }
    Ok(())
}

fn check_url(url: &str) -> Result<(), PlanError> {
    let port = url.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':'));
    let numeric = port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !numeric || url.len() > URL_BYTES_MAX {
        return Err(value("url", format!("`{url}`: expected https://HOST:PORT")));
    }
    Ok(())
}
