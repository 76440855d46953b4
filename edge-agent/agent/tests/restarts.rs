//! KEPT-6: an edge is restarted over and over, each time under another configuration, or with a disk
//! that lost, altered or kept an older copy of something, and is served by liars in between. The
//! version that its workload runs never gets older.
//!
//! Each history is that of its seed: `SEED=7 cargo test -p satrap-edge-agent --test restarts`
//! runs one again.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::{collections::BTreeMap, fs};

use common::{Host, Servers, name, serve, settle};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use satrap_certify::{BundleName, Interest, Replica};
use satrap_edge_agent::install::{InstallError, Installer};

const CONTENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("contents");
const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");
const NAMES: [&str; 3] = ["config/a", "config/a/b", "config/c"];
const SEEDS: u64 = 20;
const RESTARTS: usize = 16;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Where a row is; the version is 0 for the one row of the memory.
type RowKey = (String, u64);
type Rows = BTreeMap<RowKey, Vec<u8>>;

fn rows(host: &Host) -> Rows {
    let database = redb::Database::open(host.database()).unwrap();
    let txn = database.begin_read().unwrap();
    let (contents, kept) = (txn.open_table(CONTENTS).unwrap(), txn.open_table(KEPT).unwrap());
    let contents = contents.iter().unwrap().map(|row| {
        let (key, bytes) = row.unwrap();
        ((key.value().0.to_owned(), key.value().1), bytes.value().to_vec())
    });
    let kept = kept.iter().unwrap().map(|row| {
        let (key, bytes) = row.unwrap();
        ((key.value().to_owned(), 0), bytes.value().to_vec())
    });
    contents.chain(kept).collect()
}

/// Sets or removes one row.
fn put(host: &Host, (name, version): &RowKey, bytes: Option<&[u8]>) {
    host.alter(|txn| {
        let (mut contents, mut kept) =
            (txn.open_table(CONTENTS).unwrap(), txn.open_table(KEPT).unwrap());
        let key = (name.as_str(), *version);
        match (*version, bytes) {
            (0, None) => drop(kept.remove(name.as_str()).unwrap()),
            (0, Some(bytes)) => drop(kept.insert(name.as_str(), bytes).unwrap()),
            (_, None) => drop(contents.remove(key).unwrap()),
            (_, Some(bytes)) => drop(contents.insert(key, bytes).unwrap()),
        }
    });
}

/// The damage done to the disk of a stopped edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    None,
    /// A row of the memory that does not read.
    Memory,
    /// Everything else: lost or altered content, an older memory, lost files, no database at all.
    Other,
}

