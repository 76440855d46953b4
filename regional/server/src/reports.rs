//! What edges say they run: the newest signed report of each, and who is connected.
//!
//! Reports are samples, outside consensus: lost with the process, bounded, never acted upon here.
//! An edge reports for itself only. A region could still drop a report or show an old one; whoever
//! decides on reports checks signature and time again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use satrap_certify::{Digest, PublicKey, Rejection, SignedReport, Timestamp};
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
    /// Canonical `SignedReport`.
    pub bytes: Vec<u8>,
}

/// The edges known to this member. Clones share them.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    newest: BTreeMap<EdgeKey, Kept>,
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
    let report = SignedReport::from_canonical(bytes)?;
    if report.certificate[..] != peer.leaf_der[..] {
        return Err(Rejection::Report("it does not carry the certificate of this connection"));
    }
    let verified = report.verify(genesis_hash, &PublicKey(peer.public_key))?;
    if (verified.region.as_str(), verified.edge.as_str()) != (&*edge.0, &*edge.1) {
        return Err(Rejection::Report("it speaks for another edge than its certificate"));
    }
    Ok((edge, Kept { time: verified.time, bytes: bytes.to_vec() }))
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

    /// The newest reports, as many as fit one status reply.
    #[must_use]
    pub fn newest(&self) -> BTreeMap<EdgeKey, Kept> {
        let state = self.state();
        let mut bytes = 0;
        let fits = |(_, kept): &(&EdgeKey, &Kept)| {
            bytes += kept.bytes.len();
            bytes <= STATUS_REPORT_BYTES_MAX
        };
        let newest = state.newest.iter().take_while(fits);
        newest.map(|(edge, kept)| (edge.clone(), kept.clone())).collect()
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

/// Keeps the newer of two reports of one edge.
pub fn merge(newest: &mut BTreeMap<EdgeKey, Kept>, edge: EdgeKey, report: Kept) {
    let held = newest.entry(edge).or_insert_with(|| report.clone());
    if held.time < report.time {
        *held = report;
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
