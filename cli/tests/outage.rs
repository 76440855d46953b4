//! 000-48: what keeps working when the tiers above are gone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{fs, time::Duration};

use satrap_merkle::BundleTree;
use satrap_operator::client::Endpoint;
use satrap_proto::v1::status_reply::Tier;

use self::realm::{BUNDLE, TestRealm, plan};

const WITHIN: Duration = Duration::from_secs(60);

fn content(value: &str) -> BundleTree {
    let mut tree = BundleTree::default();
    let key = satrap_certify::Key::new(b"greeting.txt").unwrap();
    tree.insert(&key, value.as_bytes().into());
    tree
}

async fn kill_all(realm: &mut TestRealm, names: impl Fn(&str) -> bool) {
    for process in realm.processes.iter_mut().filter(|p| names(&p.name)) {
        process.kill().await;
    }
}

#[tokio::test]
async fn a_region_without_validators_and_an_edge_without_servers_serve_what_they_have() {
    let mut realm = TestRealm::start(plan(4, &["eu"], 1));
    let client = realm.client(realm.validator_urls());
    realm.read(&client).await;
    let change = realm.publish(0, &BundleTree::default(), &content("hello"));
    let decided = client.submit(&change).await.unwrap();
    realm.converge(decided.version, WITHIN).await;

    // The validators are gone. An edge that lost its disk still gets the config from its region.
    kill_all(&mut realm, |name| name.starts_with('v')).await;
    let edge = realm.processes.iter_mut().find(|p| p.name == "eu-edge-1").unwrap();
    edge.kill().await;
    let directory = realm.files.edges[0].dir.clone();
    fs::remove_dir_all(directory.join("data")).unwrap();
    fs::remove_dir_all(directory.join("active")).unwrap();
    edge.restart();
    realm.converge(decided.version, WITHIN).await;

    // The region says how old its config is, and the age grows.
    let member = Endpoint { label: "eu-a".into(), url: realm.member_urls()[0].clone() };
    let members = realm.client(realm.member_urls());
    let age = async || match members.status(&member).await.unwrap().tier {
        Some(Tier::Region(status)) => (status.age_ms, status.upstream_connected),
        other => panic!("a member answered {other:?}"),
    };
    let (first, _) = age().await;
    let grown = async {
        loop {
            let (now, connected) = age().await;
            if now > first && !connected {
                break;
            }
        }
    };
    tokio::time::timeout(WITHIN, grown).await.expect("the age grows and the loss is shown");
    // And it refuses what it cannot have decided, by saying so.
    let change = realm.publish(decided.version, &content("hello"), &content("again"));
    assert!(members.submit(&change).await.is_err());

    // Now the region is gone too. The edge starts and runs its last known good.
    kill_all(&mut realm, |name| name.starts_with("eu-") && !name.contains("edge")).await;
    let edge = realm.processes.iter_mut().find(|p| p.name == "eu-edge-1").unwrap();
    edge.kill().await;
    fs::remove_file(directory.join("data").join("status.json")).unwrap();
    edge.restart();
    realm.converge(decided.version, WITHIN).await;
    let link = directory.join("active").join(BUNDLE.replace('/', "+"));
    let active = link.join("greeting.txt");
    assert_eq!(fs::read_to_string(&active).unwrap(), "hello");

    // Even if the active file was damaged, or the link removed, while it was down.
    let damage: [&dyn Fn(); 2] =
        [&|| fs::write(&active, "tampered").unwrap(), &|| fs::remove_file(&link).unwrap()];
    for damage in damage {
        let edge = realm.processes.iter_mut().find(|p| p.name == "eu-edge-1").unwrap();
        edge.kill().await;
        damage();
        fs::remove_file(directory.join("data").join("status.json")).unwrap();
        edge.restart();
        realm.converge(decided.version, WITHIN).await;
        assert_eq!(fs::read_to_string(&active).unwrap(), "hello");
    }
}
