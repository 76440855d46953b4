//! The realm that is attacked: four validators, a region of three members with edges, and the
//! credentials of another region, all processes of the program over loopback.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use satrap_certify::{BundleName, ChainId, Class, ClassKind, Genesis, Label, Policy, Quota};
use satrap_identity::mtls::{CredentialFiles, Credentials};
use satrap_realm::{
    EdgePlan, Lifetimes, MemberPlan, RealmFiles, RealmPlan, RegionPlan, ValidatorPlan, create,
    layout::{OperatorFiles, ProcessFiles},
};
use satrap_runtime::ports::Reserved;

use crate::{RunError, cluster::directory};

/// The bundle that honest edges follow.
pub const BUNDLE: &str = "config/honest";
/// The region that runs.
pub const REGION: &str = "eu";
/// The region whose credentials attack; none of its processes runs.
pub const OTHER_REGION: &str = "us";
/// Edges of the region that run; one more has credentials only.
pub const EDGES: usize = 2;
const VALIDATORS: usize = 4;
const MEMBERS: [&str; 3] = ["a", "b", "c"];
const HOUR: Duration = Duration::from_secs(3_600);

/// A process of the realm.
pub struct Process {
    /// Its role and name.
    pub name: String,
    child: Child,
}

/// The cost of a process since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Processor time, in milliseconds.
    pub cpu_ms: u64,
    /// The most memory that was resident, in bytes.
    pub resident_bytes_max: u64,
}

/// The realm; its processes end with it.
pub struct Realm {
    /// The root of trust.
    pub genesis: Genesis,
    /// Where everything lies.
    pub files: RealmFiles,
    /// The running processes.
    pub processes: Vec<Process>,
    plan: RealmPlan,
    _ports: Reserved,
    // Last, because the files are in it.
    _directory: tempfile::TempDir,
}

fn label(text: &str) -> Label {
    Label::new(text).expect("names of this module are labels")
}

fn plan() -> Result<(RealmPlan, Reserved), RunError> {
    let regions = [REGION, OTHER_REGION];
    let reserved = Reserved::any(2 * VALIDATORS + 2 * MEMBERS.len() * regions.len());
    let reserved = reserved.map_err(RunError::io("free ports"))?;
    let mut free = reserved.addresses().iter().copied();
    let mut next = || {
        let address = free.next().expect("as many as are planned");
        (address, format!("https://{address}"))
    };
    let validators = (0..VALIDATORS).map(|n| {
        let ((listen, url), (mesh_listen, mesh_url)) = (next(), next());
        let (name, jurisdiction) = (label(&format!("v{n}")), label("zz"));
        ValidatorPlan { name, listen, url, mesh_listen, mesh_url, jurisdiction, power: 1 }
    });
    let validators = validators.collect();
    let mut member = |name: &str| {
        let ((client_listen, client_url), (peer_listen, peer_url)) = (next(), next());
        let name = label(name);
        MemberPlan { name, client_listen, client_url, peer_listen, peer_url, etcd: None }
    };
    let mut region = |name: &str| RegionPlan {
        name: label(name),
        members: MEMBERS.iter().map(|zone| member(zone)).collect(),
    };
    let edge = |n: usize| EdgePlan {
        region: label(REGION),
        name: label(&format!("e{n}")),
        bundles: vec![BundleName::new(BUNDLE).expect("a bundle name")],
        fallback_regions: Vec::new(),
        combined_file: None,
        hook: Vec::new(),
    };
    let plan = RealmPlan {
        chain_id: ChainId::new("hostile").expect("a chain id"),
        policy: Policy {
            heartbeat: Duration::from_secs(2),
            trusting_period: 24 * HOUR,
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 100,
        },
        governance_approvals: 1,
        lifetimes: Lifetimes { authority: 48 * HOUR, leaf: 24 * HOUR },
        validators,
        regions: regions.map(&mut region).to_vec(),
        edges: (0..=EDGES).map(edge).collect(),
        operators: vec![label("alice"), label("mallory")],
        classes: vec![Class {
            prefix: String::new(),
            approvals: 1,
            kind: ClassKind::Opaque,
            quota: Quota::of(ClassKind::Opaque),
        }],
        disk: None,
    };
    Ok((plan, reserved))
}

