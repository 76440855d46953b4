//! Replicated time: what the leader stamps into every batch, so that expiry is a function of the log.
//!
//! Every member relates the stamps of others to its own monotonic clock. A stamp arrives late by the
//! time it traveled, never early, so a member that becomes leader goes on a little behind where the
//! old one stopped. Only the last stamp counts: clocks run at different speeds, and what one of them
//! gained on another since the first stamp would otherwise pass at once, over all leases, when the
//! leader changes.
//!
//! # Invariants
//!
//! - **T1** Stamps never decrease, also across leaders: nothing is stamped below what was applied.
//! - **T2** A second of replicated time takes at least a second of the leader's clock: no lease ends
//!   early because of a change of leaders. It may end late, by what stamps traveled and by the grace
//!   below.
//! - **T3** While nobody led, nobody could renew. A new leader therefore takes a grace off the clock,
//!   at most the time a change of leaders takes.
//! - **T4** A leader learns nothing from its own stamps. They come back late too, and time would stand
//!   still under load.
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
    /// T4
    leads: bool,
}

fn ms(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX)
}

impl RingClock {
    /// A batch stamped `stamp_ms` was applied at `monotonic`.
    pub fn applied(&mut self, stamp_ms: u64, monotonic: Duration) {
        self.applied_ms = self.applied_ms.max(stamp_ms);
        if !self.leads {
            let applied = i64::try_from(self.applied_ms).unwrap_or(i64::MAX);
            self.offset_ms = applied.saturating_sub(ms(monotonic));
        }
    }

    /// This member begins to lead, after at most `leaderless` without a leader (T3).
    pub fn lead(&mut self, leaderless: Duration) {
        self.offset_ms = self.offset_ms.saturating_sub(ms(leaderless));
        self.leads = true;
    }

    /// This member leads no more.
    pub fn follow(&mut self) {
        self.leads = false;
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
        follower.applied(1_000, at(90)); // traveled 40 ms
        follower.applied(3_000, at(2_052)); // traveled 2 ms
        assert_eq!(follower.now_ms(at(3_050)), 3_998, "behind by the travel of the last stamp");
        follower.lead(at(500));
        assert_eq!(follower.now_ms(at(3_050)), 3_498);
        assert_eq!(follower.now_ms(at(2_100)), 3_000, "T1: never below what was applied");
    }

    /// T2: the follower's clock gains a tenth of a second every second.
    #[test]
    fn what_a_fast_clock_gained_does_not_pass_when_its_member_becomes_leader() {
        let mut follower = RingClock::default();
        for second in 1..=3_600 {
            follower.applied(1_000 * second, at(1_100 * second));
        }
        assert_eq!(follower.now_ms(at(1_100 * 3_600 + 50)), 3_600_050);
    }

    /// T4: each batch comes back 30 ms after it was stamped, and the next one is stamped then.
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
