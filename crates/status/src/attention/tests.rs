//! Every rule once, in the words that an operator reads; and a healthy realm has no line.

use super::*;
use crate::view::{EvidenceView, RunningView};

const LATE_AFTER_MS: u64 = 100_000;
/// Certified state of a healthy realm.
const FRESH_MS: u64 = 20_000;
const LATE_MS: u64 = 130_000;

fn validator(name: &str) -> ValidatorView {
    ValidatorView { name: name.into(), height: 9, age_ms: FRESH_MS, ..ValidatorView::default() }
}

fn member(name: &str) -> MemberView {
    MemberView { name: name.into(), height: 9, age_ms: FRESH_MS, ..MemberView::default() }
}

fn edge(name: &str) -> EdgeView {
    let report_age_ms = FRESH_MS;
    EdgeView { region: "eu".into(), name: name.into(), report_age_ms, ..EdgeView::default() }
}

fn healthy() -> RealmView {
    let region = RegionView {
        name: "eu".into(),
        leader: "a".into(),
        height: 9,
        age_ms: FRESH_MS,
        upstream_connected: true,
        members: vec![member("a"), member("b"), member("c")],
        ..RegionView::default()
    };
    RealmView {
        height: 9,
        late_after_ms: LATE_AFTER_MS,
        validators: vec![validator("v0"), validator("v1")],
        regions: vec![region],
        edges: vec![edge("e1"), edge("e2")],
        ..RealmView::default()
    }
}

/// The lines for a healthy realm to which something happens.
fn after(change: impl FnOnce(&mut RealmView)) -> String {
    let mut realm = healthy();
    change(&mut realm);
    attention(&realm).join("\n")
}

fn running(version: u64) -> RunningView {
    RunningView { bundle: "config/web".into(), version, ..RunningView::default() }
}

#[test]
fn a_healthy_realm_needs_no_attention() {
    assert_eq!(after(|_| {}), "");
    // A bound is met, not crossed.
    let at_the_bounds = after(|realm| {
        realm.validators[0].age_ms = LATE_AFTER_MS;
        realm.regions[0].age_ms = LATE_AFTER_MS;
        realm.regions[0].members[1].lag = LAG_ENTRIES_MAX;
        realm.edges[0].report_age_ms = 2 * LATE_AFTER_MS;
    });
    assert_eq!(at_the_bounds, "");
}

#[test]
fn faults_of_validators() {
    let expired = "its certificate expired at 2026-11-01T00:00:00Z";
    let lines = after(|realm| {
        realm.validators[0].error = Some(expired.into());
        realm.validators[1].signer_failure = Some("the signer is unavailable: no device".into());
        let (validator, kind) = ("v1".into(), "duplicate-vote".into());
        realm.evidence = vec![EvidenceView { validator, height: 7, kind }];
    });
    assert_eq!(
        lines,
        "validator `v1` broke the protocol: duplicate-vote at height 7; remove it with `satrap \
         govern set-validators`\n\
         validator `v0` is unreachable: its certificate expired at 2026-11-01T00:00:00Z; start it \
         again, or mend what its log names\n\
         validator `v1` casts no votes: the signer is unavailable: no device; mend its signer, it \
         votes again as soon as that answers"
    );
}

#[test]
fn a_realm_that_decides_nothing_although_all_validators_answer() {
    let lines = after(|realm| {
        realm.validators.iter_mut().for_each(|v| v.age_ms = LATE_MS);
        // Nothing that follows the blocks can be newer, so nothing else is a fault.
        realm.regions[0].age_ms = LATE_MS;
        realm.edges.iter_mut().for_each(|e| e.report_age_ms = LATE_MS);
    });
    assert_eq!(
        lines,
        "the validators decided no block for 2 min (one is due at least every 100.0 s): see that \
         validators with more than two thirds of the power run, reach each other and have the right \
         time"
    );
    // One that lags alone is behind, and the realm is not.
    assert_eq!(after(|realm| realm.validators[1].age_ms = LATE_MS), "");
}

