//! The plan as TOML: `satrap init` reads it, and keeps it beside the realm that it made.

use std::time::Duration;

use satrap_certify::{BundleName, ChainId, Label, Policy, genesis::RawClass};
use serde::{Deserialize, Serialize};

use super::plan::{
    DiskPlan, EdgePlan, EtcdPlan, Lifetimes, MemberPlan, PlanError, RealmPlan, RegionPlan,
    ValidatorPlan, value,
};

const DAY_S: u64 = 86_400;

/// A realm description that `satrap init` accepts, with every field explained.
pub const EXAMPLE: &str = include_str!("example.toml");

/// `realm.toml`: a description of a realm, for `satrap init`. `satrap init --example` prints one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    /// Name of the realm: part of every signature and every identity.
    chain_id: String,
    /// Distinct principals that must approve a change of operators, region keys or validators.
    #[serde(default = "default_governance_approvals")]
    governance_approvals: u32,
    /// Names of principals who may sign changes. Each gets a key and a certificate.
    operators: Vec<String>,
    /// Times that all followers agree on.
    #[serde(default)]
    policy: RawPolicy,
    /// Lifetimes of certificates.
    #[serde(default)]
    pki: RawPki,
    /// Rules for bundles, by prefix.
    #[serde(default)]
    classes: Vec<RawClass>,
    /// The first validator set; 3f+1 survive f that are hostile.
    validators: Vec<RawValidator>,
    /// The regions and the members of their rings.
    #[serde(default)]
    regions: Vec<RawRegion>,
    /// The edges.
    #[serde(default)]
    edges: Vec<RawEdge>,
    /// Space that every member takes.
    disk: Option<DiskPlan>,
}

fn default_governance_approvals() -> u32 {
    1
}

/// Times that all followers agree on.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPolicy {
    /// Longest time without a block: an idle realm certifies a heartbeat block.
    heartbeat_ms: u64,
    /// How old the last verified checkpoint of a follower may be.
    trusting_period_s: u64,
    /// How far a certified time may lie ahead of a follower's clock.
    clock_drift_ms: u64,
    /// The leader changes at the latest after this many heights.
    leader_rotation_heights: u64,
}

impl Default for RawPolicy {
    fn default() -> Self {
        Self {
            heartbeat_ms: 30_000,
            trusting_period_s: 90 * DAY_S,
            clock_drift_ms: 10_000,
            leader_rotation_heights: 100,
        }
    }
}

/// Lifetimes of certificates.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPki {
    /// Of CAs.
    ca_days: u64,
    /// Of the certificates of processes and operators.
    leaf_days: u64,
}

impl Default for RawPki {
    fn default() -> Self {
        Self { ca_days: 3_650, leaf_days: 365 }
    }
}

/// A validator.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawValidator {
    /// Its name.
    name: String,
    /// Address it binds for regions and operators.
    listen: std::net::SocketAddr,
    /// `https://HOST:PORT` where regions and operators reach it.
    url: String,
    /// Address it binds for the other validators.
    mesh_listen: std::net::SocketAddr,
    /// `https://HOST:PORT` where the other validators reach it; part of the genesis.
    mesh_url: String,
    /// The legal area it operates in.
    jurisdiction: String,
    /// Voting power.
    #[serde(default = "default_power")]
    power: u64,
}

fn default_power() -> u64 {
    1
}

/// A region.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegion {
    /// Its name.
    name: String,
    /// Members of its ring: 3 survive one failure, 5 survive two.
    members: Vec<RawMember>,
}

/// A member of a ring.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    /// Its name within the region.
    name: String,
    /// Address it binds for edges and operators.
    client_listen: std::net::SocketAddr,
    /// `https://HOST:PORT` where edges and operators reach it.
    client_url: String,
    /// Address it binds for the other members.
    peer_listen: std::net::SocketAddr,
    /// `https://HOST:PORT` where the other members reach it.
    peer_url: String,
    /// Address it binds for etcd clients. Without it this member serves none.
    etcd_listen: Option<std::net::SocketAddr>,
    /// Where etcd clients reach it. Goes with `etcd_listen`.
    etcd_url: Option<String>,
}

/// An edge.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEdge {
    /// Its region.
    region: String,
    /// Its name within the region.
    name: String,
    /// Bundles it runs.
    bundles: Vec<String>,
    /// Regions it may ask when its own does not answer or lies.
    #[serde(default)]
    fallback_regions: Vec<String>,
    /// As in `edge.toml`.
    combined_file: Option<String>,
    /// As in `edge.toml`.
    #[serde(default)]
    hook: Vec<String>,
}

