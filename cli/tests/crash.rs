//! 000-06, 000-45: processes of every tier are killed at random times, one after the other, while
//! configs are published.
//!
//! Invariants under these kills: no acknowledged change is lost, no validator signs two different votes,
//! all validators decide the same blocks, no edge runs an older version than before, and all edges
//! converge. `edge_crash.rs` kills edges at each single step of an install.
//!
//! Victims and times are those of a seed, which is printed:
//! `SEED=7 cargo test -p satrap --test crash` runs the same schedule again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use satrap_certify::{Block, Commit, Key};
use satrap_global_core::Ledger;
use satrap_merkle::codec::Canonical as _;
use satrap_operator::client::Client;
use satrap_proto::v1::{
    LightBlocksRequest, StatusRequest, control_client::ControlClient, status_reply::Tier,
};
use satrap_realm::layout::ProcessFiles;

use self::realm::{BUNDLE, TestRealm, plan};

/// The least number of kills; there are more until enough changes were acknowledged.
const KILLS_MIN: usize = 210;
/// A realm that acknowledges nothing under so many kills has stopped.
const KILLS_MAX: usize = 2_000;
/// Fewer acknowledged publishes than this would prove nothing.
const ACKNOWLEDGED_MIN: usize = 20;
/// For everything to come back after the last kill.
const CONVERGE_WITHIN: Duration = Duration::from_secs(90);

/// The versions that the publisher had acknowledged at the end.
#[derive(Default)]
struct Acknowledged {
    version: u64,
    entries: BTreeMap<String, String>,
}

/// Publishes one new key after the other until `stop`, and remembers what was acknowledged.
async fn publish_until(
    realm: &TestRealm,
    client: &Client,
    stop: &tokio::sync::watch::Receiver<bool>,
    count: &std::cell::Cell<usize>,
) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    for number in 0.. {
        if *stop.borrow() {
            break;
        }
        let (version, tree) = realm.read(client).await;
        if version < acknowledged.version {
            // The member that answered has not caught up.
            tokio::task::yield_now().await;
            continue;
        }
        let (key, value) = (format!("key-{number:04}"), format!("value of {number}"));
        let mut next = tree.clone();
        next.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(value.as_bytes()));
        // An error leaves the outcome unknown; only acknowledged changes are checked.
        if let Ok(decided) = client.submit(&realm.publish(version, &tree, &next)).await {
            acknowledged.version = decided.version;
            acknowledged.entries.insert(key, value);
            count.set(count.get() + 1);
        }
    }
    acknowledged
}

#[tokio::test]
async fn killed_processes_lose_nothing_and_sign_nothing_twice() {
    let mut realm = TestRealm::start(plan(4, &["eu"], 2));
    let seed = option_env!("SEED").map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(satrap_runtime::rng::u64);
    println!("seed {seed}");
    let mut random = seed;
    let mut draw = move |below: usize| {
        // SplitMix64: the schedule of kills is that of the seed.
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % below as u64).unwrap()
    };

    let urls = [realm.validator_urls(), realm.member_urls()].concat();
    let client = realm.client(urls);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    // The killer owns the processes, the publisher reads the rest.
    let mut processes = std::mem::take(&mut realm.processes);
    let victims = processes.len();
    let servers = realm.files.validators.len() + realm.files.members.len();
    let links: Vec<_> = realm.files.edges.iter().map(link).collect();
    let mut newest_run = vec![0; links.len()];
    let acknowledged_so_far = std::cell::Cell::new(0);
    let mut kills = 0;
    let mut killed = vec![0_usize; victims];
    let killer = async {
        while kills < KILLS_MIN || acknowledged_so_far.get() < ACKNOWLEDGED_MIN {
            assert!(kills < KILLS_MAX, "only {} publishes", acknowledged_so_far.get());
            kills += 1;
            // The seed draws the time, whatever state the process has reached by then.
            tokio::time::sleep(Duration::from_millis(50 + draw(200) as u64)).await;
            let chosen = draw(victims);
            killed[chosen] += 1;
            let victim = &mut processes[chosen];
            victim.kill().await;
            if let Some(edge) = chosen.checked_sub(servers) {
                let version = running(&links[edge]);
                assert!(version >= newest_run[edge], "{} went back to {version}", victim.name);
                newest_run[edge] = version;
            }
            victim.restart();
        }
        stop.send_replace(true);
    };
    let publisher = publish_until(&realm, &client, &stopped, &acknowledged_so_far);
    let (acknowledged, ()) = tokio::join!(publisher, killer);
    realm.processes = processes;
    println!("kills {killed:?}, {} publishes acknowledged", acknowledged_so_far.get());
    assert!(killed.iter().all(|n| *n > 0), "every process was killed");
    assert!(newest_run.iter().all(|version| *version > 0), "every edge was killed with a version");

    let (version, tree) = loop {
        let (version, tree) = realm.read(&client).await;
        // The server that answers may still be catching up.
        if version >= acknowledged.version {
            break (version, tree);
        }
    };
    for (key, value) in &acknowledged.entries {
        let found = tree.get(&Key::new(key.as_bytes()).unwrap());
        assert_eq!(found.map(|v| &**v), Some(value.as_bytes()), "{key} was acknowledged and lost");
    }
    realm.converge(version, CONVERGE_WITHIN).await;
    check_validators(&realm).await;
}

/// The link that the workload of an edge opens.
fn link(edge: &ProcessFiles) -> PathBuf {
    edge.dir.join("active").join(BUNDLE.replace('/', "+"))
}

/// The version that a link leads to; 0 for none.
fn running(link: &Path) -> u64 {
    let Ok(target) = fs::read_link(link) else { return 0 };
    let (version, _) = target.file_name().unwrap().to_str().unwrap().split_once('-').unwrap();
    version.parse().unwrap()
}

/// All validators hold the same chain, every block of it verifies, and no validator saw two votes
/// of another.
async fn check_validators(realm: &TestRealm) {
    let mut chains: Vec<BTreeMap<u64, Vec<u8>>> = Vec::new();
    for url in realm.validator_urls() {
        let client = realm.client(vec![url]);
        let channel = client.channel(&client.endpoints[0]).await.unwrap();
        let mut control = ControlClient::new(channel).max_decoding_message_size(16 << 20);
        let status = control.status(StatusRequest { local_only: true }).await.unwrap();
        let Some(Tier::Validator(status)) = status.into_inner().tier else { panic!("a validator") };
        assert!(status.evidence.is_empty(), "{} saw an equivocation", status.name);
        let range = LightBlocksRequest { from_height: 1, to_height: 0 };
        let mut blocks = control.light_blocks(range).await.unwrap().into_inner();
        let mut ledger = Ledger::genesis(&realm.genesis);
        let mut chain = BTreeMap::new();
        while let Some(block) = blocks.next().await {
            let block = block.unwrap();
            let (decoded, commit) = (
                Block::from_canonical(&block.block).unwrap(),
                Commit::from_canonical(&block.commit).unwrap(),
            );
            ledger.apply(&decoded, &commit).unwrap();
            chain.insert(block.height, block.block.to_vec());
        }
        assert_eq!(ledger.height(), chain.len() as u64, "no height is missing");
        chains.push(chain);
    }
    let common = chains.iter().map(BTreeMap::len).min().unwrap();
    println!("{common} heights in common");
    for height in 1..=common as u64 {
        assert!(chains.iter().all(|c| c[&height] == chains[0][&height]), "fork at {height}");
    }
}
