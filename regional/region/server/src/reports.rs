//! Stores the newest signed report of each edge, and which edges are connected, for the status that
//! operators read.
//!
//! Reports are not replicated: they are lost when the process ends, their number is bounded for each
//! region, and this member never acts on them. Where there is no room, the report of an edge that is
//! not connected gives way. An edge reports for itself only (R1), and not ahead of time (R2). A
//! compromised member could still drop a report or send an old one, so a client that decides on
//! reports verifies their signature and time again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use satrap_certify::{
    Genesis, PublicKey, Rejection, Report, SignedReport, Timestamp, limits::REPORT_BYTES_MAX,
};
use satrap_identity::pki::{PeerIdentity, Role};
use satrap_merkle::codec::Canonical as _;

use crate::limits::{FOREIGN_REPORTS_MAX, REPORTS_MAX, STATUS_EDGES_MAX, STATUS_REPORT_BYTES_MAX};

/// Region and name of an edge.
pub type EdgeKey = (String, String);

/// A verified report as this member stores it and sends it to operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReport {
    /// When the edge made it.
    pub time: Timestamp,
    /// When the process that made it started.
    pub started: Timestamp,
    /// Canonical `SignedReport`.
    pub bytes: Vec<u8>,
}

impl StoredReport {
    /// `bytes` are the canonical `SignedReport` that contains `report`.
    #[must_use]
    pub fn of(report: &Report, bytes: &[u8]) -> Self {
        Self { time: report.time, started: report.started, bytes: bytes.to_vec() }
    }
}

/// The reports of one edge: the newest, and the newest of another process with the same identity,
/// which is its predecessor or a twin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeReports {
    newest: StoredReport,
    other: Option<StoredReport>,
}

impl EdgeReports {
    /// The first report of an edge.
    #[must_use]
    pub fn new(report: StoredReport) -> Self {
        Self { newest: report, other: None }
    }

