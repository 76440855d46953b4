//! Counts what this edge refused, by rule, for its status report and its operator.

use std::collections::{BTreeMap, VecDeque};

use satrap_certify::Timestamp;

/// How many refusals are kept in full.
const RECENT_MAX: usize = 64;

/// One refused offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The time, by this edge's clock.
    pub time: Timestamp,
    /// The server that made the offer.
    pub peer: String,
    /// The rule that it broke.
    pub rule: &'static str,
    /// The fault in it.
    pub detail: String,
}

/// Refusals so far: all of them by count, the newest in full.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    counts: BTreeMap<&'static str, u64>,
    recent: VecDeque<Refusal>,
}

impl Refusals {
    /// Adds a refusal.
    pub fn record(&mut self, refusal: Refusal) {
        *self.counts.entry(refusal.rule).or_default() += 1;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(refusal);
    }

    /// Refusals by rule.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    /// The newest ones, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Refusal> {
        self.recent.iter()
    }
}
