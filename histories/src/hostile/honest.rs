//! An honest operator that publishes and honest edges that follow, and how long both take.

use std::{fs, sync::Arc, time::Duration};

use satrap_certify::{Action, BundleName, Change, Interest, Key, Publish, SignedChange};
use satrap_edge_agent::status::Status;
use satrap_identity::signer::Signer;
use satrap_merkle::BundleTree;
use satrap_operator::{
    client::{Client, Endpoint, version_of},
    keys,
};
use satrap_runtime::clock;
use tokio::time::{sleep, timeout};

use super::realm::{BUNDLE, EDGES, Realm, credentials_of_operator};
use crate::RunError;

/// A realm that has just started elects a leader and certifies its first block.
const START_WITHIN: Duration = Duration::from_secs(60);
/// The time after which an honest publish counts as stopped.
const EDGE_WITHIN: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// The operator, and what it has published.
pub struct Honest {
    client: Client,
    signer: Arc<dyn Signer>,
    status_files: Vec<std::path::PathBuf>,
    version: u64,
    tree: BundleTree,
}

/// How long publishing took, and until every edge ran it; one for each publish, ascending.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Until the operator saw it certified.
    pub decided: Vec<Duration>,
    /// Until the last edge had it active.
    pub active: Vec<Duration>,
}

fn bundle() -> BundleName {
    BundleName::new(BUNDLE).expect("a bundle name")
}

impl Honest {
    /// An operator that asks members first and then validators, once the realm answers.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub async fn start(realm: &Realm) -> Result<Self, RunError> {
        let files = &realm.files.operators[0];
        let urls = realm.member_urls().into_iter().chain(realm.validator_urls());
        let client = Client {
            genesis: realm.genesis.clone(),
            credentials: credentials_of_operator(files)?,
            endpoints: urls.map(|url| Endpoint { label: url.clone(), url }).collect(),
            description: None,
            operator_key: files.operator_key.clone(),
        };
        let signer = keys::read_signer(&files.operator_key)
            .map_err(|error| RunError::Inconclusive(format!("the operator's key: {error}")))?;
        let edges = realm.files.edges.iter().take(EDGES);
        let status_files = edges.map(|edge| edge.dir.join("data/status.json")).collect();
        let mut honest =
            Self { client, signer, status_files, version: 0, tree: BundleTree::default() };
        let first = async {
            // The change is the same until it is decided, so it is decided once.
            while let Err(error) = honest.publish("first").await {
                drop(error);
                sleep(LOOK_PAUSE).await;
            }
        };
        timeout(START_WITHIN, first).await.map_err(|_| RunError::Ring("start in time".into()))?;
        Ok(honest)
    }

    /// Publishes `count` versions one after the other, each when all edges run the last.
    ///
    /// # Errors
    ///
    /// If a publish is not decided, or does not reach the edges in time.
    pub async fn publish_many(&mut self, count: usize, phase: &str) -> Result<Times, RunError> {
        let mut times = Times::default();
        for n in 0..count {
            let (decided, active) = self.publish(&format!("{phase} {n}")).await?;
            times.decided.push(decided);
            times.active.push(active);
        }
        times.decided.sort();
        times.active.sort();
        Ok(times)
    }

    async fn publish(&mut self, value: &str) -> Result<(Duration, Duration), RunError> {
        let mut tree = self.tree.clone();
        let key = Key::new(b"greeting.txt").expect("a key");
        tree.insert(&key, value.as_bytes().into());
        let publish = Publish::between(bundle(), self.version, &self.tree, &tree);
        let change = Change::new(self.client.genesis.realm(), Action::Publish(publish));
        let mut signed = SignedChange::unsigned(change);
        keys::approve(&mut signed, &*self.signer)
            .await
            .map_err(|error| RunError::Inconclusive(format!("sign as the operator: {error}")))?;
        let started = clock::monotonic();
        let decided = self.client.submit(&signed).await;
        let version = decided.map_err(|error| RunError::Ring(format!("decide: {error}")))?.version;
        let decided = clock::monotonic() - started;
        let (expected, all) = (version, self.status_files.clone());
        let active = async {
            while !all.iter().all(|file| runs(file) >= Some(expected)) {
                sleep(LOOK_PAUSE).await;
            }
        };
        self.version = version;
        self.tree = tree;
        timeout(EDGE_WITHIN, active).await.map_err(|_| RunError::Ring("reach its edges".into()))?;
        Ok((decided, clock::monotonic() - started))
    }

    /// The newest version that any server holds certified, which is the last one that was published, and
    /// that one. A member may be a moment behind.
    ///
    /// # Errors
    ///
    /// If no server can be read.
    pub async fn certified(&self) -> Result<(u64, u64), RunError> {
        let (interest, mut newest) = (Interest::Bundles(vec![bundle()]), None);
        for endpoint in &self.client.endpoints {
            let one = Client { endpoints: vec![endpoint.clone()], ..self.client.clone() };
            let read = one.read(&interest).await.ok();
            newest = newest.max(read.map(|read| version_of(&read.replica, &bundle())));
        }
        let newest = newest.ok_or(RunError::Ring("answer a read".into()))?;
        Ok((newest, self.version))
    }
}

/// The version that an edge has active.
fn runs(status: &std::path::Path) -> Option<u64> {
    let status: Status = serde_json::from_slice(&fs::read(status).ok()?).ok()?;
    status.active.iter().find(|active| active.bundle == BUNDLE).map(|active| active.version)
}
