//! An edge is killed at every step of an install, and started again: its workload reads a whole
//! version that is not older than before, and in the end the newest one.
//!
//! Real processes. A library that is loaded into the edge (`edge_crash/kill_at.c`) kills it right
//! before the Nth call that changes a file or directory, runs the hook, or sends on a socket; N goes
//! from 1 up to the last one that there is. Versions differ in their files, and edges in what they send,
//! so the same number is another step in the next version; an edge is then killed by name at each of
//! [`STEPS`] that no number hit. The contents of the versions are drawn from a seed, which is printed:
//! `SEED=7 cargo test -p satrap --test edge_crash` draws the same again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use satrap_certify::Key;
use satrap_edge_agent::links::OnDisk;
use satrap_merkle::BundleTree;
use satrap_operator::client::Client;
use satrap_realm::layout::ProcessFiles;
use satrap_runtime::{
    child::{self, Running},
    clock,
};
use tokio::{process::Command, time::sleep};

use self::realm::{BUNDLE, TestRealm, plan};

/// Edges that are killed at the same time, each at another step.
const EDGES: usize = 4;
/// Between looks at files and processes.
const LOOK: Duration = Duration::from_millis(10);
/// For one edge to die, or to run a version.
const WITHIN: Duration = Duration::from_secs(60);
/// More steps than this have no end.
const STEPS_MAX: usize = 2_000;
/// Steps that an install certainly has: a call, and a part of its path.
const STEPS: [(&str, &str); 9] = [
    ("write", "edge.redb"),
    ("sync", "edge.redb"),
    ("create", "value"),
    ("sync", "value"),
    ("rename", "versions/config+test/"),
    ("symlink", ".config+test.new"),
    ("rename", "active/config+test"),
    ("spawn", "/bin/sh"),
    ("rename", "status.json"),
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// The files of a version: its number, some that change with every version, some that seldom do.
fn content(random: &mut Random, version: u64) -> BundleTree {
    let mut tree = BundleTree::default();
    let mut insert = |key: String, value: String| {
        tree.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(value.as_bytes()));
    };
    insert("value".into(), version.to_string());
    for number in 0..random.below(3) {
        insert(format!("changed/{number}"), format!("{version} {}", random.below(u64::MAX)));
    }
    for number in 0..1 + random.below(2) {
        insert(format!("kept/{number}"), "the same in all versions".into());
    }
    tree
}

struct Edge {
    index: usize,
    config: PathBuf,
    link: PathBuf,
    /// Lines of the hook: `<version in the environment> <version in the files>`.
    hook_log: PathBuf,
    /// While it exists, the next hook kills its edge.
    kill_from_hook: PathBuf,
    kill_log: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

/// Where an edge is killed.
#[derive(Clone, Copy)]
enum Kill {
    /// Before the call of this number.
    At(usize),
    /// Before the first call of this name with this part in its path.
    Before((&'static str, &'static str)),
}

impl Edge {
    fn spawn(&mut self, kill: Option<(&Path, Kill)>) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_satrap"));
        command.args(["edge", "run", "--until-stdin-closes", "--config"]).arg(&self.config);
        if let Some((library, kill)) = kill {
            command.env("LD_PRELOAD", library).env("SATRAP_KILL_LOG", &self.kill_log);
            match kill {
                Kill::At(at) => command.env("SATRAP_KILL_AT", at.to_string()),
                Kill::Before((call, path)) => {
                    command.env("SATRAP_KILL_CALL", call).env("SATRAP_KILL_PATH", path)
                }
            };
        }
        self.running = Some(child::spawn(command, &self.log).unwrap());
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.running.as_mut().unwrap().process.try_wait().unwrap()
    }

    async fn kill(&mut self) {
        let mut running = self.running.take().unwrap();
        running.process.kill().await.unwrap();
    }