impl RealmPlan {
    /// Reads and checks a description.
    ///
    /// # Errors
    ///
    /// [`PlanError`] names the field and what was expected.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        let raw: RawPlan = toml::from_str(text).map_err(Box::new)?;
        let plan = raw.plan()?;
        plan.check()?;
        Ok(plan)
    }

    /// The description of this plan.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&RawPlan::of(self)).expect("strings and small numbers are TOML")
    }
}

fn label(field: &'static str, text: &str) -> Result<Label, PlanError> {
    Label::new(text).map_err(|e| value(field, e))
}

fn labels(field: &'static str, texts: &[String]) -> Result<Vec<Label>, PlanError> {
    texts.iter().map(|text| label(field, text)).collect()
}

impl RawPlan {
    fn plan(self) -> Result<RealmPlan, PlanError> {
        let days = |days: u64| Duration::from_secs(days.saturating_mul(DAY_S));
        Ok(RealmPlan {
            chain_id: ChainId::new(&self.chain_id).map_err(|e| value("chain_id", e))?,
            policy: Policy {
                heartbeat: Duration::from_millis(self.policy.heartbeat_ms),
                trusting_period: Duration::from_secs(self.policy.trusting_period_s),
                clock_drift: Duration::from_millis(self.policy.clock_drift_ms),
                leader_rotation_heights: self.policy.leader_rotation_heights,
            },
            governance_approvals: self.governance_approvals,
            lifetimes: Lifetimes {
                authority: days(self.pki.ca_days),
                leaf: days(self.pki.leaf_days),
            },
            validators: self
                .validators
                .into_iter()
                .map(RawValidator::plan)
                .collect::<Result<_, _>>()?,
            regions: self.regions.into_iter().map(RawRegion::plan).collect::<Result<_, _>>()?,
            edges: self.edges.into_iter().map(RawEdge::plan).collect::<Result<_, _>>()?,
            operators: labels("operators", &self.operators)?,
            classes: self.classes.into_iter().map(RawClass::class).collect(),
            disk: self.disk,
        })
    }

    fn of(plan: &RealmPlan) -> Self {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            chain_id: plan.chain_id.to_string(),
            governance_approvals: plan.governance_approvals,
            operators: plan.operators.iter().map(ToString::to_string).collect(),
            policy: RawPolicy {
                heartbeat_ms: ms(plan.policy.heartbeat),
                trusting_period_s: plan.policy.trusting_period.as_secs(),
                clock_drift_ms: ms(plan.policy.clock_drift),
                leader_rotation_heights: plan.policy.leader_rotation_heights,
            },
            pki: RawPki {
                ca_days: plan.lifetimes.authority.as_secs() / DAY_S,
                leaf_days: plan.lifetimes.leaf.as_secs() / DAY_S,
            },
            classes: plan.classes.iter().map(RawClass::of).collect(),
            validators: plan.validators.iter().map(RawValidator::of).collect(),
            regions: plan.regions.iter().map(RawRegion::of).collect(),
            edges: plan.edges.iter().map(RawEdge::of).collect(),
            disk: plan.disk,
        }
    }
}

impl RawValidator {
    fn plan(self) -> Result<ValidatorPlan, PlanError> {
        Ok(ValidatorPlan {
            name: label("validators.name", &self.name)?,
            listen: self.listen,
            url: self.url,
            mesh_listen: self.mesh_listen,
            mesh_url: self.mesh_url,
            jurisdiction: label("validators.jurisdiction", &self.jurisdiction)?,
            power: self.power,
        })
    }

    fn of(v: &ValidatorPlan) -> Self {
        Self {
            name: v.name.to_string(),
            listen: v.listen,
            url: v.url.clone(),
            mesh_listen: v.mesh_listen,
            mesh_url: v.mesh_url.clone(),
            jurisdiction: v.jurisdiction.to_string(),
            power: v.power,
        }
    }
}

impl RawRegion {
    fn plan(self) -> Result<RegionPlan, PlanError> {
        let members = self.members.into_iter().map(|m| {
            Ok(MemberPlan {
                name: label("regions.members.name", &m.name)?,
                client_listen: m.client_listen,
                client_url: m.client_url,
                peer_listen: m.peer_listen,
                peer_url: m.peer_url,
                etcd: match (m.etcd_listen, m.etcd_url) {
                    (Some(listen), Some(url)) => Some(EtcdPlan { listen, url }),
                    (None, None) => None,
                    _ => {
                        let why = "expected `etcd_listen` and `etcd_url` together, or neither";
                        return Err(value("regions.members", why));
                    }
                },
            })
        });
        let members = members.collect::<Result<_, PlanError>>()?;
        Ok(RegionPlan { name: label("regions.name", &self.name)?, members })
    }

