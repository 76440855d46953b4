//! What edges say they run: the newest signed report of each, and who is connected.
//!
//! Reports are samples, outside consensus: lost with the process, bounded, never acted upon here.
//! An edge reports for itself only (R1), and not ahead of time (R2). A region could still drop a report
//! or show an old one, so a client that decides on reports checks signature and time again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use satrap_certify::{
    Genesis, PublicKey, Rejection, Report, SignedReport, Timestamp, limits::REPORT_BYTES_MAX,
};
use satrap_host::pki::{PeerIdentity, Role};
use satrap_merkle::codec::Canonical as _;

use crate::limits::{REPORTS_MAX, STATUS_EDGES_MAX, STATUS_REPORT_BYTES_MAX};

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

/// Decodes a report and checks that `peer` made it, in this realm and by `now`.
///
/// # Errors
///
/// The [`Rejection`] blames the peer.
pub fn judge(
    bytes: &[u8],
    peer: &PeerIdentity,
    genesis: &Genesis,
    now: Timestamp,
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
    let (genesis_hash, latest) =
        (genesis.realm().genesis_hash(), now.plus(genesis.policy.clock_drift));
    let verified = report.verify(genesis_hash, &PublicKey(peer.public_key), latest)?;
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

    /// The newest reports, as many as fit one status reply: that of each edge first. An edge that is
    /// connected and has no place here is left out too.
    #[must_use]
    pub fn newest(&self) -> Fitting {
        let state = self.state();
        let mut fitting = fitting(state.newest.values().cloned());
        if state.newest.len() >= REPORTS_MAX {
            let has_no_place = |edge: &&EdgeKey| !state.newest.contains_key(edge);
            fitting.left_out += state.connected.keys().filter(has_no_place).count();
        }
        fitting
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

/// What fits one status reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// The reports, the newest of each edge first.
    pub reports: Vec<Kept>,
    /// How many edges are not among them for want of room.
    pub left_out: usize,
}

/// The reports that fit one status reply. The newest of each edge comes before any other, and a small
/// one before a large one: no edge can hide many others.
pub fn fitting(edges: impl Iterator<Item = Held>) -> Fitting {
    let (mut newest, others): (Vec<_>, Vec<_>) =
        edges.map(|held| (held.newest, held.other)).unzip();
    newest.sort_by_key(|kept: &Kept| kept.bytes.len());
    let mut left = STATUS_REPORT_BYTES_MAX;
    let mut fits = |kept: &Kept| match left.checked_sub(kept.bytes.len()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    let edges = newest.len();
    let mut reports: Vec<_> = newest.into_iter().filter(&mut fits).collect();
    let left_out = edges - reports.len();
    reports.extend(others.into_iter().flatten().filter(fits));
    Fitting { reports, left_out }
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
    use std::time::Duration;

    use ed25519_dalek::SigningKey;
    use satrap_certify::Label;

    use super::*;
    use crate::tests::realm::Realm;

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
        let sizes = |fitting: &Fitting| -> Vec<_> {
            fitting.reports.iter().map(|kept| kept.bytes.len()).collect()
        };
        let fitting = reports.newest();
        assert_eq!((sizes(&fitting), fitting.left_out), (vec![30, 60, large], 0));
        // 10 bytes are left, so the largest has to give way.
        assert!(reports.keep(("eu".into(), "d".into()), kept(1, 11)));
        let fitting = reports.newest();
        assert_eq!((sizes(&fitting), fitting.left_out), (vec![11, 30, 60], 1));
        // The other report of an edge comes after the newest of every edge, whatever its size.
        assert!(reports.keep(("eu".into(), "b".into()), kept(2, large - 1)));
        let fitting = reports.newest();
        assert_eq!((sizes(&fitting), fitting.left_out), (vec![11, 30, large - 1, 60], 1));
    }

    #[test]
    fn an_edge_without_a_place_is_counted_while_it_is_connected() {
        let reports = Reports::default();
        let edge = |n: usize| ("eu".to_owned(), format!("e{n}"));
        for n in 0..REPORTS_MAX {
            assert!(reports.keep(edge(n), kept(1, 1)));
        }
        let _known = reports.connect(edge(0));
        assert_eq!(reports.newest().left_out, 0);
        let late = reports.connect(edge(REPORTS_MAX));
        assert!(!reports.keep(edge(REPORTS_MAX), kept(1, 1)));
        assert!(reports.keep(edge(0), kept(2, 2)), "one that has a place keeps it");
        assert_eq!(reports.newest().left_out, 1);
        drop(late);
        assert_eq!(reports.newest().left_out, 0);
    }

    #[test]
    fn a_report_of_the_future_replaces_none_that_is_kept() {
        let (genesis, key) = (Realm::new().genesis, SigningKey::from_bytes(&[7; 32]));
        let peer = PeerIdentity {
            id: Arc::new("spiffe://c/region/eu/edge/web".parse().unwrap()),
            leaf_der: Arc::from([1, 2, 3]),
            public_key: PublicKey::of(&key).0,
        };
        let now = Timestamp(1_000_000_000_000);
        let latest = now.plus(genesis.policy.clock_drift);
        let judged = |time: Timestamp, started: Timestamp| {
            let report = Report {
                genesis_hash: *genesis.realm().genesis_hash(),
                region: Label::new("eu").unwrap(),
                edge: Label::new("web").unwrap(),
                time,
                started,
                height: 1,
                certified_time: now,
                running: Vec::new(),
                failed: Vec::new(),
                refusals: Vec::new(),
            };
            let bytes = report.sign(&key, vec![1, 2, 3]).to_canonical();
            let judged = judge(&bytes, &peer, &genesis, now);
            judged.map(|(_, kept)| kept.time).map_err(|why| why.to_string())
        };
        assert_eq!(judged(now, now), Ok(now));
        assert_eq!(judged(latest, latest), Ok(latest));
        for (time, started, expected) in [
            (latest.plus(Duration::from_nanos(1)), now, "check NTP"),
            (Timestamp::MAX, now, "check NTP"),
            (now, now.plus(Duration::from_nanos(1)), "check the clock of the edge"),
        ] {
            let refused = judged(time, started).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        let oversized = judge(&vec![0; REPORT_BYTES_MAX + 1], &peer, &genesis, now);
        assert!(matches!(oversized, Err(Rejection::Report(_))));
    }
}
