//! Rows of two systems side by side, and their ratio.

use std::fmt::Display;

/// The value in the middle.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the head of a table.
pub fn head(title: &str, rounds: usize) {
    println!("\n{title} (medians of {rounds} rounds)");
    println!("{:<44} {:>12} {:>12} {:>8}  goal", "", "etcd", "satrap", "ratio");
}

/// Prints one row; the ratio is satrap's over etcd's.
pub fn row(what: &str, etcd: f64, satrap: f64, goal: impl Display) {
    let ratio = satrap / etcd;
    println!("{what:<44} {:>12} {:>12} {ratio:>8.3}  {goal}", figure(etcd), figure(satrap));
}

fn figure(value: f64) -> String {
    match value {
        v if v.abs() >= 1_000.0 => format!("{v:.0}"),
        v if v.abs() >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.4}"),
    }
}
