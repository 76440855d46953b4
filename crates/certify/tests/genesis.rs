//! The contents that a genesis file may have: nothing twice, and nothing that the realm could not
//! keep.

use satrap_certify::{ClassKind, Genesis, Quota, limits::HEADS_MAX};

/// A genesis file of one of everything.
const FILE: &str = r#"{
  "chain_id": "test",
  "genesis_time": "2026-01-01T00:00:00Z",
  "policy": {
    "heartbeat_ms": 30000, "trusting_period_s": 86400, "clock_drift_ms": 10000,
    "leader_rotation_heights": 100
  },
  "governance_approvals": 1,
  "operators": [{ "principal": "alice", "public_key": "KEY" }],
  "classes": [{ "prefix": "config/", "approvals": 1, "kind": "opaque" }],
  "regions": [{ "name": "eu", "public_keys": ["KEY"] }],
  "validators": [{
    "name": "v1", "public_key": "KEY", "power": 1, "jurisdiction": "eu", "url": "https://v1:1"
  }]
}"#;

/// A usable Ed25519 key: the first test vector of RFC 8032.
const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn read(from: &str, to: &str) -> Result<Genesis, String> {
    assert!(FILE.contains(from), "{from}");
    let file = FILE.replacen(from, to, 1).replace("KEY", KEY);
    Genesis::from_json(file.as_bytes()).map_err(|e| e.to_string())
}

fn refusal(from: &str, to: &str) -> String {
    read(from, to).expect_err("the file is wrong")
}

#[test]
fn an_item_that_is_listed_twice_is_named() {
    assert!(read("", "").is_ok());
    let twice = |item: &str| refusal(item, &format!("{item}, {item}"));
    assert_eq!(
        twice(r#"{ "principal": "alice", "public_key": "KEY" }"#),
        format!("genesis field `operators.public_key`: `{KEY}` is listed twice")
    );
    assert_eq!(
        twice(r#"{ "prefix": "config/", "approvals": 1, "kind": "opaque" }"#),
        "genesis field `classes.prefix`: `config/` is listed twice"
    );
    assert_eq!(
        twice(r#"{ "name": "eu", "public_keys": ["KEY"] }"#),
        "genesis field `regions.name`: `eu` is listed twice"
    );
    assert_eq!(
        refusal(r#"["KEY"]"#, r#"["KEY", "KEY"]"#),
        format!("genesis field `regions.public_keys`: `{KEY}` is listed twice")
    );
    assert_eq!(refusal(r#"["KEY"]"#, "[]"), "genesis field `regions`: region `eu` has no key");
    let validator = FILE.split_once("\"validators\": [").expect("it is there").1;
    let validator = validator.split_once(']').expect("it ends").0;
    assert!(twice(validator).ends_with("`v1` is listed twice"), "{}", twice(validator));
}

#[test]
fn a_class_has_the_quota_of_its_kind_unless_the_file_says_another() {
    let quota = |class: &str| {
        let genesis = read(r#""kind": "opaque""#, class)?;
        Ok::<_, String>(genesis.governance.classes["config/"].quota)
    };
    assert_eq!(quota(r#""kind": "opaque""#), Ok(Quota::of(ClassKind::Opaque)));
    assert_eq!(quota(r#""kind": "x509-trust""#), Ok(Quota::of(ClassKind::X509Trust)));
    let said = r#""kind": "opaque", "bundles_max": 3, "bytes_max": 4, "publishes_per_hour": 5"#;
    assert_eq!(quota(said), Ok(Quota { bundles_max: 3, bytes_max: 4, publishes_per_hour: 5 }));
    let wrong = |what: &str| quota(&format!("\"kind\": \"opaque\", {what}")).expect_err(what);
    assert_eq!(
        wrong("\"bundles_max\": 0"),
        format!(
            "genesis field `classes.bundles_max`: class `config/` says 0, expected 1 to {HEADS_MAX}"
        )
    );
    assert!(wrong(&format!("\"bundles_max\": {}", HEADS_MAX + 1)).contains("expected 1 to"));
    assert!(quota(&format!("\"kind\": \"opaque\", \"bundles_max\": {HEADS_MAX}")).is_ok());
    assert!(wrong("\"bytes_max\": 0").contains("classes.bytes_max"));
    assert!(wrong("\"publishes_per_hour\": 0").contains("classes.publishes_per_hour"));
    assert!(wrong("\"publishes_per_hour\": 3600001").contains("expected 1 to 3600000"));
}

#[test]
fn a_genesis_file_is_written_as_it_is_read() {
    let genesis = read("", "").expect("the file is valid");
    let again = Genesis::from_json(genesis.to_json().as_bytes()).expect("written by us");
    assert_eq!(again, genesis);
    assert_eq!(again.realm().genesis_hash(), genesis.realm().genesis_hash());
}