struct World {
    random: Random,
    servers: Servers,
    host: Host,
    /// Every row there ever was, oldest first.
    seen_rows: Vec<(RowKey, Vec<u8>)>,
    /// The newest version that the workload was seen to run.
    newest_run: BTreeMap<BundleName, u64>,
    starts: usize,
    refusals: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let servers = Servers::new("restarts");
        let names: Vec<_> = NAMES.map(name).to_vec();
        let host = Host::new(&servers.realm, &names);
        Self {
            random: Random(seed),
            servers,
            host,
            seen_rows: Vec::new(),
            newest_run: BTreeMap::new(),
            starts: 0,
            refusals: 0,
        }
    }

    fn publish(&mut self) {
        let bundle = name(NAMES[self.random.below(NAMES.len())]);
        let version = self.version(&bundle) + 1;
        let text = version.to_string();
        // One in six cannot be files: it is quarantined.
        let second = if self.random.one_in(6) { "version/x" } else { "x" };
        self.servers.publish(&bundle, &[("version", &text), (second, &text)]);
    }

    fn version(&self, bundle: &BundleName) -> u64 {
        self.servers.newest().heads().get(bundle).map_or(0, |head| head.version)
    }

    /// ACCEPT-3, KEPT-6: what the workload reads, and what is recorded, is never older than it was.
    fn check(&mut self, what: &str) {
        for bundle in NAMES.map(name) {
            let before = self.newest_run.entry(bundle.clone()).or_default();
            // A link whose files are gone shows nothing, which is not older.
            if let Some(text) = self.host.read(&bundle, "version") {
                let version: u64 = text.parse().unwrap();
                assert!(version >= *before, "{bundle} fell from {before} to {version} {what}");
                *before = version;
            }
        }
    }

    fn reconfigure(&mut self) {
        let mut bundles: Vec<_> = NAMES.map(name).to_vec();
        bundles.retain(|_| !self.random.one_in(3));
        if bundles.is_empty() {
            bundles.push(name(NAMES[self.random.below(NAMES.len())]));
        }
        let states = self.servers.states.len();
        if self.random.one_in(4) && states > 1 {
            let state = &self.servers.states[1 + self.random.below(states - 1)];
            let certificate = self.servers.certificate(state, &bundles);
            self.host.provision(&certificate);
        } else {
            self.host.config.trusted_checkpoint = None;
        }
        self.host.config.bundles = bundles;
    }

    fn damage(&mut self) -> Damage {
        let rows = rows(&self.host);
        let keys: Vec<_> = rows.keys().cloned().collect();
        let key = keys[self.random.below(keys.len())].clone();
        let mut bytes = rows[&key].clone();
        self.seen_rows.extend(rows);
        let place = self.random.below(bytes.len().max(1));
        match self.random.below(8) {
            0 => put(&self.host, &key, None),
            1 => put(&self.host, &key, Some(&bytes[..place])),
            2 if !bytes.is_empty() => {
                bytes[place] ^= 1 << self.random.below(8);
                put(&self.host, &key, Some(&bytes));
            }
            3 | 4 => {
                let (key, bytes) = &self.seen_rows[self.random.below(self.seen_rows.len())];
                put(&self.host, key, Some(bytes));
                return Damage::Other;
            }
            5 => {
                fs::remove_file(self.host.database()).unwrap();
                return Damage::Other;
            }
            6 => {
                let bundle = name(NAMES[self.random.below(NAMES.len())]);
                let _ = fs::remove_file(self.host.link(&bundle));
                return Damage::Other;
            }
            _ => return Damage::None,
        }
        if key.1 == 0 { Damage::Memory } else { Damage::Other }
    }

    /// A server that tells the truth, an old truth, or an old truth from the beginning.
    async fn serve(&mut self, edge: &mut Installer) {
        let (now, states) = (self.servers.realm.now, self.servers.states.len());
        let state = &self.servers.states[self.random.below(states)];
        match self.random.below(3) {
            0 => {
                let newest = self.servers.newest();
                assert_eq!(serve(edge, newest, now).await, Ok(()), "an honest server");
            }
            1 => drop(serve(edge, state, now).await),
            _ => {
                // Answers from the beginning, whatever position the edge names.
                let interest = Interest::Bundles(self.host.config.bundles.clone());
                let nothing = Replica::genesis(&self.servers.realm.genesis, interest);
                if let Some(answer) = state.answer(&nothing.position()).unwrap() {
                    drop(edge.offer(answer.update, now).unwrap());
                    settle(edge, now).await;
                }
            }
        }
    }

    async fn restart(&mut self) {
        let damage = if self.starts == 0 { Damage::None } else { self.damage() };
        let now = self.servers.realm.now;
        self.starts += 1;
        let mut edge = match self.host.start(now).await {
            Ok(edge) => {
                assert_ne!(damage, Damage::Memory, "a damaged memory was read");
                edge
            }
            Err(InstallError::Cache(error)) => {
                assert_eq!(damage, Damage::Memory, "{error}");
                assert!(error.to_string().contains("edge.redb is damaged"), "{error}");
                self.check("in a refused start");
                self.refusals += 1;
                // The remedy in the message: a checkpoint of today, and the file moved away.
                let (newest, bundles) = (self.servers.newest(), &self.host.config.bundles);
                let certificate = self.servers.certificate(newest, bundles);
                self.host.provision(&certificate);
                fs::remove_file(self.host.database()).unwrap();
                self.host.start(now).await.unwrap()
            }
            Err(error) => panic!("{error}"),
        };
        self.check("at a start");
        for _ in 0..self.random.below(4) {
            if self.random.one_in(2) {
                self.publish();
            }
            self.serve(&mut edge).await;
            self.check("when served");
        }
    }
}

async fn history(seed: u64) -> (usize, usize) {
    let mut world = World::new(seed);
    world.publish();
    for _ in 0..RESTARTS {
        world.reconfigure();
        world.restart().await;
    }
    // In the end an honest server brings everything that can run.
    world.host.config.bundles = NAMES.map(name).to_vec();
    world.host.config.trusted_checkpoint = None;
    for bundle in NAMES.map(name) {
        let text = (world.version(&bundle) + 1).to_string();
        world.servers.publish(&bundle, &[("version", &text)]);
    }
    let now = world.servers.realm.now;
    let mut edge = world.host.start(now).await.unwrap();
    serve(&mut edge, world.servers.newest(), now).await.unwrap();
    for bundle in NAMES.map(name) {
        let version = world.version(&bundle);
        assert_eq!(edge.acceptor().active()[&bundle].version, version);
        assert_eq!(world.host.read(&bundle, "version").unwrap(), version.to_string());
    }
    (world.starts, world.refusals)
}

/// Mostly waits for its disk, so several run at once.
fn histories(seeds: &[u64]) -> (usize, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = |seed: &u64| {
        println!("seed {seed}");
        runtime.block_on(history(*seed))
    };
    seeds.iter().map(run).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

#[test]
fn kept_6_no_restart_brings_an_older_version_back() {
    if let Some(seed) = option_env!("SEED") {
        histories(&[seed.parse().unwrap()]);
        return;
    }
    let seeds: Vec<_> = (0..SEEDS).collect();
    let (starts, refused) = std::thread::scope(|scope| {
        let threads: Vec<_> =
            seeds.chunks(2).map(|seeds| scope.spawn(|| histories(seeds))).collect();
        let done = threads.into_iter().map(|thread| thread.join().unwrap());
        done.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    });
    println!("{starts} starts, {refused} of them refused");
    assert!(refused > 10, "too few damaged memories: {refused}");
}
