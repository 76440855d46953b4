//! Members save scheduled snapshots of their ring, and report them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod realm;

use std::{fs, time::Duration};

use common::satrap;
use satrap_proto::etcdserverpb::{StatusRequest, maintenance_client::MaintenanceClient};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use self::realm::ring::{LOOK, Ring};

const WITHIN: Duration = Duration::from_secs(60);

fn snapshots(ring: &Ring, member: &str) -> Value {
    let dir = ring.dir().display().to_string();
    let status = satrap(ring.dir(), &["status", "--realm", &dir, "--json"]).json();
    let members = status["regions"][0]["members"].as_array().unwrap().clone();
    members.into_iter().find(|m| m["name"] == member).unwrap()["snapshots"].clone()
}

/// Waits until the status of a member's schedule is as wanted.
async fn until(ring: &Ring, member: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let shown = async {
        loop {
            let shown = snapshots(ring, member);
            if holds(&shown) {
                return shown;
            }
            sleep(LOOK).await;
        }
    };
    timeout(WITHIN, shown).await.unwrap_or_else(|_| panic!("{}", snapshots(ring, member)))
}

/// Gives a stopped member a schedule, and starts it.
fn schedule(ring: &mut Ring, member: usize, dir: &str) {
    let path = ring.config(member);
    let mut config = fs::read_to_string(&path).unwrap();
    config += &format!("\n[snapshots]\ninterval_s = 3600\ndir = {dir:?}\nkeep = 3\n");
    fs::write(path, config).unwrap();
    ring.realm.processes[member].restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_save_their_ring_and_say_when_they_cannot() {
    let mut ring = Ring::start().await;
    let written = ring.put("k", "v").await;
    ring.kill([0, 1]).await;
    schedule(&mut ring, 0, "../../../backup");
    schedule(&mut ring, 1, "no/such/place");
    let saved = until(&ring, "a", |shown| !shown["newest"].is_null()).await;
    assert_eq!(saved["error"], Value::Null, "{saved}");
    assert!(saved["newest"]["revision"].as_i64().unwrap() >= written, "{saved}");
    let file = saved["newest"]["file"].as_str().unwrap();
    assert!(file.contains("/eu+a+") && file.ends_with(".snapshot"), "{file}");
    let realm = ring.dir().display().to_string();
    let verified = satrap(ring.dir(), &["snapshot", "verify", file, "--realm", &realm, "--json"]);
    assert_eq!(verified.json()["revision"], saved["newest"]["revision"]);

    let failed = until(&ring, "b", |shown| !shown["error"].is_null()).await;
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("no/such/place") && error.contains("`snapshots.dir`"), "{failed}");
    let text = satrap(ring.dir(), &["status", "--realm", &realm]).out;
    assert!(text.contains("eu/a saved revision"), "{text}");
    assert!(text.contains("eu/b NO SNAPSHOT ("), "{text}");
    assert_eq!(snapshots(&ring, "c"), Value::Null, "it has no schedule");

    // Where monitoring that was made for etcd looks.
    let channel = ring.client.connect(&ring.client.endpoints[1]).await.unwrap();
    let mut maintenance = MaintenanceClient::new(channel);
    let complains = async {
        let told = |error: &String| error.starts_with("snapshots: ");
        while !maintenance
            .status(StatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .errors
            .iter()
            .any(told)
        {
            sleep(LOOK).await;
        }
    };
    timeout(WITHIN, complains).await.unwrap();
}
