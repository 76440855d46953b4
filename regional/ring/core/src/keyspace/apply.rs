//! The effect of each request on the keyspace; [`super`] has the order of the checks.

use bytes::Bytes;

use super::{Batch, Keyspace, Proposal, PutIfRevision, PutSequential, Reply, Request, Response};
use crate::{
    alarm::AlarmKind,
    auth::AuthRequest,
    caller::Caller,
    fencing::{GrantRole, Held, ReleaseRole},
    fencing_token::RECOVERY_EPOCH_MAX,
    kv::{Event, KeyRange, LeaseId, PutRequest, RangeRequest, Revision},
    limits,
    quota::{QuotaRequest, txn_cost},
    recovery::{RecoveryKind, RecoveryRecord},
    refusal::Refusal,
    time::RingTime,
};

impl Keyspace {
    /// Applies one batch; returns one reply for each proposal, in the same order.
    pub fn apply(&mut self, batch: &Batch) -> Vec<Reply> {
        self.advance(batch.time.max(self.now()));
        batch.proposals.iter().map(|proposal| self.apply_one(proposal)).collect()
    }

    /// Advances time; ends due leases and expired tokens.
    fn advance(&mut self, now: RingTime) {
        self.record_progress(now);
        self.lessor.advance(now);
        self.auth.expire(now);
        let mut keys = 0;
        for _ in 0..limits::BATCH_EXPIRIES_MAX {
            let Some(due) = self.lessor.next_due() else { break };
            keys += self.end_lease(due);
            if keys >= limits::BATCH_EXPIRED_KEYS_MAX {
                break;
            }
        }
    }

    /// Ends an existing lease: deletes its keys at one revision (LEASE-3) and frees its role.
    fn end_lease(&mut self, id: LeaseId) -> usize {
        let keys: Vec<Bytes> = self.lessor.keys(id).cloned().collect();
        let (store, mut attachments) = self.split();
        store.delete_keys(&keys, &mut attachments);
        self.lessor.end(id);
        self.roles.lease_ended(id);
        keys.len()
    }

    fn apply_one(&mut self, Proposal { caller, request }: &Proposal) -> Reply {
        self.check_alarms(request)?;
        match request {
            Request::Put(put) => self.put(caller, put),
            Request::DeleteRange(delete) => {
                self.auth.check_delete(caller, delete)?;
                let (store, mut attachments) = self.split();
                Ok(Response::DeleteRange(store.delete_range(delete, &mut attachments)))
            }
            Request::Txn(txn) => {
                self.auth.check_txn(caller, self.holdings(), txn)?;
                let held = self.store.sizes().held_bytes;
                self.quotas.admit_txn(txn, held, |key| self.store.get(key).map(AsRef::as_ref))?;
                let (store, mut attachments) = self.split();
                store.txn(txn, &mut attachments).map(Response::Txn)
            }
            Request::Compact { revision } => {
                let revision = self.store.compact(*revision)?;
                self.record_progress(self.now());
                Ok(Response::Compacted { revision })
            }
            Request::PutIfRevision(put) => self.put_if_revision(caller, put),
            Request::PutSequential(put) => self.put_sequential(caller, put),
            Request::GrantRole(grant) => self.grant_role(caller, grant),
            Request::ReleaseRole(release) => self.release_role(caller, release),
            Request::LeaseGrant { id, ttl_s } => self.lease_grant(caller, *id, *ttl_s),
            Request::LeaseRevoke { id } => self.lease_revoke(caller, *id),
            Request::LeaseRenew { id } => self.lease_renew(caller, *id),
            Request::Tick => Ok(self.done()),
            Request::Auth(request) => self.auth_request(caller, request),
            Request::Alarm(request) => {
                let alarms = self.alarms.apply(request)?;
                Ok(Response::Alarms { alarms, revision: self.store.revision() })
            }
            Request::Quota(request) => self.quota(caller, request),
            Request::Recovery(record) => {
                // RECOVERY-1
                self.signatories.check(record)?;
                self.recover(record)
            }
            Request::Member(request) => {
                self.members.apply(request)?;
                Ok(self.done())
            }
        }
    }

    fn done(&self) -> Response {
        Response::Done { revision: self.store.revision() }
    }

