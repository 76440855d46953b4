//! The state of a realm as text: faults first, then a table each of validators, regions, bundles, edges.

use std::{collections::BTreeMap, fmt};

use satrap_operator::text::{count, few, one_line, span};
use satrap_status::{
    EdgeView, MemberView, RealmView, RecoveryView, RegionView, SavedView, SnapshotView,
    ValidatorView,
};
use serde::Serialize;

use crate::output::table;

/// The most edges that are listed; of a larger fleet, only those with a fault are.
const EDGES_LISTED_MAX: usize = 20;

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// A realm on one screen.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Screen<'a>(pub &'a RealmView);

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RealmView { chain_id, height, .. } = self.0;
        match self.0.validators.iter().any(|v| v.error.is_none()) {
            true => writeln!(f, "realm `{chain_id}` at height {height}")?,
            false => writeln!(f, "realm `{chain_id}`, no validator answers")?,
        }
        for line in &self.0.attention {
            writeln!(f, "! {line}")?;
        }
        self.validators(f)?;
        self.regions(f)?;
        self.bundles(f)?;
        self.edges(f)?;
        Ok(())
    }
}

impl Screen<'_> {
    fn validators(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.validators.is_empty() {
            return Ok(());
        }
        let heading = ["VALIDATOR", "HEIGHT", "AGE", "SIGNED", "POWER", "AREA", "PEERS", "WAITING"];
        let mut rows = vec![row(&heading)];
        rows.extend(self.0.validators.iter().map(validator_row));
        let signed = self.0.signed_last.len();
        write!(f, "\n{}", table(&rows))?;
        if self.0.height > 0 {
            let who = self.0.signed_last.join(", ");
            writeln!(f, "  block {} signed by {signed}: {who}", self.0.height)?;
        }
        Ok(())
    }

    fn regions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.regions.is_empty() {
            return Ok(());
        }
        let mut rows = vec![row(&["REGION", "MEMBER", "HEIGHT", "AGE", "LAG", ""])];
        for region in &self.0.regions {
            rows.extend(region.members.iter().map(|member| member_row(region, member)));
        }
        write!(f, "\n{}", table(&rows))?;
        for region in &self.0.regions {
            for (rule, times) in &region.refusals {
                let name = &region.name;
                writeln!(f, "  {name} refused {times} messages by rule {rule}")?;
            }
            if region.reports_left_out > 0 {
                let (name, edges) = (&region.name, region.reports_left_out);
                writeln!(
                    f,
                    "  {name} left out the reports of up to {edges} edges, for want of room"
                )?;
            }
            for member in &region.members {
                if let Some(snapshots) = &member.snapshots {
                    writeln!(f, "  {}/{} {}", region.name, member.name, Snapshots(snapshots))?;
                }
            }
            for recovery in &region.recoveries {
                writeln!(f, "  {} {}", region.name, Recovery(recovery))?;
            }
        }
        Ok(())
    }

    fn bundles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.bundles.is_empty() {
            return Ok(());
        }
        let mut on: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        for running in self.0.edges.iter().flat_map(|edge| &edge.running) {
            *on.entry((&running.bundle, running.version)).or_default() += 1;
        }
        let heading = ["BUNDLE", "VERSION", "ENTRIES", "BYTES", "ROOT", "EDGES BY VERSION"];
        let mut rows = vec![row(&heading)];
        for b in &self.0.bundles {
            let versions = on.iter().rev().filter(|((name, _), _)| *name == b.name);
            let edges: Vec<_> = versions.map(|((_, v), n)| format!("v{v}: {n}")).collect();
            let [version, entries, bytes] = [b.version, b.entries, b.bytes].map(|n| n.to_string());
            let root: String = b.root.chars().take(16).collect();
            rows.push(row(&[&b.name, &version, &entries, &bytes, &root, &few(&edges)]));
        }
        write!(f, "\n{}", table(&rows))
    }

    fn edges(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.edges.is_empty() {
            return Ok(());
        }
        let current: BTreeMap<&str, u64> =
            self.0.bundles.iter().map(|b| (b.name.as_str(), b.version)).collect();
        let behind = |edge: &EdgeView| {
            edge.running
                .iter()
                .any(|r| current.get(r.bundle.as_str()).is_some_and(|v| *v > r.version))
        };
        let is_faulty = |edge: &EdgeView| {
            edge.error.is_some() && !edge.left_out || !edge.connected || behind(edge)
        };
        let is_small = self.0.edges.len() <= EDGES_LISTED_MAX;
        let mut rows = vec![row(&["EDGE", "RUNS", "HEIGHT", "REPORT", ""])];
        let shown =
            self.0.edges.iter().filter(|edge| is_small || is_faulty(edge)).take(EDGES_LISTED_MAX);
        rows.extend(shown.map(edge_row));
        let listed = rows.len() - 1;
        if listed > 0 {
            write!(f, "\n{}", table(&rows))?;
        }
        if listed < self.0.edges.len() {
            let (all, faulty) =
                (self.0.edges.len(), self.0.edges.iter().filter(|e| is_faulty(e)).count());
            writeln!(f, "  {}, {faulty} of them behind or silent", count(all, "edge", "edges"))?;
        }
        Ok(())
    }
}

