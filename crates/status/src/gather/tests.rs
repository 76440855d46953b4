//! A region relays reports; it must not be able to invent, alter or reassign one.

use ed25519_dalek::SigningKey;
use satrap_certify::{BundleName, Label};
use satrap_identity::pki::{self, Authority, Scope, SpiffeId};
use std::time::Duration;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const DRIFT: Duration = Duration::from_secs(10);
const GENESIS_HASH: [u8; 32] = [7; 32];

struct Edge {
    key: SigningKey,
    certificate: Vec<u8>,
}

fn authority(region: &str) -> Authority {
    let scope = Scope::Region { chain: "acme".into(), region: region.into() };
    Authority::create(scope, clock::now(), DAY).unwrap()
}

fn edge(authority: &Authority, region: &str, name: &str) -> Edge {
    let role = Role::Edge { region: region.into(), name: name.into() };
    let id = SpiffeId::new("acme", role).unwrap();
    let leaf = authority.issue(&id, clock::now(), DAY).unwrap();
    Edge {
        key: pki::signing_key(leaf.key_pem.as_bytes()).unwrap(),
        certificate: pki::certificate_der(leaf.certificate_pem.as_bytes()).unwrap().to_vec(),
    }
}

fn report(region: &str, name: &str) -> Report {
    Report {
        genesis_hash: GENESIS_HASH,
        region: Label::new(region).unwrap(),
        edge: Label::new(name).unwrap(),
        time: Timestamp(clock::now()),
        started: Timestamp(1),
        height: 9,
        certified_time: Timestamp(1),
        running: vec![(BundleName::new("pki/edge-trust").unwrap(), 4, [9; 32])],
        failed: Vec::new(),
        refusals: vec![("B4".into(), 2)],
    }
}

/// A judge that trusts the edges of `authority`.
fn judge(authority: &Authority, now: Timestamp) -> Judge {
    Judge {
        genesis_hash: GENESIS_HASH,
        trust: TrustAnchors::from_pem(authority.certificate_pem().as_bytes()).unwrap(),
        now,
        clock_drift: DRIFT,
    }
}

#[test]
fn only_the_edge_itself_can_report() {
    let (eu, other) = (authority("eu"), authority("eu"));
    let judge = judge(&eu, Timestamp(clock::now()));
    let (web, evil) = (edge(&eu, "eu", "web"), edge(&eu, "eu", "evil"));
    let sign = |r: Report, by: &Edge| r.sign(&by.key, by.certificate.clone());

    let honest = sign(report("eu", "web"), &web);
    let view = judge.view(judge.report(&honest).unwrap());
    assert_eq!((view.name.as_str(), view.height, view.running[0].version), ("web", 9, 4));

    let mut altered = honest.clone();
    altered.report.running[0].1 = 5;
    let mut elsewhere = report("eu", "web");
    elsewhere.genesis_hash = [8; 32];
    let unknown = edge(&other, "eu", "web");
    for (signed, expected) in [
        (altered, "signature does not verify"),
        (
            sign(report("eu", "web"), &evil),
            "its certificate names spiffe://acme/region/eu/edge/evil",
        ),
        (sign(report("us", "web"), &web), "its certificate names spiffe://acme/region/eu/edge/web"),
        (sign(elsewhere, &web), "another realm"),
        (sign(report("eu", "web"), &unknown), "is refused"),
    ] {
        let error = judge.report(&signed).unwrap_err();
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    }
}

