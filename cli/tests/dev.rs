//! The newcomer's first command, and the same with a region that lies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use satrap_identity::pki::{Authority, Scope};
use satrap_runtime::clock;

/// Three CAs in one file, as an operating system ships them.
fn trust_bundle(dir: &Path) -> PathBuf {
    let ca = |n: u32| {
        let scope = Scope::Operators { chain: format!("other-{n}") };
        let ttl = Duration::from_secs(24 * 3600);
        Authority::create(scope, clock::now(), ttl).unwrap().certificate_pem().to_owned()
    };
    let path = dir.join("bundle.pem");
    if !path.exists() {
        fs::write(&path, (0..3).map(ca).collect::<String>()).unwrap();
    }
    path
}

fn dev(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_satrap"))
        .args(["dev", "--once", "--state-dir"])
        .arg(dir.join("realm"))
        .arg("--trust-bundle")
        .arg(trust_bundle(dir))
        .args(more)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}\n{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[test]
fn dev_brings_a_realm_up_publishes_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let first = dev(dir.path(), &[]);
    assert!(first.status.success(), "{}", text(&first));
    assert!(text(&first).contains("6 of 6 edges activated it"), "{}", text(&first));

    let realm = fs::read(dir.path().join("realm").join("realm.json")).unwrap();
    let realm: serde_json::Value = serde_json::from_slice(&realm).unwrap();
    let count = |path: &str| realm.pointer(path).and_then(|v| v.as_array()).map(Vec::len);
    assert_eq!(count("/validators"), Some(4));
    assert_eq!(count("/regions"), Some(2));
    assert_eq!(count("/regions/0/members"), Some(3));
    assert_eq!(count("/edges"), Some(6));
    for key in ["/chain_id", "/genesis", "/client/ca", "/client/cert", "/client/key"] {
        assert!(realm.pointer(key).is_some_and(serde_json::Value::is_string), "{key}");
    }
    for edge in realm["edges"].as_array().unwrap() {
        assert!(edge["pid"].is_u64() && edge["name"].is_string());
        let active = Path::new(edge["active_dir"].as_str().unwrap()).join("pki+edge-trust");
        // Three certificates, and all of them in one file.
        assert_eq!(fs::read_dir(&active).unwrap().count(), 4);
        let all = fs::read_to_string(active.join("trust.pem")).unwrap();
        assert_eq!(all.matches("BEGIN CERTIFICATE").count(), 3);
    }

    let second = dev(dir.path(), &[]);
    assert!(second.status.success(), "{}", text(&second));
    assert!(text(&second).contains("version 1 is published already"), "{}", text(&second));
}

#[test]
fn every_lie_of_an_evil_region_is_sent_and_refused_by_its_rule() {
    let dir = tempfile::tempdir().unwrap();
    let output = dev(dir.path(), &["--evil-region"]);
    assert!(output.status.success(), "{}", text(&output));
    for (lie, rules) in [
        ("tamper-value", ["B4", "B4"]),
        ("old-version", ["C2", "C2"]),
        ("withhold-key", ["B4", "B4"]),
        ("mix-versions", ["B4", "B4"]),
        ("forge-head", ["D1", "D1"]),
        ("foreign-certificate", ["C4", "C7"]),
        ("garbage", ["WIRE-1", "WIRE-1"]),
        ("oversized", ["WIRE-2", "WIRE-2"]),
    ] {
        let shown = text(&output);
        let told = shown.lines().filter(|line| line.trim_start().starts_with(lie));
        let refused = |line: &str| rules.iter().any(|r| line.contains(&format!("refused by {r}")));
        assert!(told.clone().count() > 0, "{lie} was not told:\n{shown}");
        assert!(told.clone().all(refused), "{lie}:\n{shown}");
    }
    // An honest realm is not what is kept there.
    let honest = dev(dir.path(), &[]);
    assert!(!honest.status.success());
    assert!(text(&honest).contains("give another --state-dir"), "{}", text(&honest));
}
