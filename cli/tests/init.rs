//! `satrap init` makes everything its daemons need, privately, once, or nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use common::satrap;
use satrap_identity::{
    mtls::{CredentialFiles, Credentials},
    pki::Role,
};
use satrap_realm::{DiskPlan, RealmFiles, RealmPlan, text::EXAMPLE};
use satrap_runtime::clock;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn init(dir: &Path) -> (RealmPlan, RealmFiles) {
    fs::write(dir.join("realm.toml"), satrap(dir, &["init", "--example"]).succeeds()).unwrap();
    satrap(dir, &["init", "realm.toml", "--out", "realm"]).succeeds();
    let plan = RealmPlan::from_toml(EXAMPLE).unwrap();
    let files = RealmFiles::of(&plan, &dir.join("realm"));
    (plan, files)
}

#[test]
fn every_daemon_loads_what_was_made_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, files) = init(dir.path());
    for (v, at) in plan.validators.iter().zip(&files.validators) {
        let config = satrap_global_node::Config::load(&at.config).unwrap();
        assert_eq!((&config.name, config.listen), (&v.name, v.listen));
        assert_eq!(config.mesh_listen, v.mesh_listen);
        assert!(config.data_dir.is_dir());
        assert!(config.genesis.governance.validators.iter().any(|info| info.url == v.mesh_url));
        let seed = hex::decode(fs::read_to_string(config.signing_key).unwrap().trim()).unwrap();
        let key = ed25519_dalek::SigningKey::from_bytes(&seed.try_into().unwrap());
        let public = satrap_certify::PublicKey::of(&key);
        assert_eq!(config.genesis.governance.validator(&public).unwrap().name, v.name);
    }
    let members = plan.regions.iter().flat_map(|r| r.members.iter().map(move |m| (r, m)));
    for ((region, m), at) in members.zip(&files.members) {
        let config = satrap_region_server::Config::load(&at.config).unwrap();
        assert_eq!((&config.region, &config.name), (&region.name, &m.name));
        assert_eq!((config.client_listen, config.peer_listen), (m.client_listen, m.peer_listen));
        assert_eq!(config.validators.len(), plan.validators.len());
        assert_eq!(config.members.len(), region.members.len());
        // The example's eu edge may fall back to us, and not the other way round.
        let guests: Vec<_> = config.other_regions.iter().map(|r| r.as_str()).collect();
        assert_eq!(guests, if region.name.as_str() == "us" { vec!["eu"] } else { vec![] });
    }
    for (e, at) in plan.edges.iter().zip(&files.edges) {
        let config = satrap_edge_agent::Config::load(&at.config).unwrap();
        assert_eq!((&config.region, &config.name), (&e.region, &e.name));
        assert_eq!(config.activate.dir, at.active_dir());
        assert_eq!(config.activate.combined_file, e.combined_file);
        let servers = 3 * (1 + e.fallback_regions.len());
        assert_eq!((config.servers.len(), &config.bundles), (servers, &e.bundles));
    }
}

