//! The faults that `status` begins with, on a realm where each of them happened.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;
mod live_realm;
mod realm;

use std::{fs, time::Duration};

use live_realm::Live;
use realm::{BUNDLE, addresses};
use satrap_operator::client::etcd::EtcdClient;
use satrap_proto::etcdserverpb::{PutRequest, kv_client::KvClient};
use satrap_realm::{Description, EtcdPlan};
use satrap_runtime::child::Daemon;

/// How long a fault may take to show.
const SHOWS_WITHIN: Duration = Duration::from_secs(60);
/// So small against the quota that the write that is refused leaves less than a tenth of it free: an
/// alarm goes away by itself once there is more room than that.
const VALUE_BYTES: usize = 32 * 1024;

/// The lines of `attention`, as soon as one contains `expected`.
fn await_line(live: &Live, expected: &str) -> Vec<String> {
    await_lines(live, |lines| lines.iter().any(|line| line.contains(expected)))
}

/// The lines of `attention`, as soon as they are as expected.
fn await_lines(live: &Live, are_expected: impl Fn(&[String]) -> bool) -> Vec<String> {
    let look = || {
        let status = live.run(&["--json", "status"]).json();
        serde_json::from_value::<Vec<String>>(status["attention"].clone()).unwrap()
    };
    let mut lines = look();
    live.runtime.block_on(async {
        let looks = async {
            while !are_expected(&lines) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                lines = look();
            }
        };
        let shown = tokio::time::timeout(SHOWS_WITHIN, looks).await;
        assert!(shown.is_ok(), "after {SHOWS_WITHIN:?} there is no line that the test expects");
    });
    lines
}

/// Writes until the ring is at its quota.
fn fill(live: &Live) {
    let described = Description::load(&live.realm.files.dir).unwrap();
    let region = &described.regions[0];
    let urls = region.members.iter().filter_map(|member| member.etcd_url.clone()).collect();
    let client = EtcdClient::open(region.etcd.as_ref().unwrap(), urls).unwrap();
    live.run(&["quota", "set", "--total", "--bytes", "1MiB"]).succeeds();
    live.runtime.block_on(async {
        for n in 0..64 {
            let channel = client.any().await.unwrap();
            let key = format!("fill/{n}").into_bytes().into();
            let put =
                PutRequest { key, value: vec![b'x'; VALUE_BYTES].into(), ..Default::default() };
            if let Err(status) = KvClient::new(channel).put(put).await {
                assert!(status.message().contains("space exceeded"), "{status}");
                return;
            }
        }
        panic!("64 writes of {VALUE_BYTES} bytes fit into 1 MiB");
    });
}

#[test]
fn everything_that_an_operator_must_act_on_is_on_the_first_screen() {
    let mut live = Live::start_with(|plan| {
        // Edges report with every heartbeat.
        plan.policy.heartbeat = Duration::from_secs(2);
        plan.policy.clock_drift = Duration::from_secs(2);
        plan.edges[0].hook = vec!["/bin/false".into()];
        for member in &mut plan.regions[0].members {
            let listen = addresses(1)[0];
            member.etcd = Some(EtcdPlan { listen, url: format!("https://{listen}") });
        }
    });
    // All processes have started and found each other.
    await_lines(&live, |lines| lines.is_empty());
    live.write("content/a", "1");
    live.run(&["publish", BUNDLE, "content"]).succeeds();

    let refused = format!("edge `eu/eu-edge-1` failed to activate {BUNDLE} v1: its log says why");
    let lines = await_line(&live, &refused);
    assert_eq!(lines.len(), 1, "{lines:?}");

    fill(&live);
    await_line(&live, "region `eu` takes no writes that grow it: member `");
    let status = live.run(&["--json", "status"]).json();
    assert_eq!(status["regions"][0]["alarms"][0]["kind"], "NOSPACE", "{status}");
    assert_eq!(status["regions"][0]["members"][0]["errors"], serde_json::json!([]), "{status}");

    // A copy of the edge, as if on another machine.
    let edge = &live.realm.files.edges[0];
    let twin = live.dir().join("twin");
    fs::create_dir(&twin).unwrap();
    let config = twin.join("edge.toml");
    let text = fs::read_to_string(&edge.config).unwrap();
    // Paths are relative to the file, so only what is not in the edge's own directory has to follow.
    let own = "../../../genesis.json";
    assert!(text.contains(own), "{text}");
    let genesis = live.realm.files.genesis.display().to_string();
    fs::write(&config, text.replace(own, &genesis)).unwrap();
    for file in ["tls.crt", "tls.key", "trust.pem"] {
        fs::copy(edge.dir.join(file), twin.join(file)).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_satrap").into();
    let daemon = Daemon { program, verb: "edge", config, log: twin.join("log") };
    let guard = live.runtime.enter();
    let running = daemon.spawn().unwrap();
    drop(guard);
    await_line(&live, "edge `eu/eu-edge-1` is run by two processes with one identity: stop one");
    drop(running);

    // A validator and the edge are gone.
    let runtime = &live.runtime;
    for process in &mut live.realm.processes {
        if ["v3", "eu-edge-1"].contains(&process.name.as_str()) {
            runtime.block_on(process.kill());
        }
    }
    let lines = await_line(&live, "edge `eu/eu-edge-1` is silent: its last report is ");
    let full = "region `eu` takes no writes that grow it: member `";
    for begin in ["validator `v3` is unreachable: ", full] {
        assert!(lines.iter().any(|line| line.starts_with(begin)), "{begin}: {lines:?}");
    }

    let screen = live.run(&["status"]).succeeds();
    for line in [
        "! validator `v3` is unreachable: ",
        &format!("! {full}"),
        &format!("! {refused}"),
        "! edge `eu/eu-edge-1` is silent: ",
    ] {
        assert!(screen.contains(line), "{line}\n{screen}");
    }
}
