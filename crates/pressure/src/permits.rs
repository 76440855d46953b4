//! Concurrency limits: permits for streams and calls in progress, counted per group and per holder.
//!
//! The caller that asks most would take a pool that all share. Here every group has permits of its own,
//! which no other group can use, and every holder within it a few. The caller names the group, by
//! something that its members cannot choose.
//!
//! # Invariants
//!
//! - **PERMITS-1** A group never holds more than its quota, a holder never more than its share of it, and
//!   what one group holds leaves the permits of all others free.
//! - **PERMITS-2** A permit is free again when its [`Permit`] is dropped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The largest number of permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// For all holders of a group together.
    pub group_max: usize,
    /// For one holder.
    pub holder_max: usize,
}

/// The limit that leaves no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The group holds this many, its quota.
    Group(usize),
    /// The holder holds this many, its quota.
    Holder(usize),
}

/// The permits of groups `G` with holders `H`. Clones share them.
#[derive(Clone, Debug)]
pub struct Permits<G, H>(Arc<Mutex<Taken<G, H>>>);

#[derive(Debug)]
struct Taken<G, H> {
    groups: BTreeMap<G, usize>,
    holders: BTreeMap<H, usize>,
}

/// One permit, held until this is dropped (PERMITS-2).
#[derive(Debug)]
pub struct Permit<G: Ord, H: Ord> {
    permits: Permits<G, H>,
    group: G,
    holder: H,
}

impl<G, H> Default for Permits<G, H> {
    fn default() -> Self {
        let taken = Taken { groups: BTreeMap::new(), holders: BTreeMap::new() };
        Self(Arc::new(Mutex::new(taken)))
    }
}

impl<G, H> Permits<G, H> {
    fn taken(&self) -> MutexGuard<'_, Taken<G, H>> {
        // A critical section changes a few counts and does not panic between them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Ord + Clone, H: Ord + Clone> Permits<G, H> {
    /// A permit for `holder` of `group`, if `quota` leaves one (PERMITS-1).
    ///
    /// # Errors
    ///
    /// [`Full`] names the limit that is reached.
    pub fn take(&self, group: G, holder: H, quota: Quota) -> Result<Permit<G, H>, Full> {
        let mut taken = self.taken();
        if taken.holders.get(&holder).is_some_and(|n| *n >= quota.holder_max) {
            return Err(Full::Holder(quota.holder_max));
        }
        if taken.groups.get(&group).is_some_and(|n| *n >= quota.group_max) {
            return Err(Full::Group(quota.group_max));
        }
        *taken.holders.entry(holder.clone()).or_default() += 1;
        *taken.groups.entry(group.clone()).or_default() += 1;
        drop(taken);
        Ok(Permit { permits: self.clone(), group, holder })
    }
}

impl<G: Ord, H: Ord> Drop for Permit<G, H> {
    fn drop(&mut self) {
        let mut taken = self.permits.taken();
        release(&mut taken.groups, &self.group);
        release(&mut taken.holders, &self.holder);
    }
}

/// Counts one less, and forgets a key that counts nothing.
fn release<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    let count = counts.get_mut(key).expect("a permit was counted when it was taken");
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTA: Quota = Quota { group_max: 3, holder_max: 2 };

    #[test]
    fn at_the_limits_and_over_them() {
        let permits = Permits::default();
        let first = permits.take("eu", "m1", QUOTA).unwrap();
        let _second = permits.take("eu", "m1", QUOTA).unwrap();
        assert_eq!(permits.take("eu", "m1", QUOTA).unwrap_err(), Full::Holder(2));
        let _third = permits.take("eu", "minted", QUOTA).unwrap();
        assert_eq!(permits.take("eu", "minted too", QUOTA).unwrap_err(), Full::Group(3));
        let _other = permits.take("us", "m2", QUOTA).unwrap();
        drop(first);
        let _again = permits.take("eu", "minted too", QUOTA).unwrap();
        assert_eq!(permits.take("eu", "m1", QUOTA).unwrap_err(), Full::Group(3));
    }

    proptest! {
        // PERMITS-1 and PERMITS-2: a group that takes all it can never costs another one a permit.
        #[test]
        fn whatever_others_hold_a_groups_own_permits_are_there(
            steps in prop::collection::vec((1u8..4, 0u8..20, any::<bool>()), 0..200),
        ) {
            let permits = Permits::default();
            let mut held = Vec::new();
            for (group, holder, leaves) in steps {
                if leaves && !held.is_empty() {
                    held.remove(usize::from(holder) % held.len());
                }
                held.extend(permits.take(group, (group, holder), QUOTA));
            }
            let own: Vec<_> = (0..3).map(|n| permits.take(0, (0, n), QUOTA)).collect();
            prop_assert!(own.iter().all(Result::is_ok));
            drop((held, own));
            let taken = permits.taken();
            prop_assert!(taken.groups.is_empty() && taken.holders.is_empty());
        }
    }
}
