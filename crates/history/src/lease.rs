//! Leases: never early, never revived, and ended in the end.
//!
//! All in the clients' time: a renewal counts from its call, because the store may have renewed at
//! once and answered late; an end counts from when a client could first know of it. So a violation
//! is one under any delay of the network.

use std::collections::BTreeMap;

use crate::{
    Body, Failure, Nanos, Operation, Outcome, Recording, Request, Revision, Rule, Violation,
    replay::Explained,
};

/// The limits of the lease checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseLimits {
    /// How long behind its time to live a lease may still be there, while a quorum is up.
    pub late_ns_max: Nanos,
    /// From when on a quorum was up to the end of the recording.
    pub quorum_since_ns: Nanos,
}

/// All that is known of one lease.
#[derive(Default)]
struct Lease<'a> {
    /// Operations whose answer shows that it lived, with the time to live from there, if renewed.
    alive: Vec<(&'a Operation, Option<Nanos>)>,
    /// When a client first knew that it was gone, and how.
    gone: Option<(Nanos, String)>,
    /// When the first revocation was sent.
    revoked_ns: Option<Nanos>,
    /// Whether it is known to have been granted. A grant of unknown outcome may still happen after
    /// the lease was found missing, so such a lease proves nothing.
    granted: bool,
    /// From when on a renewal of unknown outcome may prolong it.
    unsure_ns: Option<Nanos>,
}

impl Lease<'_> {
    fn is_gone(&mut self, at: Nanos, how: impl FnOnce() -> String) {
        if self.gone.as_ref().is_none_or(|(first, _)| at < *first) {
            self.gone = Some((at, how()));
        }
    }
}

const SECOND_NS: i64 = 1_000_000_000;

/// Checks the leases of a recording.
#[must_use]
pub fn check(recording: &Recording, explained: &Explained, limits: &LeaseLimits) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, lease) in collect(recording, explained) {
        judge(id, &lease, limits, &mut found);
    }
    found
}

fn judge(id: i64, lease: &Lease<'_>, limits: &LeaseLimits, found: &mut Vec<Violation>) {
    if !lease.granted {
        return;
    }
    if let Some((gone, how)) = &lease.gone {
        for (operation, ttl) in &lease.alive {
            if operation.call_ns > *gone {
                let what = format!("lease {id:x} was gone: {how}; then {operation}");
                found.push(Violation::new(Rule::LeaseRevived, what));
                continue;
            }
            let until = ttl.map(|ttl| operation.call_ns + ttl);
            // A revocation ends a lease at any time, from its call on.
            let revoked = lease.revoked_ns.is_some_and(|at| at < *gone);
            if until.is_some_and(|until| *gone < until) && !revoked {
                let what = format!("lease {id:x} was gone by {gone} ns: {how}; but {operation}");
                found.push(Violation::new(Rule::LeaseEarly, what));
            }
        }
    }
    // From one sign of life to the next: only what came before a sign may explain it.
    let mut signs: Vec<_> = lease.alive.iter().collect();
    signs.sort_by_key(|(operation, _)| operation.call_ns);
    let mut until: Option<Nanos> = None;
    for (operation, ttl) in signs {
        let unsure = lease.unsure_ns.is_some_and(|at| at < operation.call_ns);
        let late = until.filter(|until| operation.call_ns > until + limits.late_ns_max);
        if let (Some(until), false) = (late, unsure) {
            let what = format!("lease {id:x} should be gone by {until} ns, but {operation}");
            found.push(Violation::new(Rule::LeaseLate, what));
            return;
        }
        if let (Some(ttl), Some(end)) = (ttl, operation.return_ns) {
            until = until.max(Some(end.max(limits.quorum_since_ns) + ttl));
        }
    }
}

fn collect<'a>(recording: &'a Recording, explained: &Explained) -> BTreeMap<i64, Lease<'a>> {
    let mut leases: BTreeMap<i64, Lease<'a>> = BTreeMap::new();
    for operation in &recording.operations {
        observe(operation, &mut leases);
    }
    // The deletion of a lease's keys is known to each client that knows its revision.
    let mut seen: Vec<(Revision, Nanos)> = recording
        .watches
        .iter()
        .flat_map(|watch| watch.revisions())
        .map(|(at, revision)| (revision, at))
        .collect();
    seen.extend(
        recording
            .operations
            .iter()
            .filter_map(|operation| Some((operation.answer()?.revision, operation.return_ns?))),
    );
    seen.sort_unstable();
    let mut first = Nanos::MAX;
    let known: Vec<(Revision, Nanos)> = seen
        .into_iter()
        .rev()
        .map(|(revision, at)| {
            first = first.min(at);
            (revision, first)
        })
        .collect();
    for (revision, id) in &explained.ended {
        let behind = known.partition_point(|(r, _)| r >= revision);
        if let Some((_, at)) = behind.checked_sub(1).and_then(|i| known.get(i)) {
            let lease = leases.entry(*id).or_default();
            lease.is_gone(*at, || format!("revision {revision} deleted its keys"));
        }
    }
    leases
}

/// The facts that one operation proves about leases.
fn observe<'a>(operation: &'a Operation, leases: &mut BTreeMap<i64, Lease<'a>>) {
    let end = operation.return_ns;
    match (&operation.request, &operation.outcome) {
        (Request::Revoke(id), outcome) => {
            let lease = leases.entry(*id).or_default();
            match outcome {
                Outcome::Fail(_) => {}
                Outcome::Ok(_) | Outcome::Unknown => {
                    let first =
                        lease.revoked_ns.map_or(operation.call_ns, |at| at.min(operation.call_ns));
                    lease.revoked_ns = Some(first);
                }
            }
            let is_gone = matches!(outcome, Outcome::Ok(_) | Outcome::Fail(Failure::NoLease));
            if let (true, Some(at)) = (is_gone, end) {
                lease.is_gone(at, || operation.to_string());
            }
        }
        (request @ (Request::Grant { lease, .. } | Request::Renew(lease)), Outcome::Ok(answer)) => {
            let Body::Ttl(ttl) = answer.body else { return };
            let lease = leases.entry(*lease).or_default();
            lease.granted |= matches!(request, Request::Grant { .. });
            match (ttl > 0, end) {
                (true, _) => {
                    let ttl = Nanos::try_from(ttl.saturating_mul(SECOND_NS)).unwrap_or(0);
                    lease.alive.push((operation, Some(ttl)));
                }
                (false, Some(at)) => lease.is_gone(at, || operation.to_string()),
                (false, None) => {}
            }
        }
        (Request::Renew(lease), Outcome::Unknown) => {
            let lease = leases.entry(*lease).or_default();
            lease.unsure_ns = Some(lease.unsure_ns.unwrap_or(Nanos::MAX).min(operation.call_ns));
        }
        (Request::Inspect(lease), Outcome::Ok(answer)) => {
            let lease = leases.entry(*lease).or_default();
            match (&answer.body, end) {
                (Body::Ttl(ttl), Some(at)) if *ttl < 0 => {
                    lease.is_gone(at, || operation.to_string())
                }
                // Expired, and its end is on its way.
                (Body::Ttl(0), _) => {}
                _ => lease.alive.push((operation, None)),
            }
        }
        (Request::Put(put), outcome) if put.lease != 0 => {
            let lease = leases.entry(put.lease).or_default();
            match (outcome, end) {
                (Outcome::Ok(_), _) => lease.alive.push((operation, None)),
                (Outcome::Fail(Failure::NoLease), Some(at)) => {
                    lease.is_gone(at, || operation.to_string());
                }
                _ => {}
            }
        }
        _ => {}
    }
}
