//! The operators' verbs against a real realm: what is decided is read back verified, by whichever
//! server, and saved certificates verify without one.

mod common;
mod live_realm;
mod realm;

use std::{fs, time::Duration};

use common::satrap;
use live_realm::Live;
use realm::BUNDLE;

const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn a_bundle_is_published_read_verified_and_compared() {
    let mut live = Live::start();
    live.write("content/routes/a.json", "1");
    live.write("content/b.json", "1");
    live.run(&["get", BUNDLE])
        .fails(65, "the realm has no bundle `config/test`, proven at height 0");
    let first = live.run(&["--json", "publish", BUNDLE, "content"]).json();
    assert_eq!((&first["from_version"], &first["version"]), (&0.into(), &1.into()));
    assert_eq!(first["difference"]["added"].as_array().unwrap().len(), 2);

    // Unchanged content is no new version, and a stale expectation is no surprise.
    let same = live.run(&["publish", BUNDLE, "content"]).succeeds();
    assert!(same.contains("has this content already: version 1"), "{same}");
    live.write("content/b.json", "2");
    live.run(&["publish", BUNDLE, "content", "--expect-version", "0"])
        .fails(65, "refused by rule V4: `config/test` is at version 1");
    let text = live.run(&["publish", BUNDLE, "content", "--expect-version", "1"]).succeeds();
    assert!(text.contains("version 1 → 2") && text.contains("0 added, 1 changed"), "{text}");

    let got = live.run(&["--json", "get", BUNDLE, "--certificate", "cert", "--out", "copy"]).json();
    assert_eq!((&got["version"], &got["stale"]), (&2.into(), &false.into()));
    assert_eq!(fs::read(live.dir().join("copy/routes/a.json")).unwrap(), b"1");
    assert_eq!(live.run(&["get", BUNDLE, "b.json"]).succeeds(), "2");
    live.run(&["get", BUNDLE, "c.json"]).fails(65, "has no key `c.json`");

    // A member serves the same once it has adopted it; the edge runs it, and it verifies offline.
    live.runtime.block_on(live.realm.converge(2, WITHIN));
    let member = live.realm.member_urls().remove(0);
    live.runtime.block_on(live.realm.until_served(&member, 2, WITHIN));
    let served = live.run(&["--json", "get", BUNDLE, "--endpoint", &member]).json();
    assert_eq!((&served["root"], &served["from"]), (&got["root"], &member.as_str().into()));
    let genesis = live.realm.files.genesis.display().to_string();
    let link = BUNDLE.replace('/', "+");
    let active = live.realm.files.edges[0].active_dir().join(link).display().to_string();
    let verify = ["verify", "--genesis", &genesis, "--certificate", "cert", "--bundle", BUNDLE];
    satrap(live.dir(), &[&verify[..], &["--dir", &active]].concat()).succeeds();
    satrap(live.dir(), &[&verify[..], &["--dir", "content"]].concat()).succeeds();

    live.runtime.block_on(async {
        let reported = async {
            while !live.realm.is_reported(0, 2).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WITHIN, reported).await.unwrap();
    });
    let status = live.run(&["--json", "status"]).json();
    assert_eq!(status["height"], 2);
    assert!(status["signed_last"].as_array().unwrap().len() >= 3, "{status}");
    assert_eq!(status["regions"][0]["members"].as_array().unwrap().len(), 3);
    assert_eq!(status["edges"][0]["error"], serde_json::Value::Null, "{status}");
    assert_eq!(status["edges"][0]["running"][0]["version"], 2, "{status}");
    let screen = live.run(&["status"]).succeeds();
    assert!(screen.contains("config/test  2") && screen.contains("v2: 1"), "{screen}");

    let blocks = live.run(&["--json", "blocks", "--out", "blocks"]).json();
    assert_eq!((&blocks["from"], &blocks["to"]), (&1.into(), &2.into()));
    let bytes = fs::read(live.dir().join("blocks")).unwrap();
    let first = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    let second = u32::from_be_bytes(bytes[4 + first..8 + first].try_into().unwrap()) as usize;
    assert_eq!(bytes.len(), 8 + first + second);
    live.run(&["blocks", "--from", "3", "--out", "none"]).fails(69, "no block from height 3 on");
}

#[test]
fn a_bundle_is_retired_and_its_name_used_again() {
    const NAME: &str = "config/motd";
    let live = Live::start();
    live.write("content/a", "1");
    live.write("content/b", "22");
    live.run(&["retire", NAME]).fails(65, "refused by rule V28: `config/motd` does not exist");
    live.run(&["publish", NAME, "content"]).succeeds();
    live.write("content/b", "33");
    live.run(&["publish", NAME, "content"]).succeeds();
    live.run(&["retire", NAME, "--expect-version", "1"])
        .fails(65, "refused by rule V4: `config/motd` is at version 2");

    // Saved for others, it says what would go and changes nothing.
    let saved = live.run(&["retire", NAME, "--out", "change"]).succeeds();
    assert!(saved.contains("version 2 would be retired: 2 entries, 5 bytes removed"), "{saved}");
    assert!(saved.contains("  - a\n  - b\n"), "{saved}");
    let shown = live.run(&["approve", "change"]).succeeds();
    assert!(shown.contains("retire `config/motd` version 2, with all its entries"), "{shown}");
    live.run(&["approve", "change", "--matches", "content"]).fails(64, "no content to compare");
    assert_eq!(live.run(&["get", NAME, "a"]).succeeds(), "1");
    live.run(&["submit", "change"]).succeeds();
    live.run(&["get", NAME]).fails(65, "the realm has no bundle `config/motd`");
    let again = live.run(&["submit", "change"]).succeeds();
    assert!(again.contains("decided   before"), "{again}");

    // The name is free, and its versions go on; the retirement was one of them.
    let again = live.run(&["--json", "publish", NAME, "content"]).json();
    assert_eq!((&again["from_version"], &again["version"]), (&0.into(), &4.into()));
    let retired = live.run(&["--json", "retire", NAME, "--expect-version", "4"]).json();
    assert_eq!((&retired["version"], &retired["removed"][0]), (&4.into(), &"a".into()));
    assert!(retired["decided"]["height"].as_u64().is_some(), "{retired}");
}

