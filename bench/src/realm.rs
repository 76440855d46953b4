//! A realm of real release processes, optionally far apart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::select_all;
use satrap_certify::{
    BundleName, ChainId, Class, ClassKind, Genesis, Label, Policy, limits::PUBLISHES_PER_HOUR_MAX,
};
use satrap_identity::mtls::{CredentialFiles, Credentials};
use satrap_operator::client::{Client, Endpoint};
use satrap_realm::{
    EdgePlan, Lifetimes, MemberPlan, RealmFiles, RealmPlan, RegionPlan, ValidatorPlan, create,
    layout::ProcessFiles,
};
use satrap_runtime::{
    TaskGroup,
    child::{Daemon, Running},
    ports::Reserved,
};

use crate::{matrix, proxy};

/// The bundle every edge runs.
pub const BUNDLE: &str = "config/bench";

/// Sites of the validators, as indices into [`matrix::SITES`]; the first leads at first.
pub const VALIDATOR_SITES: [usize; 4] = [0, 1, 2, 3];

/// A realm whose processes run.
pub struct Realm {
    /// The processes and names that it consists of.
    pub plan: RealmPlan,
    /// Where its files are.
    pub files: RealmFiles,
    /// Its genesis.
    pub genesis: Genesis,
    /// An operator's.
    pub credentials: Credentials,
    _ports: Reserved,
    _dir: tempfile::TempDir,
}

/// Validators, members, edges, in the plan's order. They end with this value.
pub struct Processes(Vec<(Daemon, Running)>);

impl Processes {
    /// Their ids.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.0.iter().filter_map(|(_, running)| running.process.id()).collect()
    }

    /// Runs `work`, which needs all of them.
    ///
    /// # Errors
    ///
    /// That of `work`, or the name and last log lines of the first process that ends.
    pub async fn while_all_run<T>(
        &mut self,
        work: impl Future<Output = Result<T, Box<dyn std::error::Error>>>,
    ) -> Result<T, Box<dyn std::error::Error>> {
        let ended = self.0.iter_mut().map(|(daemon, running)| {
            Box::pin(async {
                let status = running.process.wait().await;
                let how = status.map(|status| daemon.how_it_ended(status));
                let how = how.unwrap_or_else(|error| error.to_string());
                format!("{} {} ended: {how}", daemon.verb, daemon.config.display())
            })
        });
        tokio::select! {
            done = work => done,
            (ended, ..) = select_all(ended) => Err(ended.into()),
        }
    }
}

fn label(text: &str) -> Label {
    Label::new(text).expect("the names in this file are labels")
}

/// A region of three members and one edge at each of `regions` sites, and four validators.
fn plan(regions: usize) -> io::Result<(RealmPlan, Reserved)> {
    let reserved = Reserved::any(2 * VALIDATOR_SITES.len() + 6 * regions)?;
    let mut ports = reserved.addresses().iter().copied();
    let mut port = move || {
        let address = ports.next().expect("as many ports were taken as are used");
        (address, format!("https://{address}"))
    };
    let mut validator = |i: usize| {
        let ((listen, url), (mesh_listen, mesh_url)) = (port(), port());
        let (name, jurisdiction) = (label(&format!("v{i}")), label("zz"));
        ValidatorPlan { name, listen, url, mesh_listen, mesh_url, jurisdiction, power: 1 }
    };
    let validators = (0..VALIDATOR_SITES.len()).map(&mut validator).collect();
    let mut member = |zone: &str| {
        let ((client_listen, client_url), (peer_listen, peer_url)) = (port(), port());
        MemberPlan {
            name: label(zone),
            client_listen,
            client_url,
            peer_listen,
            peer_url,
            etcd: None,
        }
    };
    let sites = &matrix::SITES[..regions];
    let regions = sites.iter().map(|site| RegionPlan {
        name: label(site),
        members: ["a", "b", "c"].iter().map(|zone| member(zone)).collect(),
    });
    let regions = regions.collect();
    let bundle = BundleName::new(BUNDLE).expect("a constant name");
    let edges = sites.iter().map(|site| EdgePlan {
        region: label(site),
        name: label(&format!("{site}-edge")),
        bundles: vec![bundle.clone()],
        fallback_regions: Vec::new(),
        combined_file: None,
        hook: Vec::new(),
    });
    let day = Duration::from_secs(24 * 3600);
    let plan = RealmPlan {
        chain_id: ChainId::new("bench").expect("a constant chain id"),
        policy: Policy {
            heartbeat: Duration::from_secs(30),
            trusting_period: 30 * day,
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 1_000_000,
        },
        governance_approvals: 1,
        lifetimes: Lifetimes { authority: 2 * day, leaf: day },
        validators,
        regions,
        edges: edges.collect(),
        operators: vec![label("alice")],
        classes: vec![unmetered(Class::new("", 1, ClassKind::Opaque))],
        disk: None,
    };
    Ok((plan, reserved))
}

/// A class whose one operator publishes as fast as it can.
fn unmetered(mut class: Class) -> Class {
    class.quota.publishes_per_hour = PUBLISHES_PER_HOUR_MAX;
    class
}

