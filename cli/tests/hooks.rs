//! A hook that hangs keeps an edge from nothing but that one activation. Real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{fs, path::Path, time::Duration};

use satrap_certify::SignedReport;
use satrap_edge_agent::status::Status;
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_operator::client::Endpoint;
use satrap_proto::v1::status_reply::Tier;
use satrap_runtime::child::Daemon;
use tokio::time::{sleep, timeout};

use self::realm::{TestRealm, plan};

const LOOK: Duration = Duration::from_millis(20);
/// For anything that is waited for; the hook hangs for ten times as long.
const WITHIN: Duration = Duration::from_secs(60);

fn content(value: &str) -> BundleTree {
    let mut tree = BundleTree::default();
    let key = satrap_certify::Key::new(b"greeting.txt").unwrap();
    tree.insert(&key, value.as_bytes().into());
    tree
}

/// The processes that the hook ran in.
fn hooks(pids: &Path) -> Vec<String> {
    fs::read_to_string(pids).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("sleep"))
}

/// Waits until the status file of the edge is as `wanted`.
async fn status(realm: &TestRealm, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let seen = async {
        loop {
            match realm.edge_status(0) {
                Some(status) if wanted(&status) => return status,
                _ => sleep(LOOK).await,
            }
        }
    };
    timeout(WITHIN, seen).await.unwrap_or_else(|_| panic!("{what}: {:?}", realm.edge_status(0)))
}

/// Waits until a member has a report of the edge that says `height` or more.
async fn reported(realm: &TestRealm, height: u64) {
    let client = realm.client(realm.member_urls());
    let reported = async {
        loop {
            for url in realm.member_urls() {
                let member = Endpoint { label: url.clone(), url };
                let Ok(status) = client.status(&member).await else { continue };
                let Some(Tier::Region(status)) = status.tier else { panic!("{status:?}") };
                let mut reports = status.reports.iter();
                let report = |bytes: &_| SignedReport::from_canonical(bytes).unwrap().report;
                if reports.any(|bytes| report(bytes).height >= height) {
                    return;
                }
            }
            sleep(LOOK).await;
        }
    };
    timeout(WITHIN, reported).await.expect("the report arrives while the hook hangs");
}

#[tokio::test]
async fn a_hook_that_hangs_keeps_an_edge_from_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let mut plan = plan(1, &["eu"], 1);
    let hook = format!("echo $$ >> {}; exec sleep 600", pids.display());
    plan.edges[0].hook = ["/bin/sh".into(), "-c".into(), hook].to_vec();
    let realm = TestRealm::start_of(plan, |verb| verb != "edge");
    let config = realm.files.edges[0].config.clone();
    let text = fs::read_to_string(&config).unwrap();
    let patient = text.replace("[activate]", "[activate]\nhook_timeout_ms = 600000");
    assert_ne!(text, patient);
    fs::write(&config, patient).unwrap();
    let log = dir.path().join("edge.log");
    let edge = Daemon { program: env!("CARGO_BIN_EXE_satrap").into(), verb: "edge", config, log };
    let running = edge.spawn().unwrap();

    let client = realm.client(realm.validator_urls());
    realm.read(&client).await;
    let one = realm.publish(0, &BundleTree::default(), &content("one"));
    client.submit(&one).await.unwrap();
    let hooked = async {
        while hooks(&pids).is_empty() {
            sleep(LOOK).await;
        }
    };
    timeout(WITHIN, hooked).await.expect("the hook of version 1 begins");
    let before = realm.edge_status(0).unwrap();

    // It follows, verifies and stores the next version, and says so.
    client.submit(&realm.publish(1, &content("one"), &content("two"))).await.unwrap();
    let next = |status: &Status| status.height > before.height && status.complete;
    let after = status(&realm, "the next version is stored", next).await;
    assert!(after.server.is_some(), "{after:?}");
    assert_eq!(after.activating.as_ref().unwrap().version, 1, "what it waits for is shown");
    reported(&realm, after.height).await;
    let [hook] = &*hooks(&pids) else { panic!("one hook: {:?}", hooks(&pids)) };
    assert!(is_alive(hook), "it all happened while the hook of version 1 hung");

    // And it stops, cleanly and at once, and takes the hook along.
    let mut process = running.ask_to_stop();
    let stopped = timeout(WITHIN, process.wait()).await.expect("it stops while the hook hangs");
    assert!(stopped.unwrap().success());
    let gone = async {
        while is_alive(hook) {
            sleep(LOOK).await;
        }
    };
    timeout(WITHIN, gone).await.expect("the hook ends with its edge");
}
