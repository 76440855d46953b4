//! What a member counts for its operators, as Prometheus reads it.
//!
//! Where a figure means what one of etcd's means, it has etcd's name, so that dashboards and alerts
//! which know etcd know the ring. Whoever counts does so with one atomic
//! addition, and texts are only made when somebody asks.
//!
//! # Deliberately absent
//!
//! Figures of requests and watches: the services count those.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use satrap_host::meters::{Counter, Histogram, Text, doubling};

use super::{Ring, platform::Platform, types::MemberName};

/// The counters of one member. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Meters(Arc<Counters>);

impl std::ops::Deref for Meters {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.0
    }
}

/// What is counted where it happens.
#[derive(Debug)]
pub struct Counters {
    /// How long the log took to write and sync a group.
    pub log_sync: Histogram,
    /// How long the state took to write and sync a checkpoint.
    pub checkpoint: Histogram,
    /// How long snapshots took to be sent, that were taken.
    pub snapshot_send: Histogram,
    /// Snapshots that were not taken by whom they were sent to.
    pub snapshot_send_failures: Counter,
    /// Snapshots that took the place of this member's state.
    pub snapshots_installed: Counter,
    /// Snapshots that came and were not what they should be.
    pub snapshot_receive_failures: Counter,
    /// Clients' proposals that were given up.
    pub proposals_failed: Counter,
    /// Batches that took longer than [`SLOW_APPLY`].
    pub slow_applies: Counter,
    /// Reads for which nobody could say how far they must see.
    pub read_indexes_failed: Counter,
    /// Rounds of reads that took longer than [`SLOW_READ_INDEX`].
    pub slow_read_indexes: Counter,
    /// Other members that this one has seen lead, and itself.
    pub leader_changes: Counter,
    /// What goes on between this member and others.
    peers: Mutex<BTreeMap<MemberName, Arc<PeerMeter>>>,
}

/// What goes on between this member and another one.
#[derive(Debug)]
pub struct PeerMeter {
    /// Bytes of messages to it.
    pub sent: Counter,
    /// Bytes of messages from it.
    pub received: Counter,
    /// Messages that it did not answer.
    pub send_failures: Counter,
    /// How long it took to answer heartbeats.
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
    /// What goes on between this member and `peer`, which is one of this ring.
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

    fn peers(&self) -> BTreeMap<MemberName, Arc<PeerMeter>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// etcd's bounds for disks: a millisecond, and each the double of the one before.
static DISK: [Duration; 14] = doubling(Duration::from_millis(1));
/// etcd's bounds between members.
static ROUND_TRIP: [Duration; 16] = doubling(Duration::from_micros(100));

/// As etcd's `--warning-apply-duration`.
pub const SLOW_APPLY: Duration = Duration::from_millis(100);
/// Of a round to a quorum; as etcd's.
pub const SLOW_READ_INDEX: Duration = Duration::from_millis(500);

/// All that was counted.
fn write(text: &mut Text, meters: &Meters) {
    text.histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        "How long the log took to write and sync a group.",
        &meters.log_sync,
    );
    text.histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "How long the state took to write and sync a checkpoint.",
        &meters.checkpoint,
    );
    text.histogram(
        "etcd_network_snapshot_send_total_duration_seconds",
        "How long snapshots took to be sent.",
        &meters.snapshot_send,
    );
    let counters: [(&str, &str, &Counter); 8] = [
        (
            "etcd_server_proposals_failed_total",
            "Clients' proposals that were given up.",
            &meters.proposals_failed,
        ),
        (
            "etcd_server_leader_changes_seen_total",
            "How often another member began to lead.",
            &meters.leader_changes,
        ),
        (
            "etcd_server_slow_apply_total",
            "Batches that took longer than 100 ms.",
            &meters.slow_applies,
        ),
        (
            "etcd_server_slow_read_indexes_total",
            "Rounds of reads that took longer than 500 ms.",
            &meters.slow_read_indexes,
        ),
        (
            "etcd_server_read_indexes_failed_total",
            "Rounds of reads that no leader answered.",
            &meters.read_indexes_failed,
        ),
        (
            "satrap_ring_snapshot_send_failures_total",
            "Snapshots that were sent and not taken.",
            &meters.snapshot_send_failures,
        ),
        (
            "satrap_ring_snapshots_installed_total",
            "Snapshots that took the place of this member's state.",
            &meters.snapshots_installed,
        ),
        (
            "satrap_ring_snapshot_receive_failures_total",
            "Snapshots that came and were not what they should be.",
            &meters.snapshot_receive_failures,
        ),
    ];
    for (name, help, counter) in counters {
        text.counter(name, help, counter.get());
    }
    write_peers(text, &meters.peers());
}

