//! 000-58, 000-59, 000-60, 000-73, 000-74, 000-75: a member is replaced without loss, a snapshot is
//! restored, and a lost majority is recovered from, with the verbs that the runbooks name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod realm;

use std::{cell::Cell, fs, path::Path, time::Duration};

use common::Ran;
use satrap_identity::mtls::{self, PeerRule};
use satrap_proto::v1::{
    RecoveryInfo, StatusRequest, control_client::ControlClient, status_reply::Tier,
};
use satrap_realm::create;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use self::realm::ring::{LOOK, Ring, etcd_plan};

const WITHIN: Duration = Duration::from_secs(60);
/// How long a member is refused for want of its disk; errors come with every heartbeat.
const REFUSED_FOR: Duration = Duration::from_secs(6);
/// Warnings and errors that each member may log meanwhile.
const WARNINGS_MAX: usize = 12;

/// Runs a verb beside the tasks of the test.
async fn satrap(dir: &Path, args: &[&str]) -> Ran {
    let (dir, args) = (dir.to_owned(), args.iter().map(|&arg| arg.to_owned()));
    let args: Vec<String> = args.collect();
    let run = move || common::satrap(&dir, &args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Waits for something that must come.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => sleep(LOOK).await,
            }
        }
    };
    timeout(WITHIN, found).await.unwrap_or_else(|_| panic!("{what}: not within {WITHIN:?}"))
}

impl Ring {
    async fn satrap(&self, args: &[&str]) -> Ran {
        satrap(self.dir(), args).await
    }

    /// Runs a verb about the running ring.
    async fn online(&self, args: &[&str]) -> Ran {
        let realm = self.dir().display().to_string();
        self.satrap(&[args, &["--realm", &realm, "--json"]].concat()).await
    }

    /// The recoveries that one member shows, of its own state.
    async fn recoveries(&self, member: usize) -> Option<Vec<RecoveryInfo>> {
        let region = &self.realm.plan.regions[0];
        let rule = PeerRule::Member(region.name.as_str().into());
        let url = &region.members[member].client_url;
        let channel = mtls::connect_lazy(url, &self.realm.credentials, rule).unwrap();
        let asked = StatusRequest { local_only: true };
        let status = ControlClient::new(channel).status(asked).await.ok()?;
        let Some(Tier::Region(status)) = status.into_inner().tier else { panic!("not a member") };
        Some(status.recoveries)
    }

    async fn role_of(&self, name: &str) -> String {
        let listed = self.online(&["member", "list"]).await.json();
        let members = listed["members"].as_array().unwrap();
        let found = members.iter().find(|member| member["name"] == name);
        found.map_or_else(String::new, |member| member["role"].as_str().unwrap().to_owned())
    }

    async fn until_logged(&self, process: usize, text: &str) {
        let process = &self.realm.processes[process];
        let logged = async {
            while !process.log_tail().contains(text) {
                sleep(LOOK).await;
            }
        };
        let tail = || process.log_tail();
        timeout(WITHIN, logged).await.unwrap_or_else(|_| panic!("no {text:?} in:\n{}", tail()));
    }

    async fn until_votes(&self, name: &str) {
        let votes = async {
            while self.role_of(name).await != "voter" {
                sleep(LOOK).await;
            }
        };
        if timeout(WITHIN, votes).await.is_err() {
            let tails =
                self.realm.processes.iter().map(|p| format!("{}:\n{}\n", p.name, p.log_tail()));
            panic!("`{name}` does not get its vote:\n{}", tails.collect::<String>());
        }
    }

    /// Waits until every member holds all of `keys`.
    async fn until_all_hold(&self, keys: &[String]) {
        for member in 0..3 {
            let holds = async || {
                let held = self.keys(member).await.ok()?;
                keys.iter().all(|key| held.contains(key)).then_some(())
            };
            until(&format!("member {member} holds every acknowledged key"), holds).await;
        }
    }
}

