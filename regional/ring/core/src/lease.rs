//! Leases: deadlines in replicated time, and the keys attached to each.
//!
//! etcd keeps the deadline of a lease in the leader's memory, so a new leader restarts every lease
//! and no client can tell when one ended. Here time is replicated: a deadline is a [`RingTime`],
//! renewals go through the log, and expiry happens inside apply. So whether a lease is live is a
//! function of the log, on every member, across any change of leader.
//!
//! ```text
//!    grant            renew: deadline = time + ttl
//!   ───────▶ Live ──────────────────────────────▶ Live
//!             │ time reaches the deadline
//!             ▼            at most so many per batch, oldest first
//!            Due ─────────────────────────────────────────────────▶ gone, its keys deleted
//!             ▲ renew, attach: LeaseNotFound
//! ```
//!
//! # Invariants
//!
//! - **LEASE-1** A lease never expires before its deadline.
//! - **LEASE-2** A lease whose deadline has passed never becomes live again, even before it is
//!   ended.
//! - **LEASE-3** Ending a lease deletes all its keys, sorted, at one revision.
//!
//! # Deliberately absent
//!
//! No grace after an outage: the leader that stamps batches decides how far time advances after a
//! change of leaders.

use std::{collections::BTreeSet, ops::Bound, time::Duration};

use bytes::Bytes;
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    kv::{Event, KeyValue, LeaseId},
    limits,
    refusal::Refusal,
    table::{Row, Table, spread},
    time::RingTime,
};

/// One lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Time to live of a grant or renewal, in seconds.
    pub ttl_s: i64,
    /// The time at which it is due.
    pub deadline: RingTime,
}

/// The facts of a lease for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// Whole seconds left, rounded down as in etcd.
    pub remaining_s: i64,
    /// Time to live of a grant or renewal, in seconds.
    pub granted_s: i64,
    /// Its keys in order; empty unless requested.
    pub keys: Vec<Bytes>,
}

/// All leases of the keyspace.
#[derive(Clone, Debug, Default)]
pub struct Lessor {
    pub(crate) rows: Table<Lease>,
    /// Derived: the leases by deadline.
    deadlines: BTreeSet<(RingTime, LeaseId)>,
    /// Derived: the keys attached to each lease.
    attached: BTreeSet<(LeaseId, Bytes)>,
    /// The newest time; a lease whose deadline is not after it is due.
    now: RingTime,
}