#[test]
fn r2_a_report_of_the_future_or_from_before_its_process_started_is_not_believed() {
    let eu = authority("eu");
    let now = Timestamp(clock::now());
    let judge = judge(&eu, now);
    let web = edge(&eu, "eu", "web");
    let judged = |time: Timestamp, started: Timestamp| {
        let mut r = report("eu", "web");
        (r.time, r.started) = (time, started);
        judge.report(&r.sign(&web.key, web.certificate.clone())).map(drop)
    };
    let latest = now.plus(DRIFT);
    assert_eq!(judged(latest, latest), Ok(()));
    for (time, started, expected) in [
        (latest.plus(Duration::from_nanos(1)), now, "check NTP"),
        (now, now.plus(Duration::from_nanos(1)), "check the clock of the edge"),
    ] {
        let error = judged(time, started).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn edges_without_a_report_are_listed_and_those_left_out_are_counted() {
    let eu = authority("eu");
    let judge = judge(&eu, Timestamp(clock::now()));
    let described = |name: &str| serde_json::json!({ "region": "eu", "name": name, "pid": null, "active_dir": "active" });
    let description = serde_json::from_value(serde_json::json!({
        "chain_id": "acme",
        "genesis": "genesis.json",
        "validators": [],
        "regions": [],
        "edges": [described("away"), described("here")],
        "client": { "ca": "ca", "cert": "cert", "key": "key" },
    }))
    .unwrap();
    let shown = |left_out: [u64; 2]| {
        let statuses = left_out.map(|reports_left_out| RegionStatus {
            region: "eu".into(),
            connected_edges: vec!["here".into()],
            reports_left_out,
            ..RegionStatus::default()
        });
        let mut realm = RealmView::default();
        let endpoint = Endpoint { label: "eu/a".into(), url: "https://127.0.0.1:1".into() };
        for status in &statuses {
            member(&mut realm, &endpoint, status, judge.now);
        }
        realm.edges = edges(Some(&description), &statuses.each_ref(), &judge);
        realm.attention = attention(&realm);
        let errors: Vec<_> = realm.edges.iter().map(|e| e.error.clone().unwrap()).collect();
        let lines = realm.attention.iter().filter(|line| line.contains("`eu/here`")).count();
        let json = serde_json::to_value(&realm).unwrap();
        assert_eq!(json["regions"][0]["reports_left_out"], left_out[0].max(left_out[1]));
        assert_eq!(json["edges"][1]["left_out"], left_out != [0, 0]);
        (errors, lines)
    };
    let refuses = "it is connected, and no member has a report of it; one that refuses its reports \
                   says so in its log";
    assert_eq!(shown([0, 0]), (vec!["no report yet".to_owned(), refuses.to_owned()], 1));
    let no_room = "its region had no room for its report";
    assert_eq!(shown([2, 7]), (vec!["no report yet".to_owned(), no_room.to_owned()], 0));
}

#[test]
fn the_newest_verified_report_wins_over_what_cannot_be_verified() {
    let eu = authority("eu");
    let judge = judge(&eu, Timestamp(clock::now()));
    let web = edge(&eu, "eu", "web");
    let at = |ns, height| {
        let mut r = report("eu", "web");
        (r.time, r.started, r.height) = (Timestamp(ns), Timestamp(ns), height);
        r.sign(&web.key, web.certificate.clone()).to_canonical()
    };
    let mut forged = SignedReport::from_canonical(&at(3, 3)).unwrap();
    forged.report.height = 1_000;
    let status = |reports: Vec<Vec<u8>>| RegionStatus {
        region: "eu".into(),
        reports: reports.into_iter().map(Into::into).collect(),
        connected_edges: vec!["web".into()],
        ..RegionStatus::default()
    };
    let first = status(vec![at(2, 2), forged.to_canonical(), vec![1, 2, 3]]);
    let second = status(vec![at(1, 1)]);
    let views = edges(None, &[&first, &second], &judge);
    let web = views.iter().find(|v| v.name == "web").unwrap();
    assert_eq!((web.height, web.connected, web.error.as_deref()), (2, true, None));
    // R2: one of the future would win for good.
    let now = judge.now.0;
    let ahead = status(vec![at(now + 3_600_000_000_000, 9), at(now, 5)]);
    let views_with_ahead = edges(None, &[&first, &ahead], &judge);
    assert_eq!(views_with_ahead.iter().find(|v| v.name == "web").unwrap().height, 5);
    let garbage = views.iter().find(|v| v.name == "?").unwrap();
    assert!(garbage.error.as_ref().unwrap().contains("no report"));
    let alone = edges(None, &[&status(vec![forged.to_canonical()])], &judge);
    assert!(alone[0].error.as_ref().unwrap().starts_with("unverifiable report"));
}

#[test]
fn two_processes_with_one_identity_differ_from_a_restarted_one() {
    let eu = authority("eu");
    let now = clock::now();
    let judge = judge(&eu, Timestamp(now));
    let web = edge(&eu, "eu", "web");
    let second = 1_000_000_000;
    // Seconds ago.
    let told = |started: u64, time: u64| {
        let mut r = report("eu", "web");
        (r.started, r.time) = (Timestamp(now - started * second), Timestamp(now - time * second));
        r.sign(&web.key, web.certificate.clone()).to_canonical().into()
    };
    for (reports, has_twin) in [
        // It ended before the next one started.
        (vec![told(900, 60), told(50, 1)], false),
        // It reported after the other had started, in whichever order they are relayed.
        (vec![told(900, 30), told(50, 1)], true),
        (vec![told(50, 1), told(900, 30)], true),
        // The newest report may be of the process that started first.
        (vec![told(900, 1), told(50, 30)], true),
        // One process, of which a member holds an older report.
        (vec![told(900, 30), told(900, 1)], false),
        // They did overlap, and one of them has been away for long.
        (vec![told(900, 400), told(500, 1)], false),
    ] {
        let status = RegionStatus { region: "eu".into(), reports, ..RegionStatus::default() };
        let views = edges(None, &[&status], &judge);
        let ages: Vec<_> = views.iter().map(|v| v.report_age_ms).collect();
        assert_eq!((views.len(), views[0].has_twin), (1, has_twin), "{ages:?}");
    }
}

#[test]
fn an_alarm_that_every_member_tells_is_one_alarm() {
    let mut realm = RealmView::default();
    let url = "https://127.0.0.1:1".to_owned();
    let endpoint = Endpoint { label: "region eu/a".into(), url };
    let alarm = |kind: &str| satrap_proto::v1::RingAlarm { kind: kind.into(), member: "b".into() };
    let told = |member: &str, alarms: Vec<_>| {
        let (region, member) = ("eu".into(), member.into());
        RegionStatus { region, member, alarms, ..RegionStatus::default() }
    };
    member(&mut realm, &endpoint, &told("a", vec![alarm("NOSPACE")]), Timestamp(1));
    member(
        &mut realm,
        &endpoint,
        &told("b", vec![alarm("NOSPACE"), alarm("CORRUPT")]),
        Timestamp(1),
    );
    let kinds: Vec<_> = realm.regions[0].alarms.iter().map(|alarm| alarm.kind.as_str()).collect();
    assert_eq!(kinds, ["NOSPACE", "CORRUPT"]);
}