fn i64_of(value: &Value, field: &str) -> i64 {
    value[field].as_i64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_is_destroyed_and_restored_from_a_snapshot_000_74() {
    let mut ring = Ring::start().await;
    for number in 0..20 {
        ring.put(&format!("k{number}"), "kept").await;
    }
    let token = ring.token("db").await;
    let saved = ring.online(&["snapshot", "save", "saved.db"]).await.json();
    assert!(i64_of(&saved, "keys") >= 21, "{saved}");
    let checked = ring.online(&["snapshot", "verify", "saved.db"]).await.json();
    for field in ["digest", "state_digest", "revision", "voters", "bytes"] {
        assert_eq!(checked[field], saved[field], "{field}");
    }
    let again = ring.online(&["snapshot", "save", "saved.db"]).await;
    again.fails(64, "never overwritten");
    let lost = ring.put("lost", "").await;
    ring.kill(0..3).await;

    let configs: Vec<_> = (0..3).map(|member| ring.config(member)).collect();
    let restore = async |file: &str, rest: &[&str]| {
        ring.satrap(&[&["snapshot", "restore", file, "--json", "--config"], rest].concat()).await
    };
    restore("saved.db", &[&configs[0]]).await.fails(64, "only ever made in an empty directory");
    (0..3).for_each(|member| ring.wipe(member));
    wrong_files(&ring, &configs[0]).await;
    assert!(!ring.data_dir(0).exists(), "what was refused left nothing behind");

    // Each on its own, as on three machines.
    let first = restore("saved.db", &[&configs[0]]).await.json();
    assert_eq!(first["missing"], serde_json::json!(["b", "c"]));
    let epoch = first["epoch"].to_string();
    let others = ["--config", configs[2].as_str(), "--epoch", epoch.as_str()];
    let others = restore("saved.db", &[&[configs[1].as_str()], &others[..]].concat()).await.json();
    for member in others["members"].as_array().unwrap() {
        assert_eq!(member["state_digest"], first["members"][0]["state_digest"]);
    }
    assert_eq!(first["kept"], saved["revision"]);

    (0..3).for_each(|member| ring.realm.processes[member].restart());
    assert!(ring.put("after", "").await > lost + 1_000_000, "revisions leap");
    let keys: Vec<_> = (0..20).map(|number| format!("k{number}")).collect();
    ring.until_all_hold(&keys).await;
    assert!(!ring.keys(0).await.unwrap().contains(&"lost".to_owned()));
    let told = ring.watch_from(lost + 1).await;
    assert!(told.canceled && told.compact_revision > lost, "an old watch must resync: {told:?}");
    let newer = ring.token("other").await;
    assert!(newer.epoch > token.epoch, "{newer:?} after {token:?}");
    let cut = ring.online(&["recover", "status"]).await.json();
    let cut = &cut["regions"][0]["recoveries"][0];
    assert_eq!((&cut["kind"], &cut["kept"]), (&"restored".into(), &saved["revision"]));
    assert!(cut["reason"].as_str().unwrap().contains(saved["digest"].as_str().unwrap()));
}

/// Each wrong input is refused with its own reason.
async fn wrong_files(ring: &Ring, config: &str) {
    let restore = async |file: &str, config: &str| {
        ring.satrap(&["snapshot", "restore", file, "--config", config]).await
    };
    let whole = fs::read(ring.dir().join("saved.db")).unwrap();
    fs::write(ring.dir().join("short.db"), &whole[..whole.len() / 2]).unwrap();
    restore("short.db", config).await.fails(65, "cut short");
    fs::write(ring.dir().join("noise.db"), b"SQLite format 3\0 and so on").unwrap();
    restore("noise.db", config)
        .await
        .fails(65, "noise.db: the snapshot cannot be used: it is another kind of file, or damaged");
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    fs::write(ring.dir().join("flipped.db"), &flipped).unwrap();
    restore("flipped.db", config).await.fails(65, "does not match its digest");
    restore("absent.db", config).await.fails(64, "No such file");
    let stranger = create(&etcd_plan(), &ring.dir().join("stranger")).unwrap();
    let stranger = stranger.members[0].config.display().to_string();
    restore("saved.db", &stranger).await.fails(65, "is of another ring");
    let (a, b) = (config, stranger.as_str());
    let both =
        ring.satrap(&["snapshot", "restore", "saved.db", "--config", a, "--config", b]).await;
    both.fails(64, "do not list the same ring");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_majority_is_recovered_from_by_an_explicit_choice_000_75() {
    let mut ring = Ring::start().await;
    for number in 0..20 {
        ring.put(&format!("k{number}"), "kept").await;
    }
    let keys: Vec<_> = (0..20).map(|number| format!("k{number}")).collect();
    // The survivor has what was acknowledged, as far as this test can know.
    ring.until_all_hold(&keys).await;
    let seen = ring.put("seen", "").await;
    let token = ring.token("db").await;
    let configs: Vec<_> = (0..3).map(|member| ring.config(member)).collect();
    let plan = ["recover", "plan", "--json", "--config", configs[0].as_str()];
    ring.satrap(&plan).await.fails(69, "stop that process first");
    ring.kill(0..3).await;

    let two = [&plan[..], &["--config", configs[1].as_str()]].concat();
    let two = ring.satrap(&two).await.json();
    assert_eq!(two["needs_recovery"], false, "{two}");
    let one = ring.satrap(&plan).await.json();
    assert_eq!((&one["needs_recovery"], &one["quorum"]), (&true.into(), &2.into()));
    let survivor = &one["survivors"][0];
    assert!(i64_of(survivor, "last_revision") >= seen - 1, "{survivor}");
    assert!(i64_of(survivor, "committed_revision") <= i64_of(survivor, "last_revision"));

    wrong_choices(&mut ring, &configs).await;
    let key = ring.realm.files.operators[0].operator_key.display().to_string();
    let apply = ["recover", "apply", "--json", "--config", configs[0].as_str(), "--trust", "a"];
    let rest = ["--lost", "b,c", "--reason", "fire in zone two", "--operator-key", key.as_str()];
    let done = ring.satrap(&[&apply[..], &rest[..]].concat()).await.json();
    assert_eq!(done["kept"], survivor["last_revision"]);
    assert_eq!(done["signers"], serde_json::json!(["alice"]));
    assert!(Path::new(done["aside"].as_str().unwrap()).join("state.redb").exists());

    ring.realm.processes[0].restart();
    assert!(ring.put("after", "").await > seen + 1_000_000, "revisions leap");
    let held = ring.keys(0).await.unwrap();
    assert!(keys.iter().all(|key| held.contains(key)), "{held:?}");
    let told = ring.watch_from(seen + 1).await;
    assert!(told.canceled && told.compact_revision > seen, "{told:?}");
    assert!(ring.token("other").await.epoch > token.epoch);
    let shown = ring.satrap(&["status", "--realm", "."]).await;
    assert!(shown.out.contains("fire in zone two"), "{}", shown.out);

    // The others come back empty, one after the other.
    for member in [1, 2] {
        ring.wipe(member);
        let name = ["a", "b", "c"][member];
        let url = ring.realm.plan.regions[0].members[member].peer_url.clone();
        ring.online(&["member", "add", name, "--peer-url", &url]).await.succeeds();
        ring.realm.processes[member].restart();
        ring.until_votes(name).await;
    }
    ring.until_all_hold(&keys).await;

    // The record stays with the state: on the survivor after a restart, and on members that received the
    // state as a snapshot.
    ring.kill([0]).await;
    ring.realm.processes[0].restart();
    for member in 0..3 {
        let record = until("the member answers", async || ring.recoveries(member).await).await;
        let [record] = record.as_slice() else { panic!("member {member}: {record:?}") };
        assert_eq!((record.kind.as_str(), record.reason.as_str()), ("forced", "fire in zone two"));
        assert_eq!(record.trusted, ["a"]);
        assert_eq!(record.lost, ["b", "c"]);
        assert_eq!(record.kept, i64_of(&done, "kept"));
    }
    let cut = ring.online(&["recover", "status"]).await.json();
    assert_eq!(cut["regions"][0]["recoveries"][0]["reason"], "fire in zone two", "{cut}");
}

/// Nothing but an explicit, signed and needed choice is taken.
async fn wrong_choices(ring: &mut Ring, configs: &[String]) {
    let key = ring.realm.files.operators[0].operator_key.display().to_string();
    let because = ["--reason", "test", "--operator-key", key.as_str()];
    let apply = ["recover", "apply", "--config", configs[0].as_str()];
    let run = async |ring: &Ring, choice: &[&str], because: &[&str]| {
        ring.satrap(&[&apply[..], choice, because].concat()).await
    };
    run(ring, &["--lost", "b,c"], &because).await.fails(64, "--trust");
    run(ring, &["--trust", "a"], &because).await.fails(64, "--lost");
    let wrong = run(ring, &["--trust", "b", "--lost", "a,c"], &because).await;
    wrong.fails(64, "is the configuration of `a`");
    run(ring, &["--trust", "a", "--lost", "a,b"], &because)
        .await
        .fails(64, "both trusted and lost");
    run(ring, &["--trust", "a", "--lost", "b,x"], &because).await.fails(64, "does not vote");
    run(ring, &["--trust", "a", "--lost", "c"], &because).await.fails(65, "which is a majority");
    let stranger = ring.dir().join("stranger.key").display().to_string();
    ring.satrap(&["govern", "new-key", &stranger]).await.succeeds();
    let signed = ["--reason", "test", "--operator-key", stranger.as_str()];
    let wrong = run(ring, &["--trust", "a", "--lost", "b,c"], &signed).await;
    wrong.fails(65, "not signed by enough operators: 0 of 1");
    // A member that still runs is not lost.
    ring.realm.processes[1].restart();
    let address = ring.realm.plan.regions[0].members[1].peer_listen;
    let listens = async || tokio::net::TcpStream::connect(address).await.ok();
    until("member b listens", listens).await;
    let wrong = run(ring, &["--trust", "a", "--lost", "b,c"], &because).await;
    wrong.fails(65, "a process answers");
    ring.kill([1]).await;
}

/// A member that was removed or cut off answers clients, but nothing of the ring may be learned from it.
#[tokio::test(flavor = "multi_thread")]
async fn no_member_without_a_majority_speaks_for_the_ring() {
    let mut ring = Ring::start().await;
    ring.until_votes("c").await;
    let removed = ring.online(&["member", "remove", "a"]).await.json();
    assert!(removed["next"].as_str().unwrap().starts_with("stop `a`"), "{removed}");
    let status = async |ring: &Ring| -> Value {
        let shown = ring.satrap(&["status", "--realm", ".", "--json"]).await;
        serde_json::from_str(&shown.out).unwrap()
    };
    let acts = |shown: &Value, line: &str| shown["attention"].to_string().contains(line);
    let outside = "member `eu/a` runs, but the ring does not have it";
    until("a is outside", async || acts(&status(&ring).await, outside).then_some(())).await;

    // It is the first one that verbs would ask.
    let revision = ring.put("k", "v").await;
    let saved = ring.online(&["snapshot", "save", "whole.db"]).await.json();
    assert!(i64_of(&saved, "revision") >= revision, "{saved}");
    ring.online(&["quota", "list"]).await.succeeds();

    ring.kill([2]).await;
    let leaderless = "region `eu` has no leader";
    until("no leader", async || acts(&status(&ring).await, leaderless).then_some(())).await;
    let refused = ring.online(&["snapshot", "save", "stale.db"]).await;
    refused.fails(69, "deploy/runbooks/forced-recovery.md");
}

/// The member that `satrap` asks first answers nothing more once it has left.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_runs_and_is_asked_first_is_replaced() {
    let mut ring = Ring::start().await;
    ring.until_votes("c").await;
    ring.put("before", "").await;
    let replaced = ring.online(&["member", "replace", "a"]).await.json();
    let members = replaced["members"].as_array().unwrap();
    assert!(members.iter().any(|member| member["role"] == "expected"), "{replaced}");
    ring.kill([0]).await;
    ring.wipe(0);
    ring.realm.processes[0].restart();
    ring.until_votes("a").await;
    ring.until_all_hold(&["before".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_is_replaced_by_one_verb_000_65_000_73() {
    let mut ring = Ring::start().await;
    ring.until_votes("c").await;
    ring.online(&["member", "remove", "absent"]).await.fails(65, "no member `absent`");
    ring.kill([2]).await;
    let (done, writer) = (Cell::new(false), ring.client.clone());
    let drill = async {
        ring.wipe(2);
        let before = ring.put("before", "").await;
        let added = ring.online(&["member", "add", "c", "--peer-url", "https://127.0.0.1:9"]).await;
        added.fails(65, "satrap member replace c");
        let url = &ring.realm.plan.regions[0].members[1].peer_url;
        let taken = ring.online(&["member", "add", "d", "--peer-url", url]).await;
        taken.fails(65, "is the address of member `b` already");
        // Started too early, it is refused, and says so a few times.
        ring.realm.processes[2].restart();
        ring.until_logged(2, "this member cannot join").await;
        let status = ring.online(&["status"]).await.out;
        let line = "member `eu/c`: joining the ring: ";
        assert!(status.contains(line) && status.contains("`satrap member replace`"), "{status}");
        let refused_for = Instant::now() + REFUSED_FOR;
        while Instant::now() < refused_for {
            ring.put("meanwhile", "").await;
            sleep(LOOK).await;
        }
        for process in &ring.realm.processes {
            let warnings = process.warnings();
            assert!(warnings.len() <= WARNINGS_MAX, "{}: {warnings:#?}", process.name);
        }
        ring.kill([2]).await;
        ring.wipe(2);
        let replaced = ring.online(&["member", "replace", "c"]).await.json();
        let members = replaced["members"].as_array().unwrap();
        assert!(members.iter().any(|member| member["role"] == "expected"), "{replaced}");
        ring.realm.processes[2].restart();
        ring.until_votes("c").await;
        done.set(true);
        before
    };
    let load = Ring::put_until(&writer, &done);
    let (acknowledged, _) = tokio::join!(load, drill);
    assert!(!acknowledged.is_empty());
    ring.until_all_hold(&acknowledged).await;
}