impl Realm {
    /// Starts a realm with `regions` regions; with `far_apart`, at the matrix's distances.
    ///
    /// # Errors
    ///
    /// If it cannot be made or started.
    pub async fn start(
        tasks: &TaskGroup,
        regions: usize,
        far_apart: bool,
    ) -> Result<(Self, Processes), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("realm");
        let (plan, ports) = plan(regions)?;
        let files = create(&plan, &root)?;
        if far_apart {
            separate(tasks, &plan, &files).await?;
        }
        let genesis = Genesis::from_json(&fs::read(&files.genesis)?)?;
        let operator = &files.operators[0];
        let credentials = Credentials::load(CredentialFiles {
            certificate: operator.cert.clone(),
            key: operator.key.clone(),
            trust: operator.trust.clone(),
        })?;
        let start = |verb, process| spawn(&root, verb, process);
        let processes = files.validators.iter().map(|p| start("validator", p));
        let processes = processes.chain(files.members.iter().map(|p| start("region", p)));
        let processes = processes.chain(files.edges.iter().map(|p| start("edge", p)));
        let processes = processes.collect::<io::Result<_>>()?;
        let realm = Self { plan, files, genesis, credentials, _ports: ports, _dir: dir };
        Ok((realm, Processes(processes)))
    }

    /// An operator that asks the server at `url`.
    #[must_use]
    pub fn client(&self, url: &str) -> Client {
        Client {
            genesis: self.genesis.clone(),
            credentials: self.credentials.clone(),
            endpoints: vec![Endpoint { label: url.to_owned(), url: url.to_owned() }],
            description: None,
            operator_key: self.files.operators[0].operator_key.clone(),
        }
    }

    /// The status file of an edge.
    #[must_use]
    pub fn status_file(&self, edge: usize) -> PathBuf {
        self.files.edges[edge].dir.join("data").join("status.json")
    }
}

/// The `satrap` beside this program: the same build, so the same profile.
pub fn binary() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("satrap");
    if path.exists() {
        return Ok(path);
    }
    Err(io::Error::other(
        "build the satrap binary first: cargo build --profile production -p satrap",
    ))
}

fn spawn(root: &Path, verb: &'static str, process: &ProcessFiles) -> io::Result<(Daemon, Running)> {
    let region = process.region.as_ref().map(|r| format!("{r}-")).unwrap_or_default();
    let log = root.join(format!("{verb}-{region}{}.log", process.name));
    let daemon = Daemon { program: binary()?, verb, config: process.config.clone(), log };
    let running = daemon.spawn()?;
    Ok((daemon, running))
}

/// Puts a delaying proxy into every connection between sites, by editing the configs.
async fn separate(tasks: &TaskGroup, plan: &RealmPlan, files: &RealmFiles) -> io::Result<()> {
    for (from, process) in files.validators.iter().enumerate() {
        let mut urls = toml::Table::new();
        for (to, other) in plan.validators.iter().enumerate().filter(|(to, _)| *to != from) {
            let delay = matrix::one_way(VALIDATOR_SITES[from], VALIDATOR_SITES[to]);
            let near = proxy::start(tasks, other.mesh_listen, delay).await?;
            urls.insert(other.name.to_string(), format!("https://{near}").into());
        }
        edit(&process.config, |config| {
            config.insert("peer_urls".into(), urls.into());
        })?;
    }
    // Members of one region are at one site; their validators are far, their edge is near.
    for (index, process) in files.members.iter().enumerate() {
        let site = index / 3;
        let mut near = Vec::new();
        for (to, validator) in plan.validators.iter().enumerate() {
            let delay = matrix::one_way(site, VALIDATOR_SITES[to]);
            near.push(proxy::start(tasks, validator.listen, delay).await?);
        }
        edit(&process.config, |config| {
            let validators = config.get_mut("validators").and_then(toml::Value::as_array_mut);
            for (entry, near) in validators.into_iter().flatten().zip(&near) {
                if let Some(table) = entry.as_table_mut() {
                    table.insert("url".into(), format!("https://{near}").into());
                }
            }
        })?;
    }
    Ok(())
}

fn edit(path: &Path, change: impl FnOnce(&mut toml::Table)) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let mut config: toml::Table = text.parse().map_err(io::Error::other)?;
    change(&mut config);
    fs::write(path, toml::to_string(&config).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_ends_the_run_with_its_name_and_last_log_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        fs::write(&log, "cannot listen on 127.0.0.1:1\n").expect("a log");
        // It takes any arguments, and fails.
        let program = PathBuf::from("/bin/false");
        let daemon = Daemon { program, verb: "region", config: "a/region.toml".into(), log };
        let runtime = satrap_runtime::runtime::current_thread().expect("a runtime");
        let ended = runtime.block_on(async {
            let running = daemon.spawn().expect("/bin/false runs");
            let mut processes = Processes(vec![(daemon, running)]);
            let forever = std::future::pending::<Result<(), Box<dyn std::error::Error>>>();
            processes.while_all_run(forever).await
        });
        let said = ended.expect_err("the process has ended").to_string();
        assert!(said.starts_with("region a/region.toml ended: exit status: 1; "), "{said}");
        assert!(said.ends_with("cannot listen on 127.0.0.1:1"), "{said}");
    }
}
