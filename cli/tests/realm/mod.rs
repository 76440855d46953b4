//! A whole realm as real processes of this binary, for tests: real ports, real mTLS, real disks.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

pub mod ring;

use std::{fs, net::SocketAddr, path::Path, sync::Mutex, time::Duration};

use ed25519_dalek::SigningKey;
use satrap_certify::{
    Action, BundleName, ChainId, Change, Class, ClassKind, Genesis, Interest, Label, Policy,
    Publish, SignedChange, SignedReport,
};
use satrap_edge_agent::{links::OnDisk, status::Status};
use satrap_identity::mtls::{CredentialFiles, Credentials};
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_operator::client::{Client, Endpoint, version_of};
use satrap_proto::v1::status_reply::Tier;
use satrap_realm::{
    EdgePlan, Lifetimes, MemberPlan, RealmFiles, RealmPlan, RegionPlan, ValidatorPlan, create,
};
use satrap_runtime::{
    child::{Daemon, Running},
    ports::Reserved,
};

/// The bundle that all edges run.
pub const BUNDLE: &str = "config/test";

/// One process of the realm.
pub struct Process {
    pub name: String,
    daemon: Daemon,
    running: Running,
}

/// A running realm, which ends with this value.
pub struct TestRealm {
    pub plan: RealmPlan,
    pub files: RealmFiles,
    pub genesis: Genesis,
    pub credentials: Credentials,
    pub processes: Vec<Process>,
    pub keys: Vec<SigningKey>,
    _dir: tempfile::TempDir,
}

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

/// Ports of plans, which no other process gets before this program ends.
static RESERVED: Mutex<Vec<Reserved>> = Mutex::new(Vec::new());

/// `count` loopback addresses, which this program keeps until it ends.
pub fn addresses(count: usize) -> Vec<SocketAddr> {
    let reserved = Reserved::any(count).unwrap();
    let addresses = reserved.addresses().to_vec();
    RESERVED.lock().unwrap().push(reserved);
    addresses
}

/// A plan with loopback ports of its own.
pub fn plan(validators: usize, regions: &[&str], edges_per_region: usize) -> RealmPlan {
    let mut addresses = addresses(2 * validators + 6 * regions.len()).into_iter();
    let mut address = || -> (SocketAddr, String) {
        let address = addresses.next().unwrap();
        (address, format!("https://{address}"))
    };
    let mut validator = |i: usize| {
        let ((listen, url), (mesh_listen, mesh_url)) = (address(), address());
        let (name, jurisdiction) = (label(&format!("v{i}")), label("zz"));
        ValidatorPlan { name, listen, url, mesh_listen, mesh_url, jurisdiction, power: 1 }
    };
    let validators = (0..validators).map(&mut validator).collect();
    let mut region = |name: &&str| RegionPlan {
        name: label(name),
        members: ["a", "b", "c"]
            .map(|zone| {
                let ((client_listen, client_url), (peer_listen, peer_url)) = (address(), address());
                let name = label(zone);
                MemberPlan { name, client_listen, client_url, peer_listen, peer_url, etcd: None }
            })
            .to_vec(),
    };
    let edge = |region: &str, i: usize| EdgePlan {
        region: label(region),
        name: label(&format!("{region}-edge-{i}")),
        bundles: vec![BundleName::new(BUNDLE).unwrap()],
        fallback_regions: Vec::new(),
        combined_file: None,
        hook: Vec::new(),
    };
    RealmPlan {
        chain_id: ChainId::new("test-realm").unwrap(),
        policy: Policy {
            heartbeat: Duration::from_secs(2),
            trusting_period: Duration::from_secs(24 * 3600),
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 100,
        },
        governance_approvals: 1,
        lifetimes: Lifetimes {
            authority: Duration::from_secs(2 * 24 * 3600),
            leaf: Duration::from_secs(24 * 3600),
        },
        validators,
        regions: regions.iter().map(&mut region).collect(),
        edges: regions
            .iter()
            .flat_map(|r| (1..=edges_per_region).map(|i| edge(r, i)).collect::<Vec<_>>())
            .collect(),
        operators: vec![label("alice")],
        classes: vec![Class::new("", 1, ClassKind::Opaque)],
        disk: None,
    }
}

impl Process {
    /// SIGKILL, at whatever instruction it is.
    pub async fn kill(&mut self) {
        if let Some(status) = self.running.process.try_wait().unwrap() {
            panic!("{} had ended by itself with {}", self.name, self.daemon.how_it_ended(status));
        }
        self.running.process.kill().await.unwrap();
    }

    /// Starts it again on the disk it left.
    pub fn restart(&mut self) {
        self.running = self.daemon.spawn().unwrap();
    }

    /// Takes its parent away.
    pub fn orphan(self) -> tokio::process::Child {
        self.running.ask_to_stop()
    }

    pub fn pid(&self) -> u32 {
        self.running.process.id().unwrap()
    }

    /// Warnings and errors in its log.
    pub fn warnings(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.daemon.log).unwrap_or_default();
        let is_warning = |line: &&str| line.contains("\"WARN\"") || line.contains("\"ERROR\"");
        log.lines().filter(is_warning).map(str::to_owned).collect()
    }

    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.daemon.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4_000)..]).into_owned()
    }
}

fn signing_key(path: &Path) -> SigningKey {
    let seed = hex::decode(fs::read_to_string(path).unwrap().trim()).unwrap();
    SigningKey::from_bytes(&seed.try_into().unwrap())
}