impl Lessor {
    /// A live lease.
    #[must_use]
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.rows.get(&id).filter(|lease| lease.deadline > self.now)
    }

    /// The number of leases, due ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// The keys attached to a lease, in order.
    pub fn keys(&self, id: LeaseId) -> impl Iterator<Item = &Bytes> {
        let from = Bound::Included((id, Bytes::new()));
        let range = self.attached.range((from, Bound::Unbounded));
        range.take_while(move |(of, _)| *of == id).map(|(_, key)| key)
    }

    /// Whether a key from `start` up to, not including, `end` is attached to a lease; `None` is the end of the
    /// keyspace.
    pub(crate) fn has_key_within(&self, id: LeaseId, start: Bytes, end: Option<&Bytes>) -> bool {
        let first = self.attached.range((id, start)..).next();
        first.is_some_and(|(of, key)| *of == id && end.is_none_or(|end| key < end))
    }

    /// Ids of all live leases, by deadline, as etcd lists them.
    pub fn list(&self) -> impl Iterator<Item = LeaseId> {
        let after = Bound::Excluded((self.now, LeaseId::MAX));
        self.deadlines.range((after, Bound::Unbounded)).map(|(_, id)| *id)
    }

    /// The remaining time of a lease at `at`; `None` if there is no such lease.
    #[must_use]
    pub fn time_to_live(&self, id: LeaseId, at: RingTime) -> Option<TimeToLive> {
        let lease = self.get(id)?;
        // Some time has passed since the grant, if less than the ring's clock shows: as in etcd, a
        // lease of 100 s has 99 whole seconds left as soon as a client can ask.
        let left = lease.deadline.since(at.max(self.now));
        let left_s = left.saturating_sub(Duration::from_millis(1)).as_secs();
        let remaining_s = i64::try_from(left_s).unwrap_or(i64::MAX);
        Some(TimeToLive { remaining_s, granted_s: lease.ttl_s, keys: Vec::new() })
    }

    /// The time at which the next lease is due.
    #[must_use]
    pub fn next_expiry(&self) -> Option<RingTime> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Advances time. Leases that become due wait for [`Lessor::next_due`].
    pub(crate) fn advance(&mut self, now: RingTime) {
        self.now = now;
    }

    /// The lease that has been due for longest.
    pub(crate) fn next_due(&self) -> Option<LeaseId> {
        let (deadline, id) = self.deadlines.first()?;
        (*deadline <= self.now).then_some(*id)
    }

    /// Creates a lease and returns its bounded TTL.
    pub(crate) fn grant(&mut self, id: LeaseId, ttl_s: i64) -> Result<i64, Refusal> {
        // The order of the checks is etcd's.
        if id == 0 {
            return Err(Refusal::LeaseNotFound);
        }
        if ttl_s > limits::LEASE_TTL_S_MAX {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.rows.get(&id).is_some() {
            return Err(Refusal::LeaseExists);
        }
        let ttl_s = ttl_s.max(limits::LEASE_TTL_S_MIN);
        self.set(id, ttl_s);
        Ok(ttl_s)
    }

    /// Restarts a lease's time and returns its TTL; refuses a due lease (LEASE-2).
    pub(crate) fn renew(&mut self, id: LeaseId) -> Result<i64, Refusal> {
        let lease = *self.get(id).ok_or(Refusal::LeaseNotFound)?;
        self.deadlines.remove(&(lease.deadline, id));
        self.set(id, lease.ttl_s);
        Ok(lease.ttl_s)
    }

    fn set(&mut self, id: LeaseId, ttl_s: i64) {
        let deadline = self.now.after(ttl_s.cast_unsigned().saturating_mul(1_000));
        self.deadlines.insert((deadline, id));
        self.rows.insert(id, Lease { ttl_s, deadline });
    }

    /// Removes a lease whose keys the caller has deleted (LEASE-3).
    pub(crate) fn end(&mut self, id: LeaseId) {
        if let Some(lease) = self.rows.remove(&id) {
            self.deadlines.remove(&(lease.deadline, id));
        }
    }

    /// Whether a lease exists, due or not.
    pub(crate) fn exists(&self, id: LeaseId) -> bool {
        self.rows.get(&id).is_some()
    }

    /// Follows a write; `replaced` is the previous version, if the key existed.
    pub(crate) fn observe(&mut self, event: &KeyValue, replaced: Option<&KeyValue>) {
        let old = replaced.map_or(0, |old| old.lease);
        if old == event.lease {
            return;
        }
        let key = Bytes::copy_from_slice(event.key());
        if old != 0 {
            self.attached.remove(&(old, key.clone()));
        }
        if event.lease != 0 {
            self.attached.insert((event.lease, key));
        }
    }

    /// Attaches every live key that has a lease; fails with a lease that does not exist. Merging
    /// both sorted sides is several times faster than a lookup for each.
    pub(crate) fn attach_all(&mut self, live: &[Event]) -> Result<(), LeaseId> {
        let attachment = |kv: &Event| (kv.lease, Bytes::copy_from_slice(kv.key()));
        let leased = live.iter().filter(|kv| kv.lease != 0);
        let mut leased: Vec<(LeaseId, Bytes)> = leased.map(attachment).collect();
        leased.sort_unstable();
        let mut ids: Vec<LeaseId> = self.rows.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let mut ids = ids.into_iter().peekable();
        for (lease, _) in &leased {
            while ids.next_if(|id| id < lease).is_some() {}
            if ids.peek() != Some(lease) {
                return Err(*lease);
            }
        }
        self.attached = leased.into_iter().collect();
        Ok(())
    }

    /// Rebuilds the fields derived from the rows; [`Lessor::attach_all`] then attaches the keys.
    pub(crate) fn rebuild(&mut self, now: RingTime) {
        self.now = now;
        self.deadlines = self.rows.iter().map(|(id, lease)| (lease.deadline, *id)).collect();
        self.attached.clear();
    }
}

impl Canonical for Lease {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.ttl_s.cast_unsigned());
        w.u64(self.deadline.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { ttl_s: r.u64()?.cast_signed(), deadline: RingTime(r.u64()?) })
    }
}

impl Row for Lease {
    type Key = LeaseId;
    const NAME: &'static str = "leases";
    const SHARDS: u16 = 1_024;

    fn shard(id: &LeaseId) -> u16 {
        spread(id.cast_unsigned(), Self::SHARDS)
    }

    fn encode_key(key: &LeaseId, w: &mut Writer) {
        w.u64(key.cast_unsigned());
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<LeaseId, DecodeError> {
        Ok(r.u64()?.cast_signed())
    }
}