    /// Keeps a report if it is newer than the stored one of the same process.
    pub fn keep(&mut self, report: StoredReport) {
        let is_newer = |than: &StoredReport| than.time < report.time;
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
#[derive(Clone)]
pub struct Reports {
    own_region: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    newest: BTreeMap<EdgeKey, EdgeReports>,
    /// The number of edges of each region in `newest`.
    edges: BTreeMap<String, usize>,
    connected: BTreeMap<EdgeKey, u32>,
}

impl State {
    fn edges_of(&self, region: &str) -> usize {
        self.edges.get(region).copied().unwrap_or_default()
    }

    /// Drops the oldest report of an edge of `region` that is not connected, if there is one.
    fn make_room(&mut self, region: &str) -> bool {
        let from = (region.to_owned(), String::new());
        let edges = self.newest.range(from..).take_while(|((of, _), _)| of == region);
        let gone = edges.filter(|(edge, _)| !self.connected.contains_key(*edge));
        let oldest = gone.min_by_key(|(_, reports)| reports.newest.time);
        let Some(oldest) = oldest.map(|(edge, _)| edge.clone()) else { return false };
        self.newest.remove(&oldest);
        *self.edges.get_mut(region).expect("counted when it was stored") -= 1;
        true
    }
}

/// An open stream of one edge. The edge counts as connected until all its streams are dropped.
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
) -> Result<(EdgeKey, StoredReport), Rejection> {
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
    Ok((edge, StoredReport::of(verified, bytes)))
}

impl Reports {
    /// No reports yet, at a member of `own_region`.
    #[must_use]
    pub fn new(own_region: &str) -> Self {
        Self { own_region: own_region.into(), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of edges of `region` whose reports are stored. The CA of another region can mint
    /// names, and they take no room of this region's edges.
    fn room(&self, region: &str) -> usize {
        if *region == *self.own_region { REPORTS_MAX } else { FOREIGN_REPORTS_MAX }
    }

    /// Stores a report unless a newer one of the same process is stored. Returns `false` if the edge
    /// is new, and as many connected edges of its region are stored as there is room for.
    pub fn keep(&self, edge: EdgeKey, report: StoredReport) -> bool {
        let (mut state, room) = (self.state(), self.room(&edge.0));
        if !state.newest.contains_key(&edge) {
            if state.edges_of(&edge.0) >= room && !state.make_room(&edge.0) {
                return false;
            }
            *state.edges.entry(edge.0.clone()).or_default() += 1;
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

    /// The newest reports, as many as fit one status reply. A connected edge whose reports are not
    /// stored, because its region has no room for more, counts as left out.
    #[must_use]
    pub fn newest(&self) -> Selected {
        let state = self.state();
        let mut selected = select_for_reply(state.newest.values().cloned());
        let is_left_out = |edge: &&EdgeKey| {
            !state.newest.contains_key(*edge) && state.edges_of(&edge.0) >= self.room(&edge.0)
        };
        selected.left_out += state.connected.keys().filter(is_left_out).count();
        selected
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

/// The reports selected for one status reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// The reports, the newest of each edge first.
    pub reports: Vec<StoredReport>,
    /// The number of edges whose newest report is not among them, for lack of space.
    pub left_out: usize,
}

/// Selects reports for one status reply, up to [`STATUS_REPORT_BYTES_MAX`]. The newest of each edge
/// comes first, smaller ones before larger ones, so that no edge displaces many others. The second
/// report of an edge follows if there is space.
pub fn select_for_reply(edges: impl Iterator<Item = EdgeReports>) -> Selected {
    let (mut newest, others): (Vec<_>, Vec<_>) =
        edges.map(|edge| (edge.newest, edge.other)).unzip();
    newest.sort_by_key(|report: &StoredReport| report.bytes.len());
    let mut left = STATUS_REPORT_BYTES_MAX;
    let mut fits = |report: &StoredReport| match left.checked_sub(report.bytes.len()) {
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
    Selected { reports, left_out }
}

/// Adds `report` to the reports of `edge`, of which the newest are kept.
pub fn merge(newest: &mut BTreeMap<EdgeKey, EdgeReports>, edge: EdgeKey, report: StoredReport) {
    match newest.entry(edge) {
        Entry::Vacant(vacant) => drop(vacant.insert(EdgeReports::new(report))),
        Entry::Occupied(mut stored) => stored.get_mut().keep(report),
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

    fn stored(started: u64, bytes: usize) -> StoredReport {
        StoredReport {
            time: Timestamp(started),
            started: Timestamp(started),
            bytes: vec![0; bytes],
        }
    }

    #[test]
    fn reports_of_one_edge_leave_space_for_those_of_others() {
        let reports = Reports::new("eu");
        let large = STATUS_REPORT_BYTES_MAX - 100;
        for (edge, started, bytes) in [("a", 1, large), ("a", 2, large), ("b", 1, 60), ("c", 1, 30)]
        {
            assert!(reports.keep(("eu".into(), edge.into()), stored(started, bytes)));
        }
        let sizes = |selected: &Selected| -> Vec<_> {
            selected.reports.iter().map(|report| report.bytes.len()).collect()
        };
        let selected = reports.newest();
        assert_eq!((sizes(&selected), selected.left_out), (vec![30, 60, large], 0));
        // 10 bytes are left, so the largest is left out.
        assert!(reports.keep(("eu".into(), "d".into()), stored(1, 11)));
        let selected = reports.newest();
        assert_eq!((sizes(&selected), selected.left_out), (vec![11, 30, 60], 1));
        // The other report of an edge comes after the newest of every edge, whatever its size.
        assert!(reports.keep(("eu".into(), "b".into()), stored(2, large - 1)));
        let selected = reports.newest();
        assert_eq!((sizes(&selected), selected.left_out), (vec![11, 30, large - 1, 60], 1));
    }

    #[test]
    fn an_edge_whose_report_is_not_stored_counts_as_left_out_while_it_is_connected() {
        let reports = Reports::new("eu");
        let edge = |n: usize| ("eu".to_owned(), format!("e{n}"));
        let mut connected = Vec::new();
        for n in 0..REPORTS_MAX {
            connected.push(reports.connect(edge(n)));
            assert!(reports.keep(edge(n), stored(1, 1)));
        }
        assert_eq!(reports.newest().left_out, 0);
        let late = reports.connect(edge(REPORTS_MAX));
        assert!(!reports.keep(edge(REPORTS_MAX), stored(1, 1)));
        assert!(reports.keep(edge(0), stored(2, 2)), "a known edge may replace its report");
        assert_eq!(reports.newest().left_out, 1);
        // One that is gone gives way.
        drop(connected.swap_remove(7));
        assert!(reports.keep(edge(REPORTS_MAX), stored(1, 1)));
        assert!(!reports.keep(edge(7), stored(2, 1)), "and has no room itself until it is back");
        assert_eq!(reports.newest().left_out, 0);
        drop(late);
    }

    /// The CA of another region minted names until no edge of this one had room for its report.
    #[test]
    fn names_of_another_region_take_no_room_of_this_one() {
        let reports = Reports::new("eu");
        let kept = |region: &str, n: usize| {
            reports.keep((region.to_owned(), format!("e{n}")), stored(n as u64, 1))
        };
        for n in 0..REPORTS_MAX {
            assert!(kept("evil", n), "the oldest of its own gives way");
        }
        assert!(kept("us", 0) && kept("eu", 0), "there is room for others");
        assert_eq!(reports.newest().reports.len(), FOREIGN_REPORTS_MAX + 2);
        let newest: BTreeMap<EdgeKey, EdgeReports> = reports.state().newest.clone();
        assert!(newest.contains_key(&("evil".into(), format!("e{}", REPORTS_MAX - 1))));
        assert!(!newest.contains_key(&("evil".into(), "e0".into())));
    }

    #[test]
    fn a_report_of_the_future_is_refused() {
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
            judged.map(|(_, report)| report.time).map_err(|why| why.to_string())
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