#[test]
fn faults_of_a_region() {
    for (change, expected) in [
        (
            (|region| region.leader.clear()) as fn(&mut RegionView),
            "region `eu` has no leader: start its members again, or see \
             deploy/runbooks/forced-recovery.md if their disks are lost",
        ),
        (
            |region| region.upstream_connected = false,
            "the leader of region `eu`, member `a`, has no stream from a validator, so its edges get \
             no news: see that it can connect to the validators of its configuration",
        ),
        (
            |region| region.age_ms = LATE_MS,
            "region `eu` is connected to a validator, but its newest checkpoint is 2 min old: the \
             log of its leader, member `a`, says what it refuses",
        ),
        (
            |region| region.members[1].error = Some("connection refused".into()),
            "member `eu/b` is unreachable: connection refused; start it again, or mend what its log \
             names",
        ),
        (
            |region| region.members[1].errors = vec!["disk: block 7 is damaged".into()],
            "member `eu/b`: disk: block 7 is damaged",
        ),
        (
            |region| region.members[1].lag = LAG_ENTRIES_MAX + 1,
            "member `eu/b` is 10001 log entries behind its leader: see whether its disk or network \
             is slower than those of the others",
        ),
        (
            |region| region.members[1].outside = true,
            "member `eu/b` runs, but the ring does not have it: if it was removed, stop it and take \
             it out of the configurations; if it is expected, start it with an empty data directory",
        ),
        // A region of which no member answers has lines for its members alone.
        (
            |region| {
                region.members.truncate(1);
                region.members[0].error = Some("refused".into());
                (region.leader, region.upstream_connected) = (String::new(), false);
            },
            "member `eu/a` is unreachable: refused; start it again, or mend what its log names",
        ),
    ] {
        assert_eq!(after(|realm| change(&mut realm.regions[0])), expected);
    }
}

#[test]
fn alarms_are_distinguished_by_kind_and_never_by_words() {
    let lines = after(|realm| {
        let region = &mut realm.regions[0];
        let alarm = |kind: &str, member: &str| {
            let (kind, member) = (kind.to_owned(), member.to_owned());
            AlarmView { kind, member }
        };
        region.alarms = vec![alarm("NOSPACE", "b"), alarm("CORRUPT", "c"), alarm("MELTED", "a")];
        // A fault of a member that begins like an alarm stays this member's.
        region.members.iter_mut().for_each(|m| m.errors = vec!["NOSPACE on /var".into()]);
    });
    assert_eq!(
        lines,
        "region `eu` takes no writes that grow it: member `b` raised NOSPACE; make room \
         (deploy/runbooks/disk-full.md)\n\
         region `eu` takes no writes: the state of member `c` is not the ring's (CORRUPT); replace \
         the member (deploy/runbooks/corrupt-member.md)\n\
         region `eu`: member `a` raised alarm MELTED, which this `satrap` does not know; use the \
         release of `satrap` that the member runs\n\
         member `eu/a`: NOSPACE on /var\n\
         member `eu/b`: NOSPACE on /var\n\
         member `eu/c`: NOSPACE on /var"
    );
}

#[test]
fn faults_of_edges() {
    let lines = after(|realm| {
        let mut twin = EdgeView { has_twin: true, ..edge("twin") };
        twin.failed = vec![running(4), running(5)];
        let error = Some("no report yet".to_owned());
        let unheard = EdgeView { error, report_age_ms: 0, ..edge("unheard") };
        let report_age_ms = FRESH_MS + LATE_AFTER_MS + 1;
        let left_out =
            EdgeView { left_out: true, error: unheard.error.clone(), ..edge("left-out") };
        realm.edges.extend([twin, unheard, left_out, EdgeView { report_age_ms, ..edge("quiet") }]);
    });
    assert_eq!(
        lines,
        "edge `eu/twin` is run by two processes with one identity: stop one, or give it a \
         certificate of its own\n\
         edge `eu/twin` failed to activate config/web v4, config/web v5: its log says why; publish a \
         version that it takes\n\
         edge `eu/unheard` gave no report that can be believed: no report yet; start its agent, or \
         read its log\n\
         edge `eu/quiet` is silent: its last report is 2 min old; start its agent, or see in its log \
         why it reaches no member"
    );
}

#[test]
fn an_edge_of_a_region_that_is_away_is_measured_by_the_realm() {
    let lines = after(|realm| {
        let region = &mut realm.regions[0];
        region.members.iter_mut().for_each(|m| m.error = Some("refused".into()));
        region.age_ms = 0;
        realm.edges[0].report_age_ms = FRESH_MS + LATE_AFTER_MS + 1;
    });
    assert!(lines.contains("edge `eu/e1` is silent"), "{lines}");
    assert!(!lines.contains("eu/e2"), "{lines}");
}

#[test]
fn many_edges_with_one_fault_are_counted() {
    let lines = after(|realm| {
        for n in 0..LISTED_MAX + 2 {
            realm.edges.push(EdgeView { failed: vec![running(1)], ..edge(&n.to_string()) });
        }
    });
    assert_eq!(lines.lines().count(), LISTED_MAX + 1, "{lines}");
    assert!(lines.ends_with("\n2 more edges failed to activate a version"), "{lines}");
}
