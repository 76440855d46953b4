//! `satrap verify` without a network: what the validators certified passes, everything else does
//! not, and the exit code tells.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::{fs, path::Path};

use satrap_certify::{BundleName, Interest, Replica};
use satrap_merkle::codec::Canonical as _;
use satrap_sim::SimRealm;

use common::{Ran, satrap};

const BUNDLE: &str = "config/routing";

/// A certificate of version 2 of the bundle, its content and the genesis, as files.
fn files(dir: &Path) -> (SimRealm, Vec<u8>) {
    let mut realm = SimRealm::new("test", 4);
    let interest = Interest::Bundles(vec![BundleName::new(BUNDLE).unwrap()]);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    for entries in [[("a.conf", "1"), ("sub/b.conf", "1")], [("a.conf", "2"), ("sub/b.conf", "1")]]
    {
        let change = realm.publish(BUNDLE, &entries);
        let update = realm.decide(&[change]).unwrap();
        relay.advance(relay.verify(&update, realm.now).unwrap());
    }
    let mut edge = Replica::genesis(&realm.genesis, interest);
    let update = relay.answer(&edge.position()).unwrap().unwrap().update;
    edge.advance(edge.verify(&update, realm.now).unwrap());
    let certificate = edge.snapshot().unwrap().to_canonical();
    fs::write(dir.join("certificate"), &certificate).unwrap();
    fs::write(dir.join("everything"), relay.snapshot().unwrap().to_canonical()).unwrap();
    fs::write(dir.join("genesis.json"), realm.genesis.to_json()).unwrap();
    fs::create_dir_all(dir.join("content/sub")).unwrap();
    fs::write(dir.join("content/a.conf"), "2").unwrap();
    fs::write(dir.join("content/sub/b.conf"), "1").unwrap();
    (realm, certificate)
}

fn verify(dir: &Path, args: &[&str]) -> Ran {
    let base = ["verify", "--genesis", "genesis.json", "--certificate", "certificate"];
    satrap(dir, &[&base[..], args].concat())
}

fn verify_content(dir: &Path, args: &[&str]) -> Ran {
    verify(dir, &[&["--bundle", BUNDLE, "--dir", "content"][..], args].concat())
}

#[test]
fn content_behind_links_is_compared_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let content = dir.path().join("content");
    let entry = fs::read_dir(&content).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_file());
    let (entry, moved) = (entry.unwrap(), dir.path().join("moved"));
    fs::rename(&entry, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &entry).unwrap();
    verify_content(dir.path(), &[]).fails(65, "or give --follow-links");
    verify_content(dir.path(), &["--follow-links"]).succeeds();
}

#[test]
fn what_was_certified_passes() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let text = verify_content(dir.path(), &[]).succeeds();
    for expected in [
        "certified by the validators of realm `test`",
        "height 2",
        "(power 3 of 4)",
        "content is exactly the certified content",
        "config/routing  2        2",
        "beyond the trusting period",
    ] {
        assert!(text.contains(expected), "{text}\nexpected {expected}");
    }
    let json = verify(dir.path(), &["--json"]).json();
    assert_eq!(json["height"], 2);
    assert_eq!(json["heads"][0]["version"], 2);
    assert_eq!(json["signers"].as_array().unwrap().len(), 3);
    assert!(json["signers"][0]["name"].as_str().unwrap().starts_with('v'));
    let relayed = ["verify", "--genesis", "genesis.json", "--certificate", "everything"];
    satrap(dir.path(), &relayed).succeeds();
}

#[test]
fn a_certificate_with_a_changed_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, certificate) = files(dir.path());
    // A prime stride reaches every kind of field; each run is a process.
    for at in (0..certificate.len()).step_by(37) {
        let mut tampered = certificate.clone();
        tampered[at] ^= 1;
        fs::write(dir.path().join("certificate"), &tampered).unwrap();
        let ran = verify_content(dir.path(), &[]);
        assert_eq!(ran.code, 65, "byte {at}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains("refused by rule "), "byte {at}: {}", ran.err);
    }
    for bytes in [&certificate[..certificate.len() - 1], &[&certificate[..], &[0]].concat(), &[]] {
        fs::write(dir.path().join("certificate"), bytes).unwrap();
        verify(dir.path(), &[]).fails(65, "refused by rule E1: certificate is not a certificate");
    }
    // Another kind of file altogether.
    fs::write(dir.path().join("certificate"), "[etcd]\nlisten = \"127.0.0.1:2379\"\n").unwrap();
    let ran = verify(dir.path(), &[]).fails(65, "`satrap get BUNDLE --certificate FILE` saves one");
    assert!(!ran.err.contains("hostile") && !ran.err.contains("items"), "{}", ran.err);
}

#[test]
fn another_realm_with_the_same_name_is_another_realm() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let genesis = SimRealm::new("test", 5).genesis.to_json();
    fs::write(dir.path().join("genesis.json"), genesis).unwrap();
    let ran =
        verify(dir.path(), &[]).fails(65, "refused by rule C1: certificate certificate is of");
    assert!(ran.err.ends_with("; give both of one realm\n"), "{}", ran.err);
}

#[test]
fn content_is_compared_entry_by_entry() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let content = dir.path().join("content");
    fs::write(content.join("trust.pem"), "all of it").unwrap();
    verify_content(dir.path(), &[])
        .fails(65, "1 not certified: trust.pem; give --ignore KEY for a file that is no entry");
    verify_content(dir.path(), &["--ignore", "trust.pem"]).succeeds();
    fs::remove_file(content.join("trust.pem")).unwrap();
    fs::write(content.join("a.conf"), "1").unwrap();
    verify_content(dir.path(), &[]).fails(65, "refused by rule B4: content has root");
    verify_content(dir.path(), &[]).fails(65, "1 altered: a.conf");
    fs::write(content.join("a.conf"), "2").unwrap();
    fs::remove_file(content.join("sub/b.conf")).unwrap();
    verify_content(dir.path(), &[]).fails(65, "1 missing: sub/b.conf");
}

#[test]
fn a_certificate_says_nothing_about_a_bundle_it_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let other = verify(dir.path(), &["--bundle", "config/other"]);
    // Either it proves absence (the directory is small enough), or it is refused as withheld.
    assert_eq!(other.code, 65, "{}{}", other.out, other.err);
    assert!(other.err.contains("`config/other`"), "{}", other.err);
    verify(dir.path(), &["--bundle", BUNDLE, "--dir", "absent"]).fails(64, "content absent: ");
}