impl Realm {
    /// Creates the realm and starts its processes from `program`.
    ///
    /// # Errors
    ///
    /// If it cannot be created, or a process cannot be started.
    pub fn start(program: &Path) -> Result<Self, RunError> {
        let (directory, (plan, ports)) = (directory()?, plan()?);
        let root = directory.path().join("realm");
        let wrong = |why: String| RunError::Inconclusive(format!("the realm: {why}"));
        let files = create(&plan, &root).map_err(|error| wrong(error.to_string()))?;
        let genesis = fs::read(&files.genesis).map_err(RunError::io("the genesis"))?;
        let genesis = Genesis::from_json(&genesis).map_err(|error| wrong(error.to_string()))?;
        let processes = Vec::new();
        let mut realm =
            Self { genesis, processes, plan, files, _ports: ports, _directory: directory };
        let members = realm.files.members.iter().filter(|member| is_of(member, REGION));
        let started: Vec<_> = realm
            .files
            .validators
            .iter()
            .map(|files| ("validator", files))
            .chain(members.map(|files| ("region", files)))
            .chain(realm.files.edges.iter().take(EDGES).map(|files| ("edge", files)))
            .map(|(verb, files)| (verb, files.name.to_string(), files.config.clone()))
            .collect();
        for (verb, name, config) in started {
            let log = root.join(format!("{verb}-{name}.log"));
            realm.processes.push(Process::start(program, verb, &name, &config, &log)?);
        }
        Ok(realm)
    }

    /// Where validators are reached.
    #[must_use]
    pub fn validator_urls(&self) -> Vec<String> {
        self.plan.validators.iter().map(|validator| validator.url.clone()).collect()
    }

    /// Where validators reach each other.
    #[must_use]
    pub fn mesh_urls(&self) -> Vec<String> {
        self.plan.validators.iter().map(|validator| validator.mesh_url.clone()).collect()
    }

    /// Where the members that run are reached.
    #[must_use]
    pub fn member_urls(&self) -> Vec<String> {
        let running = self.plan.regions.iter().filter(|region| region.name.as_str() == REGION);
        running.flat_map(|region| &region.members).map(|m| m.client_url.clone()).collect()
    }

    /// The first member of the region that does not run.
    #[must_use]
    pub fn other_member(&self) -> &ProcessFiles {
        let other = self.files.members.iter().find(|member| is_of(member, OTHER_REGION));
        other.expect("the plan has a second region")
    }

    /// The edge that does not run.
    #[must_use]
    pub fn other_edge(&self) -> &ProcessFiles {
        &self.files.edges[EDGES]
    }

    /// The cost of each process.
    #[must_use]
    pub fn costs(&self) -> Vec<(String, Cost)> {
        self.processes.iter().map(|process| (process.name.clone(), process.cost())).collect()
    }
}

fn is_of(files: &ProcessFiles, region: &str) -> bool {
    files.region.as_ref().is_some_and(|of| of.as_str() == region)
}

/// The credentials of a process.
///
/// # Errors
///
/// If they cannot be read.
pub fn credentials_of(files: &ProcessFiles) -> Result<Credentials, RunError> {
    let at = |name: &str| files.dir.join(name);
    load(at("tls.crt"), at("tls.key"), at("trust.pem"))
}

/// The credentials of an operator.
///
/// # Errors
///
/// If they cannot be read.
pub fn credentials_of_operator(files: &OperatorFiles) -> Result<Credentials, RunError> {
    load(files.cert.clone(), files.key.clone(), files.trust.clone())
}

fn load(certificate: PathBuf, key: PathBuf, trust: PathBuf) -> Result<Credentials, RunError> {
    Credentials::load(CredentialFiles { certificate, key, trust })
        .map_err(|error| RunError::Inconclusive(format!("credentials: {error}")))
}

impl Process {
    fn start(
        program: &Path,
        verb: &str,
        name: &str,
        config: &Path,
        log: &Path,
    ) -> Result<Self, RunError> {
        let log = fs::File::create(log).map_err(RunError::io("a log file"))?;
        let child = Command::new(program)
            .args([verb, "run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(RunError::io("a log file"))?)
            .stderr(log)
            .spawn()
            .map_err(RunError::io("starting a process of the realm"))?;
        Ok(Self { name: format!("{verb} {name}"), child })
    }

    /// Zero for a process that ended.
    fn cost(&self) -> Cost {
        let read = |file| fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let (stat, status) = (read("stat").unwrap_or_default(), read("status").unwrap_or_default());
        // After the name in parentheses, user and system time are the 12th and 13th word, in
        // hundredths of a second.
        let words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = words.skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak_kib = peak.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Cost { cpu_ms: 10 * ticks, resident_bytes_max: 1024 * peak_kib.unwrap_or(0) }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
