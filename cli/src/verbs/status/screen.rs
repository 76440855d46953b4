//! The picture for people: four short tables, worst news visible without reading all of it.

use std::{collections::BTreeMap, fmt};

use super::view::{EdgeView, MemberView, Realm, RegionView, ValidatorView};
use crate::output::{count, few, span, table};

/// Edges listed one by one; of a larger fleet only those with trouble are.
const EDGES_LISTED_MAX: usize = 20;

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain_id, height, .. } = self;
        match self.validators.iter().any(|v| v.error.is_none()) {
            true => writeln!(f, "realm `{chain_id}` at height {height}")?,
            false => writeln!(f, "realm `{chain_id}`, no validator answers")?,
        }
        for line in &self.attention {
            writeln!(f, "! {line}")?;
        }
        self.validators(f)?;
        self.regions(f)?;
        self.bundles(f)?;
        self.edges(f)?;
        Ok(())
    }
}

impl Realm {
    fn validators(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.validators.is_empty() {
            return Ok(());
        }
        let heading = ["VALIDATOR", "HEIGHT", "AGE", "SIGNED", "POWER", "AREA", "PEERS", "WAITING"];
        let mut rows = vec![row(&heading)];
        rows.extend(self.validators.iter().map(validator_row));
        let signed = self.signed_last.len();
        write!(f, "\n{}", table(&rows))?;
        if self.height > 0 {
            let who = self.signed_last.join(", ");
            writeln!(f, "  block {} signed by {signed}: {who}", self.height)?;
        }
        Ok(())
    }

    fn regions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.regions.is_empty() {
            return Ok(());
        }
        let mut rows = vec![row(&["REGION", "MEMBER", "HEIGHT", "AGE", "LAG", ""])];
        for region in &self.regions {
            rows.extend(region.members.iter().map(|member| member_row(region, member)));
        }
        write!(f, "\n{}", table(&rows))?;
        for region in &self.regions {
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
                    writeln!(f, "  {}/{} {snapshots}", region.name, member.name)?;
                }
            }
            for recovery in &region.recoveries {
                writeln!(f, "  {} {recovery}", region.name)?;
            }
        }
        Ok(())
    }

    fn bundles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bundles.is_empty() {
            return Ok(());
        }
        let mut on: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        for running in self.edges.iter().flat_map(|edge| &edge.running) {
            *on.entry((&running.bundle, running.version)).or_default() += 1;
        }
        let heading = ["BUNDLE", "VERSION", "ENTRIES", "BYTES", "ROOT", "EDGES BY VERSION"];
        let mut rows = vec![row(&heading)];
        for b in &self.bundles {
            let versions = on.iter().rev().filter(|((name, _), _)| *name == b.name);
            let edges: Vec<_> = versions.map(|((_, v), n)| format!("v{v}: {n}")).collect();
            let [version, entries, bytes] = [b.version, b.entries, b.bytes].map(|n| n.to_string());
            let root: String = b.root.chars().take(16).collect();
            rows.push(row(&[&b.name, &version, &entries, &bytes, &root, &few(&edges)]));
        }
        write!(f, "\n{}", table(&rows))
    }

    fn edges(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.edges.is_empty() {
            return Ok(());
        }
        let current: BTreeMap<&str, u64> =
            self.bundles.iter().map(|b| (b.name.as_str(), b.version)).collect();
        let behind = |edge: &EdgeView| {
            edge.running
                .iter()
                .any(|r| current.get(r.bundle.as_str()).is_some_and(|v| *v > r.version))
        };
        let trouble = |edge: &EdgeView| {
            edge.error.is_some() && !edge.left_out || !edge.connected || behind(edge)
        };
        let is_small = self.edges.len() <= EDGES_LISTED_MAX;
        let mut rows = vec![row(&["EDGE", "RUNS", "HEIGHT", "REPORT", ""])];
        let shown =
            self.edges.iter().filter(|edge| is_small || trouble(edge)).take(EDGES_LISTED_MAX);
        rows.extend(shown.map(edge_row));
        let listed = rows.len() - 1;
        if listed > 0 {
            write!(f, "\n{}", table(&rows))?;
        }
        if listed < self.edges.len() {
            let (all, troubled) =
                (self.edges.len(), self.edges.iter().filter(|e| trouble(e)).count());
            writeln!(f, "  {}, {troubled} of them behind or silent", count(all, "edge", "edges"))?;
        }
        Ok(())
    }
}

/// The innermost cause, which is what fits a line; the whole chain is in `--json`.
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
