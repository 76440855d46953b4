//! Counts connections: in total, per name, and per scope (MTLS-6).
//!
//! The holder of a scope's CA can mint any number of names within it, so a bound per name alone
//! would let one region's CA take every connection of a validator. Scopes cannot be minted: each has
//! a CA in this process's own trust file.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::Limits;
use crate::pki::{Scope, SpiffeId};

/// The connections of one listener. Clones share them.
#[derive(Clone)]
pub(super) struct Slots(Arc<Shared>);

struct Shared {
    taken: Mutex<Taken>,
    limits: Limits,
    own_scope: Scope,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_scope: HashMap<Scope, usize>,
    by_id: HashMap<Arc<SpiffeId>, usize>,
}

/// One connection; dropping it frees its place.
pub(super) struct Slot {
    shared: Arc<Shared>,
    id: Arc<SpiffeId>,
}

impl Slots {
    pub(super) fn new(limits: &Limits, own_scope: Scope) -> Self {
        Self(Arc::new(Shared { taken: Mutex::default(), limits: limits.clone(), own_scope }))
    }

    pub(super) fn take(&self, id: &Arc<SpiffeId>) -> io::Result<Slot> {
        let limits = &self.0.limits;
        let scope = id.scope();
        let of_scope_max = match scope == self.0.own_scope {
            true => limits.connections_own_scope_max,
            false => limits.connections_per_scope_max,
        };
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let refuse = |whose: String, max: usize| {
            let why = format!("{whose} has {max} connections here, the most it may; close one");
            Err(io::Error::other(why))
        };
        if taken.total >= limits.connections_max {
            return refuse("this listener".into(), limits.connections_max);
        }
        if taken.by_scope.get(&scope).is_some_and(|n| *n >= of_scope_max) {
            return refuse(scope.to_string(), of_scope_max);
        }
        if taken.by_id.get(id).is_some_and(|n| *n >= limits.connections_per_identity_max) {
            return refuse(id.to_string(), limits.connections_per_identity_max);
        }
        *taken.by_scope.entry(scope).or_default() += 1;
        *taken.by_id.entry(id.clone()).or_default() += 1;
        taken.total += 1;
        Ok(Slot { shared: self.0.clone(), id: id.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        release(&mut taken.by_scope, &self.id.scope());
        release(&mut taken.by_id, &self.id);
    }
}

/// Counts one less, and forgets a key that counts nothing.
fn release<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    let count = counts.get_mut(key).expect("a slot was counted when it was taken");
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}
