//! A daemon that cannot start says why in one line, and its exit code says whose fault it is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod realm;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use common::satrap;
use realm::{addresses, plan};
use satrap_realm::{RealmFiles, RealmPlan, create, layout::ProcessFiles};
use satrap_runtime::lock::DirectoryLock;

/// A realm on disk of which nothing runs.
struct Files {
    plan: RealmPlan,
    files: RealmFiles,
    _dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let mut plan = plan(1, &["eu"], 1);
        for member in &mut plan.regions[0].members {
            let listen = addresses(1)[0];
            let url = format!("https://{listen}");
            member.etcd = Some(satrap_realm::EtcdPlan { listen, url });
        }
        let dir = tempfile::tempdir().unwrap();
        let files = create(&plan, &dir.path().join("realm")).unwrap();
        Self { plan, files, _dir: dir }
    }

    fn member(&self) -> &ProcessFiles {
        &self.files.members[0]
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Starts the daemon and expects it to refuse: with `code`, and one line that has all of `said`.
#[track_caller]
fn refuses(verb: &str, process: &ProcessFiles, code: i32, said: &[&str]) {
    let config = process.config.display().to_string();
    let ran = satrap(&process.dir, &[verb, "run", "--log-format", "json", "--config", &config]);
    // Lines of the log are objects.
    let lines: Vec<_> = ran.err.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(ran.code, code, "{}", ran.err);
    assert_eq!(lines.len(), 1, "{}", ran.err);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    assert!(lines[0].starts_with(&format!("satrap: {config}: ")), "{}", ran.err);
    for text in said {
        assert!(lines[0].contains(text), "`{text}` is not in {}", ran.err);
    }
}

/// A member with a wrong setting opens no log and takes part in no election.
#[track_caller]
fn assert_no_ring(member: &ProcessFiles) {
    let found: Vec<_> = fs::read_dir(member.dir.join("data")).unwrap().collect();
    assert!(found.is_empty(), "{found:?}");
}

fn occupy(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

#[test]
fn a_listener_of_etcd_that_cannot_be_made_is_explained() {
    let realm = Files::new();
    let (member, dir) = (realm.member(), realm.member().dir.clone());
    let etcd = realm.plan.regions[0].members[0].etcd.as_ref().unwrap().listen;
    let taken = occupy(etcd);
    let address = etcd.to_string();
    refuses("region", member, 69, &["`etcd.listen`", &address, "in use", "; stop the process"]);
    drop(taken);

    let good = |name: &str| fs::read(dir.join(name)).unwrap();
    let (cert, key, ca) = (good("etcd.crt"), good("etcd.key"), good("etcd-ca.crt"));
    fs::remove_file(dir.join("etcd.crt")).unwrap();
    refuses(
        "region",
        member,
        64,
        &["`etcd.tls.cert`", "etcd.crt", "No such file", "; name a file"],
    );
    fs::write(dir.join("etcd.crt"), cert).unwrap();
    // A valid key of another validator.
    fs::write(dir.join("etcd.key"), fs::read(realm.files.members[1].dir.join("etcd.key")).unwrap())
        .unwrap();
    refuses("region", member, 64, &["`etcd.tls.key`", "etcd.key", "not the certificate's key"]);
    fs::write(dir.join("etcd.key"), key).unwrap();
    for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(dir.join("etcd-ca.crt"), bad).unwrap();
        refuses("region", member, 64, &["`etcd.tls.client_ca`", "etcd-ca.crt", "; name a file"]);
    }
    fs::write(dir.join("etcd-ca.crt"), ca).unwrap();
    assert_no_ring(member);
}

#[test]
fn every_address_that_is_taken_is_named_with_its_setting() {
    let realm = Files::new();
    let member = &realm.plan.regions[0].members[0];
    let validator = &realm.plan.validators[0];
    for (verb, process, key, address) in [
        ("region", realm.member(), "`client_listen`", member.client_listen),
        ("region", realm.member(), "`peer_listen`", member.peer_listen),
        ("validator", &realm.files.validators[0], "`listen`", validator.listen),
        ("validator", &realm.files.validators[0], "`mesh_listen`", validator.mesh_listen),
    ] {
        let _taken = occupy(address);
        let address = address.to_string();
        refuses(verb, process, 69, &[key, &address, "in use", "; stop the process that listens"]);
    }
    let (listen, member) = (member.client_listen.to_string(), realm.member());
    // TEST-NET-1 is no host's.
    edit(&member.config, &format!("\"{listen}\""), "\"192.0.2.1:7000\"");
    refuses(
        "region",
        member,
        64,
        &["`client_listen`", "192.0.2.1:7000", "an address of this host"],
    );
    assert_no_ring(member);
}

#[test]
fn credentials_that_cannot_be_used_are_named_with_their_setting() {
    let realm = Files::new();
    let processes = [
        ("validator", &realm.files.validators[0]),
        ("region", realm.member()),
        ("edge", &realm.files.edges[0]),
    ];
    let stranger: PathBuf = realm.files.members[1].dir.clone();
    for (verb, process) in processes {
        let at = |name: &str| process.dir.join(name);
        let mode = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(at("tls.key"), mode(0o644)).unwrap();
        refuses(verb, process, 64, &["`tls.key`", "mode 0644", "chmod 600"]);
        fs::set_permissions(at("tls.key"), mode(0o600)).unwrap();
        let trust = fs::read(at("trust.pem")).unwrap();
        fs::write(at("trust.pem"), "words").unwrap();
        refuses(verb, process, 64, &["`tls.trust`", "trust.pem"]);
        fs::write(at("trust.pem"), trust).unwrap();
        let certificate = fs::read(at("tls.crt")).unwrap();
        // One for etcd clients names no process.
        fs::copy(realm.member().dir.join("etcd.crt"), at("tls.crt")).unwrap();
        refuses(verb, process, 64, &["`tls.cert`", "tls.crt", "install the file that was issued"]);
        fs::write(at("tls.crt"), certificate).unwrap();
        // The certificate and key of another member, which are a pair.
        for name in ["tls.crt", "tls.key", "trust.pem"] {
            fs::copy(stranger.join(name), at(name)).unwrap();
        }
        refuses(
            verb,
            process,
            64,
            &["`tls.cert`", "member/b", "install the certificate of spiffe:"],
        );
        fs::remove_file(at("tls.crt")).unwrap();
        refuses(verb, process, 64, &["`tls.cert`", "tls.crt", "No such file"]);
    }
}

#[test]
fn a_signing_key_that_is_none_is_named() {
    let realm = Files::new();
    let validator = &realm.files.validators[0];
    fs::write(validator.dir.join("signing.key"), "words").unwrap();
    refuses("validator", validator, 64, &["`signing_key`", "signing.key", "64 hex digits"]);
    fs::remove_file(validator.dir.join("signing.key")).unwrap();
    refuses("validator", validator, 64, &["`signing_key`", "signing.key", "No such file"]);
}

#[test]
fn a_second_process_is_refused_the_data_directory_and_shown_its_owner() {
    let realm = Files::new();
    let pid = format!("process {}", std::process::id());
    for (verb, process) in [
        ("validator", &realm.files.validators[0]),
        ("region", realm.member()),
        ("edge", &realm.files.edges[0]),
    ] {
        let data = process.dir.join("data");
        fs::create_dir_all(&data).unwrap();
        let lock = DirectoryLock::take(&data).unwrap();
        let named = data.display().to_string();
        refuses(verb, process, 69, &["`data_dir`", &named, &pid, "stop that process"]);
        drop(lock);
        fs::remove_dir_all(&data).unwrap();
        fs::write(&data, "a file").unwrap();
        refuses(verb, process, 64, &["`data_dir`", &named, "choose a directory"]);
    }
}

#[test]
fn a_mistake_in_a_configuration_takes_one_line() {
    let realm = Files::new();
    let member = realm.member();
    edit(&member.config, "region = \"eu\"", "regoin = \"eu\"");
    refuses("region", member, 64, &["line 3, column 1, in `regoin = ", "unknown field `regoin`"]);
    edit(&member.config, "regoin = \"eu\"", "region = \"eu\"");

    let listen = format!("client_listen = \"{}\"", realm.plan.regions[0].members[0].client_listen);
    edit(&member.config, &listen, "client_listen = \"here\"");
    refuses("region", member, 64, &["in `client_listen = \"here\"`: ", "correct that line"]);
    edit(&member.config, "client_listen = \"here\"", &listen);

    fs::write(&realm.files.genesis, "words").unwrap();
    refuses("region", member, 64, &["`genesis`: ", "install the file that belongs to this realm"]);
    fs::remove_file(&realm.files.genesis).unwrap();
    refuses("region", member, 64, &["`genesis`: ", "check the path"]);
}
