//! Questions that need no entry of the log. They are judged by the state at the moment of reading;
//! how fresh that is, the rim has settled before.

use super::{Caller, Keyspace, RingTime};
use crate::{
    fencing::FencingToken,
    kv::{LeaseId, RangeRequest, RangeResponse, TxnRequest, TxnResponse},
    lease::TimeToLive,
    refusal::Refusal,
};

/// What is known of a fenced role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleStatus {
    /// The newest token granted; a resource must refuse every smaller one.
    pub token: FencingToken,
    /// Who holds it, unless it is free.
    pub holder: Option<RoleHolder>,
}

/// Who holds a fenced role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleHolder {
    /// As the grant named them.
    pub name: String,
    /// The lease that keeps the role.
    pub lease: LeaseId,
    /// Milliseconds of ring time until that lease ends unless it is renewed.
    pub remaining_ms: u64,
}

impl Keyspace {
    /// Reads keys. As in etcd, alarms keep nobody from reading; that a corrupt member does not answer is
    /// for the rim, which knows who it is.
    ///
    /// # Errors
    ///
    /// What the caller may not read, or the revision cannot give.
    pub fn range(&self, caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        self.auth.check_range(caller, request)?;
        self.store.range(request)
    }

    /// Runs a transaction that only reads.
    ///
    /// # Errors
    ///
    /// As [`Keyspace::range`].
    pub fn read_txn(&self, caller: &Caller, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        self.auth.check_txn(caller, &self.lessor, request)?;
        self.store.read_txn(request)
    }

    /// What is left of a lease at `at`, without its keys.
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
        self.auth.check_somebody(caller)?;
        self.lessor.time_to_live(id, at).ok_or(Refusal::LeaseNotFound)
    }

    /// What is left of a lease at `at`, with its keys in order.
    ///
    /// # Errors
    ///
    /// As [`Keyspace::time_to_live`], and what the caller lacks to read each of the keys.
    pub fn time_to_live_with_keys(
        &self,
        caller: &Caller,
        id: LeaseId,
        at: RingTime,
    ) -> Result<TimeToLive, Refusal> {
        self.auth.check_somebody(caller)?;
        self.auth.check_lease_read(caller, &self.lessor, id)?;
        let mut left = self.time_to_live(caller, id, at)?;
        left.keys = self.lessor.keys(id).cloned().collect();
        Ok(left)
    }

    /// Ids of all leases, the one that ends first first.
    ///
    /// # Errors
    ///
    /// As in etcd: whoever is not an administrator must be allowed to read every key of every
    /// lease.
    pub fn lease_list(&self, caller: &Caller) -> Result<Vec<LeaseId>, Refusal> {
        self.auth.check_somebody(caller)?;
        if self.auth.check_admin(caller).is_err() {
            for id in self.lessor.list() {
                self.auth.check_lease_read(caller, &self.lessor, id)?;
            }
        }
        Ok(self.lessor.list().collect())
    }

    /// Who holds a fenced role at `at`, and its newest token; zero if it never had a holder.
    ///
    /// # Errors
    ///
    /// What the caller lacks to read the key of the role's name.
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
