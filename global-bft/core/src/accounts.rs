//! Keeps account of the use that principals make of the realm: quotas, owners and rates (rules V8, V18, V19, V27).
//!
//! The realm has fixed room: bundles, bytes, entries, and directories in the history. One stolen
//! key of the weakest class must not be able to take it all, nor to take what trust roots need.
//! So each class has a quota, part of the room is closed to opaque classes, a principal owns at
//! most half of a class's bundles, and publishes slowly in the long run.
//!
//! A rate is a token bucket per principal and class, kept as the one time at which the bucket is
//! full again. A publish moves that time on by the class's interval; a principal whose bucket
//! would not be full for longer than a whole burst takes has no budget. Time is block time, so all
//! validators agree.
//!
//! # Invariants
//!
//! - Sums are kept, never computed: judging a change costs the same in a full realm as in an empty
//!   one.
//! - A bucket that is full is not kept. There are at most [`CLASSES_MAX`] times
//!   [`GOVERNANCE_ITEMS_MAX`] others, because a principal without keys has none.

use std::collections::{BTreeMap, BTreeSet};

use satrap_certify::{
    BundleName, Class, ClassKind, Digest, Governance, Head, Label, Timestamp,
    limits::{BUNDLE_NAME_BYTES_MAX, CLASSES_MAX, GOVERNANCE_ITEMS_MAX, HEADS_MAX, PUBLISH_BURST},
};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer, ascending};
use sha2::{Digest as _, Sha256};

use crate::{
    rejection::Rejection,
    room::{OPAQUE, REALM, Room},
};

const HOUR_NS: u64 = 3_600_000_000_000;

/// The use that all principals have made of the realm.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// The principal that created a bundle.
    owners: BTreeMap<BundleName, Label>,
    /// By prefix of the class: when the buckets of principals will be full again.
    buckets: BTreeMap<String, BTreeMap<Label, Timestamp>>,
    /// Sums over all bundles, those of opaque classes, and those of each class.
    realm: Room,
    opaque: Room,
    classes: BTreeMap<String, ClassSums>,
}

#[derive(Clone, Debug, Default)]
struct ClassSums {
    room: Room,
    owned: BTreeMap<Label, usize>,
}

impl Accounts {
    /// V8, V18: whether a bundle of `class` may take `after` in place of `before`.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names what is full.
    pub fn check_room(&self, class: &Class, before: Room, after: Room) -> Result<(), Rejection> {
        let realm = self.realm.with(before, after);
        if realm.outgrows(&REALM, &before, &after) {
            return Err(Rejection::RealmLimit(realm));
        }
        let sums = self.classes.get(&class.prefix).map_or_else(Room::default, |sums| sums.room);
        let sums = sums.with(before, after);
        let quota = Room {
            heads: class.quota.bundles_max as usize,
            bytes: class.quota.bytes_max,
            entries: REALM.entries,
        };
        if sums.outgrows(&quota, &before, &after) {
            return Err(Rejection::ClassQuota { class: class.prefix.clone(), sums, quota });
        }
        if class.kind == ClassKind::X509Trust {
            return Ok(());
        }
        let opaque = self.opaque.with(before, after);
        if opaque.outgrows(&OPAQUE, &before, &after) {
            return Err(Rejection::Reserved(opaque));
        }
        Ok(())
    }

    /// V19: whether `principal` may create one more bundle of `class`.
    ///
    /// # Errors
    ///
    /// [`Rejection::Owner`].
    pub fn check_owner(&self, class: &Class, principal: &Label) -> Result<(), Rejection> {
        let sums = self.classes.get(&class.prefix);
        let owned = sums.and_then(|sums| sums.owned.get(principal)).copied().unwrap_or(0);
        let max = (class.quota.bundles_max as usize).div_ceil(2);
        if owned >= max {
            let (principal, class) = (principal.clone(), class.prefix.clone());
            return Err(Rejection::Owner { principal, class, owned, max });
        }
        Ok(())
    }

    /// V27: the first `needed` of `principals` that have budget in `class` at `time`.
    ///
    /// # Errors
    ///
    /// [`Rejection::Rate`] if too few have; it says when enough will.
    pub fn payers(
        &self,
        class: &Class,
        principals: &[&Label],
        needed: usize,
        time: Timestamp,
    ) -> Result<Vec<Label>, Rejection> {
        let burst = PUBLISH_BURST * interval(class);
        let mut times: Vec<Timestamp> = Vec::new();
        let mut payers = Vec::new();
        for principal in principals {
            let from = Timestamp(self.full_after(class, principal, time).0.saturating_sub(burst));
            times.push(from);
            if from <= time {
                payers.push((*principal).clone());
            }
        }
        if payers.len() < needed {
            times.sort();
            let (class, have) = (class.prefix.clone(), payers.len());
            let retry_at = times.get(needed - 1).copied().unwrap_or(Timestamp::MAX);
            return Err(Rejection::Rate { class, have, needed, time, retry_at });
        }
        payers.truncate(needed);
        Ok(payers)
    }

    /// When the bucket of `principal` would be full again after one more publish at `time`.
    fn full_after(&self, class: &Class, principal: &Label, time: Timestamp) -> Timestamp {
        let bucket = self.buckets.get(&class.prefix).and_then(|buckets| buckets.get(principal));
        let full = bucket.copied().unwrap_or(time).max(time);
        Timestamp(full.0.saturating_add(interval(class)).min(Timestamp::MAX.0))
    }