    /// The version in the files that the link leads to; `None` if there is no link yet. Panics
    /// unless they are those of the published version.
    fn read(&self, published: &BTreeMap<u64, BundleTree>) -> Option<u64> {
        let directory = fs::read_link(&self.link).ok()?;
        let text = fs::read_to_string(directory.join("value")).unwrap();
        let version: u64 = text.parse().unwrap();
        for (key, value) in published[&version].iter() {
            let path = directory.join(str::from_utf8(key.as_bytes()).unwrap());
            let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(found, &**value, "{} of version {version}", path.display());
        }
        Some(version)
    }
}

struct World {
    realm: TestRealm,
    client: Client,
    random: Random,
    edges: Vec<Edge>,
    published: BTreeMap<u64, BundleTree>,
    dir: tempfile::TempDir,
}

impl World {
    async fn start(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, index: usize| dir.path().join(format!("{name}-{index}"));
        let mut plan = plan(1, &["eu"], EDGES);
        // Longer than an install: checkpoints in between would add steps that belong to none.
        plan.policy.heartbeat = Duration::from_secs(60);
        for (index, edge) in plan.edges.iter_mut().enumerate() {
            let (log, kill) = (path("hook", index), path("kill", index));
            let (log, kill) = (log.display(), kill.display());
            let hook = format!(
                "echo $SATRAP_VERSION $(cat $SATRAP_DIR/value) >> {log}; \
                 if [ -e {kill} ]; then rm {kill}; kill -9 $PPID; fi"
            );
            edge.hook = ["/bin/sh".into(), "-c".into(), hook].to_vec();
        }
        let realm = TestRealm::start_of(plan, |verb| verb != "edge");
        let edge = |(index, files): (usize, &ProcessFiles)| Edge {
            index,
            config: files.config.clone(),
            link: files.dir.join("active").join(BUNDLE.replace('/', "+")),
            hook_log: path("hook", index),
            kill_from_hook: path("kill", index),
            kill_log: path("step", index),
            log: path("log", index),
            running: None,
        };
        let edges = realm.files.edges.iter().enumerate().map(edge).collect();
        let client = realm.client(realm.validator_urls());
        realm.read(&client).await;
        let (random, published) = (Random(seed), BTreeMap::new());
        Self { realm, client, random, edges, published, dir }
    }

    fn version(&self) -> u64 {
        self.published.keys().next_back().copied().unwrap_or_default()
    }

    /// Publishes the next version, and waits until every member of the region has it.
    async fn publish(&mut self) {
        let version = self.version();
        let next = content(&mut self.random, version + 1);
        let from = self.published.get(&version).cloned().unwrap_or_default();
        let decided = self.client.submit(&self.realm.publish(version, &from, &next)).await.unwrap();
        assert_eq!(decided.version, version + 1);
        self.published.insert(decided.version, next);
        for url in self.realm.member_urls() {
            self.realm.until_served(&url, decided.version, WITHIN).await;
        }
    }

    /// Whether the edge runs the newest version, by what it says itself.
    fn runs_newest(&self, edge: usize) -> bool {
        let newest = self.version();
        self.realm.edge_status(edge).is_some_and(|status| {
            let current = status.active.iter().find(|active| active.bundle == BUNDLE);
            current.is_some_and(|a| a.version == newest && a.on_disk == OnDisk::Current)
        })
    }

    /// Waits until the edge was killed, and returns the step; or until it runs the newest version
    /// and has reported that.
    async fn killed_or_done(&mut self, index: usize) -> Option<String> {
        let begun = clock::monotonic();
        loop {
            assert!(clock::monotonic() - begun < WITHIN, "{}", self.tail(index));
            if let Some(status) = self.edges[index].ended() {
                assert_eq!(status.signal(), Some(9), "{}", self.tail(index));
                return Some(fs::read_to_string(&self.edges[index].kill_log).unwrap_or_default());
            }
            if self.runs_newest(index) && self.realm.is_reported(index, self.version()).await {
                self.edges[index].kill().await;
                return None;
            }
            sleep(LOOK).await;
        }
    }

