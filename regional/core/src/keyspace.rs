//! Decides what each entry of the log does to the coordination state of a ring, and what to answer.
//!
//! ```text
//!   Batch { time, proposals }
//!     1. time advances, never back
//!     2. what is due ends: leases oldest first with their keys, tokens; a bounded number
//!     3. each proposal in order:   alarms ─▶ permissions ─▶ quotas ─▶ effect ─▶ Reply
//! ```
//!
//! The order within a proposal is etcd's, because the first refusal is the one a client sees.
//!
//! # Invariants
//!
//! - **G1** The same batches give the same state and the same replies, on every member.
//! - **G3** A refused proposal changed nothing.
//! - **G4** Nothing that a member can decode makes [`Keyspace::apply`] panic.
//! - **G5** Everything that is not history is a row of a table, so that no page and no digest can
//!   miss it; what else is held is derived, and rebuilt by [`Keyspace::restore`].
//!
//! # Deliberately absent
//!
//! Batching, forwarding, clocks, ids, waiting: the ring's loop. Watches: [`crate::watch`] reads the
//! store.

mod apply;
mod codec;
mod persist;
mod read;
mod request;
mod response;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

pub use persist::{Changes, Pages, RestoreError};
pub use request::{Batch, Caller, Proposal, PutIfRevision, PutSequential, Request, RingTime};
pub use response::{Reply, Response};

use crate::{
    alarm::{AlarmKind, AlarmMember, Alarms},
    auth::Auth,
    fencing::Roles,
    kv::{self, LeaseId, Revision},
    lease::Lessor,
    members::Members,
    quota::Quotas,
    recovery::RecoveryRecord,
    table::{Row, Table},
};

/// All coordination state of one ring.
#[derive(Debug, Default)]
pub struct Keyspace {
    store: kv::Store,
    lessor: Lessor,
    auth: Auth,
    roles: Roles,
    alarms: Alarms,
    quotas: Quotas,
    members: Members,
    recoveries: Table<RecoveryRecord>,
    standing: Table<Standing>,
}

/// The one row that is about nobody: where time and compaction stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    now: RingTime,
    compacted: Revision,
}

impl Keyspace {
    /// A keyspace in which nothing has happened: revision 1, epoch 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keys and their history.
    #[must_use]
    pub fn store(&self) -> &kv::Store {
        &self.store
    }

    /// The store, for reclaiming memory and nothing else: writes go through [`Keyspace::apply`].
    pub fn reclaim(&mut self, budget: usize) -> kv::Reclaimed {
        self.store.reclaim(budget)
    }

    /// Leases.
    #[must_use]
    pub fn leases(&self) -> &Lessor {
        &self.lessor
    }

    /// Users, roles, tokens.
    #[must_use]
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// Fenced roles and their holders.
    #[must_use]
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Alarms of members.
    #[must_use]
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// A member was removed: what it had no room for is nobody's concern any more. That it was corrupt
    /// still is, until an operator has looked.
    pub fn part_with(&mut self, member: u64) {
        self.alarms.clear(AlarmMember { kind: AlarmKind::NoSpace, member });
    }

    /// Limits and what is in use.
    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Who is invited, and where clients reach whom.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The newest time seen.
    #[must_use]
    pub fn now(&self) -> RingTime {
        self.standing.get(&()).map_or(RingTime::default(), |standing| standing.now)
    }

    /// How often the history was cut.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.recoveries.iter().next_back().map_or(0, |(epoch, _)| *epoch)
    }

    /// Every cut, oldest first.
    pub fn recoveries(&self) -> impl Iterator<Item = &RecoveryRecord> {
        self.recoveries.iter().map(|(_, record)| record)
    }

    /// When a [`Request::Tick`] is due if nothing else is proposed until then.
    #[must_use]
    pub fn next_expiry(&self) -> Option<RingTime> {
        self.lessor.next_expiry()
    }

    /// Writes down where time and compaction stand, if that moved.
    fn stand(&mut self, now: RingTime) {
        let standing = Standing { now, compacted: self.store.compacted() };
        if self.standing.get(&()) != Some(&standing) {
            self.standing.insert((), standing);
        }
    }

    /// What the store tells whenever it writes.
    fn split(&mut self) -> (&mut kv::Store, Attachments<'_>) {
        let attachments = Attachments { lessor: &mut self.lessor, quotas: &mut self.quotas };
        (&mut self.store, attachments)
    }
}

/// Those who must know of every write.
struct Attachments<'a> {
    lessor: &'a mut Lessor,
    quotas: &'a mut Quotas,
}

impl kv::Owner for Attachments<'_> {
    fn lease_exists(&self, lease: LeaseId) -> bool {
        self.lessor.get(lease).is_some()
    }

    fn wrote(&mut self, event: &kv::Event, replaced: Option<&kv::Event>) {
        let replaced = replaced.map(|old| old.as_ref()).filter(|old| !old.is_deletion());
        self.lessor.observe(event, replaced);
        let exists = (!event.is_deletion()).then_some(event.as_ref());
        self.quotas.observe(replaced, exists);
    }
}

impl Canonical for Standing {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.now.0);
        w.u64(self.compacted.cast_unsigned());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { now: RingTime(r.u64()?), compacted: r.u64()?.cast_signed() })
    }
}

impl Row for Standing {
    type Key = ();
    const NAME: &'static str = "meta";
    const PAGE_ROWS_MAX: usize = 1;

    fn encode_key((): &(), _: &mut Writer) {}

    fn decode_key(_: &mut Reader<'_>) -> Result<(), DecodeError> {
        Ok(())
    }
}