    /// Takes one publish in `class` at `time` from the budget of each of `payers`.
    pub fn charge(&mut self, class: &Class, payers: &[Label], time: Timestamp) {
        for principal in payers {
            let full = self.full_after(class, principal, time);
            let buckets = self.buckets.entry(class.prefix.clone()).or_default();
            buckets.insert(principal.clone(), full);
        }
    }

    /// Notes that the bundle `name` of `class` takes `after` in place of `before`, and who created
    /// it, if it was not there before.
    pub fn hold(&mut self, name: &BundleName, class: &Class, change: (Room, Room), owner: &Label) {
        let (before, after) = change;
        if before.heads == 0 {
            self.owners.insert(name.clone(), owner.clone());
            *self.sums(class).owned.entry(owner.clone()).or_default() += 1;
        }
        self.count(class, before, after);
    }

    /// Notes that the bundle `name` of `class`, which took `before`, is gone.
    pub fn release(&mut self, name: &BundleName, class: &Class, before: Room) {
        self.count(class, before, Room::default());
        let Some(owner) = self.owners.remove(name) else { return };
        let owned = &mut self.sums(class).owned;
        if let Some(count) = owned.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                owned.remove(&owner);
            }
        }
    }

    fn sums(&mut self, class: &Class) -> &mut ClassSums {
        self.classes.entry(class.prefix.clone()).or_default()
    }

    fn count(&mut self, class: &Class, before: Room, after: Room) {
        self.realm = self.realm.with(before, after);
        if class.kind == ClassKind::Opaque {
            self.opaque = self.opaque.with(before, after);
        }
        let sums = self.sums(class);
        sums.room = sums.room.with(before, after);
    }

    /// The principal that created a bundle.
    #[must_use]
    pub fn owner(&self, name: &BundleName) -> Option<&Label> {
        self.owners.get(name)
    }

    /// How many buckets are kept.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets.values().map(BTreeMap::len).sum()
    }

    /// Drops the buckets that are full at `time`.
    pub fn expire(&mut self, time: Timestamp) {
        self.buckets.values_mut().for_each(|buckets| buckets.retain(|_, full| *full > time));
        self.buckets.retain(|_, buckets| !buckets.is_empty());
    }

    /// Drops the buckets of principals that have no key any more, so that a realm that replaces
    /// its operators for years keeps no more buckets than it has operators.
    pub fn forget_strangers(&mut self, governance: &Governance) {
        let known: BTreeSet<_> = governance.operators.values().map(|o| &o.principal).collect();
        let buckets = self.buckets.values_mut();
        buckets.for_each(|buckets| buckets.retain(|principal, _| known.contains(principal)));
        self.buckets.retain(|_, buckets| !buckets.is_empty());
    }

    /// The digest that the governance root commits to.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut w = Writer::tagged("satrap/accounts/v1");
        self.encode(&mut w);
        Sha256::digest(w.finish()).into()
    }

    /// Computes the sums of a decoded value from the bundles there are.
    ///
    /// # Errors
    ///
    /// If owners and bundles are not the same, or a bundle has no class.
    pub fn recount<'a>(
        &mut self,
        governance: &Governance,
        heads: impl Iterator<Item = &'a Head>,
    ) -> Result<(), DecodeError> {
        let mut owners = core::mem::take(&mut self.owners);
        for head in heads {
            let class = governance.class_of(&head.name);
            let (class, owner) = class
                .zip(owners.remove(&head.name))
                .ok_or(DecodeError::Invalid("accounts: a bundle without class or owner"))?;
            self.hold(&head.name, class, (Room::default(), Room::of(head)), &owner);
        }
        if owners.is_empty() {
            return Ok(());
        }
        Err(DecodeError::Invalid("accounts: an owner of no bundle"))
    }
}

/// Time that one publish takes from a bucket.
fn interval(class: &Class) -> u64 {
    HOUR_NS / u64::from(class.quota.publishes_per_hour.max(1))
}

impl Canonical for Accounts {
    fn encode(&self, w: &mut Writer) {
        w.count(self.owners.len());
        for (name, owner) in &self.owners {
            name.encode(w);
            owner.encode(w);
        }
        w.count(self.buckets.len());
        for (prefix, buckets) in &self.buckets {
            w.bytes(prefix.as_bytes());
            w.count(buckets.len());
            for (principal, full) in buckets {
                principal.encode(w);
                full.encode(w);
            }
        }
    }

    /// The sums are not encoded; see [`Accounts::recount`].
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut owners = Vec::new();
        for _ in 0..r.count(HEADS_MAX)? {
            owners.push((BundleName::decode(r)?, Label::decode(r)?));
        }
        ascending(owners.iter().map(|(name, _)| name))?;
        let mut classes = Vec::new();
        for _ in 0..r.count(CLASSES_MAX)? {
            let prefix = r.text(BUNDLE_NAME_BYTES_MAX)?.to_owned();
            let mut buckets = Vec::new();
            for _ in 0..r.count(GOVERNANCE_ITEMS_MAX)? {
                buckets.push((Label::decode(r)?, Timestamp::decode(r)?));
            }
            ascending(buckets.iter().map(|(principal, _)| principal))?;
            if buckets.is_empty() {
                return Err(DecodeError::Invalid("accounts: a class without buckets"));
            }
            classes.push((prefix, buckets.into_iter().collect()));
        }
        ascending(classes.iter().map(|(prefix, _)| prefix))?;
        Ok(Self {
            owners: owners.into_iter().collect(),
            buckets: classes.into_iter().collect(),
            ..Self::default()
        })
    }
}
