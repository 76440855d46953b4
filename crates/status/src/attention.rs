//! Derives from a [`RealmView`] the faults that an operator must act on.
//!
//! Each line names the subject, its failure, and the next step.
//!
//! ```text
//!   fault                       rule
//!   validator misbehaves        there is evidence
//!   validator casts no votes    its signer fails
//!   server is unreachable       it did not answer `status`
//!   realm decides nothing       the newest block of all validators is late
//!   region has no leader        some member answers, and none knows a leader
//!   region is cut off           its leader has no stream from a validator
//!   region is stale             its newest checkpoint is late, and the realm's newest block is not
//!   alarm, fault of a member    the ring or the member says so
//!   member lags                 it is more than `LAG_ENTRIES_MAX` log entries behind the leader
//!   edge has a twin             two processes report with its identity
//!   version failed              the edge reports it
//!   edge is not believed        no report of it verifies, or none came (unless for want of room)
//!   edge is silent              its report is late, measured from its region's newest checkpoint
//! ```
//!
//! Late is an age above [`RealmView::late_after_ms`]: three heartbeats and the permitted clock drift. An
//! edge reports with each block that reaches it, so a realm or region that is late itself makes none of
//! its edges late.

use satrap_operator::text::{few, span};

use crate::view::{AlarmView, EdgeView, MemberView, RealmView, RegionView, ValidatorView};

/// Edges with one kind of fault that are listed; the others are counted.
const LISTED_MAX: usize = 5;
/// A member of a busy ring is a few hundred entries behind at times; beyond this it does not keep up.
const LAG_ENTRIES_MAX: u64 = 10_000;

/// One line for each fault, worst first.
pub fn attention(realm: &RealmView) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for e in &realm.evidence {
        lines.push(format!(
            "validator `{}` broke the protocol: {} at height {}; remove it with `satrap govern \
             set-validators`",
            e.validator, e.kind, e.height
        ));
    }
    for ValidatorView { name, error, signer_failure, .. } in &realm.validators {
        if let Some(error) = error {
            lines.push(format!(
                "validator `{name}` is unreachable: {error}; start it again, or mend what its log \
                 names"
            ));
        }
        if let Some(failure) = signer_failure {
            lines.push(format!(
                "validator `{name}` casts no votes: {failure}; mend its signer, it votes again as \
                 soon as that answers"
            ));
        }
    }
    lines.extend(undecided(realm));
    realm.regions.iter().for_each(|region| of_region(realm, region, &mut lines));
    of_edges(realm, &mut lines);
    lines
}

/// The age of the newest block that a validator told of.
fn newest_block(realm: &RealmView) -> Option<u64> {
    let told = realm.validators.iter().filter(|v| v.error.is_none() && v.height > 0);
    told.map(|v| v.age_ms).min()
}

fn undecided(realm: &RealmView) -> Option<String> {
    let age = newest_block(realm).filter(|age| *age > realm.late_after_ms)?;
    Some(format!(
        "the validators decided no block for {} (one is due at least every {}): see that validators \
         with more than two thirds of the power run, reach each other and have the right time",
        span(age),
        span(realm.late_after_ms)
    ))
}

fn of_region(realm: &RealmView, region: &RegionView, lines: &mut Vec<String>) {
    let name = &region.name;
    if region.members.iter().any(|member| member.error.is_none()) {
        if region.leader.is_empty() {
            lines.push(format!(
                "region `{name}` has no leader: start its members again, or see \
                 deploy/runbooks/forced-recovery.md if their disks are lost"
            ));
        } else if !region.upstream_connected {
            lines.push(format!(
                "the leader of region `{name}`, member `{}`, has no stream from a validator, so its \
                 edges get no news: see that it can connect to the validators of its configuration",
                region.leader
            ));
        } else if is_stale(realm, region) {
            lines.push(format!(
                "region `{name}` is connected to a validator, but its newest checkpoint is {} old: \
                 the log of its leader, member `{}`, says what it refuses",
                span(region.age_ms),
                region.leader
            ));
        }
    }
    lines.extend(region.alarms.iter().map(|alarm| of_alarm(name, alarm)));
    region.members.iter().for_each(|member| of_member(region, member, lines));
}