#[test]
fn two_must_approve_where_the_realm_says_so() {
    let live = Live::start();
    let (alice, bob) = (live.key(0), live.key(1));
    // A real CA certificate: this realm's own.
    fs::copy(live.realm.files.dir.join("ca/validator.crt"), live.dir().join("ca.pem")).unwrap();
    live.run(&["publish", "pki/edge-trust", "ca.pem"])
        .fails(65, "refused by rule V3: 1 distinct principals approved, 2 must");
    let saved = live.run(&["publish", "pki/edge-trust", "ca.pem", "--out", "change"]).succeeds();
    assert!(saved.contains("next: `satrap approve change --operator KEY` by others"), "{saved}");
    live.write("other/x.pem", "not what was reviewed");
    live.run(&["approve", "change", "--operator", &bob, "--matches", "other"])
        .fails(65, "do not sign it");
    let shown = live.run(&["approve", "change"]).succeeds();
    assert!(
        shown.contains("publish `pki/edge-trust` as a new bundle: 1 added, 0 changed, 0 removed"),
        "{shown}"
    );
    assert!(shown.contains("approvals       1 of 2: alice"), "{shown}");
    live.run(&["submit", "change"]).fails(65, "refused by rule V3");
    let signed = live.run(&["approve", "change", "--operator", &bob, "--matches", "ca.pem"]);
    assert!(signed.succeeds().contains("next: `satrap submit change`"));
    let done = live.run(&["--json", "submit", "change"]).json();
    assert_eq!(done["version"], 1);
    // The same change again is found to be decided.
    let again = live.run(&["submit", "change"]).succeeds();
    assert!(again.contains("decided   before, by height 1"), "{again}");

    let new = satrap(live.dir(), &["--json", "govern", "new-key", "carol.key"]).json();
    let key = new["public_key"].as_str().unwrap();
    let authorize = ["govern", "authorize-operator", "carol", key];
    live.run(&authorize).fails(65, "refused by rule V3");
    let both = ["--operator", &alice, "--operator", &bob];
    live.run(&[&authorize[..], &both].concat()).succeeds();
    let shown = live.run(&["--json", "govern", "show"]).json();
    assert_eq!(shown["version"], 1);
    assert!(shown["operators"].to_string().contains(key), "{shown}");
    live.run(&["publish", "pki/edge-trust", "ca.pem"]).succeeds();

    // The present validators, unchanged, are a list that `set-validators` reads back.
    let list = live.run(&["govern", "show", "--validators"]).succeeds();
    live.write("validators.toml", &list.replace("\"zz\"", "\"de\""));
    live.run(&[&["govern", "set-validators", "validators.toml"][..], &both].concat()).succeeds();
    let shown = live.run(&["--json", "govern", "show"]).json();
    assert_eq!(shown["validators"][0]["jurisdiction"], "de");
}

#[test]
fn an_edge_says_that_a_bundle_does_not_exist_and_runs_it_once_it_does() {
    const ABSENT: &str = "config/absent";
    let mut live = Live::start();
    live.write("content/a", "1");
    live.run(&["publish", BUNDLE, "content"]).succeeds();
    live.runtime.block_on(live.realm.converge(1, WITHIN));

    // Its operator adds a bundle that is not there, and starts it again.
    let config = live.realm.files.edges[0].config.clone();
    let text = fs::read_to_string(&config).unwrap();
    let listed = format!("\"{BUNDLE}\"");
    assert!(text.contains(&listed), "{text}");
    fs::write(&config, text.replace(&listed, &format!("{listed}, \"{ABSENT}\""))).unwrap();
    let runtime = &live.runtime;
    let edge = live.realm.processes.iter_mut().find(|p| p.name == "eu-edge-1").unwrap();
    runtime.block_on(edge.kill());
    fs::remove_file(live.realm.files.edges[0].dir.join("data/status.json")).unwrap();
    let guard = runtime.enter();
    edge.restart();
    drop(guard);
    live.await_edge(|status| status.absent == [ABSENT]);
    let log = live.log("eu-edge-1");
    assert!(log.contains("the realm has no bundle of this name; nothing runs for it"), "{log}");
    for alarm in ["withheld", "\"rule\""] {
        assert!(!log.contains(alarm), "{alarm}: {log}");
    }
    assert_eq!(live.realm.edge_status(0).unwrap().refusals_total, 0);

    live.run(&["publish", ABSENT, "content"]).succeeds();
    live.await_edge(|s| s.absent.is_empty() && s.active.iter().any(|a| a.bundle == ABSENT));
    live.run(&["retire", ABSENT]).succeeds();
    live.await_edge(|status| status.absent == [ABSENT]);
    let log = live.log("eu-edge-1");
    assert!(log.contains("retired; its last version keeps running"), "{log}");
}
