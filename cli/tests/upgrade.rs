//! A realm that an older build wrote is resumed by this one with everything in it: four validators, a ring
//! of three members that speaks etcd's API, and an edge.
//!
//! `upgrade/realm-857e599.tar.gz` is the state directory of `satrap dev` of commit 857e599, whose
//! processes were killed while they ran: data directories, configurations, genesis and keys. `upgrade/README.md`
//! says how it was made. Certificates are not in it, because they expire: this test issues new ones for
//! the same names. The realm trusts blocks for a hundred years, so the test does not depend on its date.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod dev_realm;

use std::{
    fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, thread, time::Duration,
};

use common::satrap;
use dev_realm::{Dev, WAIT, as_operators};
use satrap_edge_agent::{links::OnDisk, status::Status};
use satrap_operator::client::etcd::EtcdClient;
use satrap_proto::{
    etcdserverpb::{
        AlarmRequest, AuthRoleGetRequest, AuthUserGetRequest, HashKvRequest,
        LeaseTimeToLiveRequest, PutRequest, RangeRequest, auth_client::AuthClient,
        kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    },
    v1::{GrantRoleRequest, RoleStatusRequest, store_client::StoreClient},
};
use satrap_realm::{RealmFiles, RealmPlan, create, description::Description};
use satrap_runtime::clock;

const BUNDLE: &str = "pki/edge-trust";

/// The state of the old realm, as the old build's etcdctl and `satrap status` showed it.
const REVISION: i64 = 39;
const HASH: u32 = 1_964_607_077;
const COMPACTED: i64 = 26;
const KEYS: usize = 33;
const LEASE: i64 = 9_154_481_546_828_542_809;
const TOKEN: u32 = 1;
const HEIGHT: u64 = 3;
const ROOT: &str = "f578113cd3970daaf6ace832e51f1b07138342a3fc8043c5d46b034b3a65af0c";

/// Makes a realm of the old one's plan, and puts everything of the old one but certificates in place of
/// its own.
fn unpack(dir: &Path) -> (RealmPlan, RealmFiles) {
    let (old, realm) = (dir.join("old"), dir.join("realm"));
    fs::create_dir(&old).unwrap();
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/upgrade/realm-857e599.tar.gz");
    let unpacked = Command::new("tar").args(["-xzf", archive, "-C"]).arg(&old).status().unwrap();
    assert!(unpacked.success());
    let plan = RealmPlan::from_toml(&fs::read_to_string(old.join("realm.toml")).unwrap()).unwrap();
    let files = create(&plan, &realm).unwrap();
    replace(&old, &realm);
    (plan, files)
}

fn replace(old: &Path, new: &Path) {
    for entry in fs::read_dir(old).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), new.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o700)).unwrap();
            replace(&from, &to);
        } else {
            fs::rename(&from, &to).unwrap();
        }
    }
}

fn edge(files: &RealmFiles) -> Option<Status> {
    let status = fs::read(files.edges[0].dir.join("data/status.json")).ok()?;
    serde_json::from_slice(&status).ok()
}

