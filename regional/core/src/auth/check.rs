//! Whether a caller may do what it asks: etcd's rules, in etcd's order.

use bytes::Bytes;

use super::{Access, Auth, ROOT};
use crate::{
    keyspace::Caller,
    kv::request::{
        DeleteRangeRequest, KeyRange, LeaseId, PutRequest, RangeRequest, RequestOp, TxnRequest,
    },
    lease::Lessor,
    refusal::Refusal,
};

fn one_key(key: &[u8]) -> KeyRange {
    KeyRange::key(Bytes::copy_from_slice(key))
}

impl Auth {
    /// Whether the caller is an administrator; everybody is while authentication is disabled.
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

    /// Whether the caller is anybody; for requests that name no key.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`].
    pub fn check_somebody(&self, caller: &Caller) -> Result<(), Refusal> {
        if self.enabled() && caller.user.is_none() { Err(Refusal::UserEmpty) } else { Ok(()) }
    }

    fn check(&self, caller: &Caller, access: Access, range: &KeyRange) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        let Caller { user: Some(name), auth_revision: 1.. } = caller else {
            return Err(Refusal::UserEmpty);
        };
        if caller.auth_revision < self.revision() {
            return Err(Refusal::AuthOldRevision);
        }
        if self.may(name, access, range) { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    /// Whether this user's roles allow it now.
    fn may(&self, name: &str, access: Access, range: &KeyRange) -> bool {
        let Some(user) = self.users.get(&name.to_owned()) else { return false };
        let covers = || self.allowed.get(name).is_some_and(|all| all.covers(access, range));
        user.has(ROOT) || covers()
    }

    /// Whether the caller may read these keys; also what opening a watch on them needs.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`], [`Refusal::AuthOldRevision`], [`Refusal::PermissionDenied`]; as do
    /// all checks of keys.
    pub fn check_read(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.check(caller, Access::Read, range)
    }

    /// Whether the caller may write these keys.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_write(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.check(caller, Access::Write, range)
    }

    /// Whether a watch that was opened may be told about a key *now* (A3). Unlike at its opening,
    /// the caller's revision may be old: what counts is what the user may do now.
    #[must_use]
    pub fn watch_allowed(&self, caller: &Caller, key: &[u8]) -> bool {
        self.check_watching(caller, &one_key(key)).is_ok()
    }

    /// As [`Auth::watch_allowed`] for all keys of a range, with the reason.
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

    /// Whether the caller may make this range request.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_range(&self, caller: &Caller, request: &RangeRequest) -> Result<(), Refusal> {
        self.check_read(caller, &request.range)
    }

    /// Whether the caller may make this put: write the key, end the lease it attaches (whoever
    /// shares a lease can delete what lives by it), and read what it wants to see.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_put(
        &self,
        caller: &Caller,
        lessor: &Lessor,
        put: &PutRequest,
    ) -> Result<(), Refusal> {
        if !self.enabled() {
            return Ok(());
        }
        let key = KeyRange::key(put.key.clone());
        self.check_write(caller, &key)?;
        self.check_lease_keys(caller, lessor, put.lease)?;
        if put.prev_kv { self.check_read(caller, &key) } else { Ok(()) }
    }

    /// Whether the caller may write every key of a lease, hence end it.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_lease_keys(
        &self,
        caller: &Caller,
        lessor: &Lessor,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        if self.check_admin(caller).is_ok() {
            return Ok(());
        }
        lessor.keys(lease).try_for_each(|key| self.check_write(caller, &one_key(key)))
    }

    /// Whether the caller may read every key of a lease, hence see which they are.
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
        if self.check_admin(caller).is_ok() {
            return Ok(());
        }
        lessor.keys(lease).try_for_each(|key| self.check_read(caller, &one_key(key)))
    }

    /// Whether the caller may make this deletion.
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

    /// Whether the caller may make this transaction, whichever branch it takes.
    ///
    /// # Errors
    ///
    /// As [`Auth::check_read`].
    pub fn check_txn(
        &self,
        caller: &Caller,
        lessor: &Lessor,
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
                RequestOp::Put(put) => self.check_put(caller, lessor, put)?,
                RequestOp::DeleteRange(delete) => self.check_delete(caller, delete)?,
                RequestOp::Txn(txn) => self.check_txn(caller, lessor, txn)?,
            }
        }
        Ok(())
    }
}
