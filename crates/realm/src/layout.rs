//! Names the files in a realm's directory.
//!
//! ```text
//!   genesis.json                  the root of trust; every process gets a copy
//!   realm.toml                    the plan this was made from
//!   ca/<scope>.{crt,key}          keep the keys offline: they make identities
//!   validators/<v>/               validator.toml tls.{crt,key} trust.pem signing.key data/
//!   regions/<r>/<m>/              region.toml tls.{crt,key} trust.pem etcd.{crt,key} etcd-ca.crt data/
//!   edges/<r>/<e>/                edge.toml tls.{crt,key} trust.pem data/ active/
//!   operators/<o>/                operator.key tls.{crt,key} trust.pem
//!   operators/<o>/etcd/<r>/       client.{crt,key} ca.crt, for etcd clients
//! ```
//!
//! Configurations name files relative to themselves, so a process moves to its machine by copying
//! its directory and the genesis file to the same paths in another directory.

use std::path::{Path, PathBuf};

use satrap_certify::Label;

use super::{
    description::{Client, Description, Edge, Member, Region, Validator},
    plan::RealmPlan,
};

/// Paths of everything in a realm's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmFiles {
    /// The directory itself.
    pub dir: PathBuf,
    /// The genesis file.
    pub genesis: PathBuf,
    /// The plan, as TOML.
    pub plan: PathBuf,
    /// In the plan's order.
    pub validators: Vec<ProcessFiles>,
    /// In the plan's order, region by region.
    pub members: Vec<ProcessFiles>,
    /// In the plan's order.
    pub edges: Vec<ProcessFiles>,
    /// In the plan's order.
    pub operators: Vec<OperatorFiles>,
}

/// Paths of the files of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFiles {
    /// For members and edges.
    pub region: Option<Label>,
    /// The process.
    pub name: Label,
    /// Its directory.
    pub dir: PathBuf,
    /// The file for `--config`.
    pub config: PathBuf,
}

impl ProcessFiles {
    /// The directory that an edge hands to its workload: one symlink per bundle.
    #[must_use]
    pub fn active_dir(&self) -> PathBuf {
        self.dir.join("active")
    }
}

/// Paths of the files of one operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorFiles {
    /// The principal.
    pub principal: Label,
    /// Signs changes; hex, mode 0600.
    pub operator_key: PathBuf,
    /// Client certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs to trust.
    pub trust: PathBuf,
}

impl RealmFiles {
    /// The files of `plan` in `dir`.
    #[must_use]
    pub fn of(plan: &RealmPlan, dir: &Path) -> Self {
        let process = |kind: &str, config: &str, region: Option<&Label>, name: &Label| {
            let base = region.map_or(dir.join(kind), |r| dir.join(kind).join(r.as_str()));
            let dir = base.join(name.as_str());
            let config = dir.join(config);
            ProcessFiles { region: region.cloned(), name: name.clone(), dir, config }
        };
        let members = plan.regions.iter().flat_map(|r| r.members.iter().map(move |m| (r, m)));
        Self {
            dir: dir.to_owned(),
            genesis: dir.join("genesis.json"),
            plan: dir.join("realm.toml"),
            validators: plan
                .validators
                .iter()
                .map(|v| process("validators", "validator.toml", None, &v.name))
                .collect(),
            members: members
                .map(|(r, m)| process("regions", "region.toml", Some(&r.name), &m.name))
                .collect(),
            edges: plan
                .edges
                .iter()
                .map(|e| process("edges", "edge.toml", Some(&e.region), &e.name))
                .collect(),
            operators: plan.operators.iter().map(|o| OperatorFiles::of(dir, o)).collect(),
        }
    }

    /// The description without process ids. The first operator is the client.
    ///
    /// # Panics
    ///
    /// If `plan` is not the checked plan these files were made from.
    #[must_use]
    pub fn description(&self, plan: &RealmPlan) -> Description {
        let client = self.operators.first().expect("check() refuses plans without operators");
        let region = |r: &super::plan::RegionPlan| Region {
            name: r.name.to_string(),
            etcd: r.serves_etcd().then(|| client.etcd(&r.name)),
            members: r
                .members
                .iter()
                .map(|m| Member {
                    name: m.name.to_string(),
                    client_url: m.client_url.clone(),
                    peer_url: m.peer_url.clone(),
                    etcd_url: m.etcd.as_ref().map(|etcd| etcd.url.clone()),
                    pid: None,
                })
                .collect(),
        };
        Description {
            chain_id: plan.chain_id.to_string(),
            genesis: self.genesis.clone(),
            validators: plan
                .validators
                .iter()
                .map(|v| Validator { name: v.name.to_string(), url: v.url.clone(), pid: None })
                .collect(),
            regions: plan.regions.iter().map(region).collect(),
            edges: plan
                .edges
                .iter()
                .zip(&self.edges)
                .map(|(e, files)| Edge {
                    region: Some(e.region.to_string()),
                    name: e.name.to_string(),
                    pid: None,
                    active_dir: files.active_dir(),
                    bundles: e.bundles.iter().map(ToString::to_string).collect(),
                    combined_file: e.combined_file.clone(),
                })
                .collect(),
            client: Client {
                ca: client.trust.clone(),
                cert: client.cert.clone(),
                key: client.key.clone(),
            },
        }
    }
}

impl OperatorFiles {
    /// For the etcd clients of one region.
    #[must_use]
    pub fn etcd(&self, region: &Label) -> Client {
        let dir = self.cert.with_file_name("etcd").join(region.as_str());
        let at = |name| dir.join(name);
        Client { ca: at("ca.crt"), cert: at("client.crt"), key: at("client.key") }
    }

    fn of(dir: &Path, principal: &Label) -> Self {
        let dir = dir.join("operators").join(principal.as_str());
        Self {
            principal: principal.clone(),
            operator_key: dir.join("operator.key"),
            cert: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            trust: dir.join("trust.pem"),
        }
    }
}
