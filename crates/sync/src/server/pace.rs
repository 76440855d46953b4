//! Limits how often followers may say something, by their names and by the CAs that vouch for these.
//!
//! The holder of a CA can mint names, and each new name would have a full budget. So all names of a
//! scope have one budget together, except those that the server is there for: a region has
//! thousands of edges, which return at once after an outage.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use satrap_identity::pki::{Scope, SpiffeId};
use satrap_pressure::{Budgets, Rate};
use satrap_runtime::clock;

use super::limits::{IDENTITIES_MAX, SCOPES_MAX};

/// One kind of message, counted.
pub(super) struct Pace {
    names: Mutex<Budgets<Arc<SpiffeId>>>,
    scopes: Mutex<Budgets<Scope>>,
}

/// A follower that is too fast.
#[derive(Debug)]
pub(super) struct TooFast {
    /// The name or scope whose budget is spent.
    pub(super) whose: String,
    /// How long until it may go on.
    pub(super) wait: Option<Duration>,
}

impl Pace {
    /// `by_name` for each name, and `by_scope` for all names of one scope.
    pub(super) fn new(by_name: Rate, by_scope: Rate) -> Self {
        Self {
            names: Mutex::new(Budgets::new(by_name, IDENTITIES_MAX)),
            scopes: Mutex::new(Budgets::new(by_scope, SCOPES_MAX)),
        }
    }

    /// Counts one message of `id`; one of a scope that `is_own` is counted for its name alone.
    pub(super) fn take(&self, id: &Arc<SpiffeId>, is_own: bool) -> Result<(), TooFast> {
        take(&self.names, id, id)?;
        if is_own {
            return Ok(());
        }
        let scope = id.scope();
        take(&self.scopes, &scope, &scope)
    }
}

fn take<K: Ord + Clone>(
    budgets: &Mutex<Budgets<K>>,
    payer: &K,
    whose: &impl ToString,
) -> Result<(), TooFast> {
    // A bucket is whole after every statement, also after a panic.
    let mut budgets = budgets.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = budgets.take(payer, 1, clock::monotonic());
    taken.map_err(|wait| TooFast { whose: whose.to_string(), wait })
}
