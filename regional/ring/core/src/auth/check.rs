//! Permission checks of requests: etcd's rules, in etcd's order.

use bytes::Bytes;

use super::{Access, Auth, ROOT};
use crate::{
    caller::Caller,
    fencing::Roles,
    kv::request::{
        DeleteRangeRequest, KeyRange, LeaseId, PutRequest, RangeRequest, RequestOp, TxnRequest,
    },
    lease::Lessor,
    refusal::Refusal,
};

/// The keys and the fenced role that each lease holds, and takes along when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'a> {
    /// The keys of each lease.
    pub lessor: &'a Lessor,
    /// The role of each lease.
    pub roles: &'a Roles,
}

fn one_key(key: &[u8]) -> KeyRange {
    KeyRange::key(Bytes::copy_from_slice(key))
}

impl Auth {
    /// Checks that the caller is an administrator; every caller is while authentication is
    /// disabled.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`], [`Refusal::UserNotFound`], [`Refusal::PermissionDenied`].
    pub fn check_admin(&self, caller: &Caller) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        let name = caller.user.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or(Refusal::UserEmpty)?;
        let user = self.users.get(&name.to_owned()).ok_or(Refusal::UserNotFound)?;
        if user.has(ROOT) { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    /// Checks that the caller has a user; for requests that name no key.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`].
    pub fn check_user(&self, caller: &Caller) -> Result<(), Refusal> {
        if self.enabled() && caller.user.is_none() { Err(Refusal::UserEmpty) } else { Ok(()) }
    }

    /// The user who asks, judged by the present users and roles.
    fn current_user<'c>(&self, caller: &'c Caller) -> Result<&'c str, Refusal> {
        let Caller { user: Some(name), auth_revision: 1.. } = caller else {
            return Err(Refusal::UserEmpty);
        };
        if caller.auth_revision < self.revision() {
            return Err(Refusal::AuthOldRevision);
        }
        Ok(name)
    }

    fn check(&self, caller: &Caller, access: Access, range: &KeyRange) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        let name = self.current_user(caller)?;
        if self.may(name, access, range) { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    /// Whether this user's roles permit the access now.
    fn may(&self, name: &str, access: Access, range: &KeyRange) -> bool {
        let Some(user) = self.users.get(&name.to_owned()) else { return false };
        let covers = || self.allowed.get(name).is_some_and(|all| all.covers(access, range));
        user.has(ROOT) || covers()
    }

    /// Checks that the caller may read these keys; opening a watch on them needs the same.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`], [`Refusal::AuthOldRevision`], [`Refusal::PermissionDenied`]; as do
    /// all checks of keys.
    pub fn check_read(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.check(caller, Access::Read, range)
    }

    /// Checks that the caller may write these keys.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_write(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.check(caller, Access::Write, range)
    }

    /// Whether an open watch may receive an event of a key *now* (AUTH-3). Unlike at its opening,
    /// the caller's revision may be old: the user's current permissions count.
    #[must_use]
    pub fn watch_allowed(&self, caller: &Caller, key: &[u8]) -> bool {
        self.check_watching(caller, &one_key(key)).is_ok()
    }

    /// Checks [`Auth::watch_allowed`] for all keys of a range, with the reason.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`], [`Refusal::PermissionDenied`].
    pub fn check_watching(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        let name = caller.user.as_deref().ok_or(Refusal::UserEmpty)?;
        if self.may(name, Access::Read, range) { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    /// Checks that the caller may make this range request.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_range(&self, caller: &Caller, request: &RangeRequest) -> Result<(), Refusal> {
        self.check_read(caller, &request.range)
    }

    /// Checks that the caller may make this put: write the key, end the lease it attaches (a user
    /// that shares a lease can delete all keys attached to it), and read the previous value if
    /// requested.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_put(
        &self,
        caller: &Caller,
        holdings: Holdings<'_>,
        put: &PutRequest,
    ) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        let key = KeyRange::key(put.key.clone());
        self.check_write(caller, &key)?;
        self.check_lease_keys(caller, holdings, put.lease)?;
        if put.prev_kv { self.check_read(caller, &key) } else { Ok(()) }
    }

    /// Checks that the caller may write every key of a lease, and the key of the role that it holds, hence end
    /// it.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_lease_keys(
        &self,
        caller: &Caller,
        holdings: Holdings<'_>,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        self.check_all_keys(caller, Access::Write, holdings.lessor, lease)?;
        match holdings.roles.role_of(lease) {
            Some(role) => self.check_write(caller, &one_key(role.as_bytes())),
            None => Ok(()),
        }
    }

    /// Checks access to all keys of a lease. Takes time by the permissions of the caller, not by the keys: each
    /// put with the lease does this.
    fn check_all_keys(
        &self,
        caller: &Caller,
        access: Access,
        lessor: &Lessor,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        if self.check_admin(caller).is_ok() || lessor.keys(lease).next().is_none() {
            return Ok(());
        }
        let allowed = self.allowed.get(self.current_user(caller)?);
        let mut gaps = allowed.ok_or(Refusal::PermissionDenied)?.gaps(access);
        match gaps.any(|(start, end)| lessor.has_key_within(lease, start, end.as_ref())) {
            true => Err(Refusal::PermissionDenied),
            false => Ok(()),
        }
    }

    /// Checks that the caller may read every key of a lease, hence list them.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_lease_read(
        &self,
        caller: &Caller,
        lessor: &Lessor,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        self.check_all_keys(caller, Access::Read, lessor, lease)
    }

    /// Checks that the caller may make this deletion.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_delete(
        &self,
        caller: &Caller,
        delete: &DeleteRangeRequest,
    ) -> Result<(), Refusal> {
        self.check_write(caller, &delete.range)?;
        if delete.prev_kv { self.check_read(caller, &delete.range) } else { Ok(()) }
    }

    /// Checks that the caller may make this transaction, whichever branch it takes.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_txn(
        &self,
        caller: &Caller,
        holdings: Holdings<'_>,
        txn: &TxnRequest,
    ) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        for compare in &txn.compare {
            self.check_read(caller, &compare.range)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                RequestOp::Range(range) => self.check_range(caller, range)?,
                RequestOp::Put(put) => self.check_put(caller, holdings, put)?,
                RequestOp::DeleteRange(delete) => self.check_delete(caller, delete)?,
                RequestOp::Txn(txn) => self.check_txn(caller, holdings, txn)?,
            }
        }
        Ok(())
    }
}
