//! 000-06, 000-45, DC: processes are killed at random instructions while configs are published.
//!
//! What must hold whatever is killed when: nothing acknowledged is lost, no validator ever signs
//! two different votes, all validators decide the same blocks, and all edges converge.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use satrap_certify::{Block, Commit, Key};
use satrap_cli::client::Client;
use satrap_global_core::Ledger;
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{
    LightBlocksRequest, StatusRequest, control_client::ControlClient, status_reply::Tier,
};

use self::realm::{TestRealm, plan};

/// Kills at least; and they go on until enough was acknowledged in spite of them.
const KILLS_MIN: usize = 210;
/// A realm that acknowledges nothing under so many kills has stopped.
const KILLS_MAX: usize = 2_000;
/// Fewer acknowledged publishes than this would prove nothing.
const ACKNOWLEDGED_MIN: usize = 20;
/// For everything to come back after the last kill.
const CONVERGE_WITHIN: Duration = Duration::from_secs(90);

/// What the publisher knows at the end.
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
            // Served by a member that has not caught up; it is asked to at the end.
            tokio::task::yield_now().await;
            continue;
        }
        let (key, value) = (format!("key-{number:04}"), format!("value of {number}"));
        let mut next = tree.clone();
        next.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(value.as_bytes()));
        // An error leaves the outcome unknown; only what was acknowledged is held against anybody.
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
    let seed = satrap_host::rng::u64();
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
    let victims = realm.files.validators.len() + realm.files.members.len();
    let acknowledged_so_far = std::cell::Cell::new(0);
    let mut kills = 0;
    let mut killed = vec![0_usize; victims];
    let killer = async {
        while kills < KILLS_MIN || acknowledged_so_far.get() < ACKNOWLEDGED_MIN {
            assert!(kills < KILLS_MAX, "only {} publishes", acknowledged_so_far.get());
            kills += 1;
            // When a process is hit is up to chance, not to any state it may have reached.
            tokio::time::sleep(Duration::from_millis(50 + draw(200) as u64)).await;
            let chosen = draw(victims);
            killed[chosen] += 1;
            let victim = &mut processes[chosen];
            victim.kill().await;
            victim.restart();
        }
        stop.send_replace(true);
    };
    let publisher = publish_until(&realm, &client, &stopped, &acknowledged_so_far);
    let (acknowledged, ()) = tokio::join!(publisher, killer);
    realm.processes = processes;
    println!("kills {killed:?}, {} publishes acknowledged", acknowledged_so_far.get());
    assert!(killed.iter().all(|n| *n > 0), "every validator and every member was killed");

    let (version, tree) = loop {
        let (version, tree) = realm.read(&client).await;
        // Whoever answers may still be catching up; the test's own limit ends a wait for ever.
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

/// All validators hold the same chain, every block of it verifies, and nobody saw two votes.
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
