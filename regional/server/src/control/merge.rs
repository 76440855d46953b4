//! Makes one picture of a region out of what its members say.

use std::collections::{BTreeMap, BTreeSet};

use satrap_certify::SignedReport;
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::RegionStatus;

use crate::reports::{EdgeKey, Held, Kept, fitting, merge};

/// The status of the member that was asked, completed by that of `others` of its ring.
pub fn merge_status(own: RegionStatus, others: &[RegionStatus]) -> RegionStatus {
    let mut reports: BTreeMap<EdgeKey, Held> = BTreeMap::new();
    let mut connected: BTreeSet<String> = own.connected_edges.iter().cloned().collect();
    let mut merged = own.clone();
    for status in others.iter().chain([&own]) {
        for bytes in &status.reports {
            if let Ok(SignedReport { report, .. }) = SignedReport::from_canonical(bytes) {
                let edge = (report.region.to_string(), report.edge.to_string());
                merge(&mut reports, edge, Kept::of(&report, bytes));
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
        // Only the leader follows upstream and knows who lags.
        if status.member == status.leader && status.term >= own.term {
            merged.upstream_connected = status.upstream_connected;
            for member in &mut merged.members {
                let known = status.members.iter().find(|known| known.name == member.name);
                member.lag = known.map_or(0, |known| known.lag);
                member.outside = known.is_some_and(|known| known.outside);
            }
        }
        // An upper bound: another member may have told of an edge that this one left out.
        merged.reports_left_out += status.reports_left_out;
    }
    let fitting = fitting(reports.into_values());
    merged.reports_left_out += fitting.left_out as u64;
    merged.reports = fitting.reports.into_iter().map(|kept| kept.bytes.into()).collect();
    merged.connected_edges = connected.into_iter().collect();
    merged
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use satrap_certify::{BundleName, Label, Report, Timestamp};

    use super::*;
    use crate::limits::STATUS_REPORT_BYTES_MAX;

    /// A report of `edge` with so many versions, which decide its size.
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

    #[test]
    fn edges_that_no_member_had_room_for_are_counted_with_those_that_do_not_fit_together() {
        // Each member's reports fit one reply, and those of both do not.
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
        assert_eq!((merged.reports.len(), merged.reports_left_out), (3, 0), "one in both is one");
    }
}
