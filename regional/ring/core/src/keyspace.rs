//! The keyspace: the coordination state of a ring, which decides the effect of each batch and the
//! replies.
//!
//! ```text
//!   Batch { time, proposals }
//!     1. time advances, never back
//!     2. due leases end, oldest first, with their keys; expired tokens end; a bounded number
//!     3. each proposal in order:   alarms ─▶ permissions ─▶ quotas ─▶ effect ─▶ Reply
//! ```
//!
//! The order within a proposal is etcd's, because the client sees the first refusal.
//!
//! # Invariants
//!
//! - **STATE-1** The same batches give the same state and the same replies, on every member.
//! - **STATE-3** A refused proposal changes nothing.
//! - **STATE-4** No request that a member can decode makes [`Keyspace::apply`] panic.
//! - **STATE-5** All state but the history consists of rows of tables, so that pages and digest
//!   cover it; every other field is derived, and rebuilt by [`Keyspace::restore`].
//!
//! # Deliberately absent
//!
//! Batching, forwarding, clocks, ids and waiting, which are the running member's. Watches:
//! [`crate::watch`] reads the store.

mod apply;
mod codec;
mod persist;
mod read;
mod request;
mod response;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

pub use persist::{Changes, Pages, RestoreError};
pub use request::{Batch, Proposal, PutIfRevision, PutSequential, Request};
pub use response::{Reply, Response};

use crate::{
    alarm::{AlarmMember, Alarms},
    auth::{Auth, Holdings},
    fencing::Roles,
    kv::{self, LeaseId, Revision},
    lease::Lessor,
    members::Members,
    quota::Quotas,
    recovery::{RecoveryRecord, Signatories},
    table::{Row, Table},
    time::RingTime,
};

/// The coordination state of one ring.
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
    /// Not replicated: configured equally on all members.
    signatories: Signatories,
    progress: Table<Progress>,
}

/// The row of the ring itself: its time and its compacted revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    now: RingTime,
    compacted: Revision,
}

impl Keyspace {
    /// The keyspace before any batch: revision 1, epoch 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Keyspace::new`], for a ring whose forced recoveries need the signatures of
    /// `signatories`.
    #[must_use]
    pub fn signed_by(signatories: Signatories) -> Self {
        Self { signatories, ..Self::default() }
    }

    /// Keys and their history.
    #[must_use]
    pub fn store(&self) -> &kv::Store {
        &self.store
    }

    /// Frees memory of compacted versions; see [`kv::Store::reclaim`].
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

    pub(crate) fn clear_alarm(&mut self, alarm: AlarmMember) {
        self.alarms.clear(alarm);
    }

    /// Quotas and their usage.
    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Invitations, and the client URLs of members.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The newest stamp applied.
    #[must_use]
    pub fn now(&self) -> RingTime {
        self.progress.get(&()).map_or(RingTime::default(), |progress| progress.now)
    }

    /// The epoch of the last recovery; zero if the history was never cut.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.recoveries.iter().next_back().map_or(0, |(epoch, _)| *epoch)
    }

    /// Every cut, oldest first.
    pub fn recoveries(&self) -> impl Iterator<Item = &RecoveryRecord> {
        self.recoveries.iter().map(|(_, record)| record)
    }

    /// The time at which a [`Request::Tick`] is due, unless another proposal carries the time
    /// before.
    #[must_use]
    pub fn next_expiry(&self) -> Option<RingTime> {
        self.lessor.next_expiry()
    }

    /// Records time and compacted revision, if they changed.
    fn record_progress(&mut self, now: RingTime) {
        let progress = Progress { now, compacted: self.store.compacted() };
        if self.progress.get(&()) != Some(&progress) {
            self.progress.insert((), progress);
        }
    }

    /// The keys and the fenced role of each lease.
    fn holdings(&self) -> Holdings<'_> {
        Holdings { lessor: &self.lessor, roles: &self.roles }
    }

    /// The store, and those that it notifies of every write.
    fn split(&mut self) -> (&mut kv::Store, Attachments<'_>) {
        let attachments = Attachments { lessor: &mut self.lessor, quotas: &mut self.quotas };
        (&mut self.store, attachments)
    }
}

/// The parts of the state that the store notifies of every write.
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

impl Canonical for Progress {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.now.0);
        w.u64(self.compacted.cast_unsigned());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { now: RingTime(r.u64()?), compacted: r.u64()?.cast_signed() })
    }
}

impl Row for Progress {
    type Key = ();
    const NAME: &'static str = "meta";
    const PAGE_ROWS_MAX: usize = 1;

    fn encode_key((): &(), _: &mut Writer) {}

    fn decode_key(_: &mut Reader<'_>) -> Result<(), DecodeError> {
        Ok(())
    }
}
