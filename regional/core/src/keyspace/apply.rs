//! What each request does; see the order in [`super`].

use bytes::Bytes;

use super::{
    Batch, Caller, Keyspace, Proposal, PutIfRevision, PutSequential, Reply, Request, Response,
    RingTime,
};
use crate::{
    alarm::AlarmKind,
    auth::AuthRequest,
    fencing::{GrantRole, Held, RECOVERY_EPOCH_MAX, ReleaseRole},
    kv::{Event, KeyRange, LeaseId, PutRequest, RangeRequest, Revision},
    limits,
    quota::{QuotaRequest, txn_cost},
    recovery::RecoveryRecord,
    refusal::Refusal,
};

impl Keyspace {
    /// Applies one entry of the log; one reply for each proposal, in the same order.
    pub fn apply(&mut self, batch: &Batch) -> Vec<Reply> {
        self.advance(batch.time.max(self.now()));
        batch.proposals.iter().map(|proposal| self.apply_one(proposal)).collect()
    }

    /// Time passes, and what is due ends.
    fn advance(&mut self, now: RingTime) {
        self.stand(now);
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

    /// Ends a lease that exists: its keys go at one revision (L3), and the role it kept is free.
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
                self.auth.check_txn(caller, &self.lessor, txn)?;
                let held = self.store.sizes().held_bytes;
                self.quotas.admit_txn(txn, held, |key| self.store.get(key).map(AsRef::as_ref))?;
                let (store, mut attachments) = self.split();
                store.txn(txn, &mut attachments).map(Response::Txn)
            }
            Request::Compact { revision } => {
                let revision = self.store.compact(*revision)?;
                self.stand(self.now());
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
            Request::Recovery(record) => self.recover(record),
            Request::Member(request) => {
                self.members.apply(request)?;
                Ok(self.done())
            }
        }
    }

    fn done(&self) -> Response {
        Response::Done { revision: self.store.revision() }
    }

    /// What alarms forbid, as in etcd; renewing leases and managing users is always possible.
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
        self.auth.check_put(caller, &self.lessor, put)?;
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
        self.auth.check_put(caller, &self.lessor, &put)?;
        if request.want_value {
            self.auth.check_read(caller, &KeyRange::key(request.key.clone()))?;
        }
        let live = self.store.get(&request.key);
        let current = live.map_or(0, |kv| kv.mod_revision);
        if current != request.expected_revision {
            let value = live.filter(|_| request.want_value).map(|kv| kv.value_bytes());
            return Err(Refusal::Conflict { current, value });
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
        self.auth.check_put(caller, &self.lessor, &put)?;
        // Somebody wrote there by hand. The next write moves on to the next place.
        if let Some(taken) = self.store.get(&key) {
            return Err(Refusal::Conflict { current: taken.mod_revision, value: None });
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
            // L5
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

    /// A holder whose lease waits for its turn to end does not keep the role from others.
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
        self.auth.check_lease_keys(caller, &self.lessor, lease)?;
        self.end_lease(lease);
        Ok(Response::RoleReleased { revision: self.store.revision() })
    }

    fn admit_lease(&self) -> Result<(), Refusal> {
        self.quotas.admit_total(self.store.sizes().held_bytes, limits::LEASE_OVERHEAD_BYTES)
    }

    fn lease_grant(&mut self, caller: &Caller, id: LeaseId, ttl_s: i64) -> Reply {
        self.auth.check_somebody(caller)?;
        self.admit_lease()?;
        let ttl_s = self.lessor.grant(id, ttl_s)?;
        Ok(Response::LeaseGranted { id, ttl_s, revision: self.store.revision() })
    }

    fn lease_revoke(&mut self, caller: &Caller, id: LeaseId) -> Reply {
        self.auth.check_somebody(caller)?;
        self.auth.check_lease_keys(caller, &self.lessor, id)?;
        if !self.lessor.exists(id) {
            return Err(Refusal::LeaseNotFound);
        }
        self.end_lease(id);
        Ok(Response::LeaseRevoked { revision: self.store.revision() })
    }

    fn lease_renew(&mut self, caller: &Caller, id: LeaseId) -> Reply {
        self.auth.check_somebody(caller)?;
        self.auth.check_lease_keys(caller, &self.lessor, id)?;
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

    /// A history that was cut goes on in the next epoch, with revisions nobody has seen.
    fn recover(&mut self, record: &RecoveryRecord) -> Reply {
        let epoch = record.epoch;
        if epoch <= self.epoch() || epoch > RECOVERY_EPOCH_MAX {
            return Err(Refusal::StaleRecovery);
        }
        if self.recoveries.len() >= limits::RECOVERIES_MAX {
            return Err(Refusal::Full("recoveries"));
        }
        // With nothing to leap over the history simply goes on.
        if record.leap > self.store.revision() {
            self.store.advance_to(record.leap)?;
            self.stand(self.now());
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

/// A fenced role is guarded like the key of its name.
pub(super) fn role_key(role: &str) -> KeyRange {
    KeyRange::key(Bytes::copy_from_slice(role.as_bytes()))
}

/// The epoch above the revision, in digits: sorts as text like the pair it is.
fn sequential_key(prefix: &Bytes, epoch: u32, revision: Revision) -> Bytes {
    let suffix = format!("{epoch:08}{revision:019}");
    [&prefix[..], suffix.as_bytes()].concat().into()
}
