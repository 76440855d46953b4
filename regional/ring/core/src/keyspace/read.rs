//! Reads, which need no entry of the log. They see the current state; the API has ensured before
//! that it is recent enough.

use super::Keyspace;
use crate::{caller::Caller, time::RingTime};
use crate::{
    fencing_token::FencingToken,
    kv::{LeaseId, RangeRequest, RangeResponse, TxnRequest, TxnResponse},
    lease::TimeToLive,
    refusal::Refusal,
};

/// The state of a fenced role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleStatus {
    /// The newest token granted; a resource must refuse every smaller one.
    pub token: FencingToken,
    /// Its holder; `None` if it is free.
    pub holder: Option<RoleHolder>,
}

/// The holder of a fenced role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleHolder {
    /// The holder's name in the grant.
    pub name: String,
    /// The lease that holds the role.
    pub lease: LeaseId,
    /// Milliseconds of ring time until that lease ends unless it is renewed.
    pub remaining_ms: u64,
}

impl Keyspace {
    /// Reads keys. As in etcd, alarms forbid no read; the API refuses to read from a corrupt
    /// member, because only the API knows which member this is.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] names the missing permission, or the reason why the revision is not
    /// available.
    pub fn range(&self, caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        self.auth.check_range(caller, request)?;
        self.store.range(request)
    }

    /// Executes a transaction that only reads.
    ///
    /// # Errors
    ///
    /// As [`Keyspace::range`].
    pub fn read_txn(&self, caller: &Caller, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        self.auth.check_txn(caller, self.holdings(), request)?;
        self.store.read_txn(request)
    }

    /// The remaining time of a lease at `at`, without its keys.
    ///
    /// # Errors
    ///
    /// [`Refusal::LeaseNotFound`], which etcd's clients see as a TTL of -1; [`Refusal::UserEmpty`].
    pub fn time_to_live(
        &self,
        caller: &Caller,
        id: LeaseId,
        at: RingTime,
    ) -> Result<TimeToLive, Refusal> {
        self.auth.check_user(caller)?;
        self.lessor.time_to_live(id, at).ok_or(Refusal::LeaseNotFound)
    }

    /// The remaining time of a lease at `at`, with its keys in order.
    ///
    /// # Errors
    ///
    /// As [`Keyspace::time_to_live`], and the permission that the caller lacks on one of the keys.
    pub fn time_to_live_with_keys(
        &self,
        caller: &Caller,
        id: LeaseId,
        at: RingTime,
    ) -> Result<TimeToLive, Refusal> {
        self.auth.check_user(caller)?;
        self.auth.check_lease_read(caller, &self.lessor, id)?;
        let mut left = self.time_to_live(caller, id, at)?;
        left.keys = self.lessor.keys(id).cloned().collect();
        Ok(left)
    }

    /// Ids of all leases, by deadline.
    ///
    /// # Errors
    ///
    /// As in etcd: a caller that is no administrator must be allowed to read every key of every
    /// lease.
    pub fn lease_list(&self, caller: &Caller) -> Result<Vec<LeaseId>, Refusal> {
        self.auth.check_user(caller)?;
        if self.auth.check_admin(caller).is_err() {
            for id in self.lessor.list() {
                self.auth.check_lease_read(caller, &self.lessor, id)?;
            }
        }
        Ok(self.lessor.list().collect())
    }

    /// The holder of a fenced role at `at`, and its newest token; zero if it never had a holder.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] names the permission that the caller lacks on the key of the role's name.
    pub fn role_status(
        &self,
        caller: &Caller,
        role: &str,
        at: RingTime,
    ) -> Result<RoleStatus, Refusal> {
        self.auth.check_read(caller, &super::apply::role_key(role))?;
        let Some(known) = self.roles.get(role) else {
            return Ok(RoleStatus { token: FencingToken::default(), holder: None });
        };
        let holder = known.held.as_ref().and_then(|held| {
            let lease = self.lessor.get(held.lease)?;
            let left = lease.deadline.since(at.max(self.now())).as_millis();
            let remaining_ms = u64::try_from(left).unwrap_or(u64::MAX);
            Some(RoleHolder { name: held.holder.clone(), lease: held.lease, remaining_ms })
        });
        Ok(RoleStatus { token: known.token, holder })
    }
}
