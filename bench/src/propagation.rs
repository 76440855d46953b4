//! From submission to the workload of the last edge, through real processes.
//!
//! Arrivals are measured at the public interfaces: validators and members push checkpoints over
//! the sync protocol, edges replace their status file after activation.

use std::{convert::Infallible, error::Error, fs, path::PathBuf, sync::Arc, time::Duration};

use satrap_certify::{
    Action, BundleName, Change, Interest, Key, Publish, Replica, SignedChange, Timestamp,
};
use satrap_edge_agent::status::Status;
use satrap_identity::signer::Signer;
use satrap_merkle::BundleTree;
use satrap_operator::{client::Client, keys};
use satrap_pressure::Freshness;
use satrap_runtime::{TaskGroup, clock};
use satrap_sync::client::UpdateStream;
use tokio::{sync::mpsc, time};

use crate::{
    matrix,
    realm::{BUNDLE, Realm, VALIDATOR_SITES},
    stats::Samples,
};

/// How often an edge's status file is looked at; the error this adds is at most that.
const POLL: Duration = Duration::from_millis(1);
/// For all processes to find each other, on a machine that starts two dozen at once.
const START_WITHIN: Duration = Duration::from_secs(180);
/// A publish that takes longer has failed.
const ARRIVE_WITHIN: Duration = Duration::from_secs(30);
/// Capacity of the channel of arrivals.
const ARRIVALS_MAX: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Validator,
    Member,
    Edge,
}

struct Arrival {
    tier: Tier,
    index: usize,
    version: u64,
    at: Duration,
}

fn bundle() -> BundleName {
    BundleName::new(BUNDLE).expect("a constant name")
}

/// Publishes `count` configs one after the other and prints the table.
///
/// # Errors
///
/// If the realm does not start or a config does not arrive.
pub async fn run(far_apart: bool, count: usize) -> Result<(), Box<dyn Error>> {
    let tasks = TaskGroup::new();
    let regions = if far_apart { matrix::SITES.len() } else { 2 };
    let (realm, mut processes) = Realm::start(&tasks, regions, far_apart).await?;
    processes.while_all_run(measure(&tasks, &realm, far_apart, count)).await?;
    tasks.shutdown().request();
    Ok(())
}

async fn measure(
    tasks: &TaskGroup,
    realm: &Realm,
    far_apart: bool,
    count: usize,
) -> Result<(), Box<dyn Error>> {
    let (sender, mut arrivals) = mpsc::channel(ARRIVALS_MAX);
    watch(tasks, realm, &sender);

    let publisher = Publisher::new(realm).await?;
    let (mut version, mut tree) = (0, BundleTree::default());
    let mut table = Table::new(realm);
    // The first publishes pay for connections and cold caches; they are not counted.
    let warmup = 5;
    for round in 0..count + warmup {
        let next = with_value(&tree, round);
        let submitted = clock::monotonic();
        version = publisher.publish(version, &tree, &next).await?;
        tree = next;
        let acknowledged = clock::monotonic().saturating_sub(submitted);
        // Edges that found no member up at first come back within their longest backoff.
        let limit = if round == 0 { START_WITHIN } else { ARRIVE_WITHIN };
        let times = time::timeout(limit, table.collect(&mut arrivals, version, submitted))
            .await
            .map_err(|_| format!("version {version} did not arrive in {limit:?}"))?;
        if round >= warmup {
            table.add(acknowledged, &times);
        }
    }
    table.print();
    if far_apart {
        let leader = publisher.leader(realm).await?;
        table.print_floor(leader);
    }
    Ok(())
}

