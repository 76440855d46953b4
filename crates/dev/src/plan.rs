//! The realm that `dev` makes: its names, its ports, its policy.
//!
//! Ports are free ones, chosen when the realm is made and kept in its config files from then on. Its
//! certificates and its trusting period last ten years: nothing renews them, and a realm that was left
//! alone for months starts again.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use satrap_certify::{BundleName, ChainId, Class, ClassKind, Label, Policy};
use satrap_realm::{
    Description, DiskPlan, EdgePlan, EtcdPlan, Lifetimes, MemberPlan, RealmFiles, RealmPlan,
    RegionPlan, ValidatorPlan,
};
use satrap_runtime::ports::Reserved;

/// The bundle that every edge of the realm runs.
pub const BUNDLE: &str = "pki/edge-trust";
/// The file that holds all its certificates, for programs that want one.
pub const COMBINED_FILE: &str = "trust.pem";

const VALIDATORS: [(&str, &str); 4] =
    [("ada", "ie"), ("bell", "us"), ("curie", "fr"), ("dijkstra", "nl")];
const REGIONS: [&str; 2] = ["eu", "us"];
const ZONES: [&str; 3] = ["a", "b", "c"];
const EDGES_PER_REGION: usize = 3;
/// The region that lies in an evil realm.
pub const EVIL_REGION: &str = "us";

const TEN_YEARS: Duration = Duration::from_secs(3_650 * 24 * 3600);
/// Six members on one disk, of rings that hold little.
const DISK: DiskPlan = DiskPlan { log_segment_mib: 4, reserve_mib: 4 };

fn label(text: &str) -> Label {
    Label::new(text).expect("the names in this file are labels")
}

/// Plans a realm, and holds its ports. In an evil one, the edges of [`EVIL_REGION`] are given
/// addresses at which its members do not listen: that is where the liars will be.
///
/// # Errors
///
/// If there are no free ports.
pub fn new_realm(state_dir: &Path, evil: bool) -> io::Result<(RealmPlan, Reserved)> {
    let members = REGIONS.len() * ZONES.len();
    let reserved = Reserved::any(2 * VALIDATORS.len() + 4 * members)?;
    let mut ports = reserved.addresses().iter().copied();
    let mut port = move || ports.next().expect("as many ports were taken as are used");
    let url = |address: SocketAddr| format!("https://{address}");
    let validator = |(name, jurisdiction): &(&str, &str), listen, mesh_listen| ValidatorPlan {
        name: label(name),
        listen,
        url: url(listen),
        mesh_listen,
        mesh_url: url(mesh_listen),
        jurisdiction: label(jurisdiction),
        power: 1,
    };
    let validators = VALIDATORS.iter().map(|v| validator(v, port(), port())).collect();
    let mut member = |region: &str, zone: &str| {
        let (client_listen, peer_listen, liar, etcd) = (port(), port(), port(), port());
        let reached = if evil && region == EVIL_REGION { liar } else { client_listen };
        MemberPlan {
            name: label(zone),
            client_listen,
            client_url: url(reached),
            peer_listen,
            peer_url: url(peer_listen),
            etcd: Some(EtcdPlan { listen: etcd, url: url(etcd) }),
        }
    };
    let regions: Vec<_> = REGIONS
        .iter()
        .map(|region| RegionPlan {
            name: label(region),
            members: ZONES.iter().map(|zone| member(region, zone)).collect(),
        })
        .collect();
    let bundle = BundleName::new(BUNDLE).expect("a constant name");
    let edge = |region: &str, number: usize| EdgePlan {
        region: label(region),
        name: label(&format!("{region}-edge-{number}")),
        bundles: vec![bundle.clone()],
        fallback_regions: REGIONS.iter().filter(|r| **r != region).map(|r| label(r)).collect(),
        combined_file: Some(COMBINED_FILE.to_owned()),
        hook: Vec::new(),
    };
    let edges = REGIONS
        .iter()
        .flat_map(|region| (1..=EDGES_PER_REGION).map(move |number| edge(region, number)));
    let edges = edges.collect();
    // Two realms on one machine are different realms.
    let name = state_dir.file_name().map(|n| n.to_string_lossy().to_lowercase());
    let name: String =
        name.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect();
    let chain_id = ChainId::new(&format!("dev-{name}")).or_else(|_| ChainId::new("dev"));
    let plan = RealmPlan {
        chain_id: chain_id.expect("`dev` is a chain id"),
        policy: Policy {
            heartbeat: Duration::from_secs(30),
            trusting_period: TEN_YEARS,
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 100,
        },
        governance_approvals: 2,
        lifetimes: Lifetimes { authority: TEN_YEARS, leaf: TEN_YEARS },
        validators,
        regions,
        edges,
        operators: vec![label("alice"), label("bob")],
        classes: vec![
            Class::new("pki/", 2, ClassKind::X509Trust),
            Class::new("", 1, ClassKind::Opaque),
        ],
        disk: Some(DISK),
    };
    Ok((plan, reserved))
}

/// Where a liar listens, and whose credentials it has.
#[derive(Clone, Debug)]
pub struct Liar {
    /// The region that lies.
    pub region: Label,
    /// The member it pretends to be.
    pub member: Label,
    /// Where the region's edges connect.
    pub listen: SocketAddr,
}

/// The liars of a realm: wherever edges are sent to another address than the member listens on.
#[must_use]
pub fn liars(plan: &RealmPlan) -> Vec<Liar> {
    let members = plan.regions.iter().flat_map(|r| r.members.iter().map(move |m| (r, m)));
    let liar = |(region, member): (&RegionPlan, &MemberPlan)| {
        let listen: SocketAddr = member.client_url.strip_prefix("https://")?.parse().ok()?;
        let (region, name) = (region.name.clone(), member.name.clone());
        (listen != member.client_listen).then_some(Liar { region, member: name, listen })
    };
    members.filter_map(liar).collect()
}

/// Describes the realm to scripts and operators, with the addresses at which the members listen.
#[must_use]
pub fn describe(plan: &RealmPlan, files: &RealmFiles) -> Description {
    let mut description = files.description(plan);
    for (region, planned) in description.regions.iter_mut().zip(&plan.regions) {
        for (member, planned) in region.members.iter_mut().zip(&planned.members) {
            member.client_url = format!("https://{}", planned.client_listen);
        }
    }
    description
}
