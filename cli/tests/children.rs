//! What daemons do when their parent is gone, and on SIGHUP.

mod realm;

use std::{fs, process::Command, time::Duration};

use realm::{TestRealm, plan};
use tokio::time::{sleep, timeout};

/// Generous, because the machine may be busy; reaching it is a failure.
const WAIT: Duration = Duration::from_secs(60);

/// Waits until the log of a process has `text`.
async fn logs(realm: &TestRealm, process: usize, text: &str) {
    let process = &realm.processes[process];
    let logged = async {
        while !process.log_tail().contains(text) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let name = &process.name;
    timeout(WAIT, logged)
        .await
        .unwrap_or_else(|_| panic!("{name} did not log {text}: {}", process.log_tail()));
}

#[test]
fn sighup_reads_credentials_again_and_ends_no_daemon() {
    satrap_host::runtime::current_thread().unwrap().block_on(async {
        let mut realm = TestRealm::start(plan(1, &["eu"], 1));
        let client = realm.client(realm.validator_urls());
        realm.read(&client).await;
        let [validator, member, edge] = [0, 1, 4];
        logs(&realm, validator, "validator is listening").await;
        logs(&realm, member, "serving").await;
        // It writes its status once it handles signals.
        while realm.edge_status(0).is_none() {
            sleep(Duration::from_millis(20)).await;
        }
        let files = &realm.files;
        let dirs = [&files.validators[0].dir, &files.members[0].dir, &files.edges[0].dir];
        let dirs = dirs.map(Clone::clone);
        for (process, dir) in [validator, member, edge].into_iter().zip(dirs) {
            fs::write(dir.join("tls.crt"), "no certificate").unwrap();
            let pid = realm.processes[process].pid().to_string();
            assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
            // Without the signal they would be read again within a minute, and the log says why.
            logs(&realm, process, "SIGHUP").await;
            logs(&realm, process, "kept the old credentials").await;
        }
        for process in [validator, member, edge] {
            // Panics if it has ended.
            realm.processes[process].kill().await;
        }
    });
}

#[test]
fn a_daemon_ends_with_its_parent() {
    satrap_host::runtime::current_thread().unwrap().block_on(async {
        let mut realm = TestRealm::start(plan(1, &["eu"], 1));
        let client = realm.client(realm.validator_urls());
        realm.read(&client).await;
        for process in realm.processes.drain(..) {
            let name = process.name.clone();
            // What the kernel does when the parent is gone.
            let mut orphan = process.orphan();
            let status = timeout(WAIT, orphan.wait()).await;
            let status = status.unwrap_or_else(|_| panic!("{name} outlived its parent")).unwrap();
            assert!(status.success(), "{name}: {status}");
        }
    });
}