fn is_stale(realm: &RealmView, region: &RegionView) -> bool {
    let realm_is_late = newest_block(realm).is_none_or(|age| age > realm.late_after_ms);
    !realm_is_late && region.height > 0 && region.age_ms > realm.late_after_ms
}

fn of_alarm(region: &str, AlarmView { kind, member }: &AlarmView) -> String {
    match kind.as_str() {
        "NOSPACE" => format!(
            "region `{region}` takes no writes that grow it: member `{member}` raised NOSPACE; make \
             room (deploy/runbooks/disk-full.md)"
        ),
        "CORRUPT" => format!(
            "region `{region}` takes no writes: the state of member `{member}` is not the ring's \
             (CORRUPT); replace the member (deploy/runbooks/corrupt-member.md)"
        ),
        _ => format!(
            "region `{region}`: member `{member}` raised alarm {kind}, which this `satrap` does not \
             know; use the release of `satrap` that the member runs"
        ),
    }
}

fn of_member(region: &RegionView, member: &MemberView, lines: &mut Vec<String>) {
    let name = format!("member `{}/{}`", region.name, member.name);
    if member.outside {
        let state = if member.error.is_none() { "runs" } else { "is configured" };
        lines.push(format!(
            "{name} {state}, but the ring does not have it: if it was removed, stop it and take it \
             out of the configurations; if it is expected, start it with an empty data directory"
        ));
        return;
    }
    if let Some(error) = &member.error {
        lines.push(format!(
            "{name} is unreachable: {error}; start it again, or mend what its log names"
        ));
        return;
    }
    lines.extend(member.errors.iter().map(|error| format!("{name}: {error}")));
    if member.lag > LAG_ENTRIES_MAX {
        lines.push(format!(
            "{name} is {} log entries behind its leader: see whether its disk or network is slower \
             than those of the others",
            member.lag
        ));
    }
}

fn of_edges(realm: &RealmView, lines: &mut Vec<String>) {
    let mut list = |what: &str, of: &dyn Fn(&EdgeView) -> Option<String>| {
        let faulty: Vec<_> =
            realm.edges.iter().filter_map(|edge| Some((edge, of(edge)?))).collect();
        for (edge, line) in faulty.iter().take(LISTED_MAX) {
            lines.push(format!("edge `{}/{}` {line}", edge.region, edge.name));
        }
        if faulty.len() > LISTED_MAX {
            lines.push(format!("{} more edges {what}", faulty.len() - LISTED_MAX));
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
        let failed = few(&failed);
        (!failed.is_empty()).then(|| {
            format!(
                "failed to activate {failed}: its log says why; publish a version that it takes"
            )
        })
    });
    list("gave no report that can be believed", &|edge| {
        edge.error.as_ref().filter(|_| !edge.left_out).map(|error| {
            format!(
                "gave no report that can be believed: {error}; start its agent, or read its log"
            )
        })
    });
    list("are silent", &|edge| {
        let is_late = edge.error.is_none() && edge.report_age_ms > report_due(realm, edge);
        is_late.then(|| {
            format!(
                "is silent: its last report is {} old; start its agent, or see in its log why it \
                 reaches no member",
                span(edge.report_age_ms)
            )
        })
    });
}

/// The age that the report of a healthy edge does not reach.
fn report_due(realm: &RealmView, edge: &EdgeView) -> u64 {
    let answers = |region: &&RegionView| region.members.iter().any(|m| m.error.is_none());
    let region = realm.regions.iter().find(|region| region.name == edge.region);
    // An edge of a region that is away is served by another one.
    let newest = match region.filter(answers) {
        Some(region) if region.height > 0 => Some(region.age_ms),
        Some(_) => None,
        None => newest_block(realm),
    };
    newest.map_or(u64::MAX, |age| age.saturating_add(realm.late_after_ms))
}

#[cfg(test)]
mod tests;
