//! Counts what this member refused, by rule: the number an operator looks at first when somebody
//! upstream lies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use satrap_certify::Rejection;

/// Refusals by rule since start. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Refusals {
    /// Counts one; bounded, because rules are a closed set.
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
