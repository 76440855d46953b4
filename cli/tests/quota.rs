//! Quotas, as an operator sets them and a writer meets them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod realm;

use common::{Ran, satrap};
use satrap_proto::etcdserverpb::{PutRequest, kv_client::KvClient};
use serde_json::json;

use self::realm::ring::Ring;

fn quota(ring: &Ring, args: &[&str]) -> Ran {
    let realm = ring.dir().display().to_string();
    satrap(ring.dir(), &[&["quota"], args, &["--realm", &realm]].concat())
}

/// Puts through one member; the error is what the writer reads.
async fn put(ring: &Ring, member: usize, key: &str) -> Result<(), String> {
    let channel = ring.client.connect(&ring.client.endpoints[member]).await.unwrap();
    let key = key.as_bytes().to_vec().into();
    let put = PutRequest { key, ..PutRequest::default() };
    KvClient::new(channel).put(put).await.map(drop).map_err(|s| s.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_set_seen_met_and_removed() {
    let ring = Ring::start().await;
    ring.put("team/a", "v").await;
    let set = quota(&ring, &["set", "team/", "--keys", "1", "--bytes", "64KiB", "--json"]).json();
    let team = json!({
        "prefix": "team/", "bytes": 7, "bytes_max": 65536, "keys": 1, "keys_max": 1
    });
    assert_eq!(set["quotas"], json!([team]));
    for member in 0..3 {
        let refused = put(&ring, member, "team/b").await.unwrap_err();
        assert!(
            refused.contains("quota of prefix \"team/\" exceeded: 2 of at most 1"),
            "{refused}"
        );
    }
    quota(&ring, &["set", "--total", "--bytes", "1GiB"]).succeeds();
    let listed = quota(&ring, &["list", "--json"]).json();
    assert_eq!(listed["quotas"][0]["prefix"], json!(null));
    assert_eq!(listed["quotas"][0]["bytes_max"], json!(1 << 30));
    assert_eq!(listed["quotas"][1], team);
    let text = quota(&ring, &["list"]).succeeds();
    assert!(text.contains("1 GiB") && text.contains("team/") && text.contains("64 KiB"), "{text}");

    let left = quota(&ring, &["remove", "team/", "--json"]).json();
    assert_eq!(left["quotas"].as_array().unwrap().len(), 1, "{left}");
    put(&ring, 0, "team/b").await.unwrap();
    let refused = quota(&ring, &["remove", "team/"]).fails(65, "");
    let expected =
        "satrap: this prefix has no quota of its own; list the quotas to see which have\n";
    assert_eq!(refused.err, expected);
    let left = quota(&ring, &["remove", "--total", "--json"]).json();
    assert_eq!(left["quotas"][0]["bytes_max"], json!(2_u64 << 30));
}

#[test]
fn a_quota_names_keys_and_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["set", "--bytes", "1"][..], "<PREFIX|--total>"),
        (&["set", "a", "--total", "--bytes", "1"], "cannot be used with"),
        (&["set", "a"], "<--bytes <SIZE>|--keys <NUMBER>>"),
        (&["set", "--total", "--keys", "1"], "cannot be used with"),
        (&["set", "", "--keys", "1"], "a value is required"),
        (&["set", "a", "--bytes", "5MB"], "such as 64MiB"),
        (&["set", "a", "--keys", "0"], "0 is not in 1.."),
        (&["remove"], "<PREFIX|--total>"),
    ] {
        satrap(dir.path(), &[&["quota"], args].concat()).fails(64, expected);
    }
}
