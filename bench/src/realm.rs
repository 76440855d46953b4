//! A realm of real release processes, optionally far apart.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use satrap_certify::{BundleName, ChainId, Class, ClassKind, Genesis, Label, Policy};
use satrap_cli::{
    client::{Client, Endpoint},
    realm::{
        EdgePlan, Lifetimes, MemberPlan, RealmFiles, RealmPlan, RegionPlan, ValidatorPlan, create,
        layout::ProcessFiles,
    },
};
use satrap_host::{
    TaskGroup,
    mtls::{CredentialFiles, Credentials},
};
use tokio::process::{Child, Command};

use crate::{matrix, proxy};

/// The bundle every edge runs.
pub const BUNDLE: &str = "config/bench";

/// Sites of the validators, as indices into [`matrix::SITES`]; the first leads at first.
pub const VALIDATOR_SITES: [usize; 4] = [0, 1, 2, 3];

/// A running realm; its processes end with it.
pub struct Realm {
    /// What it consists of.
    pub plan: RealmPlan,
    /// Where its files are.
    pub files: RealmFiles,
    /// Its genesis.
    pub genesis: Genesis,
    /// An operator's.
    pub credentials: Credentials,
    /// Validators, members, edges, in the plan's order.
    pub processes: Vec<Child>,
    _dir: tempfile::TempDir,
}

fn label(text: &str) -> Label {
    Label::new(text).expect("the names in this file are labels")
}

fn ports(count: usize) -> io::Result<impl Iterator<Item = SocketAddr>> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..count).map(bind).collect::<io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr);
    Ok(addresses.collect::<io::Result<Vec<_>>>()?.into_iter())
}

/// A region of three members and one edge at each of `regions` sites, and four validators.
fn plan(regions: usize) -> io::Result<RealmPlan> {
    let mut ports = ports(2 * VALIDATOR_SITES.len() + 6 * regions)?;
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
    Ok(RealmPlan {
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
        classes: vec![Class { prefix: String::new(), approvals: 1, kind: ClassKind::Opaque }],
    })
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
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("realm");
        let plan = plan(regions)?;
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
        Ok(Self { plan, files, genesis, credentials, processes, _dir: dir })
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

    /// Where an edge says what it runs.
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

fn spawn(root: &Path, verb: &str, process: &ProcessFiles) -> io::Result<Child> {
    let region = process.region.as_ref().map(|r| format!("{r}-")).unwrap_or_default();
    let log = fs::File::create(root.join(format!("{verb}-{region}{}.log", process.name)))?;
    Command::new(binary()?)
        .args([verb, "run", "--config"])
        .arg(&process.config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
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
    // Members of one region stand together; their validators are far, their edge is near.
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
