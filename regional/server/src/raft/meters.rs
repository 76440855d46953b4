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
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

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
#[derive(Debug, Default)]
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
}

/// As etcd's `--warning-apply-duration`.
pub const SLOW_APPLY: Duration = Duration::from_millis(100);
/// Of a round to a quorum; as etcd's.
pub const SLOW_READ_INDEX: Duration = Duration::from_millis(500);

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// etcd's bounds: a millisecond, and each the double of the one before.
const BUCKETS: usize = 14;
const SMALLEST: Duration = Duration::from_millis(1);

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one holds what is above all bounds.
    buckets: [AtomicU64; BUCKETS + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Something took `time`.
    pub fn observe(&self, time: Duration) {
        let bucket = (0..BUCKETS).find(|bucket| time <= SMALLEST * (1 << bucket));
        self.buckets[bucket.unwrap_or(BUCKETS)].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// A text that Prometheus reads.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A figure that grows and shrinks.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A figure that only grows.
    pub fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "{name} {}", counter.get());
    }

    /// How often something took how long.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut count = 0;
        for (bucket, held) in histogram.buckets.iter().enumerate() {
            count += held.load(Ordering::Relaxed);
            match bucket {
                BUCKETS => {
                    let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}");
                }
                bucket => {
                    let bound = (SMALLEST * (1 << bucket)).as_secs_f64();
                    let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
                }
            }
        }
        let sum = Duration::from_nanos(histogram.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(self.0, "{name}_sum {sum}\n{name}_count {count}");
    }

    /// All that was counted.
    pub fn counters(&mut self, meters: &Meters) {
        self.histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "How long the log took to write and sync a group.",
            &meters.log_sync,
        );
        self.histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "How long the state took to write and sync a checkpoint.",
            &meters.checkpoint,
        );
        self.histogram(
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
            self.counter(name, help, counter);
        }
    }

    /// How far others are behind; only a leader knows.
    fn lag(&mut self, lag: &BTreeMap<MemberName, u64>) {
        let name = "satrap_ring_lag_entries";
        self.head(name, "gauge", "Entries that another member lacks, as its leader sees it.");
        for (member, entries) in lag {
            let _ = writeln!(self.0, "{name}{{member=\"{member}\"}} {entries}");
        }
    }

    /// The text.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

impl<P: Platform> Ring<P> {
    /// What this member counts, as Prometheus reads it.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = Text::default();
        text.counters(&self.shared.meters);
        let status = self.status();
        let quota = self.read(|keyspace| keyspace.quotas().total_bytes_max());
        let gauges: [(&str, &str, u64); 7] = [
            (
                "etcd_server_proposals_pending",
                "Clients' proposals without an answer.",
                self.waiters.pending() as u64,
            ),
            (
                "etcd_server_proposals_committed_total",
                "Index of the last entry that is known to be committed.",
                status.committed_index,
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
        text.lag(&status.lag);
        text.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_its_bounds() {
        let histogram = Histogram::default();
        for ms in [1, 2, 2, 3, 8_192, 8_193] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut text = Text::default();
        text.histogram("h", "Help.", &histogram);
        let text = text.finish();
        for line in [
            "# HELP h Help.",
            "# TYPE h histogram",
            "h_bucket{le=\"0.001\"} 1",
            "h_bucket{le=\"0.002\"} 3",
            "h_bucket{le=\"0.004\"} 4",
            "h_bucket{le=\"8.192\"} 5",
            "h_bucket{le=\"+Inf\"} 6",
            "h_count 6",
            "h_sum 16.393",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn clones_count_together() {
        let meters = Meters::default();
        meters.clone().proposals_failed.add(2);
        meters.proposals_failed.add_one();
        let mut text = Text::default();
        text.counters(&meters);
        let text = text.finish();
        assert!(text.contains("\netcd_server_proposals_failed_total 3\n"), "{text}");
    }
}