    /// Publishes a version, kills the first edges while they install it, and lets them go on. Returns
    /// the steps at which an edge was killed.
    async fn install_and_kill(&mut self, library: &Path, kills: &[Kill]) -> Vec<String> {
        self.publish().await;
        let mut before = Vec::new();
        for (edge, kill) in self.edges.iter_mut().zip(kills) {
            before.push(edge.read(&self.published));
            let _ = fs::remove_file(&edge.kill_log);
            edge.spawn(Some((library, *kill)));
        }
        let mut killed = Vec::new();
        for (index, before) in before.into_iter().enumerate() {
            match self.killed_or_done(index).await {
                Some(step) => {
                    self.recover(index, before, &step).await;
                    killed.push(step);
                }
                None => assert_eq!(self.edges[index].read(&self.published), Some(self.version())),
            }
        }
        killed
    }

    /// Starts the killed edge again, and waits until it runs the newest version.
    async fn recover(&mut self, index: usize, before: Option<u64>, step: &str) {
        let newest = self.version();
        let found = self.edges[index].read(&self.published);
        assert!(found >= before, "the workload fell from {before:?} to {found:?} at {step}");
        self.edges[index].spawn(None);
        let begun = clock::monotonic();
        let mut last = found;
        // A status file of before the kill says nothing of this process.
        let mut is_up = false;
        while !is_up || !self.runs_newest(index) {
            assert!(clock::monotonic() - begun < WITHIN, "after {step}:\n{}", self.tail(index));
            assert_eq!(self.edges[index].ended(), None, "after {step}:\n{}", self.tail(index));
            let now = self.edges[index].read(&self.published);
            assert!(now >= last, "fell from {last:?} to {now:?} after {step}");
            last = now;
            is_up = self.realm.edge_status(index).is_some_and(|status| status.server.is_some());
            sleep(LOOK).await;
        }
        assert_eq!(self.edges[index].read(&self.published), Some(newest));
        let told = fs::read_to_string(&self.edges[index].hook_log).unwrap();
        let expected = format!("{newest} {newest}");
        assert_eq!(told.lines().next_back(), Some(&*expected), "the hook ran, after {step}");
        self.edges[index].kill().await;
    }

    fn tail(&self, index: usize) -> String {
        let edge = &self.edges[index];
        let log = fs::read_to_string(&edge.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        format!("edge {}:\n{}", edge.index, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

fn library(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/edge_crash/kill_at.c");
    let library = dir.join("kill_at.so");
    // The linker of every Rust installation on Linux.
    let compiled = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

#[tokio::test]
async fn an_edge_killed_at_any_step_of_an_install_goes_on_and_never_back() {
    let seed = option_env!("SEED").map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(satrap_runtime::rng::u64);
    println!("seed {seed}");
    let mut world = World::start(seed).await;
    let library = library(world.dir.path());
    let mut steps: Vec<String> = Vec::new();
    for first in (1..).step_by(EDGES) {
        assert!(first < STEPS_MAX, "there is no last step");
        let kills: Vec<_> = (first..first + EDGES).map(Kill::At).collect();
        let killed = world.install_and_kill(&library, &kills).await;
        if killed.is_empty() {
            break;
        }
        steps.extend(killed);
    }
    let is_missing = |(call, path): &(&str, &str)| {
        !steps.iter().any(|step| step.starts_with(call) && step.contains(path))
    };
    let missing: Vec<_> = STEPS.into_iter().filter(is_missing).collect();
    for missing in missing.chunks(EDGES) {
        let kills: Vec<_> = missing.iter().copied().map(Kill::Before).collect();
        let killed = world.install_and_kill(&library, &kills).await;
        assert_eq!(killed.len(), kills.len(), "not all of {missing:?} were reached: {killed:?}");
        steps.extend(killed);
    }
    println!("killed at {} steps, of {} versions", steps.len(), world.version());
    let sends = steps.iter().filter(|step| step.starts_with("send")).count();
    assert!(sends > 0, "never killed at a send, a report among them: {steps:#?}");

    // And while the hook runs.
    world.publish().await;
    for index in 0..EDGES {
        let before = world.edges[index].read(&world.published);
        fs::write(&world.edges[index].kill_from_hook, "").unwrap();
        world.edges[index].spawn(None);
        assert!(world.killed_or_done(index).await.is_some(), "the hook kills its edge");
        world.recover(index, before, "the hook").await;
    }
}
