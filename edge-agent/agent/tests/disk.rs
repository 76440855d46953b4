//! The state that an edge keeps: content and memory are verified when they are read back (KEPT-1, KEPT-3),
//! nothing that is needed is forgotten (KEPT-2, KEPT-4), and a database is never treated as none (KEPT-5).

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::{fs, time::Duration};

use common::{Host, Servers, name, serve};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use satrap_certify::{BundleName, Timestamp};
use satrap_edge_agent::{
    install::Installer,
    links::OnDisk,
    status::{Standing, Status, StatusFile, View},
};
use satrap_edge_core::{Acceptor, Kept, Refusals};

const CONTENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("contents");
const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");

fn bundle() -> BundleName {
    name("config/routing")
}

fn active(acceptor: &Acceptor) -> u64 {
    acceptor.active().get(&bundle()).map_or(0, |active| active.version)
}

/// An edge that runs version 1 of one bundle, stopped.
async fn at_one() -> (Host, Servers) {
    let mut servers = Servers::new("disk");
    let host = Host::new(&servers.realm, &[bundle()]);
    servers.publish(&bundle(), &[("a", "one"), ("b", "one")]);
    let mut edge = host.start(servers.realm.now).await.unwrap();
    serve(&mut edge, servers.newest(), servers.realm.now).await.unwrap();
    assert_eq!(active(edge.acceptor()), 1);
    (host, servers)
}

/// The next version, which the workload takes or not.
async fn publish(edge: &mut Installer, servers: &mut Servers, value: &str, taken: bool) {
    let entries = [("a", value), (if taken { "b" } else { "a/b" }, value)];
    servers.publish(&bundle(), &entries);
    serve(edge, servers.newest(), servers.realm.now).await.unwrap();
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

fn versions(host: &Host) -> Vec<u64> {
    let database = redb::Database::open(host.database()).unwrap();
    let txn = database.begin_read().unwrap();
    let table = txn.open_table(CONTENTS).unwrap();
    table.iter().unwrap().map(|row| row.unwrap().0.value().1).collect()
}

#[tokio::test]
async fn kept_1_content_that_is_damaged_is_left_out_and_found_elsewhere() {
    let damage: [fn(&redb::WriteTransaction); 2] = [
        |txn| flip_content(txn, 1),
        |txn| txn.open_table(CONTENTS).unwrap().retain(|_, _| false).unwrap(),
    ];
    for damage in damage {
        let (host, servers) = at_one().await;
        let now = servers.realm.now;
        host.alter(damage);
        // The files of the version have the certified root: nothing is missing.
        let edge = host.start(now).await.unwrap();
        assert_eq!(active(edge.acceptor()), 1);
        assert!(edge.acceptor().replica().content(&bundle()).is_some());
        drop(edge);
        // Without them as well: the version is still known, and a server brings its content back.
        fs::remove_dir_all(host.config.data_dir.join("versions")).unwrap();
        let mut edge = host.start(now).await.unwrap();
        assert_eq!(active(edge.acceptor()), 1);
        assert!(edge.acceptor().replica().content(&bundle()).is_none());
        assert_eq!(host.read(&bundle(), "a"), None);
        serve(&mut edge, servers.newest(), now).await.unwrap();
        assert_eq!(host.read(&bundle(), "a").unwrap(), "one");
        assert_eq!(active(edge.acceptor()), 1);
    }
}

#[tokio::test]
async fn kept_2_what_is_active_stays_until_something_else_is() {
    let (host, mut servers) = at_one().await;
    let mut edge = host.start(servers.realm.now).await.unwrap();
    publish(&mut edge, &mut servers, "two", false).await;
    publish(&mut edge, &mut servers, "three", false).await;
    drop(edge);
    assert_eq!(versions(&host), [1, 3], "what is active, and the newest");
    let mut edge = host.start(servers.realm.now).await.unwrap();
    let acceptor = edge.acceptor();
    assert_eq!(acceptor.replica().heads()[&bundle()].version, 3, "the newest is verified");
    assert_eq!(active(acceptor), 1);
    assert!(!acceptor.quarantine().is_empty());
    assert_eq!(host.read(&bundle(), "a").unwrap(), "one");
    publish(&mut edge, &mut servers, "four", true).await;
    assert_eq!(active(edge.acceptor()), 4);
    drop(edge);
    assert_eq!(versions(&host), [4], "versions that are not needed are gone");
}

#[tokio::test]
async fn kept_3_kept_5_a_damaged_memory_is_an_error_that_says_what_to_do() {
    let (host, servers) = at_one().await;
    let sealed = {
        let database = redb::Database::open(host.database()).unwrap();
        let txn = database.begin_read().unwrap();
        let table = txn.open_table(KEPT).unwrap();
        table.get("kept").unwrap().unwrap().value().to_vec()
    };
    assert!(Kept::unseal(&sealed).is_ok());
    for length in 0..sealed.len() {
        assert!(Kept::unseal(&sealed[..length]).is_err(), "cut to {length}");
    }
    for place in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[place] ^= 0x40;
        assert!(Kept::unseal(&altered).is_err(), "byte {place}");
    }
    let damage: [&dyn Fn(&redb::WriteTransaction); 3] = [
        &|txn| drop(txn.open_table(KEPT).unwrap().remove("kept").unwrap()),
        &|txn| assert!(txn.delete_table(KEPT).unwrap()),
        &|txn| {
            let mut table = txn.open_table(KEPT).unwrap();
            drop(table.insert("kept", &sealed[1..]).unwrap());
        },
    ];
    for damage in damage {
        host.alter(damage);
        let error = host.start(servers.realm.now).await.unwrap_err().to_string();
        assert!(error.contains("edge.redb is damaged"), "{error}");
        assert!(error.contains("trusted_checkpoint") && error.contains("move"), "{error}");
        assert_eq!(host.read(&bundle(), "a").unwrap(), "one", "the workload keeps what it has");
    }
}

