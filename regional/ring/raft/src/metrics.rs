//! The metrics of a member, in the text format of Prometheus.

use std::{collections::BTreeMap, sync::Arc};

use satrap_runtime::meters::{Counter, Text};

use super::{
    meters::{Meters, PeerMeter},
    platform::Platform,
    ring::Ring,
    types::MemberName,
};

/// Writes all counters.
fn write(text: &mut Text, meters: &Meters) {
    text.histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        "Latency of writing and syncing a group of log records.",
        &meters.log_sync,
    );
    text.histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "Latency of writing and syncing a checkpoint of the state.",
        &meters.checkpoint,
    );
    text.histogram(
        "etcd_network_snapshot_send_total_duration_seconds",
        "Latency of sending a snapshot to another member.",
        &meters.snapshot_send,
    );
    let counters: [(&str, &str, &Counter); 8] = [
        (
            "etcd_server_proposals_failed_total",
            "Failed proposals of clients.",
            &meters.proposals_failed,
        ),
        (
            "etcd_server_leader_changes_seen_total",
            "Changes of leader that this member has seen.",
            &meters.leader_changes,
        ),
        (
            "etcd_server_slow_apply_total",
            "Entries that took longer than 100 ms to apply.",
            &meters.slow_applies,
        ),
        (
            "etcd_server_slow_read_indexes_total",
            "ReadIndex requests that took longer than 500 ms.",
            &meters.slow_read_indexes,
        ),
        (
            "etcd_server_read_indexes_failed_total",
            "Failed ReadIndex requests.",
            &meters.read_indexes_failed,
        ),
        (
            "satrap_ring_snapshot_send_failures_total",
            "Snapshots that were rejected by the receiver or did not arrive.",
            &meters.snapshot_send_failures,
        ),
        (
            "satrap_ring_snapshots_installed_total",
            "Snapshots that replaced this member's state.",
            &meters.snapshots_installed,
        ),
        (
            "satrap_ring_snapshot_receive_failures_total",
            "Snapshots that this member rejected.",
            &meters.snapshot_receive_failures,
        ),
    ];
    for (name, help, counter) in counters {
        text.counter(name, help, counter.get());
    }
    write_peers(text, &meters.peers());
}

/// Writes the traffic between members, under etcd's names and labels; a label names a member.
fn write_peers(text: &mut Text, peers: &BTreeMap<MemberName, Arc<PeerMeter>>) {
    type Of = fn(&PeerMeter) -> &Counter;
    let counters: [(&str, &str, &str, Of); 3] = [
        ("etcd_network_peer_sent_bytes_total", "Bytes sent to another member.", "To", |peer| {
            &peer.sent
        }),
        (
            "etcd_network_peer_received_bytes_total",
            "Bytes received from another member.",
            "From",
            |peer| &peer.received,
        ),
        (
            "etcd_network_peer_sent_failures_total",
            "Messages to another member that failed.",
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
    text.head(name, "histogram", "Round-trip time of heartbeats to another member.");
    for (member, peer) in peers {
        text.times(name, &[("To", member.as_str())], &peer.round_trip);
    }
}

/// Writes how far other members lag; only a leader knows.
fn write_lag(text: &mut Text, lag: &BTreeMap<MemberName, u64>) {
    let name = "satrap_ring_lag_entries";
    text.head(
        name,
        "gauge",
        "Entries that another member lags behind the leader; only the leader has it.",
    );
    for (member, entries) in lag {
        text.figure(name, &[("member", member.as_str())], entries);
    }
}

impl<P: Platform> Ring<P> {
    /// The metrics of this member in the text format of Prometheus.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = Text::default();
        write(&mut text, &self.node.shared.meters);
        let status = self.node.status();
        let quota = self.read(|keyspace| keyspace.quotas().total_bytes_max());
        let committed = "Index of the last entry that is known to be committed.";
        text.counter("etcd_server_proposals_committed_total", committed, status.committed_index);
        let gauges: [(&str, &str, u64); 6] = [
            (
                "etcd_server_proposals_pending",
                "Proposals of clients that wait to be applied.",
                self.proposer.waiters.pending() as u64,
            ),
            ("etcd_server_quota_backend_bytes", "Quota of the keyspace, in bytes.", quota),
            ("satrap_ring_term", "Current Raft term.", status.term),
            ("satrap_ring_log_index", "Index of the last entry of the log.", status.log_index),
            (
                "satrap_ring_log_purged_index",
                "Index of the last entry that was purged from the log.",
                status.purged_index,
            ),
            (
                "satrap_ring_checkpoint_index",
                "Index of the last entry that the newest checkpoint covers.",
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
