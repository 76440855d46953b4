//! Mistakes of operators who publish, and the answers they get from a real realm.

mod common;
mod live_realm;
mod realm;

use std::{
    fs::{self, Permissions},
    os::unix::{ffi::OsStringExt as _, fs::PermissionsExt as _},
    sync::Arc,
};

use common::satrap;
use ed25519_dalek::SigningKey;
use live_realm::Live;
use realm::{BUNDLE, plan};
use satrap_certify::{Action, BundleName, Change, Key, Publish, SignedChange};
use satrap_identity::signer::SoftSigner;
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_operator::changes::Changes;
use serde_json::json;

#[test]
fn content_that_edges_cannot_use_or_is_a_mistake_is_refused() {
    let live = Live::start_with(|plan| plan.edges[0].combined_file = Some("all.txt".into()));
    // A key that forges a line, published by another program than this one.
    let (mut tree, forged) = (BundleTree::default(), "a\n  b  999");
    tree.insert(&Key::new(forged.as_bytes()).unwrap(), Arc::from(&b"1"[..]));
    let change = live.realm.publish(0, &BundleTree::default(), &tree);
    let client = live.realm.client(live.realm.validator_urls());
    live.runtime.block_on(client.submit(&change)).unwrap();
    let got = live.run(&["get", BUNDLE]).succeeds();
    assert!(got.ends_with("  KEY          BYTES\n  a\\n  b  999  1\n"), "{got}");
    assert_eq!(live.run(&["--json", "get", BUNDLE]).json()["entries"][0]["key"], json!(forged));

    for n in 0..8 {
        live.write(&format!("content/{n}"), "1");
    }
    live.run(&["publish", BUNDLE, "content"]).succeeds();

    // CONTENT-3 and CONTENT-4: links, names that are no text, names that forge lines, the combined file.
    let content = live.dir().join("content");
    let odd = |name: &[u8]| content.join(std::ffi::OsString::from_vec(name.to_vec()));
    std::os::unix::fs::symlink("/etc/hostname", odd(b"link")).unwrap();
    live.run(&["publish", BUNDLE, "content"]).fails(65, "content/link is a link to /etc/hostname");
    fs::remove_file(odd(b"link")).unwrap();
    for (name, expected) in [
        (&b"caf\xe9"[..], "is not UTF-8"),
        (b"x\n  0  999", "a line break"),
        (b"all.txt", "edge `eu/eu-edge-1` cannot run this: key `all.txt` and"),
    ] {
        fs::write(odd(name), "1").unwrap();
        let ran = live.run(&["publish", BUNDLE, "content"]).fails(65, expected);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        fs::remove_file(odd(name)).unwrap();
    }

    // Deletions: one is routine, most of a bundle is not, and the guard names them.
    for n in 0..6 {
        fs::remove_file(content.join(n.to_string())).unwrap();
    }
    live.run(&["publish", BUNDLE, "content"])
        .fails(65, "would lose 6 of its 8 entries: 0, 1, 2, 3, 4, …; look at all of it");
    live.run(&["publish", BUNDLE, "content", "--allow-delete", "5"])
        .fails(65, "give --allow-delete 6");
    fs::create_dir(live.dir().join("empty")).unwrap();
    live.run(&["publish", BUNDLE, "empty"]).fails(65, "would lose 8 of its 8 entries");
    live.run(&["publish", "config/new", "empty"]).fails(65, "empty holds no file");

    // A dry run says all of it and does nothing.
    live.write("content/6", "2");
    live.write(
        "content/tls.key",
        "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n",
    );
    let dry = live.run(&["publish", BUNDLE, "content", "--dry-run"]).succeeds();
    for line in [
        "version 2 to 3: 1 added, 1 changed, 6 removed",
        "\n  + tls.key\n  ~ 6\n  - 0\n",
        "approvals       0 of 1",
        "warning         key `tls.key` holds a private key (EC PRIVATE KEY)",
        "warning         it removes 6 of 8 entries",
        "give --allow-delete 6",
        "dry run: nothing was signed or submitted",
    ] {
        assert!(dry.contains(line), "{line}\n{dry}");
    }
    let dry = live.run(&["--json", "publish", BUNDLE, "content", "--dry-run"]).json();
    assert_eq!(dry["change"]["difference"]["changed"], json!(["6"]), "{dry}");
    assert_eq!(live.run(&["--json", "get", BUNDLE]).json()["version"], 2);

    let done = live.run(&["publish", BUNDLE, "content", "--allow-delete", "6"]);
    assert!(done.err.contains("warning: key `tls.key` holds a private key"), "{}", done.err);
    done.succeeds();
    let link = ["publish", BUNDLE, "content", "--follow-links", "--json"];
    std::os::unix::fs::symlink("6", odd(b"link")).unwrap();
    assert_eq!(live.run(&link).json()["difference"]["added"], json!(["link"]));

    // A region that nothing names.
    let key = hex::encode(SigningKey::from_bytes(&[5; 32]).verifying_key().to_bytes());
    let both = ["--operator", &live.key(0), "--operator", &live.key(1)];
    let authorize = |region: &str, more: &[&str]| {
        let verb = ["govern", "authorize-region-key", region, &key];
        live.run(&[&verb[..], &both, more].concat())
    };
    authorize("ue", &[])
        .fails(65, "there is no region `ue`: known are eu; check the name, or give");
    authorize("eu", &[]).succeeds();
    authorize("us", &["--new-region"]).succeeds();
}

