//! A ring of satrap, as operators make one: a realm with keys and certificates, and one
//! `satrap region run` for each member.
//!
//! The realm has a member for every place of the harness. Each start writes the configuration of
//! that start: which members there are to be founded with or joined, and data on the disk that
//! faults hit. No validator runs; the keyspace of a ring does not need one.
//!
//! A place keeps its name, because the name is in its certificate: a removed member comes back
//! under it as a new member.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use satrap_certify::{ChainId, Class, ClassKind, Label, Policy};
use satrap_realm::{
    EtcdPlan, Lifetimes, MemberPlan, RealmFiles, RealmPlan, RegionPlan, ValidatorPlan, configs,
    create, description::Client,
};

use crate::{
    RunError,
    cluster::{MEMBERS, SLOTS, Start, Store, directory},
    net::address,
};

const REGION: &str = "eu";
const DAY: Duration = Duration::from_secs(24 * 3600);
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// For edges, of which there are none.
const EDGE_PORT: u16 = 2381;

/// The program, and the realm that its processes are members of.
pub struct Satrap {
    binary: PathBuf,
    election_ms: u32,
    plan: RealmPlan,
    files: RealmFiles,
    credentials: Client,
    // Last, because the files are in it.
    _directory: tempfile::TempDir,
}

fn wrong(what: &'static str) -> impl Fn(String) -> RunError {
    move |why| RunError::Inconclusive(format!("{what}: {why}"))
}

fn label(text: &str) -> Result<Label, RunError> {
    Label::new(text).map_err(|error| wrong("a name")(error.to_string()))
}

fn member(slot: usize) -> Result<MemberPlan, RunError> {
    let host: IpAddr = address(slot).parse().map_err(|error: std::net::AddrParseError| {
        wrong("the address of a place")(error.to_string())
    })?;
    let at = |port| (SocketAddr::new(host, port), format!("https://{host}:{port}"));
    let ((client_listen, client_url), (peer_listen, peer_url)) = (at(EDGE_PORT), at(PEER_PORT));
    let (listen, url) = at(CLIENT_PORT);
    let (name, etcd) = (label(&format!("m{slot}"))?, Some(EtcdPlan { listen, url }));
    Ok(MemberPlan { name, client_listen, client_url, peer_listen, peer_url, etcd })
}

fn plan() -> Result<RealmPlan, RunError> {
    let chain_id = ChainId::new("histories");
    let listen = |port| SocketAddr::from(([10, 77, 0, 254], port));
    let (validator, mesh) = (listen(7000), listen(7001));
    Ok(RealmPlan {
        chain_id: chain_id.map_err(|error| wrong("a name")(error.to_string()))?,
        policy: Policy {
            heartbeat: Duration::from_secs(30),
            trusting_period: 90 * DAY,
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 100,
        },
        governance_approvals: 1,
        lifetimes: Lifetimes { authority: 30 * DAY, leaf: 7 * DAY },
        validators: vec![ValidatorPlan {
            name: label("v")?,
            listen: validator,
            url: format!("https://{validator}"),
            mesh_listen: mesh,
            mesh_url: format!("https://{mesh}"),
            jurisdiction: label("here")?,
            power: 1,
        }],
        regions: vec![RegionPlan {
            name: label(REGION)?,
            members: (0..SLOTS).map(member).collect::<Result<_, _>>()?,
        }],
        edges: Vec::new(),
        operators: vec![label("op")?],
        classes: vec![Class::new("", 1, ClassKind::Opaque)],
        disk: None,
    })
}

impl Satrap {
    /// Makes a realm for members that run `binary`, and campaign after `election_ms` to twice as many
    /// milliseconds without a heartbeat.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn new(binary: &Path, election_ms: u32) -> Result<Self, RunError> {
        let (plan, directory) = (plan()?, directory()?);
        let files = create(&plan, &directory.path().join("realm"))
            .map_err(|error| wrong("the realm")(error.to_string()))?;
        describe(&plan, &files).map_err(RunError::io("describing the realm"))?;
        let operator = files.operators.first();
        let credentials = operator.map(|operator| operator.etcd(&plan.regions[0].name));
        let credentials = credentials.ok_or_else(|| wrong("the realm")("no operator".into()))?;
        let binary = std::path::absolute(binary).map_err(RunError::io("the program"))?;
        Ok(Self { binary, election_ms, plan, files, credentials, _directory: directory })
    }

    /// The directory of the realm, for the verbs of operators.
    #[must_use]
    pub fn realm(&self) -> &Path {
        &self.files.dir
    }

    /// The configuration that the member in a slot was last started with.
    #[must_use]
    pub fn config_of(&self, slot: usize) -> &Path {
        &self.files.members[slot].config
    }

    /// The configuration of one start.
    fn config(&self, start: &Start) -> Result<PathBuf, RunError> {
        let is_there =
            |member: &&MemberPlan| start.ring.iter().any(|(name, _)| name == member.name.as_str());
        let whole = &self.plan.regions[0];
        let members: Vec<_> = whole.members.iter().filter(is_there).cloned().collect();
        let own = whole.members.iter().position(|member| member.name.as_str() == start.name);
        let own = own.ok_or_else(|| wrong("the realm")(format!("no member {}", start.name)))?;
        let ring = RegionPlan { name: whole.name.clone(), members };
        let text = configs::member(&self.plan, &ring, &whole.members[own]);
        let data = format!("data_dir = \"{}\"", start.data.display());
        let (min, max) = (self.election_ms, 2 * self.election_ms);
        let heartbeat = self.election_ms / 5;
        let clocks = format!(
            "\n[raft]\nheartbeat_ms = {heartbeat}\nelection_ms_min = {min}\nelection_ms_max = {max}\n"
        );
        let text = text.replacen("data_dir = \"data\"", &data, 1) + &clocks;
        let path = self.files.members[own].config.clone();
        fs::write(&path, text).map_err(RunError::io("writing a configuration"))?;
        Ok(path)
    }
}

/// Writes down where operators find the members; the place that is to be taken later is not one.
fn describe(plan: &RealmPlan, files: &RealmFiles) -> std::io::Result<()> {
    let mut description = files.description(plan);
    description.regions.iter_mut().for_each(|region| region.members.truncate(MEMBERS));
    description.store(&files.dir)
}

impl Store for Satrap {
    fn name(&self) -> &'static str {
        "satrap"
    }

    fn command(&self, start: &Start) -> Result<Command, RunError> {
        let mut command = Command::new(&self.binary);
        command.args(["region", "run", "--config"]).arg(self.config(start)?);
        Ok(command)
    }

    fn member_name(&self, slot: usize, _: u32) -> String {
        format!("m{slot}")
    }

    fn credentials(&self) -> Option<&Client> {
        Some(&self.credentials)
    }

    fn client_url(&self, address: &str) -> String {
        format!("https://{address}:{CLIENT_PORT}")
    }

    fn peer_url(&self, address: &str) -> String {
        format!("https://{address}:{PEER_PORT}")
    }
}
