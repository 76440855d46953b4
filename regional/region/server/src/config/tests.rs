//! Tests of the configuration: the values of a valid file, and the error for each mistake.

use satrap_ring_api::{limits::RequestLimits, listener::TlsVersion};

use super::*;
use crate::tests::realm::Realm;

const GOOD: &str = r#"
        region = "eu"
        name = "m1"
        data_dir = "data"
        genesis = "genesis.json"
        client_listen = "127.0.0.1:7001"
        peer_listen = "127.0.0.1:7002"
        other_regions = ["us"]
        [tls]
        cert = "m1.pem"
        key = "m1.key"
        trust = "trust.pem"
        [[members]]
        name = "m1"
        client_url = "https://127.0.0.1:7001"
        peer_url = "https://127.0.0.1:7002"
        [[members]]
        name = "m2"
        client_url = "https://127.0.0.1:7003"
        peer_url = "https://127.0.0.1:7004"
        [[validators]]
        name = "v1"
        url = "https://127.0.0.1:7005"
        [peer_url_overrides]
        m2 = "https://127.0.0.1:7999"
        [snapshots]
        interval_s = 3600
        dir = "backup"
        keep = 24
        [etcd]
        listen = "127.0.0.1:2379"
        urls = ["https://127.0.0.1:2379"]
        metrics_listen = "0.0.0.0:2381"
        request_bytes_max = 4194304
        txn_ops_max = 512
        watch_progress_interval_s = 60
        [etcd.tls]
        cert = "etcd.crt"
        key = "etcd.key"
        client_ca = "etcd-ca.crt"
        min_tls_version = "1.3"
        [disk]
        log_segment_mib = 4
        reserve_mib = 8
        [raft]
        heartbeat_ms = 50
        log_entries_max = 100
    "#;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("region.toml");
    std::fs::write(&path, text).unwrap();
    let genesis = Realm::new().genesis.to_json();
    std::fs::write(dir.path().join("genesis.json"), genesis).unwrap();
    Config::load(&path)
}

#[test]
fn a_good_file_gives_every_field() {
    let config = load(GOOD).unwrap();
    assert_eq!(config.name.as_str(), "m1");
    assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
    assert!(config.credentials.key.ends_with("m1.key"));
    let m2 = Label::new("m2").unwrap();
    assert_eq!(config.peer_urls[&m2], "https://127.0.0.1:7004");
    assert_eq!(config.peer_url_overrides[&m2], "https://127.0.0.1:7999");
    assert_eq!(config.members[1].url, "https://127.0.0.1:7003");
    assert_eq!(config.timing.heartbeat, Duration::from_millis(50));
    assert_eq!(config.timing.election_max, Timing::default().election_max);
    let Compaction { max, keep } = config.ring_setup().compaction;
    assert_eq!((max.entries, keep.entries), (100, 25));
    assert_eq!(config.ring_setup().members.len(), 2);
    let storage = config.ring_setup().storage;
    assert_eq!((storage.wal.segment_bytes, storage.space.reserve_bytes), (4 << 20, 8 << 20));
    let Schedule { interval, dir, keep } = config.snapshots.unwrap();
    assert_eq!((interval, keep), (Duration::from_secs(3600), 24));
    assert!(dir.is_absolute() && dir.ends_with("backup"));
    let etcd = config.etcd.unwrap();
    assert_eq!(etcd.requests, RequestLimits { bytes_max: 4 << 20, txn_ops_max: 512 });
    assert_eq!(etcd.watch_progress_interval, Duration::from_secs(60));
    assert_eq!(etcd.metrics_listen, Some("0.0.0.0:2381".parse().unwrap()));
    assert_eq!(etcd.tls.unwrap().min_version, TlsVersion::Tls13);
}

#[test]
fn request_limits_and_the_tls_version_default_to_those_of_etcd() {
    let lines = GOOD.lines().filter(|line| {
        let setting = line.trim_start().split(' ').next().unwrap_or_default();
        !["metrics_listen", "request_bytes_max", "txn_ops_max", "min_tls_version"]
            .contains(&setting)
            && setting != "watch_progress_interval_s"
    });
    let etcd = load(&lines.collect::<Vec<_>>().join("\n")).unwrap().etcd.unwrap();
    let limits = RequestLimits { bytes_max: 1536 * 1024, txn_ops_max: 128 };
    assert_eq!((etcd.requests, etcd.metrics_listen), (limits, None));
    assert_eq!(etcd.watch_progress_interval, Duration::from_mins(10));
    assert_eq!(etcd.tls.unwrap().min_version, TlsVersion::Tls12);
}