    /// Refuses requests that an alarm forbids, as in etcd. Renewing leases and managing users is
    /// always possible.
    fn check_alarms(&self, request: &Request) -> Result<(), Refusal> {
        let serves_keys = matches!(
            request,
            Request::Put(_)
                | Request::DeleteRange(_)
                | Request::Txn(_)
                | Request::Compact { .. }
                | Request::PutIfRevision(_)
                | Request::PutSequential(_)
                | Request::GrantRole(_)
                | Request::ReleaseRole(_)
                | Request::LeaseGrant { .. }
                | Request::LeaseRevoke { .. }
        );
        if serves_keys && self.alarms.any(AlarmKind::Corrupt) {
            return Err(Refusal::Corrupt);
        }
        let grows = match request {
            Request::Put(_)
            | Request::PutIfRevision(_)
            | Request::PutSequential(_)
            | Request::GrantRole(_)
            | Request::LeaseGrant { .. } => true,
            Request::Txn(txn) => txn_cost(txn) > 0,
            _ => false,
        };
        if grows && self.alarms.any(AlarmKind::NoSpace) {
            return Err(Refusal::NoSpace);
        }
        Ok(())
    }

    fn put(&mut self, caller: &Caller, put: &PutRequest) -> Reply {
        self.auth.check_put(caller, self.holdings(), put)?;
        self.admit_and_put(put)
    }

    fn admit_and_put(&mut self, put: &PutRequest) -> Reply {
        let held = self.store.sizes().held_bytes;
        self.quotas.admit_put(put, held, |key| self.store.get(key).map(AsRef::as_ref))?;
        let (store, mut attachments) = self.split();
        store.put(put, &mut attachments).map(Response::Put)
    }

    fn put_if_revision(&mut self, caller: &Caller, request: &PutIfRevision) -> Reply {
        let put = PutRequest {
            lease: request.lease,
            ..PutRequest::of(request.key.clone(), request.value.clone())
        };
        self.auth.check_put(caller, self.holdings(), &put)?;
        if request.want_value {
            self.auth.check_read(caller, &KeyRange::key(request.key.clone()))?;
        }
        let live = self.store.get(&request.key);
        let current = live.map_or(0, |kv| kv.mod_revision);
        if current != request.expected_revision {
            let value = live.filter(|_| request.want_value).map(|kv| kv.value_bytes());
            return Err(Refusal::Conflict { at: self.store.revision(), current, value });
        }
        self.admit_and_put(&put)
    }

    fn put_sequential(&mut self, caller: &Caller, request: &PutSequential) -> Reply {
        if request.prefix.is_empty() {
            return Err(Refusal::EmptyKey);
        }
        let revision = self.store.revision() + 1;
        let key = sequential_key(&request.prefix, self.epoch(), revision);
        let put = PutRequest {
            lease: request.lease,
            ..PutRequest::of(key.clone(), request.value.clone())
        };
        self.auth.check_put(caller, self.holdings(), &put)?;
        // A client wrote this key itself. The next write has a larger number.
        if let Some(taken) = self.store.get(&key) {
            let (at, current) = (self.store.revision(), taken.mod_revision);
            return Err(Refusal::Conflict { at, current, value: None });
        }
        let revision = self.admit_and_put(&put)?.revision();
        Ok(Response::PutSequential { key, revision })
    }

    fn grant_role(&mut self, caller: &Caller, grant: &GrantRole) -> Reply {
        if grant.role.is_empty() {
            return Err(Refusal::RoleEmpty);
        }
        self.auth.check_write(caller, &role_key(&grant.role))?;
        self.free_if_due(&grant.role);
        if let Some(Held { holder, lease }) =
            self.roles.get(&grant.role).and_then(|role| role.held.clone())
        {
            // LEASE-5
            let deadline = self.lessor.get(lease).map_or(self.now(), |lease| lease.deadline);
            let left = deadline.since(self.now()).as_millis();
            let remaining_ms = u64::try_from(left).unwrap_or(u64::MAX);
            return Err(Refusal::RoleHeld { holder, lease, remaining_ms });
        }
        self.admit_lease()?;
        let token = self.roles.next_token(&grant.role, self.epoch())?;
        let ttl_s = self.lessor.grant(grant.lease, grant.ttl_s)?;
        self.roles.hold(grant, token);
        let revision = self.store.revision();
        Ok(Response::RoleGranted { token, lease: grant.lease, ttl_s, revision })
    }

    /// Frees a role whose lease is due but has not ended yet, so that it does not keep the role
    /// from others.
    fn free_if_due(&mut self, role: &str) {
        let held = self.roles.get(role).and_then(|role| role.held.as_ref());
        if let Some(lease) = held.map(|held| held.lease)
            && self.lessor.get(lease).is_none()
        {
            self.end_lease(lease);
        }
    }

