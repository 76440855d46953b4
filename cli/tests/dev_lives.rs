//! A `dev` realm over its life: one owner, children that end with it, what an operator published
//! kept, a full disk survived.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod dev_realm;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use common::satrap;
use dev_realm::{Dev, WAIT, as_operators, kill};
use satrap_certify::limits::CHANGE_BYTES_MAX;
use satrap_identity::{
    mtls::{CredentialFiles, Credentials},
    pki::{Authority, Scope},
};
use satrap_runtime::clock;

/// The README states this bound.
const DISK_BYTES_MAX: u64 = 150 * 1000 * 1000;
/// The bundle of every edge.
const BUNDLE: &str = "pki/edge-trust";
const YEAR_S: i64 = 365 * 24 * 3600;

/// All process ids in `realm.json`.
fn pids(realm: &Path) -> Vec<u32> {
    let described: serde_json::Value =
        serde_json::from_slice(&fs::read(realm.join("realm.json")).unwrap()).unwrap();
    let mut pids = Vec::new();
    let mut rest = vec![&described];
    while let Some(value) = rest.pop() {
        match value {
            serde_json::Value::Array(items) => rest.extend(items),
            serde_json::Value::Object(fields) => {
                pids.extend(fields.get("pid").and_then(serde_json::Value::as_u64));
                rest.extend(fields.values());
            }
            _ => {}
        }
    }
    pids.into_iter().map(|pid| u32::try_from(pid).unwrap()).collect()
}

fn runs(pid: u32) -> bool {
    // A zombie has ended, although its parent has not waited for it.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = clock::monotonic() + WAIT;
    while !holds() {
        assert!(clock::monotonic() < deadline, "{what} did not happen in {WAIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let size = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() { disk_bytes(&path) } else { 512 * meta.blocks() }
    };
    entries.map(size).sum()
}

/// Certificates of `count` new CAs.
fn cas(count: u32) -> Vec<String> {
    let ca = |n: u32| {
        let scope = Scope::Operators { chain: format!("test-{n}") };
        let ttl = Duration::from_secs(24 * 3600);
        Authority::create(scope, clock::now(), ttl).unwrap().certificate_pem().to_owned()
    };
    (0..count).map(ca).collect()
}

/// CAs in one file, as an operating system ships them.
fn trust_bundle(dir: &Path, name: &str, cas: &[String]) -> String {
    let path = dir.join(name);
    fs::write(&path, cas.concat()).unwrap();
    path.display().to_string()
}

#[test]
fn a_realm_has_one_owner_and_ends_with_it_whatever_it_died_of() {
    let dir = tempfile::tempdir().unwrap();
    let realm = dir.path().join("realm");
    let cas = cas(4);
    let bundle = trust_bundle(dir.path(), "3.pem", &cas[..3]);
    let mut dev = Dev::start(dir.path(), &["--trust-bundle", &bundle]);
    dev.says("The realm is up");
    let running = pids(&realm);
    assert_eq!(running.len(), 16);
    let disk = disk_bytes(&realm);
    println!("a new realm takes {disk} bytes");
    assert!(disk < DISK_BYTES_MAX, "{disk} bytes");

    // A second one is refused, and changes nothing.
    let (described, status) = (realm.join("realm.json"), "edges/eu/eu-edge-1/data/status.json");
    let before = fs::read(&described).unwrap();
    let owner = format!("realm is in use by process {}", dev.child.id());
    satrap(dir.path(), &["dev", "--once", "--state-dir", "realm"]).fails(69, &owner);
    assert_eq!(fs::read(&described).unwrap(), before);
    assert!(realm.join(status).exists());

    // `realm.json` cannot be written, as on a full disk: the realm goes on.
    fs::remove_file(&described).unwrap();
    fs::create_dir(&described).unwrap();
    kill("-KILL", running[0]);
    dev.says("realm.json: ");
    assert!(running[1..].iter().all(|pid| runs(*pid)) && runs(dev.child.id()));
    fs::remove_dir(&described).unwrap();
    until("realm.json", || described.is_file());
    let running = pids(&realm);
    assert!(running.iter().all(|pid| runs(*pid)));

    // Nothing stays behind, and the version that operators published is kept. The next `dev` starts
    // while children of this one still run, as one does for sure that is stopped meanwhile.
    trust_bundle(dir.path(), "4.pem", &cas);
    as_operators(dir.path(), &["publish", BUNDLE, "4.pem"]).succeeds();
    kill("-STOP", running[0]);
    dev.signal("-KILL");
    // A killed process holds its lock until it has ended.
    dev.child.wait().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);
    dev.says("waiting up to 20 s for processes of an earlier run to stop: ");
    kill("-CONT", running[0]);
    dev.says("pki/edge-trust version 2 is published already");
    dev.says("The realm is up");
    assert!(!running.iter().any(|pid| runs(*pid)));
    let running = pids(&realm);
    dev.signal("-HUP");
    until("the end of all children", || !running.iter().any(|pid| runs(*pid)));
    until("the end of `dev`", || dev.child.try_wait().unwrap().is_some());
}

