//! Decides whether one more request fits a caller's rate.
//!
//! A bucket that counts a whole-millisecond refill interval hands out nothing, or everything, above
//! 1000 requests per second. This one counts credit in billionths of a token: at `r` tokens per
//! second every elapsed nanosecond earns exactly `r` of them, so no rate is ever rounded.
//!
//! # Invariants
//!
//! - **BUCKET-1** Over any span `t`, at most `capacity + refill_per_s * t` tokens are taken, whatever the
//!   pattern of calls.
//! - **BUCKET-2** A caller that asks often loses nothing to rounding: unused credit below one token stays.
//! - **BUCKET-3** Time that runs backwards earns nothing.
//! - **BUCKET-4** A caller owes at most one capacity, so it waits for a bounded time.

use core::time::Duration;

const CREDIT_PER_TOKEN: i128 = 1_000_000_000;

/// A token bucket over monotonic time.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    capacity: i128,
    refill_per_s: u32,
    /// Below zero if the caller owes (BUCKET-4).
    credit: i128,
    refilled_at: Duration,
}

impl TokenBucket {
    /// A full bucket of `capacity` tokens at monotonic time `now`.
    #[must_use]
    pub fn new(capacity: u32, refill_per_s: u32, now: Duration) -> Self {
        let capacity = i128::from(capacity) * CREDIT_PER_TOKEN;
        Self { capacity, refill_per_s, credit: capacity, refilled_at: now }
    }

    /// Takes `tokens` if they are there.
    ///
    /// # Errors
    ///
    /// How long until they are, for the caller's retry hint; nothing is taken. `None` if they never
    /// will be, because the request exceeds the capacity or the bucket does not refill.
    pub fn take(&mut self, tokens: u32, now: Duration) -> Result<(), Option<Duration>> {
        self.refill(now);
        let wanted = i128::from(tokens) * CREDIT_PER_TOKEN;
        if wanted <= self.credit {
            self.credit -= wanted;
            return Ok(());
        }
        if wanted > self.capacity || self.refill_per_s == 0 {
            return Err(None);
        }
        let missing = (wanted - self.credit).unsigned_abs();
        let nanos = missing.div_ceil(u128::from(self.refill_per_s));
        Err(Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))))
    }

    /// Takes `tokens` whether they are there or not, for a cost that is known only afterwards; the
    /// caller waits until what it owes was earned (BUCKET-4).
    pub fn owe(&mut self, tokens: u32, now: Duration) {
        self.refill(now);
        let owed = self.credit - i128::from(tokens) * CREDIT_PER_TOKEN;
        self.credit = owed.max(-self.capacity);
    }

    /// The credit at `now`; the more, the less its caller would gain from a new bucket.
    pub(crate) fn credit(&mut self, now: Duration) -> i128 {
        self.refill(now);
        self.credit
    }

    fn refill(&mut self, now: Duration) {
        // BUCKET-3
        let Some(elapsed) = now.checked_sub(self.refilled_at) else {
            return;
        };
        self.refilled_at = now;
        let earned = elapsed.as_nanos().saturating_mul(u128::from(self.refill_per_s));
        let earned = i128::try_from(earned).unwrap_or(i128::MAX);
        self.credit = self.credit.saturating_add(earned).min(self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_above_one_per_millisecond_is_exact() {
        // An integer refill interval in milliseconds would be zero at this rate.
        let mut bucket = TokenBucket::new(1, 3_000, Duration::ZERO);
        bucket.take(1, Duration::ZERO).unwrap();
        let taken =
            (1..=1_000_000).filter(|us| bucket.take(1, Duration::from_micros(*us)).is_ok()).count();
        // One token per 333.3 us, asked every microsecond: each token is at most 1 us late.
        assert!((2_990..=3_000).contains(&taken), "{taken} tokens in one second");
    }

    #[test]
    fn at_the_limit_and_over_it() {
        let mut bucket = TokenBucket::new(5, 1, Duration::ZERO);
        assert_eq!(bucket.take(6, Duration::ZERO), Err(None), "can never fit");
        assert_eq!(bucket.take(5, Duration::ZERO), Ok(()));
        assert_eq!(bucket.take(2, Duration::ZERO), Err(Some(Duration::from_secs(2))));
        assert_eq!(bucket.take(2, Duration::from_secs(2)), Ok(()));
        assert_eq!(bucket.take(5, Duration::from_secs(1_000)), Ok(()), "capped at capacity");
        assert_eq!(TokenBucket::new(0, 9, Duration::ZERO).take(1, Duration::MAX), Err(None));
    }

    #[test]
    fn time_that_runs_backwards_earns_nothing() {
        let mut bucket = TokenBucket::new(1, 1, Duration::from_secs(10));
        bucket.take(1, Duration::from_secs(10)).unwrap();
        assert_eq!(bucket.take(1, Duration::from_secs(5)), Err(Some(Duration::from_secs(1))));
        assert_eq!(bucket.take(1, Duration::from_secs(10)), Err(Some(Duration::from_secs(1))));
        assert_eq!(bucket.take(1, Duration::from_secs(11)), Ok(()));
    }

    #[test]
    fn a_debt_is_waited_off_and_bounded() {
        let mut bucket = TokenBucket::new(10, 1, Duration::ZERO);
        bucket.owe(13, Duration::ZERO);
        assert_eq!(bucket.take(1, Duration::ZERO), Err(Some(Duration::from_secs(4))));
        assert_eq!(bucket.take(1, Duration::from_secs(4)), Ok(()));
        bucket.owe(1_000, Duration::from_secs(4));
        assert_eq!(bucket.take(10, Duration::from_secs(4)), Err(Some(Duration::from_secs(20))));
        assert_eq!(bucket.take(10, Duration::from_secs(24)), Ok(()), "one capacity was owed");
    }

    proptest! {
        // BUCKET-1 and BUCKET-2: a greedy caller gets the bound exactly, however its calls are spaced.
        #[test]
        fn greedy_callers_get_exactly_the_rate(
            rate in 1u32..5_000_000,
            steps_ns in prop::collection::vec(0u64..2_000_000, 1..60),
        ) {
            const CAPACITY: u32 = 1_000_000_000;
            let mut bucket = TokenBucket::new(CAPACITY, rate, Duration::ZERO);
            bucket.take(CAPACITY, Duration::ZERO).unwrap();
            let (mut now_ns, mut taken) = (0u64, 0u128);
            for step_ns in steps_ns {
                now_ns += step_ns;
                let now = Duration::from_nanos(now_ns);
                let earned = u128::from(rate) * u128::from(now_ns) / CREDIT_PER_TOKEN.unsigned_abs();
                let due = u32::try_from(earned - taken).unwrap();
                prop_assert!(bucket.take(due + 1, now).is_err(), "over the rate");
                prop_assert_eq!(bucket.take(due, now), Ok(()));
                taken += u128::from(due);
            }
        }

        // The hint is neither too early nor later than needed.
        #[test]
        fn the_hint_is_the_first_nanosecond_that_works(rate in 1u32..u32::MAX, tokens in 1u32..1_000) {
            let mut bucket = TokenBucket::new(1_000, rate, Duration::ZERO);
            bucket.take(1_000, Duration::ZERO).unwrap();
            let wait = bucket.take(tokens, Duration::ZERO).unwrap_err().unwrap();
            prop_assert!(bucket.clone().take(tokens, wait - Duration::from_nanos(1)).is_err());
            prop_assert_eq!(bucket.take(tokens, wait), Ok(()));
        }
    }
}
