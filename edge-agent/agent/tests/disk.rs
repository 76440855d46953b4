//! The edge's disk: what is read back is verified (K1, K2), and what a workload sees is one
//! complete version, or the one before (S1, S2, S3).

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use satrap_certify::{BundleName, Head, Interest, Key, Replica};
use satrap_edge_agent::{
    activate::{ActivateError, Activator},
    cache::{Cache, Restored},
    config::Activate,
};
use satrap_edge_core::{Acceptor, Active, Effect, Event};
use satrap_merkle::BundleTree;
use satrap_sim::SimRealm;
use tempfile::TempDir;

const CONTENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("contents");
const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");

fn bundle() -> BundleName {
    BundleName::new("config/routing").unwrap()
}

fn interest() -> Interest {
    Interest::Bundles(vec![bundle()])
}

/// An edge with a real cache, and the realm that feeds it.
struct Edge {
    dir: TempDir,
    realm: SimRealm,
    relay: Replica,
    acceptor: Acceptor,
}

impl Edge {
    fn new() -> Self {
        let realm = SimRealm::new("disk", 4);
        let replica = Replica::genesis(&realm.genesis, interest());
        Self {
            dir: tempfile::tempdir().unwrap(),
            relay: Replica::genesis(&realm.genesis, Interest::Everything),
            acceptor: Acceptor::new(replica, BTreeMap::new(), Default::default()),
            realm,
        }
    }

    /// Publishes `value` and installs it; the workload takes it or not.
    fn publish(&mut self, value: &str, taken: bool) {
        let change = self.realm.publish(bundle().as_str(), &[("a", value), ("b", value)]);
        let update = self.realm.decide(&[change]).unwrap();
        let advance = self.relay.verify(&update, self.realm.now).unwrap();
        self.relay.advance(advance);
        let update = self.relay.answer(&self.acceptor.position()).unwrap().unwrap().update;
        let cache = Cache::open(self.dir.path()).unwrap();
        let now = self.realm.now;
        let mut effect = self.acceptor.step(now, Event::Offered(Box::new(update))).unwrap();
        loop {
            let event = match effect {
                Effect::Settled => return,
                Effect::Stage(staged) => {
                    cache.stage(&staged).unwrap();
                    Event::Staged
                }
                Effect::Activate(head, _) if taken => {
                    cache.activated(&head, self.acceptor.replica()).unwrap();
                    Event::Activated
                }
                Effect::Activate(head, _) => {
                    cache.quarantined(&head).unwrap();
                    Event::ActivationFailed
                }
            };
            effect = self.acceptor.step(now, event).unwrap();
        }
    }

    fn restore(&self) -> Restored {
        let cache = Cache::open(self.dir.path()).unwrap();
        cache.restore(&self.realm.genesis, &interest()).unwrap()
    }

