//! A naive model of the store: a list of every write.

use crate::Refusal;
use crate::kv::*;

/// Every write, the compacted revision and the current revision.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) writes: Vec<KeyValue>,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    /// The revision of the current request, once it wrote.
    open: bool,
}

pub(super) const LEASES: [LeaseId; 2] = [7, 8];

impl Model {
    pub(super) fn new() -> Self {
        Self { writes: Vec::new(), revision: 1, compacted: -1, open: false }
    }

    /// The newest version of `key` at `revision`, deletions included.
    pub(super) fn version_at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        self.writes.iter().rfind(|w| w.key() == key && w.mod_revision <= revision)
    }

    pub(super) fn at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        self.version_at(key, revision).filter(|w| w.version > 0)
    }

    fn all_at(&self, range: &KeyRange, revision: Revision) -> Vec<KeyValue> {
        let mut keys: Vec<&[u8]> = self.writes.iter().map(KeyValue::key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| match &range.end[..] {
            [] => *key == &range.start[..],
            [0] => *key >= &range.start[..],
            end => *key >= &range.start[..] && *key < end,
        });
        keys.iter().filter_map(|key| self.at(key, revision)).cloned().collect()
    }

    fn now(&self) -> Revision {
        self.revision + i64::from(self.open)
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        if request.revision > self.now() {
            return Err(Refusal::FutureRevision { current: self.now() });
        }
        let at = if request.revision <= 0 { self.now() } else { request.revision };
        if at < self.compacted {
            return Err(Refusal::Compacted { compacted: self.compacted });
        }
        let mut kvs = self.all_at(&request.range, at);
        let count = kvs.len() as i64;
        let bounded = [request.modified, request.created] != [Bounds::default(); 2];
        let natural = request.order == SortOrder::None
            || (request.order == SortOrder::Ascend && request.target == SortTarget::Key);
        if natural && !bounded && request.limit > 0 {
            kvs.truncate(request.limit as usize + 1);
        }
        let Bounds { min, max } = request.modified;
        kvs.retain(|kv| kv.mod_revision >= min && (max == 0 || kv.mod_revision <= max));
        let Bounds { min, max } = request.created;
        kvs.retain(|kv| kv.create_revision >= min && (max == 0 || kv.create_revision <= max));
        match request.target {
            SortTarget::Key => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value().to_vec()),
        }
        if request.order == SortOrder::Descend {
            kvs = descending(kvs, request.target);
        }
        let more = request.limit > 0 && kvs.len() as i64 > request.limit && !request.count_only;
        if more {
            kvs.truncate(request.limit as usize);
        }
        if request.count_only {
            kvs.clear();
        }
        let kvs = kvs.into_iter().map(Arc::new).collect();
        Ok(RangeResponse { revision: self.now(), kvs, more, count })
    }

    fn write(&mut self, key: &[u8], value: &[u8], create_revision: i64, version: i64, lease: i64) {
        let mod_revision = self.revision + 1;
        let same = |w: &&KeyValue| w.mod_revision == mod_revision;
        let sub_revision = self.writes.iter().filter(same).count() as u32;
        let stamp = Stamp { create_revision, mod_revision, sub_revision, version, lease };
        self.writes.push(KeyValue::new(key, value, stamp));
        self.open = true;
    }

    fn check_put(&self, put: &PutRequest) -> Result<(), Refusal> {
        if put.lease != 0 && !LEASES.contains(&put.lease) {
            return Err(Refusal::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && self.at(&put.key, i64::MAX).is_none() {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    fn put_open(&mut self, put: &PutRequest) -> Result<PutResponse, Refusal> {
        let old = self.at(&put.key, i64::MAX).cloned();
        if (put.ignore_value || put.ignore_lease) && old.is_none() {
            return Err(Refusal::KeyNotFound);
        }
        let mut value = put.value.to_vec();
        let mut lease = put.lease;
        let mut version = 1;
        let mut create = self.revision + 1;
        if let Some(old) = &old {
            version = old.version + 1;
            create = old.create_revision;
            if put.ignore_value {
                value = old.value().to_vec();
            }
            if put.ignore_lease {
                lease = old.lease;
            }
        }
        self.write(&put.key, &value, create, version, lease);
        let prev = old.filter(|_| put.prev_kv).map(Arc::new);
        Ok(PutResponse { revision: self.now(), prev })
    }

    fn delete_open(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed = self.all_at(&request.range, i64::MAX);
        for kv in &doomed {
            self.write(kv.key(), b"", 0, 0, 0);
        }
        let deleted = doomed.len() as i64;
        let mut prev: Vec<Event> = doomed.into_iter().map(Arc::new).collect();
        if !request.prev_kv {
            prev.clear();
        }
        DeleteRangeResponse { revision: self.now(), deleted, prev }
    }

    pub(super) fn commit(&mut self) {
        self.revision = self.now();
        self.open = false;
    }

    pub(super) fn put(&mut self, put: &PutRequest) -> Result<PutResponse, Refusal> {
        self.check_put(put)?;
        let response = self.put_open(put)?;
        self.commit();
        Ok(response)
    }

    pub(super) fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let response = self.delete_open(request);
        self.commit();
        response
    }

    pub(super) fn compact(&mut self, revision: Revision) -> Result<Revision, Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted { compacted: self.compacted });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision { current: self.revision });
        }
        self.compacted = revision;
        Ok(self.revision)
    }

    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let before = self.clone();
        before.check_txn(request)?;
        let result = self.run(&before, request);
        match result {
            Ok(mut response) => {
                response.revision = self.now();
                self.commit();
                Ok(response)
            }
            Err(refusal) => {
                *self = before;
                Err(refusal)
            }
        }
    }

    fn check_txn(&self, request: &TxnRequest) -> Result<(), Refusal> {
        for op in self.branch(request) {
            match op {
                RequestOp::Range(r) if r.revision == 0 => {}
                RequestOp::Range(r) if r.revision > self.revision => {
                    return Err(Refusal::FutureRevision { current: self.revision });
                }
                RequestOp::Range(r) if r.revision < self.compacted => {
                    return Err(Refusal::Compacted { compacted: self.compacted });
                }
                RequestOp::Put(put) => self.check_put(put)?,
                RequestOp::Txn(inner) => self.check_txn(inner)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Branches are chosen by the state `before`, whatever was written since.
    fn run(&mut self, before: &Self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let mut responses = Vec::new();
        for op in before.branch(request) {
            responses.push(match op {
                RequestOp::Range(r) => ResponseOp::Range(self.range(r)?, r.shape()),
                RequestOp::Put(put) => ResponseOp::Put(self.put_open(put)?),
                RequestOp::DeleteRange(d) => ResponseOp::DeleteRange(self.delete_open(d)),
                RequestOp::Txn(inner) => ResponseOp::Txn(self.run(before, inner)?),
            });
        }
        let succeeded = before.succeeds(request);
        Ok(TxnResponse { revision: 0, succeeded, responses })
    }

    fn branch<'r>(&self, request: &'r TxnRequest) -> &'r [RequestOp] {
        if self.succeeds(request) { &request.success } else { &request.failure }
    }

    fn succeeds(&self, request: &TxnRequest) -> bool {
        request.compare.iter().all(|compare| {
            let mut kvs = self.all_at(&compare.range, i64::MAX);
            if kvs.is_empty() {
                if matches!(compare.target, CompareTarget::Value(_)) {
                    return false;
                }
                kvs.push(KeyValue::new(b"", b"", Stamp::default()));
            }
            kvs.iter().all(|kv| {
                let order = match &compare.target {
                    CompareTarget::Version(v) => kv.version.cmp(v),
                    CompareTarget::Create(v) => kv.create_revision.cmp(v),
                    CompareTarget::Mod(v) => kv.mod_revision.cmp(v),
                    CompareTarget::Lease(v) => kv.lease.cmp(v),
                    CompareTarget::Value(v) => kv.value().cmp(v),
                };
                match compare.result {
                    CompareResult::Equal => order.is_eq(),
                    CompareResult::NotEqual => order.is_ne(),
                    CompareResult::Greater => order.is_gt(),
                    CompareResult::Less => order.is_lt(),
                }
            })
        })
    }

    /// The sum over the held versions, by definition: the live versions at the compacted revision,
    /// and every write since then up to `revision`.
    pub(super) fn held(&self, revision: Revision) -> Tally {
        let base = self.all_at(&KeyRange::all(), self.compacted);
        let since = |w: &&KeyValue| w.mod_revision > self.compacted && w.mod_revision <= revision;
        let since = self.writes.iter().filter(since);
        base.iter().chain(since).fold(Tally::default(), |sum, w| sum.plus(Tally::of(w)))
    }
}

/// Sorts descending; equal keys stay in key order.
fn descending(mut kvs: Vec<KeyValue>, target: SortTarget) -> Vec<KeyValue> {
    use core::cmp::Reverse;
    match target {
        SortTarget::Key => kvs.sort_by_key(|kv| Reverse(kv.key().to_vec())),
        SortTarget::Version => kvs.sort_by_key(|kv| Reverse(kv.version)),
        SortTarget::Create => kvs.sort_by_key(|kv| Reverse(kv.create_revision)),
        SortTarget::Mod => kvs.sort_by_key(|kv| Reverse(kv.mod_revision)),
        SortTarget::Value => kvs.sort_by_key(|kv| Reverse(kv.value().to_vec())),
    }
    kvs
}