/// Every path and command in the next steps works as it is written.
#[test]
fn the_next_steps_can_be_taken_as_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("realm.toml"), EXAMPLE).unwrap();
    let said = satrap(dir.path(), &["init", "realm.toml", "--out", "realm"]).succeeds();
    let (from, machine) = (dir.path().join("realm"), dir.path().join("machine"));
    let commands: Vec<_> = said.lines().filter_map(|l| l.trim().strip_prefix("satrap ")).collect();
    assert_eq!(commands.len(), 3, "{said}");
    fs::create_dir(&machine).unwrap();
    fs::copy(from.join("genesis.json"), machine.join("genesis.json")).unwrap();
    for command in commands {
        let (verb, config) = command.split_once(" run --config ").unwrap();
        let process = Path::new(config).parent().unwrap();
        assert!(said.contains(process.to_str().unwrap()) && from.join(process).is_dir(), "{said}");
        fs::create_dir_all(machine.join(process)).unwrap();
        for file in fs::read_dir(from.join(process)).unwrap().map(Result::unwrap) {
            if file.path().is_file() {
                fs::copy(file.path(), machine.join(process).join(file.file_name())).unwrap();
            }
        }
        let loaded = match verb {
            "validator" => satrap_global_node::Config::load(&machine.join(config)).map(drop),
            "region" => satrap_region_server::Config::load(&machine.join(config)).map(drop),
            _ => satrap_edge_agent::Config::load(&machine.join(config)).map(drop),
        };
        loaded.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

#[test]
fn a_process_of_each_kind_proves_its_name_and_trusts_no_more_cas_than_it_must() {
    let dir = tempfile::tempdir().unwrap();
    let (_, files) = init(dir.path());
    let load = |dir: &Path| {
        let [certificate, key, trust] = ["tls.crt", "tls.key", "trust.pem"].map(|n| dir.join(n));
        Credentials::load(CredentialFiles { certificate, key, trust }).unwrap().current()
    };
    let validator = load(&files.validators[0].dir);
    assert_eq!(*validator.id.role(), Role::Validator { name: "v1".into() });
    let member = load(&files.members[0].dir);
    assert_eq!(*member.id.role(), Role::Member { region: "eu".into(), name: "a".into() });
    let operator = load(files.operators[0].cert.parent().unwrap());
    assert_eq!(*operator.id.role(), Role::Operator { name: "alice".into() });
    let (with_fallback, without) = (load(&files.edges[0].dir), load(&files.edges[1].dir));
    assert_eq!(*without.id.role(), Role::Edge { region: "us".into(), name: "web-1".into() });
    let now = clock::now();
    let us_member = load(&files.members[3].dir);
    for (trust, leaf, believed) in [
        (&validator.trust, &operator.leaf_der, true),
        (&validator.trust, &member.leaf_der, true),
        (&with_fallback.trust, &us_member.leaf_der, true),
        (&without.trust, &us_member.leaf_der, true),
        (&without.trust, &member.leaf_der, false),
        (&with_fallback.trust, &operator.leaf_der, false),
        (&with_fallback.trust, &validator.leaf_der, false),
    ] {
        assert_eq!(trust.verify(leaf, now).is_ok(), believed);
    }
}

#[test]
fn secrets_are_private_and_nothing_is_left_over() {
    let dir = tempfile::tempdir().unwrap();
    let (_, files) = init(dir.path());
    let mut secrets = 0;
    let mut pending = vec![files.dir.clone()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(!name.ends_with(".tmp"), "{name}");
        if name.ends_with(".key") {
            secrets += 1;
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            assert_eq!(mode(path.parent().unwrap()), 0o700, "{}", path.display());
        }
    }
    // CAs: validators, two regions, operators. Leaves: 4 + 6 + 2 + 2. Signing: 4 + 2. For etcd
    // clients in one region: its CA, 3 members, 2 operators.
    assert_eq!(secrets, 4 + 14 + 6 + 6);
    assert_eq!(mode(&files.dir), 0o700);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn an_existing_realm_is_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (_, files) = init(dir.path());
    let genesis = fs::read(&files.genesis).unwrap();
    let again = satrap(dir.path(), &["init", "realm.toml", "--out", "realm"]);
    again.fails(64, "is not empty; a realm is never overwritten");
    assert_eq!(fs::read(&files.genesis).unwrap(), genesis);
    fs::create_dir(dir.path().join("empty")).unwrap();
    satrap(dir.path(), &["init", "realm.toml", "--out", "empty"]).succeeds();
    fs::write(dir.path().join("file"), "").unwrap();
    satrap(dir.path(), &["init", "realm.toml", "--out", "file"]).fails(64, "is not empty");
}

#[test]
fn a_wrong_description_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = EXAMPLE.replace("governance_approvals = 2", "governance_approvals = 3");
    fs::write(dir.path().join("realm.toml"), wrong).unwrap();
    satrap(dir.path(), &["init", "realm.toml", "--out", "realm"])
        .fails(64, "expected 1 to 2 (the number of operators), found 3");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// A class or a governance that no number of operators, or none at all, could satisfy.
#[test]
fn a_number_of_approvals_is_between_one_and_the_number_of_operators() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = EXAMPLE.replace("governance_approvals = 2", "governance_approvals = 0");
    fs::write(dir.path().join("realm.toml"), wrong).unwrap();
    satrap(dir.path(), &["init", "realm.toml", "--out", "realm"])
        .fails(64, "expected 1 to 2 (the number of operators), found 0");
}

/// The bounds that `init` checks are those of the member that reads the result.
#[test]
fn members_accept_every_size_on_disk_that_init_accepts() {
    for (log_segment_mib, reserve_mib) in [(1, 1), (1, 4096), (1024, 1024), (1024, 4096)] {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = RealmPlan::from_toml(EXAMPLE).unwrap();
        plan.disk = Some(DiskPlan { log_segment_mib, reserve_mib });
        let files = satrap_realm::create(&plan, &dir.path().join("realm")).unwrap();
        satrap_region_server::Config::load(&files.members[0].config).unwrap();
    }
}

#[test]
fn the_description_tells_scripts_where_everything_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_, files) = init(dir.path());
    let json = fs::read(files.dir.join("realm.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["chain_id"], "acme-prod");
    assert_eq!(json["validators"][1]["url"], "https://v2.example.net:7400");
    assert_eq!(json["regions"][0]["members"][2]["peer_url"], "https://c.eu.example.net:7501");
    for path in ["/genesis", "/client/ca", "/client/cert", "/client/key", "/edges/0/active_dir"] {
        let path = json.pointer(path).and_then(|p| p.as_str()).unwrap();
        assert!(Path::new(path).is_absolute() && Path::new(path).exists(), "{path}");
    }
}
