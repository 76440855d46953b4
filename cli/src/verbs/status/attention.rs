//! What somebody must act on, out of everything that is known of a realm.

use std::collections::BTreeSet;

use super::view::{EdgeView, MemberView, Realm, RegionView};

/// Edges with one kind of trouble that are listed; the others are counted.
const LISTED_MAX: usize = 5;

/// One line for each fault, worst first.
pub fn attention(realm: &Realm) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for e in &realm.evidence {
        lines.push(format!(
            "validator `{}` broke the protocol: {} at height {}; remove it with `satrap govern \
             set-validators`",
            e.validator, e.kind, e.height
        ));
    }
    for validator in &realm.validators {
        if let Some(error) = &validator.error {
            lines.push(format!("validator `{}` is unreachable: {error}", validator.name));
        }
    }
    realm.regions.iter().for_each(|region| of_region(region, &mut lines));
    of_edges(&realm.edges, &mut lines);
    lines
}

fn of_region(region: &RegionView, lines: &mut Vec<String>) {
    let name = &region.name;
    let answers = |m: &&MemberView| m.error.is_none();
    if region.members.iter().any(|m| answers(&m)) {
        if region.leader.is_empty() {
            lines.push(format!(
                "region `{name}` has no leader: start its members again, or see \
                 deploy/runbooks/forced-recovery.md if their disks are lost"
            ));
        } else if !region.upstream_connected {
            lines.push(format!("region `{name}` hears from no validator; its edges grow stale"));
        }
    }
    let mut alarms = BTreeSet::new();
    for member in &region.members {
        if let Some(error) = &member.error {
            lines.push(format!("member `{name}/{}` is unreachable: {error}", member.name));
        }
        for error in &member.errors {
            // Alarms are of the ring, so every member tells of them.
            if !error.starts_with("NOSPACE") && !error.starts_with("CORRUPT") {
                lines.push(format!("member `{name}/{}`: {error}", member.name));
            } else if alarms.insert(error) {
                lines.push(format!("region `{name}`: {error}"));
            }
        }
    }
}

fn of_edges(edges: &[EdgeView], lines: &mut Vec<String>) {
    let mut list = |what: &str, of: &dyn Fn(&EdgeView) -> Option<String>| {
        let troubled: Vec<_> = edges.iter().filter_map(|edge| Some((edge, of(edge)?))).collect();
        for (edge, line) in troubled.iter().take(LISTED_MAX) {
            lines.push(format!("edge `{}/{}` {line}", edge.region, edge.name));
        }
        if troubled.len() > LISTED_MAX {
            lines.push(format!("{} more edges {what}", troubled.len() - LISTED_MAX));
        }
    };
    list("share their identity with another process", &|edge| {
        edge.has_twin.then(|| {
            "is run by two processes with one identity: stop one, or give it a certificate of its own"
                .to_owned()
        })
    });
    list("failed to activate a version", &|edge| {
        let failed: Vec<_> =
            edge.failed.iter().map(|f| format!("{} v{}", f.bundle, f.version)).collect();
        let failed = failed.join(", ");
        (!failed.is_empty()).then(|| {
            format!(
                "failed to activate {failed}: its log says why; publish a version that it takes"
            )
        })
    });
    list("did not report", &|edge| edge.error.clone().map(|error| format!("is silent: {error}")));
}
