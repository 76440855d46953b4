//! Counters, gauges and histograms, and the text format in which Prometheus reads them.
//!
//! Counting is one atomic addition; the text is made when a scrape asks for it. Each subsystem declares its own metrics.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The count since the process started.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that grows and shrinks.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the present value.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts how often an operation took how long.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [Duration],
    /// One for each bound; the last one holds what is above all of them.
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, in ascending order.
    #[must_use]
    pub fn new(bounds: &'static [Duration]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum_ns: AtomicU64::new(0) }
    }

    /// Counts an operation that took `time`.
    pub fn observe(&self, time: Duration) {
        let bucket = self.bounds.partition_point(|bound| *bound < time);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// `N` bounds, each the double of the one before.
#[must_use]
pub const fn doubling<const N: usize>(smallest: Duration) -> [Duration; N] {
    let mut bounds = [smallest; N];
    let mut at = 1;
    while at < N {
        bounds[at] = bounds[at - 1].saturating_mul(2);
        at += 1;
    }
    bounds
}

/// Metrics in the text format of Prometheus.
#[derive(Debug, Default)]
pub struct Text(String);

/// The labels of one time series: names and values, which must need no escapes.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a metric family.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds one value to the family that was begun last.
    pub fn figure(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        let _ = writeln!(self.0, "{name}{} {value}", braces(labels, None));
    }

    /// Adds a gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.figure(name, &[], value);
    }

    /// Adds a gauge whose name, by the rules of `promtool`, a gauge must not have; so its type is left out.
    pub fn untyped(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "untyped", help);
        self.figure(name, &[], value);
    }

    /// Adds a counter.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.figure(name, &[], value);
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        self.times(name, &[], histogram);
    }

    /// Adds one histogram to the family that was begun last.
    pub fn times(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let mut count = 0;
        for (at, held) in histogram.buckets.iter().enumerate() {
            count += held.load(Ordering::Relaxed);
            let bound = histogram.bounds.get(at);
            let bound = bound.map_or("+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            let _ = writeln!(self.0, "{name}_bucket{} {count}", braces(labels, Some(&bound)));
        }
        let sum = Duration::from_nanos(histogram.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        let labels = braces(labels, None);
        let _ = writeln!(self.0, "{name}_sum{labels} {sum}\n{name}_count{labels} {count}");
    }

    /// The text.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

fn braces(labels: Labels<'_>, bound: Option<&str>) -> String {
    let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
    let labels: Vec<_> = labels.map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    static BOUNDS: [Duration; 14] = doubling(Duration::from_millis(1));

    #[test]
    fn a_histogram_counts_up_to_its_bounds() {
        let histogram = Histogram::new(&BOUNDS);
        for ms in [1, 2, 2, 3, 8_192, 8_193] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut text = Text::default();
        text.histogram("h", "Help.", &histogram);
        text.times("h", &[("To", "b")], &histogram);
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
            "h_bucket{To=\"b\",le=\"0.001\"} 1",
            "h_count{To=\"b\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