#[test]
fn a_bundle_that_was_published_refused_or_retired_does_not_keep_a_realm_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let once = |more: &[&str]| {
        satrap(dir.path(), &[&["dev", "--once", "--state-dir", "realm"], more].concat())
    };
    let first = trust_bundle(dir.path(), "first.pem", &cas(2));
    once(&["--trust-bundle", &first]).succeeds();
    // It shares no CA with the one that is published (V10).
    let other = trust_bundle(dir.path(), "other.pem", &cas(2));
    once(&["--trust-bundle", &other]).fails(65, "refused by rule V10: ");
    let said = once(&[]).succeeds();
    assert!(said.contains("pki/edge-trust version 1 is published already"), "{said}");

    let mut dev = Dev::start(dir.path(), &[]);
    dev.says("The realm is up");
    as_operators(dir.path(), &["retire", BUNDLE]).succeeds();
    dev.signal("-TERM");
    dev.child.wait().unwrap();
    let said = once(&[]).succeeds();
    let expected = "pki/edge-trust was retired; --trust-bundle publishes it again";
    assert!(said.contains(expected), "{said}");

    // One block has no room for it, so it becomes versions 3 and 4.
    let large = trust_bundle(dir.path(), "large.pem", &cas(1_400));
    assert!(fs::metadata(&large).unwrap().len() > CHANGE_BYTES_MAX as u64);
    let said = once(&["--trust-bundle", &large]).succeeds();
    assert!(said.contains("edge eu-edge-1 activated version 4 after "), "{said}");
}

#[test]
fn a_realm_is_made_for_years_and_says_whose_port_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let realm = dir.path().join("realm");
    let bundle = trust_bundle(dir.path(), "1.pem", &cas(1));
    let mut dev = Dev::start(dir.path(), &["--trust-bundle", &bundle]);
    until("the realm", || realm.join("realm.toml").exists());
    dev.signal("-TERM");
    dev.child.wait().unwrap();

    let now_s = i64::try_from(clock::now() / 1_000_000_000).unwrap();
    for process in ["validators/ada", "regions/eu/a", "edges/us/us-edge-3", "operators/alice"] {
        let at = |name: &str| realm.join(process).join(name);
        let (certificate, key, trust) = (at("tls.crt"), at("tls.key"), at("trust.pem"));
        let loaded = Credentials::load(CredentialFiles { certificate, key, trust }).unwrap();
        let years = (loaded.current().not_after_s - now_s) / YEAR_S;
        assert!(years >= 9, "the certificate of {process} ends after {years} years");
    }
    let plan = fs::read_to_string(realm.join("realm.toml")).unwrap();
    let plan = satrap_realm::RealmPlan::from_toml(&plan).unwrap();
    // Nothing is decided while a realm does not run, so its last block gets as old as its pause.
    assert!(plan.policy.trusting_period >= Duration::from_secs(9 * 365 * 24 * 3600));

    let listen = plan.regions[1].members[2].peer_listen;
    let _taken = std::net::TcpListener::bind(listen).unwrap();
    let said = format!("cannot listen on {listen}, `peer_listen` of member us-c: ");
    satrap(dir.path(), &["dev", "--once", "--state-dir", "realm"]).fails(69, &said);
}