    fn of(region: &RegionPlan) -> Self {
        let members = region.members.iter().map(|m| RawMember {
            name: m.name.to_string(),
            client_listen: m.client_listen,
            client_url: m.client_url.clone(),
            peer_listen: m.peer_listen,
            peer_url: m.peer_url.clone(),
            etcd_listen: m.etcd.as_ref().map(|etcd| etcd.listen),
            etcd_url: m.etcd.as_ref().map(|etcd| etcd.url.clone()),
        });
        Self { name: region.name.to_string(), members: members.collect() }
    }
}

impl RawEdge {
    fn plan(self) -> Result<EdgePlan, PlanError> {
        let bundles = self.bundles.iter().map(|b| BundleName::new(b));
        Ok(EdgePlan {
            region: label("edges.region", &self.region)?,
            name: label("edges.name", &self.name)?,
            bundles: bundles.collect::<Result<_, _>>().map_err(|e| value("edges.bundles", e))?,
            fallback_regions: labels("edges.fallback_regions", &self.fallback_regions)?,
            combined_file: self.combined_file,
            hook: self.hook,
        })
    }

    fn of(edge: &EdgePlan) -> Self {
        Self {
            region: edge.region.to_string(),
            name: edge.name.to_string(),
            bundles: edge.bundles.iter().map(ToString::to_string).collect(),
            fallback_regions: edge.fallback_regions.iter().map(ToString::to_string).collect(),
            combined_file: edge.combined_file.clone(),
            hook: edge.hook.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_survives_a_round_trip() {
        let plan = RealmPlan::from_toml(EXAMPLE).unwrap();
        assert_eq!(RealmPlan::from_toml(&plan.to_toml()).unwrap(), plan);
        assert_eq!(plan.validators.len(), 4);
    }

    /// Each way to get a description wrong, and what a person reads then.
    #[test]
    fn mistakes_are_named() {
        let cases = [
            (
                "chain_id = \"acme-prod\"",
                "chain_id = \"Acme\"",
                "`chain_id`: `Acme` is not a valid chain id",
            ),
            ("name = \"v2\"", "name = \"v1\"", "`validators.name`: `v1` is there twice"),
            (
                "https://v2.example.net:7400",
                "http://v2.example.net:7400",
                "`url`: `http://v2.example.net:7400`: expected https://HOST:PORT",
            ),
            (
                "https://v2.example.net:7400",
                "https://v1.example.net:7400",
                "`url`: `https://v1.example.net:7400` is there twice",
            ),
            (
                "region = \"eu\"",
                "region = \"mars\"",
                "`edges.region`: edge `web-1` names region `mars`, which is not in [[regions]]",
            ),
            (
                "fallback_regions = [\"us\"]",
                "fallback_regions = [\"eu\"]",
                "`edges.fallback_regions`: `eu` is there twice",
            ),
            (
                "bundles = [\"pki/edge-trust\"]",
                "bundles = [\"x/y\"]",
                "`edges.bundles`: no class covers `x/y` of edge `web-1`",
            ),
            (
                "bundles = [\"pki/edge-trust\"]",
                "bundles = []",
                "`edges.bundles`: edge `web-1` runs 0 bundles, expected 1 to 64",
            ),
            (
                "operators = [\"alice\", \"bob\"]",
                "operators = []",
                "`operators`: expected at least one",
            ),
            (
                "leaf_days = 365",
                "leaf_days = 4000",
                "`pki.leaf_days`: 4000 must be above 0 and at most ca_days (3650)",
            ),
            ("power = 1", "pwoer = 1", "unknown field `pwoer`"),
            (
                "[policy]",
                "[disk]\nlog_segment_mib = 0\nreserve_mib = 64\n\n[policy]",
                "`disk.log_segment_mib`: expected 1 to 1024, found 0",
            ),
            (
                "[policy]",
                "[disk]\nlog_segment_mib = 8\nreserve_mib = 4\n\n[policy]",
                "`disk.reserve_mib`: expected 8 (a segment) to 4096, found 4",
            ),
        ];
        for (right, wrong, expected) in cases {
            assert!(EXAMPLE.contains(right), "{right}");
            let error = RealmPlan::from_toml(&EXAMPLE.replacen(right, wrong, 1)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}\nexpected {expected}");
        }
    }
}
