//! Merges the statuses of a region's members into one reply of `Control.Status`.

use std::collections::{BTreeMap, BTreeSet};

use satrap_certify::SignedReport;
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::RegionStatus;

use crate::reports::{EdgeKey, EdgeReports, StoredReport, merge, select_for_reply};

/// Adds the statuses of `others` to `own`, the status of the member that was asked.
///
/// Refusals are summed. Reports and connected edges are united. `upstream_connected`, lag and ring
/// membership are the leader's. All other fields are those of `own`.
pub fn merge_status(own: RegionStatus, others: &[RegionStatus]) -> RegionStatus {
    let mut reports: BTreeMap<EdgeKey, EdgeReports> = BTreeMap::new();
    let mut connected: BTreeSet<String> = own.connected_edges.iter().cloned().collect();
    let mut merged = own.clone();
    for status in others.iter().chain([&own]) {
        for bytes in &status.reports {
            // A member of another release may send a report that this one cannot decode. The client
            // verifies the others by their signatures.
            if let Ok(SignedReport { report, .. }) = SignedReport::from_canonical(bytes) {
                let edge = (report.region.to_string(), report.edge.to_string());
                merge(&mut reports, edge, StoredReport::of(&report, bytes));
            }
        }
        connected.extend(status.connected_edges.iter().cloned());
    }
    for status in others {
        for (rule, count) in &status.refusals {
            *merged.refusals.entry(rule.clone()).or_default() += count;
        }
        for member in merged.members.iter_mut().filter(|member| member.name == status.member) {
            member.reachable = true;
        }
        // An upper bound: one member may send the report of an edge that another one left out.
        merged.reports_left_out += status.reports_left_out;
    }
    if let Some(leader) = leader(&own, others) {
        merged.upstream_connected = leader.upstream_connected;
        for member in &mut merged.members {
            let known = leader.members.iter().find(|known| known.name == member.name);
            member.lag = known.map_or(0, |known| known.lag);
            member.outside = known.is_some_and(|known| known.outside);
        }
    }
    let selected = select_for_reply(reports.into_values());
    merged.reports_left_out += selected.left_out as u64;
    merged.reports = selected.reports.into_iter().map(|report| report.bytes.into()).collect();
    merged.connected_edges = connected.into_iter().collect();
    merged
}

/// The leader among `others`, unless `own` knows of a later term. Only the leader follows a source
/// and knows the lag of the members. A deposed leader may not know yet that it was, so the highest
/// term decides.
fn leader<'a>(own: &RegionStatus, others: &'a [RegionStatus]) -> Option<&'a RegionStatus> {
    let leads = |status: &&RegionStatus| status.member == status.leader && status.term >= own.term;
    others.iter().filter(leads).max_by_key(|status| status.term)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use satrap_certify::{BundleName, Label, Report, Timestamp};
    use satrap_proto::v1::MemberInfo;

    use super::*;
    use crate::limits::STATUS_REPORT_BYTES_MAX;

    /// A report of `edge`. The number of versions determines its size.
    fn report(edge: &str, versions: usize) -> Vec<u8> {
        let name = BundleName::new("config/some-bundle-with-a-name").unwrap();
        let report = Report {
            genesis_hash: [1; 32],
            region: Label::new("eu").unwrap(),
            edge: Label::new(edge).unwrap(),
            time: Timestamp(2),
            started: Timestamp(1),
            height: 9,
            certified_time: Timestamp(1),
            running: vec![(name, 1, [2; 32]); versions],
            failed: Vec::new(),
            refusals: Vec::new(),
        };
        report.sign(&SigningKey::from_bytes(&[7; 32]), vec![0; 600]).to_canonical()
    }

    fn status(member: &str, reports: Vec<Vec<u8>>, reports_left_out: u64) -> RegionStatus {
        let reports = reports.into_iter().map(Into::into).collect();
        RegionStatus { member: member.into(), reports, reports_left_out, ..RegionStatus::default() }
    }

    /// The asked member is behind, and a deposed leader still claims to lead.
    #[test]
    fn the_leader_of_the_highest_term_says_who_lags() {
        let named = |name: &str, lag| MemberInfo { name: name.into(), lag, ..Default::default() };
        let leading = |member: &str, term, lag| RegionStatus {
            leader: member.into(),
            term,
            members: ["a", "b", "c"].map(|name| named(name, lag)).to_vec(),
            upstream_connected: term == 7,
            ..status(member, Vec::new(), 0)
        };
        let own = RegionStatus { leader: "c".into(), ..leading("a", 4, 0) };
        for others in [
            [leading("b", 7, 100), leading("c", 5, 200)],
            [leading("c", 5, 200), leading("b", 7, 100)],
        ] {
            let merged = merge_status(own.clone(), &others);
            let lags: Vec<_> = merged.members.iter().map(|member| member.lag).collect();
            assert_eq!((merged.upstream_connected, lags), (true, vec![100; 3]));
        }
        let own = RegionStatus { term: 8, ..own };
        let merged = merge_status(own, &[leading("b", 7, 100)]);
        assert_eq!(merged.members[0].lag, 0, "a leader of an earlier term");
    }

    #[test]
    fn edges_that_members_left_out_and_edges_that_the_merged_reply_leaves_out_are_summed() {
        // Each member's reports fit one reply; those of two members together do not.
        let size = report("edge-1000", 100).len();
        let fit = STATUS_REPORT_BYTES_MAX / size;
        let edges = |from: usize, count: usize| -> Vec<_> {
            (from..from + count).map(|n| report(&format!("edge-{n}"), 100)).collect()
        };
        let others = [status("b", edges(1_000 + fit, 3), 4), status("c", edges(1_000, fit), 5)];
        let merged = merge_status(status("a", edges(1_000, fit), 6), &others);
        assert_eq!((merged.reports.len(), merged.reports_left_out), (fit, 3 + 4 + 5 + 6));

        let merged =
            merge_status(status("a", edges(1_000, 2), 0), &[status("b", edges(1_001, 2), 0)]);
        assert_eq!(
            (merged.reports.len(), merged.reports_left_out),
            (3, 0),
            "a report of two members counts once"
        );
    }
}