#[test]
fn default_election_timeouts_follow_the_ones_that_are_set() {
    let timing = |set: &str| load(&GOOD.replace("heartbeat_ms = 50", set)).unwrap().timing;
    let range = |timing: Timing| (timing.election_min.as_millis(), timing.election_max.as_millis());
    assert_eq!(range(timing("heartbeat_ms = 60")), (200, 400));
    assert_eq!(range(timing("heartbeat_ms = 80")), (240, 440));
    assert_eq!(range(timing("election_ms_min = 450")), (450, 650));
}

#[test]
fn each_mistake_is_named() {
    for (from, to, expected) in [
        ("name = \"m1\"", "name = \"m9\"", "`m9`, is not listed"),
        ("name = \"m2\"", "name = \"m1\"", "`m1` is listed twice"),
        ("region = \"eu\"", "region = \"EU\"", "`region`"),
        ("https://127.0.0.1:7005", "127.0.0.1:7005", "`validators.url`: \"127.0.0.1:7005\""),
        ("m2 = \"https", "m2 = \"htps", "`peer_url_overrides`"),
        ("heartbeat_ms = 50", "election_ms_min = 150", "three heartbeats"),
        ("heartbeat_ms = 50", "election_ms_max = 200", "expected a range"),
        ("heartbeat_ms = 50", "heartbeat = 50", "unknown field"),
        ("log_entries_max = 100", "log_entries_max = 9", "9 entries: expected 16 to"),
        ("log_segment_mib = 4", "log_segment_mib = 0", "0 MiB: expected 1 to 1024"),
        ("reserve_mib = 8", "reserve_mib = 3", "3 MiB: expected 4, the size of a log segment"),
        ("interval_s = 3600", "interval_s = 9", "9 s: expected 60 to"),
        ("keep = 24", "keep = 0", "`snapshots.keep`: 0 files: expected 1 to 10000 files"),
        ("[\"https://127.0.0.1:2379\"]", "[]", "expected one or more URLs, each https://HOST:PORT"),
        ("s://127.0.0.1:2379", "://127.0.0.1:2379", "because [etcd.tls] is set"),
        ("https://127.0.0.1:2379", "https://", "`etcd.urls`: [\"https://\"]: expected"),
        ("https://127.0.0.1:2379", "https://127.0.0.1", "`etcd.urls`: "),
        ("https://127.0.0.1:2379", "https://:2379", "`etcd.urls`: "),
        ("https://127.0.0.1:2379", "https://127.0.0.1:2379/v3", "`etcd.urls`: "),
        ("bytes_max = 4194304", "bytes_max = 9", "9 bytes: expected 1024 to 6291456"),
        ("txn_ops_max = 512", "txn_ops_max = 0", "0 operations: expected 1 to 4096"),
        ("interval_s = 60", "interval_s = 0", "`etcd.watch_progress_interval_s`: 0 s"),
        ("\"1.3\"", "\"1.1\"", "`etcd.tls.min_tls_version`: \"1.1\": expected"),
        ("dir = \"backup\"", "dir = \"data/backup\"", "would be lost with it"),
        ("genesis = \"genesis.json\"", "genesis = \"none.json\"", "none.json"),
        ("7001\"\n        peer_listen", "x\"\n        peer_listen", "socket address"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = load(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
    let plain = GOOD.replacen("https://127.0.0.1:2379", "http://127.0.0.1:2379", 1);
    let (before, tls) = plain.split_once("[etcd.tls]").unwrap();
    let plain = format!("{before}{}", &tls[tls.find("[disk]").unwrap()..]);
    assert_eq!(load(&plain).unwrap().etcd.unwrap().tls, None);
    for (from, to, expected) in [
        ("http://127.0.0.1:2379", "https://127.0.0.1:2379", "because [etcd.tls] is not set"),
        ("\"127.0.0.1:2379\"", "\"0.0.0.0:2379\"", "or listen on a loopback address"),
    ] {
        let error = load(&plain.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
    let none = GOOD.split("[[validators]]").next().unwrap();
    let error = load(&none.replacen("region =", "validators = []\nregion =", 1)).unwrap_err();
    assert!(error.to_string().contains("`validators`: 0 entries: expected 1 to"), "{error}");
}
