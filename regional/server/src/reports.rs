//! What edges say they run: the newest signed report of each, and who is connected.
//!
//! Reports are samples, outside consensus: lost with the process, bounded, never acted upon here.
//! An edge reports for itself only. A region could still drop a report or show an old one; whoever
//! decides on reports checks signature and time again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use satrap_certify::{Digest, PublicKey, Rejection, Report, SignedReport, Timestamp};
use satrap_host::pki::{PeerIdentity, Role};
use satrap_merkle::codec::Canonical as _;

use crate::limits::{REPORT_BYTES_MAX, REPORTS_MAX, STATUS_EDGES_MAX, STATUS_REPORT_BYTES_MAX};

/// Region and name of an edge.
pub type EdgeKey = (String, String);

/// A report as it is kept and sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// When the edge made it.
    pub time: Timestamp,
    /// When the process that made it started.
    pub started: Timestamp,
    /// Canonical `SignedReport`.
    pub bytes: Vec<u8>,
}

impl Kept {
    /// `bytes` are the canonical form of what holds `report`.
    #[must_use]
    pub fn of(report: &Report, bytes: &[u8]) -> Self {
        Self { time: report.time, started: report.started, bytes: bytes.to_vec() }
    }
}

/// The reports of one edge: the newest, and the newest of another process with the same identity,
/// which is its predecessor or a twin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    newest: Kept,
    other: Option<Kept>,
}

impl Held {
    /// The first report of an edge.
    #[must_use]
    pub fn new(report: Kept) -> Self {
        Self { newest: report, other: None }
    }

    /// Keeps a report if it is newer than that of its process.
    pub fn keep(&mut self, report: Kept) {
        let is_newer = |than: &Kept| than.time < report.time;
        if report.started == self.newest.started {
            if is_newer(&self.newest) {
                self.newest = report;
            }
        } else if is_newer(&self.newest) {
            self.other = Some(std::mem::replace(&mut self.newest, report));
        } else if self.other.as_ref().is_none_or(is_newer) {
            self.other = Some(report);
        }
    }
}

/// The edges known to this member. Clones share them.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    newest: BTreeMap<EdgeKey, Held>,
    connected: BTreeMap<EdgeKey, u32>,
}

/// An open stream of one edge; dropping it ends its being connected.
pub struct Connected {
    reports: Reports,
    edge: EdgeKey,
}

/// Region and name of `peer`, if it is an edge.
#[must_use]
pub fn edge_key(peer: &PeerIdentity) -> Option<EdgeKey> {
    match peer.id.role() {
        Role::Edge { region, name } => Some((region.clone(), name.clone())),
        _ => None,
    }
}

/// Decodes a report and checks that `peer` made it, in this realm.
///
/// # Errors
///
/// The [`Rejection`] blames the peer.
pub fn judge(
    bytes: &[u8],
    peer: &PeerIdentity,
    genesis_hash: &Digest,
) -> Result<(EdgeKey, Kept), Rejection> {
    let Some(edge) = edge_key(peer) else {
        return Err(Rejection::Report("only edges report"));
    };
    if bytes.len() > REPORT_BYTES_MAX {
        return Err(Rejection::Report("it is larger than a report may be"));
    }
    let report = SignedReport::from_canonical(bytes)?;
    if report.certificate[..] != peer.leaf_der[..] {
        return Err(Rejection::Report("it does not carry the certificate of this connection"));
    }
    let verified = report.verify(genesis_hash, &PublicKey(peer.public_key))?;
    if (verified.region.as_str(), verified.edge.as_str()) != (&*edge.0, &*edge.1) {
        return Err(Rejection::Report("it speaks for another edge than its certificate"));
    }
    Ok((edge, Kept::of(verified, bytes)))
}

impl Reports {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a report unless a newer one of this edge is held. `false` if there is no room.
    pub fn keep(&self, edge: EdgeKey, report: Kept) -> bool {
        let mut state = self.state();
        if state.newest.len() >= REPORTS_MAX && !state.newest.contains_key(&edge) {
            return false;
        }
        merge(&mut state.newest, edge, report);
        true
    }

    /// Marks an edge as connected for as long as the guard lives.
    #[must_use]
    pub fn connect(&self, edge: EdgeKey) -> Connected {
        *self.state().connected.entry(edge.clone()).or_default() += 1;
        Connected { reports: self.clone(), edge }
    }

    /// The newest reports, as many as fit one status reply: that of each edge first.
    #[must_use]
    pub fn newest(&self) -> Vec<Kept> {
        fitting(self.state().newest.values().cloned())
    }

    /// Names of connected edges, as many as fit one status reply; edges of other regions with
    /// their region.
    #[must_use]
    pub fn connected(&self, own_region: &str) -> Vec<String> {
        let state = self.state();
        let names = state.connected.keys().take(STATUS_EDGES_MAX);
        let name = |(region, name): &EdgeKey| {
            if region == own_region { name.clone() } else { format!("{region}/{name}") }
        };
        names.map(name).collect()
    }
}

/// The reports that fit one status reply. The newest of each edge comes before any other, and one that
/// does not fit keeps no smaller one out: an edge must not hide the others.
pub fn fitting(edges: impl Iterator<Item = Held>) -> Vec<Kept> {
    let (newest, others): (Vec<_>, Vec<_>) = edges.map(|held| (held.newest, held.other)).unzip();
    let mut left = STATUS_REPORT_BYTES_MAX;
    let fits = |kept: &Kept| match left.checked_sub(kept.bytes.len()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    newest.into_iter().chain(others.into_iter().flatten()).filter(fits).collect()
}

/// Keeps the newest reports of each edge.
pub fn merge(newest: &mut BTreeMap<EdgeKey, Held>, edge: EdgeKey, report: Kept) {
    match newest.entry(edge) {
        Entry::Vacant(vacant) => drop(vacant.insert(Held::new(report))),
        Entry::Occupied(mut held) => held.get_mut().keep(report),
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.reports.state();
        let streams = state.connected.get_mut(&self.edge).expect("entered by `connect`");
        *streams -= 1;
        if *streams == 0 {
            state.connected.remove(&self.edge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(started: u64, bytes: usize) -> Kept {
        Kept { time: Timestamp(started), started: Timestamp(started), bytes: vec![0; bytes] }
    }

    #[test]
    fn the_reports_of_one_edge_leave_room_for_those_of_others() {
        let reports = Reports::default();
        let large = STATUS_REPORT_BYTES_MAX - 100;
        for (edge, started, bytes) in [("a", 1, large), ("a", 2, large), ("b", 1, 60), ("c", 1, 30)]
        {
            assert!(reports.keep(("eu".into(), edge.into()), kept(started, bytes)));
        }
        let sizes: Vec<_> = reports.newest().iter().map(|kept| kept.bytes.len()).collect();
        assert_eq!(sizes, [large, 60, 30]);
    }
}