impl TestRealm {
    /// Creates the realm of `plan` and starts all its processes.
    pub fn start(plan: RealmPlan) -> Self {
        Self::start_of(plan, |_| true)
    }

    /// As [`TestRealm::start`], but only those of one kind: `validator`, `region` or `edge`.
    pub fn start_of(plan: RealmPlan, wanted: impl Fn(&str) -> bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("realm");
        let files = create(&plan, &root).unwrap();
        let genesis = Genesis::from_json(&fs::read(&files.genesis).unwrap()).unwrap();
        let operator = &files.operators[0];
        let credentials = Credentials::load(CredentialFiles {
            certificate: operator.cert.clone(),
            key: operator.key.clone(),
            trust: operator.trust.clone(),
        })
        .unwrap();
        let keys = vec![signing_key(&operator.operator_key)];
        let all = files.validators.iter().map(|p| ("validator", p));
        let all = all.chain(files.members.iter().map(|p| ("region", p)));
        let all = all.chain(files.edges.iter().map(|p| ("edge", p)));
        let process = |(verb, files): (&'static str, &satrap_realm::layout::ProcessFiles)| {
            let name = match (&files.region, verb) {
                (Some(region), "region") => format!("{region}-{}", files.name),
                _ => files.name.to_string(),
            };
            let daemon = Daemon {
                program: env!("CARGO_BIN_EXE_satrap").into(),
                verb,
                config: files.config.clone(),
                log: root.join(format!("{name}.log")),
            };
            let running = daemon.spawn().unwrap();
            Process { name, daemon, running }
        };
        let processes = all.filter(|(verb, _)| wanted(verb)).map(process).collect();
        Self { processes, plan, genesis, credentials, keys, files, _dir: dir }
    }

    /// An operator that asks these servers in turn.
    pub fn client(&self, urls: Vec<String>) -> Client {
        let endpoint = |url: String| Endpoint { label: url.clone(), url };
        Client {
            genesis: self.genesis.clone(),
            credentials: self.credentials.clone(),
            endpoints: urls.into_iter().map(endpoint).collect(),
            description: None,
            operator_key: self.files.operators[0].operator_key.clone(),
        }
    }

    pub fn validator_urls(&self) -> Vec<String> {
        self.plan.validators.iter().map(|v| v.url.clone()).collect()
    }

    pub fn member_urls(&self) -> Vec<String> {
        let members = self.plan.regions.iter().flat_map(|r| &r.members);
        members.map(|m| m.client_url.clone()).collect()
    }

    /// The change that makes `to` of what is certified now, and the version it expects.
    pub fn publish(&self, version: u64, from: &BundleTree, to: &BundleTree) -> SignedChange {
        let bundle = BundleName::new(BUNDLE).unwrap();
        let publish = Publish::between(bundle, version, from, to);
        let change = Change::new(self.genesis.realm(), Action::Publish(publish));
        let mut signed = SignedChange::unsigned(change);
        self.keys.iter().for_each(|key| signed.approve(key));
        signed
    }

    /// The certified version and content, from whichever server answers first; waits for one.
    pub async fn read(&self, client: &Client) -> (u64, BundleTree) {
        let bundle = BundleName::new(BUNDLE).unwrap();
        let interest = Interest::Bundles(vec![bundle.clone()]);
        loop {
            match client.read(&interest).await {
                Ok(read) => {
                    let tree = read.replica.content(&bundle).cloned().unwrap_or_default();
                    return (version_of(&read.replica, &bundle), tree);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Waits until the server at `url` serves `version`.
    pub async fn until_served(&self, url: &str, version: u64, within: Duration) {
        let client = self.client(vec![url.to_owned()]);
        let serves = async {
            while self.read(&client).await.0 < version {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let served = tokio::time::timeout(within, serves).await;
        assert!(served.is_ok(), "{url} does not get version {version}");
    }

    /// Whether a member got the report that an edge runs `version`.
    pub async fn is_reported(&self, edge: usize, version: u64) -> bool {
        let name = &self.plan.edges[edge].name;
        let client = self.client(self.member_urls());
        for member in &client.endpoints {
            let Ok(status) = client.status(member).await else { continue };
            let Some(Tier::Region(status)) = status.tier else { panic!("{status:?}") };
            let reports = status.reports.iter().map(|bytes| SignedReport::from_canonical(bytes));
            let says_so = |signed: SignedReport| {
                let running = &signed.report.running;
                signed.report.edge == *name && running.iter().any(|(_, held, _)| *held == version)
            };
            if reports.map(Result::unwrap).any(says_so) {
                return true;
            }
        }
        false
    }

    /// The status file of an edge.
    pub fn edge_status(&self, index: usize) -> Option<Status> {
        let path = self.files.edges[index].dir.join("data").join("status.json");
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Waits until every edge runs `version`.
    pub async fn converge(&mut self, version: u64, within: Duration) {
        let runs = |status: Status| {
            status
                .active
                .iter()
                .any(|a| a.bundle == BUNDLE && a.version == version && a.on_disk == OnDisk::Current)
        };
        let all = async {
            while !(0..self.files.edges.len()).all(|i| self.edge_status(i).is_some_and(runs)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            let tails = self.processes.iter().map(|p| format!("{}:\n{}", p.name, p.log_tail()));
            panic!("edges do not run version {version}:\n{}", tails.collect::<String>());
        }
    }
}
