//! The configuration files of the three daemons, as their `Config::load` reads them.
//!
//! The keys here and in each daemon's `config.rs` must agree; `cli/tests/init.rs` loads every
//! generated file with the daemon that will.

use std::collections::BTreeSet;

use serde::Serialize;

use super::plan::{DiskPlan, EdgePlan, MemberPlan, RealmPlan, RegionPlan, ValidatorPlan};

/// From a process's directory to the genesis file.
const GENESIS_FROM_VALIDATOR: &str = "../../genesis.json";
/// One level deeper: the region has a directory too.
const GENESIS_FROM_REGION: &str = "../../../genesis.json";

#[derive(Serialize)]
struct Tls {
    cert: &'static str,
    key: &'static str,
    trust: &'static str,
}

const TLS: Tls = Tls { cert: "tls.crt", key: "tls.key", trust: "trust.pem" };

#[derive(Serialize)]
struct ValidatorToml<'a> {
    name: &'a str,
    genesis: &'static str,
    data_dir: &'static str,
    listen: String,
    mesh_listen: String,
    signing_key: &'static str,
    tls: Tls,
}

/// `validator.toml`. The genesis says where the other validators are.
#[must_use]
pub fn validator(v: &ValidatorPlan) -> String {
    text(
        "satrap validator run --config FILE",
        &ValidatorToml {
            name: v.name.as_str(),
            genesis: GENESIS_FROM_VALIDATOR,
            data_dir: "data",
            listen: v.listen.to_string(),
            mesh_listen: v.mesh_listen.to_string(),
            signing_key: "signing.key",
            tls: TLS,
        },
    )
}

#[derive(Serialize)]
struct RegionToml<'a> {
    region: &'a str,
    name: &'a str,
    genesis: &'static str,
    data_dir: &'static str,
    client_listen: String,
    peer_listen: String,
    /// Regions whose edges may fall back to this one.
    other_regions: Vec<&'a str>,
    tls: Tls,
    members: Vec<MemberEntry<'a>>,
    validators: Vec<ValidatorEntry<'a>>,
    etcd: Option<EtcdEntry<'a>>,
    disk: Option<DiskPlan>,
}

#[derive(Serialize)]
struct EtcdEntry<'a> {
    listen: String,
    urls: [&'a str; 1],
    tls: EtcdTls,
}

#[derive(Serialize)]
struct EtcdTls {
    cert: &'static str,
    key: &'static str,
    client_ca: &'static str,
}

const ETCD_TLS: EtcdTls = EtcdTls { cert: "etcd.crt", key: "etcd.key", client_ca: "etcd-ca.crt" };

#[derive(Serialize)]
struct MemberEntry<'a> {
    name: &'a str,
    client_url: &'a str,
    peer_url: &'a str,
}

#[derive(Serialize)]
struct ValidatorEntry<'a> {
    name: &'a str,
    url: &'a str,
}

/// `region.toml`: one member of a ring.
#[must_use]
pub fn member(plan: &RealmPlan, region: &RegionPlan, m: &MemberPlan) -> String {
    let members = region.members.iter().map(|m| MemberEntry {
        name: m.name.as_str(),
        client_url: &m.client_url,
        peer_url: &m.peer_url,
    });
    let validators = plan.validators.iter();
    let guests = plan.edges.iter().filter(|e| e.fallback_regions.contains(&region.name));
    let other_regions: BTreeSet<_> = guests.map(|e| e.region.as_str()).collect();
    text(
        "satrap region run --config FILE",
        &RegionToml {
            region: region.name.as_str(),
            name: m.name.as_str(),
            genesis: GENESIS_FROM_REGION,
            data_dir: "data",
            client_listen: m.client_listen.to_string(),
            peer_listen: m.peer_listen.to_string(),
            other_regions: other_regions.into_iter().collect(),
            tls: TLS,
            members: members.collect(),
            validators: validators
                .map(|v| ValidatorEntry { name: v.name.as_str(), url: &v.url })
                .collect(),
            etcd: m.etcd.as_ref().map(|etcd| EtcdEntry {
                listen: etcd.listen.to_string(),
                urls: [&etcd.url],
                tls: ETCD_TLS,
            }),
            disk: plan.disk,
        },
    )
}

#[derive(Serialize)]
struct EdgeToml<'a> {
    region: &'a str,
    name: &'a str,
    genesis: &'static str,
    data_dir: &'static str,
    bundles: Vec<&'a str>,
    tls: Tls,
    activate: ActivateEntry<'a>,
    servers: Vec<ServerEntry<'a>>,
}

#[derive(Serialize)]
struct ActivateEntry<'a> {
    dir: &'static str,
    combined_file: Option<&'a str>,
    hook: &'a [String],
}

#[derive(Serialize)]
struct ServerEntry<'a> {
    region: &'a str,
    name: &'a str,
    url: &'a str,
}

/// `edge.toml`: own region's members first, then those of the fallback regions.
#[must_use]
pub fn edge(plan: &RealmPlan, e: &EdgePlan) -> String {
    let asked = [&e.region].into_iter().chain(&e.fallback_regions);
    let servers = asked.flat_map(|region| {
        plan.members(region).iter().map(|m| ServerEntry {
            region: region.as_str(),
            name: m.name.as_str(),
            url: &m.client_url,
        })
    });
    text(
        "satrap edge run --config FILE",
        &EdgeToml {
            region: e.region.as_str(),
            name: e.name.as_str(),
            genesis: GENESIS_FROM_REGION,
            data_dir: "data",
            bundles: e.bundles.iter().map(satrap_certify::BundleName::as_str).collect(),
            tls: TLS,
            activate: ActivateEntry {
                dir: "active",
                combined_file: e.combined_file.as_deref(),
                hook: &e.hook,
            },
            servers: servers.collect(),
        },
    )
}

fn text(command: &str, config: &impl Serialize) -> String {
    let config = toml::to_string_pretty(config).expect("strings and lists are TOML");
    format!("# Read by `{command}`. Paths are relative to this file.\n\n{config}")
}
