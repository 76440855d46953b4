//! The ring's replicated clock, by which leases and tokens expire.

use std::{fmt, time::Duration};

/// Milliseconds of replicated time: stamped by the leader into every batch, never decreasing.
///
/// It starts at the first leader's clock. Only differences are meaningful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingTime(pub u64);

impl RingTime {
    /// The time `ms` later.
    #[must_use]
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Time from `earlier` until this; zero if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for RingTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}