    fn release_role(&mut self, caller: &Caller, release: &ReleaseRole) -> Reply {
        self.auth.check_write(caller, &role_key(&release.role))?;
        let lease = self.roles.lease_of(release)?;
        self.auth.check_lease_keys(caller, self.holdings(), lease)?;
        self.end_lease(lease);
        Ok(Response::RoleReleased { revision: self.store.revision() })
    }

    fn admit_lease(&self) -> Result<(), Refusal> {
        if self.lessor.len() >= limits::LEASES_MAX {
            return Err(Refusal::Full("leases"));
        }
        self.quotas.admit_total(self.store.sizes().held_bytes, limits::LEASE_OVERHEAD_BYTES)
    }

    fn lease_grant(&mut self, caller: &Caller, id: LeaseId, ttl_s: i64) -> Reply {
        self.auth.check_user(caller)?;
        self.admit_lease()?;
        let ttl_s = self.lessor.grant(id, ttl_s)?;
        Ok(Response::LeaseGranted { id, ttl_s, revision: self.store.revision() })
    }

    fn lease_revoke(&mut self, caller: &Caller, id: LeaseId) -> Reply {
        self.auth.check_user(caller)?;
        self.auth.check_lease_keys(caller, self.holdings(), id)?;
        if !self.lessor.exists(id) {
            return Err(Refusal::LeaseNotFound);
        }
        self.end_lease(id);
        Ok(Response::LeaseRevoked { revision: self.store.revision() })
    }

    fn lease_renew(&mut self, caller: &Caller, id: LeaseId) -> Reply {
        self.auth.check_user(caller)?;
        self.auth.check_lease_keys(caller, self.holdings(), id)?;
        let ttl_s = self.lessor.renew(id)?;
        Ok(Response::LeaseRenewed { ttl_s, revision: self.store.revision() })
    }

    fn auth_request(&mut self, caller: &Caller, request: &AuthRequest) -> Reply {
        if request.needs_admin() {
            self.auth.check_admin(caller)?;
        }
        self.auth.apply(request, self.now())?;
        Ok(self.done())
    }

    fn quota(&mut self, caller: &Caller, request: &QuotaRequest) -> Reply {
        self.auth.check_admin(caller)?;
        let live = match request {
            QuotaRequest::Total { .. } => Vec::new(),
            QuotaRequest::Prefix { prefix, .. } => self.live_keys(prefix),
        };
        self.quotas.apply(request, live.iter().map(AsRef::as_ref))?;
        Ok(self.done())
    }

    /// Applies a [`Request::Recovery`] of an operator on this machine, who may restore a snapshot.
    pub(crate) fn recover_offline(&mut self, record: &RecoveryRecord) -> Reply {
        // RECOVERY-1
        if record.kind == RecoveryKind::Forced {
            self.signatories.check(record)?;
        }
        self.recover(record)
    }

    /// Begins the next epoch after a cut of the history, above all revisions that a client has
    /// seen.
    fn recover(&mut self, record: &RecoveryRecord) -> Reply {
        let epoch = record.epoch;
        if epoch <= self.epoch() || epoch > RECOVERY_EPOCH_MAX {
            return Err(Refusal::StaleRecovery);
        }
        if self.recoveries.len() >= limits::RECOVERIES_MAX {
            return Err(Refusal::Full("recoveries"));
        }
        // Without a leap the history continues.
        if record.leap > self.store.revision() {
            self.store.advance_to(record.leap)?;
            self.record_progress(self.now());
        }
        self.recoveries.insert(epoch, record.clone());
        Ok(Response::Recovered { epoch, revision: self.store.revision() })
    }

    /// The live versions of all keys with a prefix.
    pub(super) fn live_keys(&self, prefix: &Bytes) -> Vec<Event> {
        let all = RangeRequest::of(KeyRange::prefix(prefix.clone()));
        self.store.range(&all).map(|found| found.kvs).unwrap_or_default()
    }
}

/// A fenced role has the permissions of the key with its name.
pub(super) fn role_key(role: &str) -> KeyRange {
    KeyRange::key(Bytes::copy_from_slice(role.as_bytes()))
}

/// The epoch ahead of the revision, in digits: sorts as text like the pair.
fn sequential_key(prefix: &Bytes, epoch: u32, revision: Revision) -> Bytes {
    let suffix = format!("{epoch:08}{revision:019}");
    [&prefix[..], suffix.as_bytes()].concat().into()
}