/// The innermost cause of an error; `--json` has the whole chain.
fn unreachable(error: &str) -> String {
    format!("unreachable: {}", error.rsplit(": ").next().unwrap_or(error))
}

fn validator_row(v: &ValidatorView) -> Vec<String> {
    if let Some(error) = &v.error {
        return row(&[&v.name, "-", "-", "-", "-", "-", "-", &unreachable(error)]);
    }
    let signed = match (v.signed_last, v.proposed_last) {
        (true, true) => "yes, proposed",
        (true, false) => "yes",
        (false, _) => "no",
    };
    let age = if v.height == 0 { "-".to_owned() } else { span(v.age_ms) };
    let [height, power, waiting] = [v.height, v.power, v.waiting_changes].map(|n| n.to_string());
    let peers = v.peers.to_string();
    row(&[&v.name, &height, &age, signed, &power, &v.jurisdiction, &peers, &waiting])
}

fn member_row(region: &RegionView, m: &MemberView) -> Vec<String> {
    if let Some(error) = &m.error {
        return row(&[&region.name, &m.name, "-", "-", "-", &unreachable(error)]);
    }
    let note = match (m.name == region.leader, region.upstream_connected) {
        (true, true) => "leader",
        (true, false) => "leader, cut off from the validators",
        (false, _) if region.leader.is_empty() => "no leader known",
        (false, _) => "",
    };
    let age = if m.height == 0 { "-".to_owned() } else { span(m.age_ms) };
    row(&[&region.name, &m.name, &m.height.to_string(), &age, &m.lag.to_string(), note])
}

fn edge_row(edge: &EdgeView) -> Vec<String> {
    let name = format!("{}/{}", edge.region, edge.name);
    if let Some(error) = &edge.error {
        return row(&[&name, "-", "-", "-", error]);
    }
    let runs: Vec<_> =
        edge.running.iter().map(|r| format!("{} v{}", r.bundle, r.version)).collect();
    let mut notes = Vec::new();
    if !edge.connected {
        notes.push("not connected".to_owned());
    }
    for (rule, times) in &edge.refusals {
        notes.push(format!("refused {times} by {rule}"));
    }
    let (height, age) = (edge.height.to_string(), span(edge.report_age_ms));
    row(&[&name, &few(&runs), &height, &format!("{age} ago"), &few(&notes)])
}

/// A recovery on one line.
pub struct Recovery<'a>(pub &'a RecoveryView);

impl fmt::Display for Recovery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecoveryView { kind, epoch, kept, leap, trusted, lost, reason } = self.0;
        write!(f, "{kind}, epoch {epoch}: writes after revision {kept} may be lost, ")?;
        write!(f, "revisions go on above {leap}")?;
        if !trusted.is_empty() {
            write!(f, "; trusted {}; lost {}", trusted.join(", "), lost.join(", "))?;
        }
        // The reason is free text of an operator.
        write!(f, " ({})", one_line(reason))
    }
}

struct Snapshots<'a>(&'a SnapshotView);

impl fmt::Display for Snapshots<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.0.error {
            write!(f, "NO SNAPSHOT ({error}); ")?;
        }
        match &self.0.newest {
            Some(SavedView { file, revision, age_ms }) => {
                write!(f, "saved revision {revision} {} ago in {file}", span(*age_ms))
            }
            None => f.write_str("saved nothing yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A realm in which every field has a value, as the crate's own test pins it.
    const REALM: &str = include_str!("../../../../crates/status/tests/realm.json");

    #[test]
    fn the_screen_shows_what_an_operator_needs() {
        let realm: RealmView = serde_json::from_str(REALM).unwrap();
        let screen = Screen(&realm).to_string();
        for expected in [
            "realm `acme-prod` at height 9\n! validator `v1` broke the protocol\n",
            "  block 9 signed by 1: v1\n",
            "  eu      a       -       -    -    unreachable: connection refused\n",
            "  eu refused 2 messages by rule B4\n",
            "  eu left out the reports of up to 6 edges, for want of room\n",
            "  eu/a saved revision 7 25 ms ago in snapshot-7.db\n",
            "  eu forced, epoch 10: writes after revision 11 may be lost, revisions go on above 12; \
             trusted a; lost b (fire)\n",
            "  pki/edge-trust  4        13       14     ab    v4: 1\n",
            "  eu/web-1  pki/edge-trust v4  9       26 ms ago  refused 1 by C2\n",
        ] {
            assert!(screen.contains(expected), "{screen}\nexpected {expected}");
        }
    }

    #[test]
    fn the_json_is_the_realm_itself() {
        let realm: RealmView = serde_json::from_str(REALM).unwrap();
        let (printed, data) = (serde_json::to_value(Screen(&realm)), serde_json::to_value(&realm));
        assert_eq!(printed.unwrap(), data.unwrap());
    }
}
