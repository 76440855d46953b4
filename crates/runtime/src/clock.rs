//! The one place that reads a clock.
//!
//! Wall time orders nothing: it is compared with certificate validity and stamped into proposals,
//! which other replicas then judge. Anything that measures a span uses [`monotonic`].

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// Wall time in nanoseconds since the Unix epoch.
///
/// # Panics
///
/// If the system clock is set before 1970 or after 2554: every certificate would be judged wrongly.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one reader of the wall clock")]
pub fn now() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("the system clock is set after 1970");
    u64::try_from(since_epoch.as_nanos()).expect("the system clock is set before 2554")
}

/// Time since this process first asked; it never runs backwards.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one reader of the monotonic clock")]
pub fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_plausible() {
        assert!(now() > 1_767_225_600_000_000_000, "after 2026-01-01");
        let first = monotonic();
        assert!(monotonic() >= first);
        assert!(first < Duration::from_secs(3_600), "counts from process start");
    }
}
