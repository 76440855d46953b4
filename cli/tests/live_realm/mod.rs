//! A running realm and the binary as its operator.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::Path, time::Duration};

use satrap_certify::ClassKind;
use satrap_edge_agent::status::Status;
use satrap_realm::RealmPlan;

use crate::common::{Ran, satrap};
use crate::realm::{TestRealm, plan};

/// How long an edge may take to notice.
const EDGE_WITHIN: Duration = Duration::from_secs(60);

pub struct Live {
    pub realm: TestRealm,
    pub runtime: tokio::runtime::Runtime,
    work: tempfile::TempDir,
}

impl Live {
    /// A realm of four validators, one region and one edge that has decided nothing.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// The same, of another plan.
    pub fn start_with(change: impl FnOnce(&mut RealmPlan)) -> Self {
        let runtime = satrap_runtime::runtime::multi_thread("test", 2).unwrap();
        let mut plan = plan(4, &["eu"], 1);
        plan.operators.push("bob".parse().unwrap());
        plan.governance_approvals = 2;
        plan.classes.push(satrap_certify::Class::new("pki/", 2, ClassKind::X509Trust));
        // Long, so that nothing but what these tests do makes blocks.
        plan.policy.heartbeat = std::time::Duration::from_secs(600);
        change(&mut plan);
        let realm = runtime.block_on(async { TestRealm::start(plan) });
        realm.files.description(&realm.plan).store(&realm.files.dir).unwrap();
        let live = Self { realm, runtime, work: tempfile::tempdir().unwrap() };
        let client = live.realm.client(live.realm.validator_urls());
        live.runtime.block_on(live.realm.read(&client));
        live
    }

    pub fn dir(&self) -> &Path {
        self.work.path()
    }

    /// Runs the binary against this realm.
    pub fn run(&self, args: &[&str]) -> Ran {
        let realm = self.realm.files.dir.to_str().unwrap();
        satrap(self.dir(), &[args, &["--realm", realm]].concat())
    }

    /// Waits until the edge's status is as wanted.
    pub fn await_edge(&self, wanted: impl Fn(&Status) -> bool) {
        self.runtime.block_on(async {
            let looks = async {
                while !self.realm.edge_status(0).is_some_and(|status| wanted(&status)) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            if tokio::time::timeout(EDGE_WITHIN, looks).await.is_err() {
                panic!("{:#?}\n{}", self.realm.edge_status(0), self.log("eu-edge-1"));
            }
        });
    }

    /// The log of a process.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.realm.files.dir.join(format!("{name}.log"))).unwrap()
    }

    pub fn write(&self, path: &str, bytes: &str) {
        let path = self.dir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn key(&self, operator: usize) -> String {
        self.realm.files.operators[operator].operator_key.display().to_string()
    }
}
