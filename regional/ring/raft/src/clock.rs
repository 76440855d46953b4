//! Replicated time: the leader stamps every batch, so that lease expiry is a function of the log.
//!
//! Every member relates the stamps of others to its own monotonic clock. A stamp arrives late by
//! its travel time, never early, so a member that becomes leader continues slightly behind the old
//! leader's time. Only the last stamp counts: clocks run at different speeds, and the drift since
//! the first stamp would otherwise pass at once, for all leases, when the leader changes.
//!
//! # Invariants
//!
//! - **CLOCK-1** Stamps never decrease, also across leaders: no stamp is below an applied one.
//! - **CLOCK-2** A second of replicated time takes at least a second of the leader's clock: no
//!   lease ends early because of a change of leaders. A lease may end late, by the travel time of
//!   stamps and by the grace below.
//! - **CLOCK-3** Without a leader, no lease can be renewed. Every new leader therefore sets its
//!   clock back by a grace: twice the longest election timeout, 800 ms by default, however long
//!   the ring had no leader.
//! - **CLOCK-4** A leader ignores its own stamps. They come back late too, and time would stand
//!   still under load.
//!
//! # Deliberately absent
//!
//! Wall clocks. An operator may set them without any effect here.

use std::time::Duration;

/// One member's estimate of replicated time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingClock {
    /// Replicated minus monotonic time.
    offset_ms: i64,
    /// The largest stamp applied.
    applied_ms: u64,
    /// CLOCK-4
    leads: bool,
}

fn ms(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX)
}

impl RingClock {
    /// Records that a batch stamped `stamp_ms` was applied at `monotonic`.
    pub fn applied(&mut self, stamp_ms: u64, monotonic: Duration) {
        self.applied_ms = self.applied_ms.max(stamp_ms);
        if !self.leads {
            let applied = i64::try_from(self.applied_ms).unwrap_or(i64::MAX);
            self.offset_ms = applied.saturating_sub(ms(monotonic));
        }
    }

    /// This member starts to lead, and sets its clock back by `grace` (CLOCK-3).
    pub fn lead(&mut self, grace: Duration) {
        self.offset_ms = self.offset_ms.saturating_sub(ms(grace));
        self.leads = true;
    }

    /// This member stops leading.
    pub fn follow(&mut self) {
        self.leads = false;
    }

    /// The stamp for a batch at `monotonic` (CLOCK-1).
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
        follower.applied(1_000, at(90)); // traveled 40 ms
        follower.applied(3_000, at(2_052)); // traveled 2 ms
        assert_eq!(follower.now_ms(at(3_050)), 3_998, "behind by the travel of the last stamp");
        follower.lead(at(500));
        assert_eq!(follower.now_ms(at(3_050)), 3_498);
        assert_eq!(follower.now_ms(at(2_100)), 3_000, "CLOCK-1: never below what was applied");
    }

    /// CLOCK-2: the follower's clock gains a tenth of a second every second.
    #[test]
    fn the_drift_of_a_fast_clock_does_not_pass_when_its_member_becomes_leader() {
        let mut follower = RingClock::default();
        for second in 1..=3_600 {
            follower.applied(1_000 * second, at(1_100 * second));
        }
        assert_eq!(follower.now_ms(at(1_100 * 3_600 + 50)), 3_600_050);
    }

    /// CLOCK-4: each batch comes back 30 ms after it was stamped, and the next one is stamped then.
    #[test]
    fn a_busy_leader_does_not_stop_the_clock() {
        let mut leader = RingClock::default();
        leader.applied(1_000, at(0));
        leader.lead(at(0));
        for batch in 0..100 {
            let stamp = leader.now_ms(at(30 * batch));
            leader.applied(stamp, at(30 * (batch + 1)));
        }
        assert_eq!(leader.now_ms(at(3_000)), 4_000);
    }

    #[test]
    fn a_fresh_ring_starts_at_its_first_leader() {
        let mut clock = RingClock::default();
        assert_eq!(clock.now_ms(at(0)), 1);
        clock.lead(at(500));
        assert_eq!(clock.now_ms(at(10)), 1);
        clock.applied(1, at(10));
        assert_eq!(clock.now_ms(at(1_500)), 1_000);
        clock.follow();
        clock.applied(1_200, at(2_000));
        assert_eq!(clock.now_ms(at(2_100)), 1_300);
    }
}