/// Publishes one config and waits until every edge runs it.
///
/// # Errors
///
/// As [`run`].
pub async fn publish_once(realm: &Realm) -> Result<(), Box<dyn Error>> {
    let publisher = Publisher::new(realm).await?;
    let empty = BundleTree::default();
    let version = publisher.publish(0, &empty, &with_value(&empty, 0)).await?;
    for edge in 0..realm.files.edges.len() {
        let path = realm.status_file(edge);
        while edge_version(&path) != version {
            time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// 200 bytes under one of 100 keys.
fn with_value(tree: &BundleTree, round: usize) -> BundleTree {
    let mut next = tree.clone();
    let key = Key::new(format!("route-{:02}", round % 100).as_bytes()).expect("a short key");
    next.insert(&key, Arc::from(format!("{round:0200}").as_bytes()));
    next
}

struct Publisher {
    client: Client,
    signer: Arc<dyn Signer>,
}

impl Publisher {
    /// An operator at the first validator's site.
    async fn new(realm: &Realm) -> Result<Self, Box<dyn Error>> {
        let signer = keys::read_signer(&realm.files.operators[0].operator_key)?;
        let client = realm.client(&realm.plan.validators[0].url);
        let interest = Interest::Bundles(vec![bundle()]);
        let up = async {
            while client.read(&interest).await.is_err() {
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        time::timeout(ARRIVE_WITHIN, up).await.map_err(|_| "the validators do not come up")?;
        Ok(Self { client, signer })
    }

    /// Which validator proposed the newest block.
    async fn leader(&self, realm: &Realm) -> Result<usize, Box<dyn Error>> {
        let replica = self.client.read(&Interest::Bundles(vec![bundle()])).await?.replica;
        let proposer = replica.newest().ok_or("no block")?.checkpoint.proposer;
        let infos = &realm.genesis.governance.validators;
        let info = infos.iter().find(|info| info.public.address() == proposer);
        let name = &info.ok_or("the proposer is unknown")?.name;
        let place = realm.plan.validators.iter().position(|v| v.name == *name);
        Ok(place.ok_or("the proposer is not planned")?)
    }

    async fn publish(
        &self,
        version: u64,
        from: &BundleTree,
        to: &BundleTree,
    ) -> Result<u64, Box<dyn Error>> {
        let publish = Publish::between(bundle(), version, from, to);
        let change = Change::new(self.client.genesis.realm(), Action::Publish(publish));
        let mut signed = SignedChange::unsigned(change);
        keys::approve(&mut signed, &*self.signer).await?;
        Ok(self.client.submit(&signed).await?.version)
    }
}

fn watch(tasks: &TaskGroup, realm: &Realm, sender: &mpsc::Sender<Arrival>) {
    let validators = realm.plan.validators.iter().map(|v| (Tier::Validator, v.url.clone()));
    let members = realm.plan.regions.iter().flat_map(|r| &r.members);
    let members = members.map(|m| (Tier::Member, m.client_url.clone()));
    let (mut validator_index, mut member_index) = (0.., 0..);
    for (tier, url) in validators.chain(members) {
        let index = match tier {
            Tier::Validator => validator_index.next(),
            _ => member_index.next(),
        };
        let index = index.unwrap_or_default();
        let (client, sender) = (realm.client(&url), sender.clone());
        let shutdown = tasks.shutdown();
        tasks.spawn(format!("watch {url}"), async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = follow(client, tier, index, sender) => {}
            }
            Ok::<_, Infallible>(())
        });
    }
    for index in 0..realm.files.edges.len() {
        let (path, sender, shutdown) = (realm.status_file(index), sender.clone(), tasks.shutdown());
        tasks.spawn(format!("watch edge {index}"), async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = poll_edge(path, index, sender) => {}
            }
            Ok::<_, Infallible>(())
        });
    }
}

async fn follow(client: Client, tier: Tier, index: usize, sender: mpsc::Sender<Arrival>) {
    loop {
        let lost = follow_once(&client, tier, index, &sender).await;
        drop(lost);
        time::sleep(Duration::from_millis(50)).await;
    }
}

async fn follow_once(
    client: &Client,
    tier: Tier,
    index: usize,
    sender: &mpsc::Sender<Arrival>,
) -> Result<Infallible, Box<dyn Error + Send + Sync>> {
    let mut replica = Replica::genesis(&client.genesis, Interest::Bundles(vec![bundle()]));
    let channel = client.channel(&client.endpoints[0]).await?;
    let patience = client.genesis.policy.heartbeat.mul_f64(Freshness::LIMIT_HEARTBEATS);
    let mut updates = UpdateStream::on(channel, &replica.position(), patience).await?;
    loop {
        let update = updates.next(patience).await?;
        let at = clock::monotonic();
        let advance = replica.verify(&update, Timestamp(clock::now()))?;
        replica.advance(advance);
        if replica.is_complete() {
            let version = replica.heads().get(&bundle()).map_or(0, |head| head.version);
            sender.send(Arrival { tier, index, version, at }).await?;
        }
    }
}

fn edge_version(path: &PathBuf) -> u64 {
    let status: Option<Status> = fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let active = status.and_then(|s| s.active.into_iter().find(|a| a.bundle == BUNDLE));
    active.map_or(0, |active| active.version)
}

async fn poll_edge(path: PathBuf, index: usize, sender: mpsc::Sender<Arrival>) {
    let mut seen = 0;
    loop {
        let version = edge_version(&path);
        if version != seen {
            seen = version;
            let at = clock::monotonic();
            let _ = sender.send(Arrival { tier: Tier::Edge, index, version, at }).await;
        }
        time::sleep(POLL).await;
    }
}

/// When one version arrived, relative to its submission.
struct Times {
    decided_first: Duration,
    decided_all: Duration,
    /// First member of each region.
    adopted: Vec<Duration>,
    /// Each edge.
    active: Vec<Duration>,
}

struct Table {
    validators: usize,
    regions: usize,
    edges: usize,
    acknowledged: Samples,
    decided: Samples,
    decided_everywhere: Samples,
    adopted: Samples,
    activated: Samples,
    all_edges: Samples,
}

impl Table {
    fn new(realm: &Realm) -> Self {
        Self {
            validators: realm.plan.validators.len(),
            regions: realm.plan.regions.len(),
            edges: realm.plan.edges.len(),
            acknowledged: Samples::default(),
            decided: Samples::default(),
            decided_everywhere: Samples::default(),
            adopted: Samples::default(),
            activated: Samples::default(),
            all_edges: Samples::default(),
        }
    }

    /// Waits until `version` has been seen everywhere.
    async fn collect(
        &self,
        arrivals: &mut mpsc::Receiver<Arrival>,
        version: u64,
        submitted: Duration,
    ) -> Times {
        let mut validators = vec![None; self.validators];
        let mut members = vec![None; 3 * self.regions];
        let mut edges = vec![None; self.edges];
        loop {
            let done = |seen: &[Option<Duration>]| seen.iter().all(Option::is_some);
            if done(&validators) && done(&members) && done(&edges) {
                break;
            }
            let Some(arrival) = arrivals.recv().await else { continue };
            if arrival.version >= version {
                let slot = match arrival.tier {
                    Tier::Validator => &mut validators[arrival.index],
                    Tier::Member => &mut members[arrival.index],
                    Tier::Edge => &mut edges[arrival.index],
                };
                slot.get_or_insert(arrival.at.saturating_sub(submitted));
            }
        }
        let known =
            |seen: Vec<Option<Duration>>| -> Vec<Duration> { seen.into_iter().flatten().collect() };
        let (validators, members) = (known(validators), known(members));
        let first = |times: &[Duration]| times.iter().min().copied().unwrap_or_default();
        Times {
            decided_first: first(&validators),
            decided_all: validators.iter().max().copied().unwrap_or_default(),
            adopted: members.chunks(3).map(first).collect(),
            active: known(edges),
        }
    }

    fn add(&mut self, acknowledged: Duration, times: &Times) {
        self.acknowledged.push(acknowledged);
        self.decided.push(times.decided_first);
        self.decided_everywhere.push(times.decided_all);
        for (adopted, active) in times.adopted.iter().zip(&times.active) {
            self.adopted.push(adopted.saturating_sub(times.decided_first));
            self.activated.push(active.saturating_sub(*adopted));
        }
        self.all_edges.push(times.active.iter().max().copied().unwrap_or_default());
    }

    fn print(&self) {
        let (validators, regions, edges) = (self.validators, self.regions, self.edges);
        println!("{validators} validators, {regions} regions of 3, {edges} edges");
        Samples::print_head();
        self.acknowledged.print("submit to acknowledged at the operator");
        self.decided.print("submit to decided, first validator");
        self.decided_everywhere.print("submit to decided, every validator");
        self.adopted.print("decided to adopted, each region");
        self.activated.print("adopted to active, each edge");
        self.all_edges.print("submit to active, every edge");
    }

    /// The operator is at the first validator's site.
    fn print_floor(&self, leader: usize) {
        let site = VALIDATOR_SITES[leader];
        let floor = matrix::floor(VALIDATOR_SITES[0], site, &VALIDATOR_SITES, 3);
        let ratio =
            |percent| self.all_edges.percentile(percent).as_secs_f64() / floor.as_secs_f64();
        println!(
            "floor of the matrix with the leader in {} (submission, three delays of the quorum, \
             the hop to the farthest region): {} ms; p50 is {:.2} times that, p99 {:.2} times",
            matrix::SITES[site],
            floor.as_millis(),
            ratio(50),
            ratio(99)
        );
    }
}
