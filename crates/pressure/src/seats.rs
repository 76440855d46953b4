//! Decides who may hold one more of something that lasts: a stream, or a call in progress.
//!
//! One pool for all is taken by whoever asks most. Here every group has seats of its own, which no
//! other group can use, and every holder within it a few. The caller names the group, by something
//! that its members cannot choose.
//!
//! # Invariants
//!
//! - **P9** A group never holds more than its quota, a holder never more than its share of it, and
//!   what one group holds leaves the seats of all others free.
//! - **P10** A seat is free again when its [`Seat`] is dropped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many seats there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// For all holders of a group together.
    pub group_max: usize,
    /// For one holder.
    pub holder_max: usize,
}

/// Why there is no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The group has so many, which is all it may.
    Group(usize),
    /// The holder has so many, which is all it may.
    Holder(usize),
}

/// The seats of groups `G` with holders `H`. Clones share them.
#[derive(Clone, Debug)]
pub struct Seats<G, H>(Arc<Mutex<Taken<G, H>>>);

#[derive(Debug)]
struct Taken<G, H> {
    groups: BTreeMap<G, usize>,
    holders: BTreeMap<H, usize>,
}

/// One seat, taken until this is dropped (P10).
#[derive(Debug)]
pub struct Seat<G: Ord, H: Ord> {
    seats: Seats<G, H>,
    group: G,
    holder: H,
}

impl<G, H> Default for Seats<G, H> {
    fn default() -> Self {
        let taken = Taken { groups: BTreeMap::new(), holders: BTreeMap::new() };
        Self(Arc::new(Mutex::new(taken)))
    }
}

impl<G, H> Seats<G, H> {
    fn taken(&self) -> MutexGuard<'_, Taken<G, H>> {
        // Every critical section is a few counts, which are whole even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Ord + Clone, H: Ord + Clone> Seats<G, H> {
    /// A seat for `holder` of `group`, if `quota` leaves one (P9).
    ///
    /// # Errors
    ///
    /// [`Full`] says whose seats are taken.
    pub fn take(&self, group: G, holder: H, quota: Quota) -> Result<Seat<G, H>, Full> {
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
        Ok(Seat { seats: self.clone(), group, holder })
    }
}

impl<G: Ord, H: Ord> Drop for Seat<G, H> {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        release(&mut taken.groups, &self.group);
        release(&mut taken.holders, &self.holder);
    }
}

/// Counts one less, and forgets a key that counts nothing.
fn release<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    let count = counts.get_mut(key).expect("a seat was counted when it was taken");
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
        let seats = Seats::default();
        let first = seats.take("eu", "m1", QUOTA).unwrap();
        let _second = seats.take("eu", "m1", QUOTA).unwrap();
        assert_eq!(seats.take("eu", "m1", QUOTA).unwrap_err(), Full::Holder(2));
        let _third = seats.take("eu", "minted", QUOTA).unwrap();
        assert_eq!(seats.take("eu", "minted too", QUOTA).unwrap_err(), Full::Group(3));
        let _other = seats.take("us", "m2", QUOTA).unwrap();
        drop(first);
        let _again = seats.take("eu", "minted too", QUOTA).unwrap();
        assert_eq!(seats.take("eu", "m1", QUOTA).unwrap_err(), Full::Group(3));
    }

    proptest! {
        // P9 and P10: a group that takes all it can never costs another one a seat.
        #[test]
        fn whatever_others_hold_a_groups_own_seats_are_there(
            steps in prop::collection::vec((1u8..4, 0u8..20, any::<bool>()), 0..200),
        ) {
            let seats = Seats::default();
            let mut held = Vec::new();
            for (group, holder, leaves) in steps {
                if leaves && !held.is_empty() {
                    held.remove(usize::from(holder) % held.len());
                }
                held.extend(seats.take(group, (group, holder), QUOTA));
            }
            let own: Vec<_> = (0..3).map(|n| seats.take(0, (0, n), QUOTA)).collect();
            prop_assert!(own.iter().all(Result::is_ok));
            drop((held, own));
            let taken = seats.taken();
            prop_assert!(taken.groups.is_empty() && taken.holders.is_empty());
        }
    }
}