#[tokio::test]
async fn kept_5_a_database_of_another_realm_is_refused_by_name() {
    let (mut host, servers) = at_one().await;
    let other = Servers::new("other");
    host.config.genesis = other.realm.genesis.clone();
    let error = host.start(servers.realm.now).await.unwrap_err().to_string();
    let hash = |servers: &Servers| hex::encode(servers.realm.genesis.realm().genesis_hash());
    for part in ["edge.redb belongs to the realm", &hash(&servers), &hash(&other)] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn kept_4_floors_outlive_the_configuration_that_needed_them() {
    let (mut host, mut servers) = at_one().await;
    let mut edge = host.start(servers.realm.now).await.unwrap();
    publish(&mut edge, &mut servers, "two", true).await;
    let second = servers.newest().clone();
    publish(&mut edge, &mut servers, "three", true).await;
    drop(edge);
    // Swapped for another bundle, and back, with a server that is a version behind.
    for bundles in [vec![name("config/other")], vec![bundle()]] {
        host.config.bundles = bundles;
        let mut edge = host.start(servers.realm.now).await.unwrap();
        assert_eq!(serve(&mut edge, &second, servers.realm.now).await, Ok(()));
        assert_eq!(active(edge.acceptor()), 3);
        assert_eq!(host.read(&bundle(), "a").unwrap(), "three");
        // B1 holds against this, in whatever directory it comes.
        let floors = edge.acceptor().replica().memory().floors;
        assert_eq!(floors[&bundle()].version, 3);
    }
}

fn standing(host: &Host, edge: &Installer) -> Standing {
    let view = View {
        acceptor: edge.acceptor(),
        sink: edge.sink(),
        refusals: &Refusals::default(),
        bundles: &host.config.bundles,
        server: None,
    };
    StatusFile::new(&host.config.data_dir, "eu", "edge").write(view, Timestamp(0));
    let json = fs::read(host.config.data_dir.join("status.json")).unwrap();
    let status: Status = serde_json::from_slice(&json).unwrap();
    assert_eq!(status.active[0].on_disk, OnDisk::Current);
    status.active[0].standing
}

#[tokio::test]
async fn accept_3_a_retired_bundle_keeps_running_and_comes_back_above_its_version() {
    let (mut host, mut servers) = at_one().await;
    let mut edge = host.start(servers.realm.now).await.unwrap();
    publish(&mut edge, &mut servers, "two", true).await;
    let second = servers.newest().clone();
    assert_eq!(standing(&host, &edge), Standing::Followed);
    let retire = servers.realm.retire(bundle().as_str());
    servers.decide(&[retire]);
    serve(&mut edge, servers.newest(), servers.realm.now).await.unwrap();
    assert_eq!(standing(&host, &edge), Standing::Retired);
    drop(edge);
    let mut edge = host.start(servers.realm.now).await.unwrap();
    drop(serve(&mut edge, &second, servers.realm.now).await);
    assert_eq!((active(edge.acceptor()), host.read(&bundle(), "a").unwrap()), (2, "two".into()));
    publish(&mut edge, &mut servers, "again", true).await;
    assert!(active(edge.acceptor()) > 2);
    assert_eq!(host.read(&bundle(), "a").unwrap(), "again");
    assert_eq!(standing(&host, &edge), Standing::Followed);
    drop(edge);
    host.config.bundles = vec![name("config/other")];
    let edge = host.start(servers.realm.now).await.unwrap();
    assert_eq!(standing(&host, &edge), Standing::Unconfigured);
}

#[tokio::test]
async fn kept_4_a_trusted_checkpoint_raises_and_never_lowers() {
    let (mut host, mut servers) = at_one().await;
    let old = servers.certificate(servers.newest(), &[bundle()]);
    let mut edge = host.start(servers.realm.now).await.unwrap();
    publish(&mut edge, &mut servers, "two", true).await;
    drop(edge);
    host.provision(&old);
    let edge = host.start(servers.realm.now).await.unwrap();
    assert_eq!((edge.acceptor().replica().height(), active(edge.acceptor())), (2, 2));
    drop(edge);

    // Away for longer than the trusting period: refused, until a newer checkpoint is provisioned.
    servers.realm.now = servers.realm.now.plus(Duration::from_secs(91 * 24 * 3600));
    servers.publish(&bundle(), &[("a", "three"), ("b", "three")]);
    let mut edge = host.start(servers.realm.now).await.unwrap();
    let refused = serve(&mut edge, servers.newest(), servers.realm.now).await.unwrap_err();
    assert_eq!((refused.rule(), active(edge.acceptor())), ("C8", 2));
    drop(edge);
    let new = servers.certificate(servers.newest(), &[bundle()]);
    host.provision(&new);
    let mut edge = host.start(servers.realm.now).await.unwrap();
    assert_eq!((edge.acceptor().replica().height(), active(edge.acceptor())), (3, 2));
    serve(&mut edge, servers.newest(), servers.realm.now).await.unwrap();
    assert_eq!(active(edge.acceptor()), 3);
}

#[tokio::test]
async fn accept_2_accept_6_what_was_complete_is_activated_without_a_server_and_parts_are_not() {
    let (host, mut servers) = at_one().await;
    let now = servers.realm.now;
    // A link that is in the way: verified and durable, and not active yet.
    let link = host.link(&bundle());
    fs::rename(&link, host.dir.path().join("aside")).unwrap();
    fs::write(&link, "theirs").unwrap();
    let mut edge = host.start(now).await.unwrap();
    publish(&mut edge, &mut servers, "two", true).await;
    assert_eq!(active(edge.acceptor()), 1);
    assert!(edge.acceptor().quarantine().is_empty(), "the version is not at fault");
    drop(edge);
    fs::remove_file(&link).unwrap();
    let edge = host.start(now).await.unwrap();
    assert_eq!(active(edge.acceptor()), 2, "no server was asked");
    drop(edge);

    // Heads without content are durable as well, and change nothing that runs.
    servers.publish(&bundle(), &[("a", "three"), ("b", "three")]);
    let mut edge = host.start(now).await.unwrap();
    let answer = servers.newest().answer(&edge.acceptor().position()).unwrap().unwrap();
    let mut part = answer.update;
    part.contents.clear();
    edge.offer(part, servers.realm.now).unwrap().unwrap();
    assert!(!edge.acceptor().replica().is_complete());
    drop(edge);
    let mut edge = host.start(now).await.unwrap();
    assert_eq!((edge.acceptor().replica().height(), active(edge.acceptor())), (3, 2));
    serve(&mut edge, servers.newest(), servers.realm.now).await.unwrap();
    assert_eq!(active(edge.acceptor()), 3);
}

/// The values that a workload reads under `k` in both bundles.
fn both(host: &Host, names: &[BundleName; 2]) -> [String; 2] {
    names.each_ref().map(|name| host.read(name, "k").unwrap())
}

/// The process dies while the hook of a version runs. By then the edge has stored the heads of the next
/// state and the content of the bundle that waited, which no directory of versions holds yet.
#[tokio::test]
async fn accept_2_accept_6_parts_of_the_next_state_do_not_hold_up_what_a_crash_interrupted() {
    let mut servers = Servers::new("disk");
    let names = ["config/a", "config/b"].map(name);
    let mut host = Host::new(&servers.realm, &names);
    let (log, hang) = (host.dir.path().join("log"), host.dir.path().join("hang"));
    let hook = format!(
        "echo $SATRAP_BUNDLE $SATRAP_VERSION >> {}; [ ! -e {} ] || exec sleep 600",
        log.display(),
        hang.display()
    );
    host.config.activate.hook = ["/bin/sh", "-c", &hook].map(str::to_owned).to_vec();
    host.config.activate.hook_timeout = Duration::from_secs(300);
    let publish = |servers: &mut Servers, value: &str| {
        let changes =
            names.each_ref().map(|name| servers.realm.publish(name.as_str(), &[("k", value)]));
        servers.decide(&changes);
    };
    publish(&mut servers, "one");
    let now = servers.realm.now;
    let mut edge = host.start(now).await.unwrap();
    serve(&mut edge, servers.newest(), now).await.unwrap();
    assert_eq!(both(&host, &names), ["one", "one"]);

    fs::write(&hang, "").unwrap();
    let answer = |servers: &Servers, edge: &Installer| {
        servers.newest().answer(&edge.acceptor().position()).unwrap().unwrap().update
    };
    publish(&mut servers, "two");
    edge.offer(answer(&servers, &edge), servers.realm.now).unwrap().unwrap();
    let runs = async {
        while !fs::read_to_string(&log).unwrap().contains("config/a 2") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = edge.activated() => panic!("the hook does not hang: {ended:?}"),
        () = runs => {}
    }
    publish(&mut servers, "three");
    let mut part = answer(&servers, &edge);
    part.contents.retain(|content| content.bundle == names[1]);
    assert_eq!(part.contents.len(), 1);
    edge.offer(part, servers.realm.now).unwrap().unwrap();
    assert!(!edge.acceptor().replica().is_complete());
    assert_eq!(both(&host, &names), ["two", "one"]);
    drop(edge);

    fs::remove_file(&hang).unwrap();
    fs::remove_file(&log).unwrap();
    let mut edge = host.start(servers.realm.now).await.unwrap();
    assert!(!edge.acceptor().replica().is_complete(), "no server was asked");
    assert_eq!(fs::read_to_string(&log).unwrap(), "config/a 2\nconfig/b 2\n");
    assert_eq!(both(&host, &names), ["two", "two"]);
    let active = edge.acceptor().active().values().map(|active| active.version);
    assert_eq!(active.collect::<Vec<_>>(), [2, 2]);
    serve(&mut edge, servers.newest(), servers.realm.now).await.unwrap();
    assert_eq!(both(&host, &names), ["three", "three"]);
}
