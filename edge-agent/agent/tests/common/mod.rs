//! A host with an edge on it: a real database, real files, and a realm that feeds it.

#![allow(dead_code, reason = "each test binary uses its part")]
#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use satrap_certify::{
    BundleName, Head, Interest, Key, Rejection, Replica, SignedChange, Timestamp,
};
use satrap_edge_agent::{
    Config,
    activate::FileSink,
    cache,
    config::Activate,
    install::{InstallError, Installer},
    sink::{Activation, Sink as _, SinkError},
};
use satrap_edge_core::{Active, Candidate};
use satrap_identity::mtls::CredentialFiles;
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_sim::SimRealm;
use tempfile::TempDir;

pub fn name(text: &str) -> BundleName {
    BundleName::new(text).unwrap()
}

pub fn tree(entries: &[(&str, &str)]) -> BundleTree {
    let mut tree = BundleTree::default();
    for (key, value) in entries {
        tree.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(value.as_bytes()));
    }
    tree
}

pub fn head(bundle: &BundleName, version: u64, tree: &BundleTree) -> Head {
    Head {
        name: bundle.clone(),
        version,
        root: tree.root(),
        entries: tree.len() as u64,
        bytes: tree.bytes(),
        height: version,
    }
}

fn activate(dir: &Path, hook: &str, combined_file: Option<&str>) -> Activate {
    let words = ["/bin/sh", "-c", hook].map(str::to_owned);
    Activate {
        dir: dir.join("active"),
        combined_file: combined_file.map(str::to_owned),
        hook: if hook.is_empty() { Vec::new() } else { words.to_vec() },
        // Long for a shell on a loaded machine, short for the hook that hangs.
        hook_timeout: Duration::from_secs(2),
    }
}

/// A sink with links in `<dir>/active` and versions in `<dir>`.
pub fn sink(dir: &Path, hook: &str, combined_file: Option<&str>) -> Arc<FileSink> {
    Arc::new(FileSink::new(activate(dir, hook, combined_file), dir))
}

/// Activates one version, to the end.
pub async fn run(
    sink: &Arc<FileSink>,
    head: &Head,
    tree: &BundleTree,
    before: Option<Active>,
) -> Result<(), SinkError> {
    let (bundle, content) = (head.name.clone(), tree.clone());
    let candidate = Candidate { bundle, version: Active::of(head), content };
    let activation = Activation { candidate, before };
    sink.clone().activate(activation).await
}

/// Waits until no activation is in flight.
pub async fn settle(installer: &mut Installer, now: Timestamp) {
    while installer.acceptor().activating().is_some() {
        let outcome = installer.activated().await;
        installer.conclude(outcome, now).unwrap();
    }
}

/// A realm, with what a server held at every height.
pub struct Servers {
    pub realm: SimRealm,
    pub states: Vec<Replica>,
}

impl Servers {
    pub fn new(chain: &str) -> Self {
        let realm = SimRealm::new(chain, 4);
        let genesis = Replica::genesis(&realm.genesis, Interest::Everything);
        Self { realm, states: vec![genesis] }
    }

    pub fn newest(&self) -> &Replica {
        self.states.last().unwrap()
    }

    pub fn decide(&mut self, changes: &[SignedChange]) {
        let update = self.realm.decide(changes).unwrap();
        let mut newest = self.newest().clone();
        let advance = newest.verify_own(&update).unwrap();
        newest.advance(advance);
        self.states.push(newest);
    }

    pub fn publish(&mut self, bundle: &BundleName, entries: &[(&str, &str)]) {
        let change = self.realm.publish(bundle.as_str(), entries);
        self.decide(&[change]);
    }

    /// The certificate that `satrap get` writes for `bundles` from a server in `state`.
    pub fn certificate(&self, state: &Replica, bundles: &[BundleName]) -> Vec<u8> {
        let interest = Interest::Bundles(bundles.to_vec());
        let mut reader = Replica::genesis(&self.realm.genesis, interest);
        while let Some(answer) = state.answer(&reader.position()).unwrap() {
            let advance = reader.verify_own(&answer.update).unwrap();
            reader.advance(advance);
        }
        reader.snapshot().unwrap().to_canonical()
    }
}

/// A directory with an edge, and how it is configured.
pub struct Host {
    pub dir: TempDir,
    pub config: Config,
}

impl Host {
    /// An edge of `realm` that wants `bundles`, which are ascending.
    pub fn new(realm: &SimRealm, bundles: &[BundleName]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unused = PathBuf::from("unused");
        let config = Config {
            genesis: realm.genesis.clone(),
            region: "eu".parse().unwrap(),
            name: "edge".parse().unwrap(),
            data_dir: dir.path().join("data"),
            credentials: CredentialFiles {
                certificate: unused.clone(),
                key: unused.clone(),
                trust: unused,
            },
            bundles: bundles.to_vec(),
            servers: Vec::new(),
            activate: activate(dir.path(), "", None),
            trusted_checkpoint: None,
        };
        Self { dir, config }
    }

    /// Starts the edge, and waits for what it resumes.
    pub async fn start(&self, now: Timestamp) -> Result<Installer, InstallError> {
        let mut installer = Installer::start(&self.config, now)?;
        settle(&mut installer, now).await;
        Ok(installer)
    }

    pub fn database(&self) -> PathBuf {
        self.config.data_dir.join(cache::FILE)
    }

    pub fn link(&self, bundle: &BundleName) -> PathBuf {
        self.config.activate.dir.join(bundle.as_str().replace('/', "+"))
    }

    /// The value that a workload reads under `key`.
    pub fn read(&self, bundle: &BundleName, key: &str) -> Option<String> {
        fs::read_to_string(self.link(bundle).join(key)).ok()
    }

    /// Alters the database of a stopped edge.
    pub fn alter(&self, alter: impl FnOnce(&redb::WriteTransaction)) {
        let database = redb::Database::open(self.database()).unwrap();
        let txn = database.begin_write().unwrap();
        alter(&txn);
        txn.commit().unwrap();
    }

    pub fn provision(&mut self, certificate: &[u8]) {
        let path = self.dir.path().join("checkpoint");
        fs::write(&path, certificate).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.config.trusted_checkpoint = Some(path);
    }
}

/// Offers everything a server in `state` answers, until it has no more or is refused.
pub async fn serve(
    installer: &mut Installer,
    state: &Replica,
    now: Timestamp,
) -> Result<(), Rejection> {
    while let Some(answer) = state.answer(&installer.acceptor().position())? {
        installer.offer(answer.update, now).unwrap()?;
        settle(installer, now).await;
    }
    installer.keep();
    Ok(())
}
