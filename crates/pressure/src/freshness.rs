//! Decides when a follower leaves a server whose answers bring nothing new.
//!
//! A server cannot forge news, but it can hold it back, and do so politely: one old checkpoint
//! after the other, each newer than the last, none of them new; or heads without the content they
//! speak of. Its messages say nothing about that. The decision is how old the follower's own
//! verified state is, by certified time, and whether it is whole.
//!
//! # Invariants
//!
//! - **FRESH-1** A server is borne with for [`Freshness::LIMIT_HEARTBEATS`] heartbeats after the last
//!   moment when the follower's state was fresh, or after the connection began. Neither the number
//!   of messages nor their pace changes that.
//! - **FRESH-2** State is fresh if it is complete, and its certified time is at most that limit old.
//!
//! # Deliberately absent
//!
//! No blame: the server may be cut off itself. Being left is no accusation.

use core::time::Duration;

/// The follower's state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How old its certified time is, by the follower's clock.
    pub age: Duration,
    /// Whether it holds everything that it knows to be certified and wants.
    pub complete: bool,
}

/// Judges one connection. Moments are of a monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    limit: Duration,
    fresh_at: Duration,
    was_fresh: bool,
}

impl Freshness {
    /// An idle realm certifies once per heartbeat, and one may be late.
    pub const LIMIT_HEARTBEATS: f64 = 2.5;

    /// A connection that begins at `now`, in a realm with this heartbeat.
    #[must_use]
    pub fn new(heartbeat: Duration, now: Duration) -> Self {
        let limit = heartbeat.mul_f64(Self::LIMIT_HEARTBEATS);
        Self { limit, fresh_at: now, was_fresh: false }
    }

    /// Takes note of the follower's state at `now`.
    pub fn observe(&mut self, now: Duration, seen: Seen) {
        if seen.complete && seen.age <= self.limit {
            self.fresh_at = now;
            self.was_fresh = true;
        }
    }

    /// Time left until the follower must leave the server; `None` if that time has come.
    #[must_use]
    pub fn patience(&self, now: Duration) -> Option<Duration> {
        let left = (self.fresh_at + self.limit).saturating_sub(now);
        (!left.is_zero()).then_some(left)
    }

    /// Whether the state was fresh at any moment of the connection. A server that ends a connection
    /// without having been fresh counts as stale.
    #[must_use]
    pub fn was_fresh(&self) -> bool {
        self.was_fresh
    }

    /// The limit, for messages.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(30);
    const LIMIT: Duration = Duration::from_secs(75);
    const START: Duration = Duration::from_secs(1_000);

    fn seen(age: Duration, complete: bool) -> Seen {
        Seen { age, complete }
    }

    #[test]
    fn fresh_1_silence_is_borne_with_for_the_limit() {
        let freshness = Freshness::new(HEARTBEAT, START);
        assert_eq!(freshness.patience(START), Some(LIMIT));
        let last = Duration::from_nanos(1);
        assert_eq!(freshness.patience(START + LIMIT - last), Some(last));
        assert_eq!(freshness.patience(START + LIMIT), None);
    }

    #[test]
    fn fresh_1_a_drip_of_old_checkpoints_buys_no_time() {
        let mut freshness = Freshness::new(HEARTBEAT, START);
        let mut now = START;
        // Far more often than heartbeats come, and each a little newer than the last.
        for message in 0..1_000_u32 {
            now += LIMIT / 1_000;
            let age = Duration::from_secs(36_000) - Duration::from_millis(1) * message;
            assert!(freshness.patience(now - LIMIT / 1_000).is_some(), "message {message}");
            freshness.observe(now, seen(age, true));
        }
        assert_eq!(freshness.patience(now), None);
    }

    #[test]
    fn fresh_2_fresh_means_complete_and_young_at_the_limit() {
        for (age, complete, counts) in [
            (LIMIT, true, true),
            (LIMIT + Duration::from_nanos(1), true, false),
            (Duration::ZERO, false, false),
        ] {
            let mut freshness = Freshness::new(HEARTBEAT, START);
            freshness.observe(START + LIMIT / 2, seen(age, complete));
            assert_eq!(freshness.patience(START + LIMIT).is_some(), counts, "{age:?} {complete}");
            assert_eq!(freshness.was_fresh(), counts);
        }
    }
}