#[test]
fn approvals_are_shown_by_name_and_those_that_count_nothing_are_dropped() {
    let live = Live::start();
    let (alice, bob) = (live.key(0), live.key(1));
    fs::copy(live.realm.files.dir.join("ca/validator.crt"), live.dir().join("ca.pem")).unwrap();
    let out = ["publish", "pki/edge-trust", "ca.pem", "--out", "change"];
    satrap(live.dir(), &["govern", "new-key", "mallory.key"]).succeeds();
    live.run(&[&out[..], &["--operator", "mallory.key"]].concat())
        .fails(65, "refused by rule V3: no operator of this realm holds key ");
    live.run(&out).succeeds();
    // The file may hold approvals, so nothing writes over it.
    live.run(&out).fails(64, "change exists, and may hold a change that others have approved");
    live.run(&["approve", "change", "--operator", "mallory.key"])
        .fails(65, "refused by rule V3: no operator of this realm holds key ");

    let path = live.dir().join("change");
    let honest = Changes::read(&path).unwrap();
    let mut spoiled = honest.clone();
    let stranger = SoftSigner::new(SigningKey::from_bytes(&[9; 32])).shared();
    live.runtime.block_on(spoiled.approve(&[stranger])).unwrap();
    spoiled.replace(&path).unwrap();
    let shown = live.run(&["approve", "change"]).succeeds();
    assert!(shown.contains("approvals       1 of 2: alice\n"), "{shown}");
    assert!(shown.contains(": no operator of this realm holds it"), "{shown}");
    live.run(&["submit", "change"]).fails(65, "no operator of this realm holds key");

    // A signature that was damaged on its way.
    honest.replace(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let shown = live.run(&["approve", "change"]).succeeds();
    assert!(shown.contains("approvals       0 of 2\n"), "{shown}");
    assert!(shown.contains(": its signature does not verify"), "{shown}");
    let signed = live.run(&["approve", "change", "--operator", &bob]);
    assert!(signed.err.contains("warning: the approval of key"), "{}", signed.err);
    assert!(signed.out.contains("approvals       1 of 2: bob\n"), "{}", signed.out);
    let signed = live.run(&["--json", "approve", "change", "--operator", &alice]).json();
    assert_eq!(signed["change"]["approved_by"], json!(["alice", "bob"]));
    assert_eq!(signed["change"]["difference"]["added"].as_array().unwrap().len(), 1);
    let decided = live.run(&["--json", "submit", "change"]).json();
    assert_eq!((&decided["before"], &decided["version"]), (&json!(false), &json!(1)));
    let again = live.run(&["--json", "submit", "change"]).json();
    assert_eq!((&again["before"], &again["height"]), (&json!(true), &decided["height"]));

    // Without a server in reach, the bytes are shown, and that this is all.
    let genesis = live.realm.files.genesis.display().to_string();
    let offline =
        satrap(live.dir(), &["approve", "change", "--genesis", &genesis, "--realm", "none"]);
    assert!(offline.err.contains("no server could be read"), "{}", offline.err);
    assert!(offline.out.contains("as a new bundle: 1 entry put, 0 removed"), "{}", offline.out);
}

fn publish_of(change: &mut Change) -> &mut Publish {
    let Action::Publish(publish) = &mut change.action else { panic!("it publishes") };
    publish
}

#[test]
fn approve_signs_no_change_that_is_not_what_it_says() {
    let live = Live::start();
    let bob = live.key(1);
    live.write("content/a", "1");
    live.write("content/b", "2");
    live.run(&["publish", BUNDLE, "content", "--out", "change"]).succeeds();
    let path = live.dir().join("change");
    let honest = Changes::read(&path).unwrap().first().change.clone();
    let approve = ["approve", "change", "--operator", &bob];
    let refused = |bytes: &[u8], more: &[&str], expected: &str| {
        fs::write(&path, bytes).unwrap();
        live.run(&[&approve[..], more].concat()).fails(65, expected);
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was signed: {expected}");
    };
    let forged = |alter: &dyn Fn(&mut Change)| {
        let mut change = honest.clone();
        alter(&mut change);
        SignedChange::unsigned(change).to_canonical()
    };

    refused(b"words", &[], "change is not a change file");
    let other_realm = forged(&|change| change.genesis_hash = [9; 32]);
    refused(&other_realm, &[], "refused by rule V1: the change is for the realm with genesis 0909");
    let root = forged(&|change| publish_of(change).root = [9; 32]);
    refused(
        &root,
        &[],
        "refused by rule V7: the content after part 1 of the change does not have the root that it \
         names",
    );
    refused(
        &root,
        &["--matches", "content"],
        "refused by rule V7: the change results in root 0909",
    );

    // The root is the one that was reviewed, and the entries are not.
    let evil = || Arc::from(&b"evil"[..]);
    let key = |name: &str| Key::new(name.as_bytes()).unwrap();
    for (forged, named) in [
        (forged(&|change| publish_of(change).puts[0].1 = evil()), "a"),
        (forged(&|change| publish_of(change).puts.push((key("z"), evil()))), "z"),
        (
            forged(&|change| {
                let (key, _) = publish_of(change).puts.remove(1);
                publish_of(change).deletes.push(key);
            }),
            "b",
        ),
    ] {
        let expected = format!(
            "refused by rule V7: part 1 of the change gives the key {named} another value than \
             content"
        );
        refused(&forged, &["--matches", "content"], &expected);
        refused(&forged, &[], "refused by rule V7: the content after part 1");
    }

    // Of two parts the first is whole, and would be decided alone.
    let bundle = BundleName::new(BUNDLE).unwrap();
    let (empty, mut one) = (BundleTree::default(), BundleTree::default());
    one.insert(&key("a"), evil());
    let mut two = one.clone();
    two.insert(&key("b"), evil());
    let first = Publish::between(bundle.clone(), 0, &empty, &one);
    let mut second = Publish::between(bundle, 1, &one, &two);
    second.root = [9; 32];
    let parts = [first, second].map(|publish| {
        let (genesis_hash, action) = (honest.genesis_hash, Action::Publish(publish));
        SignedChange::unsigned(Change { genesis_hash, action }).to_canonical()
    });
    refused(&parts.concat(), &[], "the content after part 2 of the change does not have the root");

    // As it was, it is signed.
    fs::write(&path, forged(&|_| ())).unwrap();
    let follow = [&approve[..], &["--follow-links"]].concat();
    live.run(&follow).fails(64, "--matches <PATH>");
    let signed = live.run(&[&approve[..], &["--matches", "content"]].concat()).succeeds();
    assert!(signed.contains("approvals       1 of 1: bob"), "{signed}");
}

#[test]
fn a_publish_beyond_a_block_becomes_several_versions() {
    let live = Live::start();
    let (bob, value) = (live.key(1), "x".repeat(200_000));
    for n in 0..8 {
        live.write(&format!("content/{n}"), &format!("{n}{value}"));
    }
    let publish = ["publish", BUNDLE, "content"];
    live.run(&[&publish[..], &["--one-version"]].concat()).fails(65, "it becomes 3 versions");
    let done = live.run(&publish);
    assert!(done.err.contains("it becomes 3 versions"), "{}", done.err);
    assert!(done.err.contains("part 3 of 3 is decided"), "{}", done.err);
    let got = live.run(&["--json", "get", BUNDLE, "--out", "copy"]).json();
    assert_eq!((&got["version"], got["entries"].as_array().unwrap().len()), (&json!(3), 8));
    // The edge ends where the operator meant it to.
    live.await_edge(|status| status.active.iter().any(|active| active.version == 3));

    // Approved as one file, and taken up where an attempt ended.
    for n in 0..8 {
        live.write(&format!("content/{n}"), &format!("{n}{n}{value}"));
    }
    live.run(&[&publish[..], &["--out", "change"]].concat()).succeeds();
    let shown = live.run(&["approve", "change", "--operator", &bob]).succeeds();
    assert!(
        shown.contains("version 3 to 6: 0 added, 8 changed, 0 removed, as 3 versions"),
        "{shown}"
    );
    assert!(shown.contains("alice, bob"), "{shown}");
    let path = live.dir().join("change");
    let first = Changes::read(&path).unwrap().first().clone();
    let client = live.realm.client(live.realm.validator_urls());
    live.runtime.block_on(client.submit(&first)).unwrap();
    let rest = live.run(&["submit", "change"]);
    assert!(!rest.err.contains("part 1 of 3") && rest.err.contains("part 2 of 3"), "{}", rest.err);
    rest.succeeds();
    let got = live.run(&["--json", "get", BUNDLE]).json();
    assert_eq!(got["version"], 6);
    let again = live.run(&["--json", "submit", "change"]).json();
    assert_eq!((&again["before"], &again["version"]), (&json!(true), &json!(6)));
}

#[test]
fn without_a_quorum_an_operator_learns_what_became_of_the_change() {
    let mut live = Live::start();
    live.write("content/a", "1");
    let publish = ["publish", BUNDLE, "content"];
    live.run(&publish).succeeds();
    live.write("content/a", "2");
    live.run(&[&publish[..], &["--out", "change"]].concat()).succeeds();
    let validators = |name: &str, wanted: &[&str]| wanted.contains(&name);
    let runtime = &live.runtime;
    for process in live.realm.processes.iter_mut().filter(|p| validators(&p.name, &["v2", "v3"])) {
        runtime.block_on(process.kill());
    }

    // Two of four hold the change and cannot decide it. That is said, while and after.
    let ran = live
        .run(&["submit", "change", "--timeout", "7"])
        .fails(75, "submitted, but no decision was seen within 7 s");
    assert!(ran.err.contains("no decision after 5 s; handed to validator v0"), "{}", ran.err);
    assert!(ran.err.contains("validator v0: no answer yet"), "{}", ran.err);
    let ran = live.run(&["--json", "submit", "change", "--timeout", "1"]);
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((ran.code, &error["error"]["kind"]), (75, &json!("undecided")));

    // The validators decide it by themselves once they can, and the same command shows it.
    for process in live.realm.processes.iter_mut().filter(|p| validators(&p.name, &["v2", "v3"])) {
        let _guard = runtime.enter();
        process.restart();
    }
    let again = live.run(&["submit", "change", "--timeout", "60"]).succeeds();
    assert!(again.contains("decided   "), "{again}");
    let same = live.run(&publish).succeeds();
    assert!(same.contains("has this content already: version 2"), "{same}");

    // With no server at all, nothing was submitted.
    for process in &mut live.realm.processes {
        if process.name != "eu-edge-1" {
            runtime.block_on(process.kill());
        }
    }
    let ran =
        live.run(&["submit", "change", "--timeout", "5"]).fails(69, "not submitted: no server");
    assert!(ran.err.contains("validator v0: cannot connect to https://"), "{}", ran.err);
    live.write("content/a", "3");
    live.run(&[&publish[..], &["--timeout", "5"]].concat())
        .fails(69, "not submitted: no server could answer");
}

#[test]
fn wrong_credentials_are_distinguished_from_unreachable_servers() {
    let live = Live::start();
    let files = &live.realm.files;
    let edge = files.edges[0].dir.display().to_string();
    let (cert, key) = (format!("{edge}/tls.crt"), format!("{edge}/tls.key"));
    live.run(&["get", BUNDLE, "--cert", &cert, "--key", &key])
        .fails(64, "the certificate names spiffe://test-realm/region/eu/edge/eu-edge-1; servers");
    live.run(&["get", BUNDLE, "--endpoint", "foo"])
        .fails(64, "--endpoint: \"foo\" is not an address; expected https://HOST:PORT");

    // A key that is not there, is not private, or is no key.
    live.write("content/a", "1");
    live.write("open.key", &"00".repeat(32));
    fs::set_permissions(live.dir().join("open.key"), Permissions::from_mode(0o644)).unwrap();
    live.write("words.key", "no key");
    fs::set_permissions(live.dir().join("words.key"), Permissions::from_mode(0o600)).unwrap();
    for (key, expected) in [
        ("absent.key", "operator key absent.key: No such file"),
        ("open.key", "has mode 0644, expected 0600: run `chmod 600 open.key`"),
        ("words.key", "operator key words.key: it holds no signing key; expected 64 hex digits"),
    ] {
        let ran = live.run(&["publish", BUNDLE, "content", "--operator", key]).fails(64, expected);
        assert!(ran.err.contains("; --operator names the file of your key"), "{}", ran.err);
    }

    // Another realm, of the same name and of another one.
    let twin = tempfile::tempdir().unwrap();
    let at = |name: &str| twin.path().join(name);
    let mut other = plan(1, &["eu"], 0);
    let made = satrap_realm::create(&other, &at("twin")).unwrap();
    made.description(&other).store(&made.dir).unwrap();
    let endpoint = &live.realm.validator_urls()[0];
    let twin_dir = made.dir.display().to_string();
    satrap(live.dir(), &["get", BUNDLE, "--realm", &twin_dir, "--endpoint", endpoint])
        .fails(69, "no server at these addresses is trusted: they are of another realm");
    other.chain_id = "other-realm".parse().unwrap();
    let made = satrap_realm::create(&other, &at("other")).unwrap();
    let genesis = made.genesis.display().to_string();
    live.run(&["get", BUNDLE, "--genesis", &genesis])
        .fails(64, "the certificate is of realm `test-realm`, the genesis of realm `other-realm`");
}