    /// Alters one row of the database, and returns what is read back then.
    fn damaged(&self, alter: impl FnOnce(&redb::WriteTransaction)) -> Restored {
        let copy = tempfile::tempdir().unwrap();
        let file = copy.path().join("edge.redb");
        fs::copy(self.dir.path().join("edge.redb"), &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let database = redb::Database::open(&file).unwrap();
        let txn = database.begin_write().unwrap();
        alter(&txn);
        txn.commit().unwrap();
        drop(database);
        let cache = Cache::open(copy.path()).unwrap();
        cache.restore(&self.realm.genesis, &interest()).unwrap()
    }
}

fn flip_content(txn: &redb::WriteTransaction, version: u64) {
    let mut table = txn.open_table(CONTENTS).unwrap();
    let name = bundle();
    let key = (name.as_str(), version);
    let mut bytes = table.get(key).unwrap().unwrap().value().to_vec();
    // The last byte of the last value; four bytes of an empty list of deletes follow it.
    let place = bytes.len() - 5;
    bytes[place] ^= 1;
    table.insert(key, bytes.as_slice()).unwrap();
}

#[test]
fn k1_what_is_read_back_is_verified_and_damage_is_left_out() {
    let mut edge = Edge::new();
    edge.publish("one", true);
    let restored = edge.restore();
    assert!(restored.damage.is_empty());
    assert_eq!(restored.replica.position(), edge.acceptor.position());
    assert_eq!(restored.active[&bundle()].0, edge.acceptor.active()[&bundle()]);

    let rules = |restored: &Restored| -> Vec<_> {
        restored.damage.iter().map(satrap_certify::Rejection::rule).collect()
    };
    // A value changed on the disk: neither the state nor what is active is believed.
    let restored = edge.damaged(|txn| flip_content(txn, 1));
    assert_eq!(rules(&restored), ["B4", "B4"]);
    assert_eq!((restored.replica.height(), restored.active.len()), (0, 0));
    // Content gone.
    let restored = edge.damaged(|txn| {
        txn.open_table(CONTENTS).unwrap().retain(|_, _| false).unwrap();
    });
    assert_eq!((restored.replica.height(), restored.active.len()), (0, 0));
    assert_eq!(restored.damage.len(), 2);
    // Every byte of the certificate and its proofs matters, or says twice what others say.
    let database = redb::Database::open(edge.dir.path().join("edge.redb")).unwrap();
    let txn = database.begin_read().unwrap();
    let state = txn.open_table(STATE).unwrap().get("update").unwrap().unwrap().value().to_vec();
    drop((txn, database));
    for place in (0..state.len()).step_by(29) {
        let mut altered = state.clone();
        altered[place] ^= 0x40;
        let restored = edge.damaged(|txn| {
            txn.open_table(STATE).unwrap().insert("update", altered.as_slice()).unwrap();
        });
        assert_eq!(restored.replica.height(), 0, "byte {place}");
        assert_eq!(restored.damage.len(), 1, "byte {place}");
        assert_eq!(restored.active.len(), 1, "what is active has its own root");
    }
}

#[test]
fn k2_what_is_active_stays_until_something_else_is() {
    let mut edge = Edge::new();
    edge.publish("one", true);
    edge.publish("two", false);
    edge.publish("three", false);
    let restored = edge.restore();
    assert!(restored.damage.is_empty());
    assert_eq!(restored.replica.heads()[&bundle()].version, 3, "the newest is verified");
    let (active, tree) = &restored.active[&bundle()];
    assert_eq!(active.version, 1);
    assert_eq!(tree.root(), active.root);
    assert!(!restored.quarantine.is_empty());
    edge.publish("four", true);
    let restored = edge.restore();
    assert_eq!(restored.active[&bundle()].0.version, 4);
    let database = redb::Database::open(edge.dir.path().join("edge.redb")).unwrap();
    let txn = database.begin_read().unwrap();
    let table = txn.open_table(CONTENTS).unwrap();
    let versions: Vec<_> = table.iter().unwrap().map(|row| row.unwrap().0.value().1).collect();
    assert_eq!(versions, [4], "what nobody needs any more is gone");
}

fn tree(entries: &[(&str, &str)]) -> BundleTree {
    let mut tree = BundleTree::default();
    for (key, value) in entries {
        tree.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(value.as_bytes()));
    }
    tree
}

fn head(version: u64, tree: &BundleTree) -> Head {
    Head {
        name: bundle(),
        version,
        root: tree.root(),
        entries: tree.len() as u64,
        bytes: tree.bytes(),
        height: version,
    }
}

fn activator(dir: &Path, hook: &str) -> Activator {
    let words = ["/bin/sh", "-c", hook].map(str::to_owned);
    let config = Activate {
        dir: dir.join("active"),
        combined_file: None,
        hook: if hook.is_empty() { Vec::new() } else { words.to_vec() },
        // Long for a shell on a loaded machine, short for the hook that hangs.
        hook_timeout: Duration::from_secs(2),
    };
    Activator::new(config, dir)
}

