//! The counters and histograms of a ring member, exported by [`super::metrics`].
//!
//! A figure that means the same as one of etcd's has etcd's name, so that dashboards and alerts for
//! etcd work for the ring. Counting is one atomic addition; the text is produced when it is
//! scraped.
//!
//! # Deliberately absent
//!
//! Figures of requests and watches: the services count them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use satrap_runtime::meters::{Counter, Histogram, doubling};

use super::types::MemberName;

/// The counters of one member. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Meters(Arc<Counters>);

impl std::ops::Deref for Meters {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.0
    }
}

/// The counters.
#[derive(Debug)]
pub struct Counters {
    /// Latency of writing and syncing a group of log records.
    pub log_sync: Histogram,
    /// Latency of writing and syncing a checkpoint.
    pub checkpoint: Histogram,
    /// Latency of sending a snapshot that was installed.
    pub snapshot_send: Histogram,
    /// Snapshots that the receiver rejected or that did not arrive.
    pub snapshot_send_failures: Counter,
    /// Snapshots that replaced this member's state.
    pub snapshots_installed: Counter,
    /// Snapshots that this member rejected.
    pub snapshot_receive_failures: Counter,
    /// Clients' proposals that failed.
    pub proposals_failed: Counter,
    /// Batches slower to apply than [`SLOW_APPLY`].
    pub slow_applies: Counter,
    /// Failed ReadIndex requests.
    pub read_indexes_failed: Counter,
    /// ReadIndex requests slower than [`SLOW_READ_INDEX`].
    pub slow_read_indexes: Counter,
    /// Changes of leader that this member has seen.
    pub leader_changes: Counter,
    /// Traffic with each other member.
    peers: Mutex<BTreeMap<MemberName, Arc<PeerMeter>>>,
}

/// Traffic with one other member.
#[derive(Debug)]
pub struct PeerMeter {
    /// Bytes of messages to it.
    pub sent: Counter,
    /// Bytes of messages from it.
    pub received: Counter,
    /// Messages that the other member did not answer.
    pub send_failures: Counter,
    /// Round-trip time of heartbeats.
    pub round_trip: Histogram,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            log_sync: Histogram::new(&DISK),
            checkpoint: Histogram::new(&DISK),
            snapshot_send: Histogram::new(&DISK),
            snapshot_send_failures: Counter::default(),
            snapshots_installed: Counter::default(),
            snapshot_receive_failures: Counter::default(),
            proposals_failed: Counter::default(),
            slow_applies: Counter::default(),
            read_indexes_failed: Counter::default(),
            slow_read_indexes: Counter::default(),
            leader_changes: Counter::default(),
            peers: Mutex::default(),
        }
    }
}

impl Counters {
    /// The counters of the traffic with `peer`, a member of this ring.
    #[must_use]
    pub fn peer(&self, peer: &MemberName) -> Arc<PeerMeter> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || PeerMeter {
            sent: Counter::default(),
            received: Counter::default(),
            send_failures: Counter::default(),
            round_trip: Histogram::new(&ROUND_TRIP),
        };
        peers.entry(peer.clone()).or_insert_with(|| Arc::new(fresh())).clone()
    }

    /// The counters of the traffic with each other member.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<MemberName, Arc<PeerMeter>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// etcd's bounds for disk latencies: a millisecond, doubling.
static DISK: [Duration; 14] = doubling(Duration::from_millis(1));
/// etcd's bounds for round trips between members.
static ROUND_TRIP: [Duration; 16] = doubling(Duration::from_micros(100));

/// The threshold of etcd's `--warning-apply-duration`.
pub const SLOW_APPLY: Duration = Duration::from_millis(100);
/// The threshold of a slow ReadIndex, as in etcd.
pub const SLOW_READ_INDEX: Duration = Duration::from_millis(500);
