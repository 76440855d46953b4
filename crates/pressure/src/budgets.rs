//! Decides which of many callers may cost more now: one token bucket for each.
//!
//! # Invariants
//!
//! - **BUDGETS-1** At most `payers_max` buckets are held. Over that, the fullest one is forgotten: its payer
//!   gains the least by a new one, and no payer is refused because others are many.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::TokenBucket;

/// The budget of one payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once, in tokens.
    pub burst: u32,
    /// From then on, in tokens per second.
    pub per_s: u32,
}

/// The buckets of payers `K`.
#[derive(Clone, Debug)]
pub struct Budgets<K> {
    rate: Rate,
    payers_max: usize,
    payers: BTreeMap<K, TokenBucket>,
}

impl<K: Ord + Clone> Budgets<K> {
    /// A full bucket of `rate` for each payer, and at most `payers_max` that are not full.
    #[must_use]
    pub fn new(rate: Rate, payers_max: usize) -> Self {
        Self { rate, payers_max, payers: BTreeMap::new() }
    }

    /// Takes `tokens` of `payer` if they are there.
    ///
    /// # Errors
    ///
    /// How long until they are; `None` if they never will be. Nothing is taken.
    pub fn take(&mut self, payer: &K, tokens: u32, now: Duration) -> Result<(), Option<Duration>> {
        self.bucket(payer, now).take(tokens, now)
    }

    /// Takes `tokens` of `payer` whether they are there or not (BUCKET-4).
    pub fn owe(&mut self, payer: &K, tokens: u32, now: Duration) {
        self.bucket(payer, now).owe(tokens, now);
    }

    fn bucket(&mut self, payer: &K, now: Duration) -> &mut TokenBucket {
        if self.payers.len() >= self.payers_max && !self.payers.contains_key(payer) {
            let credits = self.payers.iter_mut().map(|(payer, b)| (b.credit(now), payer));
            let fullest = credits.max().map(|(_, payer)| payer.clone());
            fullest.map(|payer| self.payers.remove(&payer));
        }
        let rate = self.rate;
        self.payers
            .entry(payer.clone())
            .or_insert_with(|| TokenBucket::new(rate.burst, rate.per_s, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 10, per_s: 1 };

    #[test]
    fn one_payer_spends_nothing_of_another() {
        let mut budgets = Budgets::new(RATE, 8);
        assert_eq!(budgets.take(&"a", 10, Duration::ZERO), Ok(()));
        assert_eq!(budgets.take(&"a", 1, Duration::ZERO), Err(Some(Duration::from_secs(1))));
        assert_eq!(budgets.take(&"b", 10, Duration::ZERO), Ok(()));
        budgets.owe(&"b", 5, Duration::ZERO);
        assert_eq!(budgets.take(&"b", 1, Duration::ZERO), Err(Some(Duration::from_secs(6))));
        assert_eq!(budgets.take(&"b", 11, Duration::ZERO), Err(None), "over the burst");
    }

    #[test]
    fn at_the_limit_of_payers_and_over_it() {
        let mut budgets = Budgets::new(RATE, 2);
        budgets.take(&"poor", 10, Duration::ZERO).unwrap();
        budgets.take(&"rich", 1, Duration::ZERO).unwrap();
        for minted in ["x", "y", "z"] {
            assert_eq!(budgets.take(&minted, 9, Duration::ZERO), Ok(()));
            assert_eq!(budgets.payers.len(), 2);
        }
        assert!(budgets.take(&"poor", 1, Duration::ZERO).is_err(), "the poorest is remembered");
    }
}