/// What goes on between members, by etcd's names and labels; a label names a member.
fn write_peers(text: &mut Text, peers: &BTreeMap<MemberName, Arc<PeerMeter>>) {
    type Of = fn(&PeerMeter) -> &Counter;
    let counters: [(&str, &str, &str, Of); 3] = [
        (
            "etcd_network_peer_sent_bytes_total",
            "Bytes of messages to another member.",
            "To",
            |peer| &peer.sent,
        ),
        (
            "etcd_network_peer_received_bytes_total",
            "Bytes of messages from another member.",
            "From",
            |peer| &peer.received,
        ),
        (
            "etcd_network_peer_sent_failures_total",
            "Messages that another member did not answer.",
            "To",
            |peer| &peer.send_failures,
        ),
    ];
    for (name, help, label, counter) in counters {
        text.head(name, "counter", help);
        for (member, peer) in peers {
            text.figure(name, &[(label, member.as_str())], counter(peer).get());
        }
    }
    let name = "etcd_network_peer_round_trip_time_seconds";
    text.head(name, "histogram", "How long other members took to answer this leader's heartbeats.");
    for (member, peer) in peers {
        text.times(name, &[("To", member.as_str())], &peer.round_trip);
    }
}

/// How far others are behind; only a leader knows.
fn write_lag(text: &mut Text, lag: &BTreeMap<MemberName, u64>) {
    let name = "satrap_ring_lag_entries";
    text.head(name, "gauge", "Entries that another member lacks, as its leader sees it.");
    for (member, entries) in lag {
        text.figure(name, &[("member", member.as_str())], entries);
    }
}

impl<P: Platform> Ring<P> {
    /// The metrics of this member in the text format of Prometheus.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = Text::default();
        write(&mut text, &self.shared.meters);
        let status = self.status();
        let quota = self.read(|keyspace| keyspace.quotas().total_bytes_max());
        let committed = "Index of the last entry that is known to be committed.";
        text.counter("etcd_server_proposals_committed_total", committed, status.committed_index);
        let gauges: [(&str, &str, u64); 6] = [
            (
                "etcd_server_proposals_pending",
                "Clients' proposals without an answer.",
                self.waiters.pending() as u64,
            ),
            ("etcd_server_quota_backend_bytes", "How much the keyspace may hold.", quota),
            ("satrap_ring_term", "The present term.", status.term),
            ("satrap_ring_log_index", "Last entry of the log.", status.log_index),
            ("satrap_ring_log_purged_index", "Last entry that is purged.", status.purged_index),
            (
                "satrap_ring_checkpoint_index",
                "Last entry that a snapshot from here covers.",
                status.snapshot_index,
            ),
        ];
        for (name, help, value) in gauges {
            text.gauge(name, help, value);
        }
        write_lag(&mut text, &status.lag);
        text.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together() {
        let meters = Meters::default();
        meters.clone().proposals_failed.add(2);
        meters.proposals_failed.add_one();
        let mut text = Text::default();
        write(&mut text, &meters);
        let text = text.finish();
        assert!(text.contains("\netcd_server_proposals_failed_total 3\n"), "{text}");
    }
}