/// Waits until the workload of the edge reads this version.
#[track_caller]
fn runs(files: &RealmFiles, version: u64) -> Status {
    let deadline = clock::monotonic() + WAIT;
    loop {
        let status = edge(files);
        let active = status.as_ref().and_then(|status| status.active.first());
        if active.is_some_and(|a| a.version == version && a.on_disk == OnDisk::Current) {
            return status.unwrap();
        }
        assert!(clock::monotonic() < deadline, "version {version} does not run: {status:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Every member has what the old ring held; then the ring takes writes.
async fn holds_its_keys(client: &EtcdClient) {
    for url in &client.endpoints {
        let channel = client.connect(url).await.unwrap();
        let everything =
            RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let read = KvClient::new(channel.clone()).range(everything).await.unwrap().into_inner();
        assert_eq!((read.header.unwrap().revision, read.kvs.len()), (REVISION, KEYS), "{url}");
        let first = read.kvs.iter().find(|kv| &kv.key[..] == b"plain/1").unwrap();
        assert_eq!((&first.value[..], first.version), (&b"second value"[..], 2));
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let hash = maintenance.hash_kv(HashKvRequest { revision: REVISION }).await.unwrap();
        let hash = hash.into_inner();
        assert_eq!((hash.hash, hash.compact_revision), (HASH, COMPACTED), "{url}");

        let lease = LeaseTimeToLiveRequest { id: LEASE, keys: true };
        let lease = LeaseClient::new(channel.clone()).lease_time_to_live(lease).await.unwrap();
        let lease = lease.into_inner();
        assert_eq!((lease.granted_ttl, &lease.keys[0][..]), (2_000_000_000, &b"leased/a"[..]));
        assert!(lease.ttl > 1_000_000_000, "{}", lease.ttl);
        let mut auth = AuthClient::new(channel.clone());
        let carol = auth.user_get(AuthUserGetRequest { name: "carol".into() }).await.unwrap();
        assert_eq!(carol.into_inner().roles, ["reader"]);
        let reader = auth.role_get(AuthRoleGetRequest { role: "reader".into() }).await.unwrap();
        assert_eq!(&reader.into_inner().perm[0].key[..], b"plain/");
        let asked = RoleStatusRequest { role: "writer".into(), mode: 0 };
        let writer = StoreClient::new(channel).role_status(asked).await.unwrap().into_inner();
        assert_eq!(writer.token.unwrap().counter, TOKEN, "{url}");
    }
    // NOSPACE was raised when the old processes were killed; the member that it names has space.
    let channel = client.any().await.unwrap();
    let mut kv = KvClient::new(channel.clone());
    let put = PutRequest { key: "after".into(), ..PutRequest::default() };
    let ends = async {
        let mut maintenance = MaintenanceClient::new(channel.clone());
        loop {
            let raised = maintenance.alarm(AlarmRequest::default()).await;
            if raised.is_ok_and(|raised| raised.into_inner().alarms.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT, ends).await.unwrap();
    let written = kv.put(put).await.unwrap().into_inner();
    assert_eq!(written.header.unwrap().revision, REVISION + 1);
    let take = GrantRoleRequest { role: "other".into(), holder: "test".into(), ttl_s: 60 };
    let token = StoreClient::new(channel).grant_role(take).await.unwrap().into_inner().token;
    assert!(token.unwrap().counter > 0);
}

#[test]
fn a_realm_of_an_older_build_goes_on_with_all_that_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, files) = unpack(dir.path());
    let before = edge(&files).unwrap();
    assert_eq!(
        (before.height, before.active[0].version, &*before.active[0].root),
        (HEIGHT, 2, ROOT)
    );

    let mut dev = Dev::start(dir.path(), &[]);
    dev.says("pki/edge-trust version 2 is published already");
    dev.says("The realm is up");
    let after = runs(&files, 2);
    assert_eq!(after.active[0].root, ROOT);
    assert!(after.height >= HEIGHT, "the edge forgot height {HEIGHT}: {}", after.height);
    let status = satrap(dir.path(), &["status", "--json", "--realm", "realm"]);
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    assert!(status["height"].as_u64().unwrap() >= HEIGHT, "{status}");
    let quotas = satrap(dir.path(), &["quota", "list", "--json", "--realm", "realm"]).json();
    let team = serde_json::json!({
        "prefix": "team/", "bytes": 7, "bytes_max": 65536, "keys": 1, "keys_max": 10
    });
    assert!(quotas["quotas"].as_array().unwrap().contains(&team), "{quotas}");

    let described = Description::load(&files.dir).unwrap();
    let region = &described.regions[0];
    let urls = plan.regions[0].members.iter().filter_map(|member| member.etcd.as_ref());
    let urls = urls.map(|etcd| etcd.url.clone()).collect();
    let client = EtcdClient::open(region.etcd.as_ref().unwrap(), urls).unwrap();
    let runtime = satrap_runtime::runtime::multi_thread("test", 2).unwrap();
    runtime.block_on(holds_its_keys(&client));

    // And the realm goes on: the next version reaches the edge.
    let got = satrap(dir.path(), &["get", BUNDLE, "--out", "copy", "--realm", "realm"]);
    got.succeeds();
    let one = fs::read_dir(dir.path().join("copy")).unwrap().next().unwrap().unwrap();
    fs::remove_file(one.path()).unwrap();
    as_operators(dir.path(), &["publish", BUNDLE, "copy"]).succeeds();
    assert!(runs(&files, 3).height > HEIGHT);
    dev.signal("-TERM");
    assert!(dev.child.wait().unwrap().code().is_some());
}
