//! Replicated time: what the leader stamps into every batch, so that expiry is a function of the log.
//!
//! Every member relates the stamps it applies to its own monotonic clock. A stamp arrives late by
//! the time it traveled, never early, so the largest difference ever seen is the best estimate, and
//! a member that becomes leader goes on where the old one stopped.
//!
//! # Invariants
//!
//! - **T1** Stamps never decrease, also across leaders: nothing is stamped below what was applied.
//! - **T2** A second of replicated time takes at least a second: no lease ends early because of a
//!   change of leaders. It may end late, by what stamps traveled and by the grace below.
//! - **T3** While nobody led, nobody could renew. A new leader therefore takes a grace off the clock,
//!   at most the time a change of leaders takes.
//!
//! # Deliberately absent
//!
//! Wall clocks. An operator may set them; nothing here moves.

use std::time::Duration;

/// One member's idea of replicated time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingClock {
    /// Replicated minus monotonic time.
    offset_ms: i64,
    /// The largest stamp applied.
    applied_ms: u64,
}

fn ms(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX)
}

impl RingClock {
    /// A batch stamped `stamp_ms` was applied at `monotonic`.
    pub fn applied(&mut self, stamp_ms: u64, monotonic: Duration) {
        let offset = i64::try_from(stamp_ms).unwrap_or(i64::MAX).saturating_sub(ms(monotonic));
        // Before the first stamp the offset says nothing.
        let known = self.applied_ms > 0;
        self.offset_ms = if known { self.offset_ms.max(offset) } else { offset };
        self.applied_ms = self.applied_ms.max(stamp_ms);
    }

    /// This member begins to lead, after at most `leaderless` without a leader (T3).
    pub fn lead(&mut self, leaderless: Duration) {
        self.offset_ms = self.offset_ms.saturating_sub(ms(leaderless));
    }

    /// What to stamp at `monotonic` (T1).
    #[must_use]
    pub fn now_ms(&self, monotonic: Duration) -> u64 {
        let estimate = ms(monotonic).saturating_add(self.offset_ms);
        u64::try_from(estimate).unwrap_or(0).max(self.applied_ms).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_follower_goes_on_where_the_leader_stopped_and_never_ahead() {
        // The leader's clock says 1000 when the follower's monotonic clock says 50.
        let mut follower = RingClock::default();
        follower.applied(1_000, at(60)); // traveled 10 ms
        follower.applied(2_000, at(1_052)); // traveled 2 ms
        follower.applied(3_000, at(2_090)); // traveled 40 ms
        assert_eq!(follower.now_ms(at(3_050)), 3_998, "behind by the shortest travel only");
        follower.lead(at(500));
        assert_eq!(follower.now_ms(at(3_050)), 3_498);
        assert_eq!(follower.now_ms(at(2_100)), 3_000, "T1: never below what was applied");
    }

    #[test]
    fn a_fresh_ring_starts_at_its_first_leader() {
        let mut clock = RingClock::default();
        assert_eq!(clock.now_ms(at(0)), 1);
        clock.lead(at(500));
        assert_eq!(clock.now_ms(at(10)), 1);
        clock.applied(1, at(10));
        assert_eq!(clock.now_ms(at(1_010)), 1_001);
    }
}
