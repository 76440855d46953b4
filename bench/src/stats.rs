//! Percentiles of durations.

use std::time::Duration;

/// Durations of one thing, measured many times.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value that `percent` of the samples do not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// Prints one row.
    pub fn print(&self, what: &str) {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1e3;
        println!("{what:<44} {:>9.2} {:>9.2} {:>9.2} {:>7}", ms(50), ms(99), ms(100), self.0.len());
    }

    /// Prints the head of the table.
    pub fn print_head() {
        println!("{:<44} {:>9} {:>9} {:>9} {:>7}", "", "p50 ms", "p99 ms", "max ms", "n");
    }
}
