//! Decides how long a client waits before its next attempt.
//!
//! Full jitter: the delay is uniform between the floor and `min(cap, base * 2^n)`. Adding a little
//! jitter to an exponential keeps a fleet in step; drawing the *whole* delay at random breaks it up.
//!
//! # Invariants
//!
//! - **BACKOFF-1** A delay is never below [`FullJitter::FLOOR`], or a fast failure becomes a busy loop.
//! - **BACKOFF-2** A delay is never above [`FullJitter::CAP`], or a healed server waits for its clients.
//! - **BACKOFF-3** Only a connection that stayed up for the stable period resets the exponent. A
//!   server that accepts and drops at once is still failing.

use core::time::Duration;

/// Full-jitter exponential backoff.
#[derive(Clone, Debug)]
pub struct FullJitter {
    base: Duration,
    stable_period: Duration,
    failures: u32,
}

impl FullJitter {
    /// BACKOFF-1: the shortest delay.
    pub const FLOOR: Duration = Duration::from_millis(100);
    /// BACKOFF-2: the longest delay.
    pub const CAP: Duration = Duration::from_secs(30);

    /// A backoff whose first delay is at most `base` and which forgets past failures once a
    /// connection has lived for `stable_period`.
    #[must_use]
    pub const fn new(base: Duration, stable_period: Duration) -> Self {
        Self { base, stable_period, failures: 0 }
    }

    /// The delay after one more failed attempt. `random` is uniform over all of `u64`.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let floor = Self::FLOOR.as_nanos();
        let doubled = self.base.as_nanos().saturating_mul(1 << self.failures.min(63));
        let ceiling = doubled.clamp(floor, Self::CAP.as_nanos());
        self.failures = self.failures.saturating_add(1);
        // A 64-bit fraction of the span: without modulo, so without modulo bias.
        let offset = ((ceiling - floor + 1) * u128::from(random)) >> 64;
        let nanos = u64::try_from(floor + offset).expect("the cap fits in 64 bits of nanoseconds");
        Duration::from_nanos(nanos)
    }

    /// Reports that a connection lived for `uptime` before it ended (BACKOFF-3).
    pub fn connection_ended(&mut self, uptime: Duration) {
        if uptime >= self.stable_period {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: Duration = Duration::from_millis(250);
    const STABLE: Duration = Duration::from_secs(10);

    #[test]
    fn the_largest_draw_doubles_up_to_the_cap() {
        let mut backoff = FullJitter::new(BASE, STABLE);
        let delays: Vec<u128> = (0..9).map(|_| backoff.next_delay(u64::MAX).as_millis()).collect();
        assert_eq!(delays, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn only_a_stable_connection_resets() {
        let mut backoff = FullJitter::new(BASE, STABLE);
        for _ in 0..4 {
            backoff.next_delay(0);
        }
        backoff.connection_ended(STABLE - Duration::from_nanos(1));
        assert_eq!(backoff.next_delay(u64::MAX), BASE * 16);
        backoff.connection_ended(STABLE);
        assert_eq!(backoff.next_delay(u64::MAX), BASE);
    }

    #[test]
    fn draws_fill_the_whole_span_evenly() {
        const DRAWS: u64 = 10_000;
        const BINS: usize = 10;
        let mut counts = [0u64; BINS];
        let mut backoff = FullJitter::new(FullJitter::CAP, STABLE);
        // Weyl sequence: equidistributed, and the same in every run.
        let mut random = 0u64;
        for _ in 0..DRAWS {
            random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let above = backoff.next_delay(random) - FullJitter::FLOOR;
            let span = (FullJitter::CAP - FullJitter::FLOOR).as_nanos() + 1;
            counts[usize::try_from(above.as_nanos() * BINS as u128 / span).unwrap()] += 1;
        }
        let expected = DRAWS / BINS as u64;
        for (bin, count) in counts.iter().enumerate() {
            assert!(count.abs_diff(expected) < expected / 20, "bin {bin} has {count} draws");
        }
    }

    proptest! {
        #[test]
        fn delays_stay_within_floor_and_ceiling(
            base_ms in 0u64..100_000, failures in 0u32..200, random: u64,
        ) {
            let mut backoff = FullJitter::new(Duration::from_millis(base_ms), STABLE);
            for _ in 0..failures {
                backoff.next_delay(random);
            }
            let delay = backoff.next_delay(random);
            prop_assert!(delay >= FullJitter::FLOOR);
            prop_assert!(delay <= FullJitter::CAP);
            let doubled = u128::from(base_ms) * 1_000_000 * (1u128 << failures.min(60));
            prop_assert!(delay.as_nanos() <= doubled.max(FullJitter::FLOOR.as_nanos()));
        }
    }
}