async fn activate(activator: &Activator, version: u64, value: &str) -> Result<(), ActivateError> {
    let tree = tree(&[("a", value), ("dir/b", value)]);
    activator.activate(&head(version, &tree), &tree).await
}

/// The version that the link leads to, read file by file.
fn seen(link: &Path) -> Option<(String, String)> {
    let directory: PathBuf = fs::read_link(link).ok()?;
    let a = fs::read_to_string(directory.join("a")).ok()?;
    Some((a, fs::read_to_string(directory.join("dir/b")).ok()?))
}

#[tokio::test]
async fn s1_the_link_always_leads_to_one_complete_version() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "");
    let link = activator.link(&bundle());
    activate(&activator, 1, "1").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (stop, link) = (stop.clone(), link.clone());
        move || {
            let mut reads = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                assert!(fs::symlink_metadata(&link).is_ok(), "the link is always there");
                // A reader that is two versions late finds its directory gone, not mixed.
                if let Some((a, b)) = seen(&link) {
                    assert_eq!(a, b);
                    reads += 1;
                }
            }
            reads
        }
    });
    for version in 2..=40 {
        let value = version.to_string();
        activate(&activator, version, &value).await.unwrap();
        assert_eq!(seen(&link), Some((value.clone(), value)));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
}

#[tokio::test]
async fn s2_a_hook_that_fails_or_hangs_leaves_the_version_from_before() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let hook = format!(
        "cat \"$SATRAP_DIR/a\" >> '{}'; case $(cat \"$SATRAP_DIR/a\") in \
         bad*) exit 1;; slow*) exec sleep 60;; esac",
        log.display()
    );
    let activator = activator(dir.path(), &hook);
    let link = activator.link(&bundle());
    let failed = activate(&activator, 1, "bad1 ").await.unwrap_err();
    assert!(matches!(failed, ActivateError::Hook(_)), "{failed}");
    assert!(fs::symlink_metadata(&link).is_err(), "there was none before");
    activate(&activator, 2, "good2 ").await.unwrap();
    for (version, value) in [(3, "bad3 "), (4, "slow4 ")] {
        let failed = activate(&activator, version, value).await.unwrap_err();
        assert!(matches!(failed, ActivateError::Hook(_)), "{failed}");
        assert_eq!(seen(&link).unwrap().0, "good2 ");
    }
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told, "bad1 good2 bad3 good2 slow4 good2 ", "it is told to go back");
    activate(&activator, 5, "good5 ").await.unwrap();
    assert_eq!(seen(&link).unwrap().0, "good5 ");
}

#[tokio::test]
async fn s2_damaged_files_are_repaired_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "");
    let link = activator.link(&bundle());
    activate(&activator, 1, "1").await.unwrap();
    fs::write(link.join("a"), "altered").unwrap();
    let tree = tree(&[("a", "1"), ("dir/b", "1")]);
    activator.ensure(&bundle(), Active::of(&head(1, &tree)), &tree).unwrap();
    assert_eq!(seen(&link).unwrap().0, "1");
}

#[tokio::test]
async fn s3_a_key_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "");
    for key in ["../x", "/x", "a/../../x", "a//b", "a/", "./a", "..", "."] {
        let tree = tree(&[("good", "1"), (key, "evil")]);
        let refused = activator.activate(&head(1, &tree), &tree).await.unwrap_err();
        assert!(matches!(refused, ActivateError::Path(_)), "{key}: {refused}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "nothing was written: {left:?}");
    // The same files under names that cannot lead anywhere.
    let tree = tree(&[("..x", "1"), ("a/b.c/d", "2")]);
    activator.activate(&head(1, &tree), &tree).await.unwrap();
    assert_eq!(fs::read_to_string(activator.link(&bundle()).join("a/b.c/d")).unwrap(), "2");
}
