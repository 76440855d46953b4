//! Counts the messages of sources and edges that this member refused, by rule. The status shows the
//! counts, so that an operator sees a source that sends invalid updates.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use satrap_certify::Rejection;

/// The number of refusals since the start of the process, by rule. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Refusals {
    /// Counts one refusal. The map is bounded, because the rules are a fixed set.
    pub fn count(&self, rejection: &Rejection) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(rejection.rule()).or_default() += 1;
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
