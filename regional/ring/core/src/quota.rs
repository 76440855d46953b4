//! Quotas: the limits on the size of the keyspace and its prefixes, decided at apply, so that all
//! members agree.
//!
//! The *total* counts all data that the ring must keep: every version that compaction has not
//! dropped, with a fixed overhead for each. Beyond it the ring answers as etcd does (NOSPACE), and
//! the member whose client is refused raises the alarm. A *quota of a prefix* counts live keys and
//! their values, which its owner can see and change. Quotas nest: a write must fit every quota
//! whose prefix its key has, so a team's quota binds even when one of its services has a larger
//! one.
//!
//! As in etcd, a transaction is charged for its costlier branch: refusing before the branch is
//! known keeps a refusal free of side effects. Its deletions are not credited.
//!
//! # Invariants
//!
//! - **QUOTA-1** A refused write changes nothing; a deletion is never refused for space.
//! - **QUOTA-2** The usage of a quota is the sum over live keys, whatever the order of events.

use std::collections::BTreeMap;

use bytes::Bytes;
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    kv::{KeyValue, PutRequest, RequestOp, TxnRequest, VERSION_OVERHEAD_BYTES},
    limits,
    refusal::{QuotaLimit, Refusal},
    table::{Row, Table},
};

/// Limits of a prefix; zero is "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixLimits {
    /// Bytes of live keys and values.
    pub bytes_max: u64,
    /// Live keys.
    pub keys_max: u64,
}

/// Sets a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotaRequest {
    /// The total; zero restores the default.
    Total {
        /// The limit in bytes.
        bytes_max: u64,
    },
    /// The quota of a prefix; two zero limits remove it. Counting the usage takes time in
    /// proportion to the keys of the prefix.
    Prefix {
        /// The prefix; not empty.
        prefix: Bytes,
        /// Its limits.
        limits: PrefixLimits,
    },
}

/// The usage of a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of live keys and values.
    pub bytes: u64,
    /// Live keys.
    pub keys: u64,
}

/// All limits and their usage.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    /// The row of the empty prefix is the total.
    pub(crate) rows: Table<PrefixLimits>,
    /// Derived: the usage of each prefix (QUOTA-2).
    used: BTreeMap<Bytes, Usage>,
    /// Derived: the number of prefixes of each length, so that finding those of a key takes few
    /// steps.
    lengths: BTreeMap<usize, usize>,
}

/// The bytes and keys that a write would add to the prefixes of its key.
type Charges<'a> = BTreeMap<&'a Bytes, Usage>;

fn live_bytes(key: &[u8], value: &[u8]) -> u64 {
    key.len() as u64 + value.len() as u64
}

/// etcd's default of the total.
pub const TOTAL_BYTES_MAX_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

impl Quotas {
    /// Limit on the whole keyspace.
    #[must_use]
    pub fn total_bytes_max(&self) -> u64 {
        self.rows.get(&Bytes::new()).map_or(TOTAL_BYTES_MAX_DEFAULT, |limits| limits.bytes_max)
    }

    /// The limits and the usage of a prefix, if it has a quota.
    #[must_use]
    pub fn get(&self, prefix: &Bytes) -> Option<(PrefixLimits, Usage)> {
        Some((*self.rows.get(prefix)?, self.used.get(prefix).copied().unwrap_or_default()))
    }

    /// Prefixes with a quota, their limits and usage, in order of prefix.
    pub fn list(&self) -> impl Iterator<Item = (&Bytes, PrefixLimits, Usage)> {
        let rows = self.rows.iter().filter(|(prefix, _)| !prefix.is_empty());
        rows.map(|(prefix, limits)| {
            (prefix, *limits, self.used.get(prefix).copied().unwrap_or_default())
        })
    }

    /// Sets limits; `live` are the live keys of the request's prefix.
    pub(crate) fn apply<'a>(
        &mut self,
        request: &QuotaRequest,
        live: impl Iterator<Item = &'a KeyValue>,
    ) -> Result<(), Refusal> {
        match request {
            QuotaRequest::Total { bytes_max: 0 } => {
                self.rows.remove(&Bytes::new());
            }
            QuotaRequest::Total { bytes_max } => {
                let limits = PrefixLimits { bytes_max: *bytes_max, keys_max: 0 };
                self.rows.insert(Bytes::new(), limits);
            }
            QuotaRequest::Prefix { prefix, .. } if prefix.is_empty() => {
                return Err(Refusal::EmptyKey);
            }
            QuotaRequest::Prefix { prefix, limits } if *limits == PrefixLimits::default() => {
                if self.rows.get(prefix).is_none() {
                    return Err(Refusal::QuotaNotFound);
                }
                self.rows.remove(prefix);
                self.forget(prefix);
            }
            QuotaRequest::Prefix { prefix, limits } => {
                if self.rows.len() >= limits::QUOTAS_MAX && self.rows.get(prefix).is_none() {
                    return Err(Refusal::Full("quotas"));
                }
                self.rows.insert(prefix.clone(), *limits);
                self.forget(prefix);
                self.count(prefix.clone(), live);
            }
        }
        Ok(())
    }

    fn forget(&mut self, prefix: &Bytes) {
        if self.used.remove(prefix).is_some()
            && let Some(n) = self.lengths.get_mut(&prefix.len())
        {
            *n -= 1;
            if *n == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }

    fn count<'a>(&mut self, prefix: Bytes, live: impl Iterator<Item = &'a KeyValue>) {
        let add = |mut usage: Usage, kv: &KeyValue| {
            usage.bytes += kv.key_and_value().len() as u64;
            usage.keys += 1;
            usage
        };
        let usage = live.fold(Usage::default(), add);
        *self.lengths.entry(prefix.len()).or_default() += 1;
        self.used.insert(prefix, usage);
    }

    /// Whether any prefix has a quota; otherwise writes need no check.
    pub(crate) fn any_prefix(&self) -> bool {
        !self.used.is_empty()
    }

    fn prefixes_of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Bytes> {
        let cut = move |n: &usize| key.get(..*n);
        self.lengths
            .keys()
            .filter_map(cut)
            .filter_map(|prefix| self.used.get_key_value(prefix).map(|(prefix, _)| prefix))
    }

    /// Follows a write: `before` is the live version it replaced, `after` the one it made.
    pub(crate) fn observe(&mut self, before: Option<&KeyValue>, after: Option<&KeyValue>) {
        let Some(key) = after.or(before).map(KeyValue::key) else { return };
        for length in self.lengths.keys().copied().collect::<Vec<_>>() {
            let Some(used) = key.get(..length).and_then(|prefix| self.used.get_mut(prefix)) else {
                continue;
            };
            if let Some(kv) = before {
                used.bytes = used.bytes.saturating_sub(kv.key_and_value().len() as u64);
                used.keys = used.keys.saturating_sub(1);
            }
            if let Some(kv) = after {
                used.bytes += kv.key_and_value().len() as u64;
                used.keys += 1;
            }
        }
    }

    /// Checks that a put fits; `held` is the store's size, `live` finds a key's live version.
    pub(crate) fn admit_put<'a>(
        &self,
        put: &PutRequest,
        held: u64,
        live: impl Fn(&[u8]) -> Option<&'a KeyValue>,
    ) -> Result<(), Refusal> {
        self.admit_total(held, put_cost(put))?;
        if !self.any_prefix() {
            return Ok(());
        }
        let mut charges = Charges::new();
        self.charge_put(put, &live, &mut charges);
        self.admit_charges(&charges)
    }

    /// Checks that a transaction fits, whichever branch it takes.
    pub(crate) fn admit_txn<'a>(
        &self,
        txn: &TxnRequest,
        held: u64,
        live: impl Fn(&[u8]) -> Option<&'a KeyValue>,
    ) -> Result<(), Refusal> {
        self.admit_total(held, txn_cost(txn))?;
        if !self.any_prefix() {
            return Ok(());
        }
        for branch in [&txn.success, &txn.failure] {
            let mut charges = Charges::new();
            self.charge_ops(branch, &live, &mut charges);
            self.admit_charges(&charges)?;
        }
        Ok(())
    }

    /// Checks that `cost` more bytes fit the total; zero always does.
    pub(crate) fn admit_total(&self, held: u64, cost: u64) -> Result<(), Refusal> {
        let max = self.total_bytes_max();
        if cost != 0 && held.saturating_add(cost) >= max {
            return Err(Refusal::NoSpace);
        }
        Ok(())
    }

    fn charge_put<'a, 'q>(
        &'q self,
        put: &'q PutRequest,
        live: &impl Fn(&[u8]) -> Option<&'a KeyValue>,
        charges: &mut Charges<'q>,
    ) {
        let before = live(&put.key);
        // With `ignore_value` the value does not change.
        let new = if put.ignore_value { 0 } else { live_bytes(&put.key, &put.value) };
        let old = before.map_or(0, |kv| kv.key_and_value().len() as u64);
        for prefix in self.prefixes_of(&put.key) {
            let charge = charges.entry(prefix).or_default();
            charge.bytes += new.saturating_sub(old);
            charge.keys += u64::from(before.is_none());
        }
    }

    fn charge_ops<'a, 'q>(
        &'q self,
        ops: &'q [RequestOp],
        live: &impl Fn(&[u8]) -> Option<&'a KeyValue>,
        charges: &mut Charges<'q>,
    ) {
        for op in ops {
            match op {
                RequestOp::Put(put) => self.charge_put(put, live, charges),
                RequestOp::Txn(txn) => {
                    // Both branches: an upper bound, so that nesting does not evade the quota.
                    self.charge_ops(&txn.success, live, charges);
                    self.charge_ops(&txn.failure, live, charges);
                }
                RequestOp::Range(_) | RequestOp::DeleteRange(_) => {}
            }
        }
    }

    fn admit_charges(&self, charges: &Charges<'_>) -> Result<(), Refusal> {
        for (prefix, charge) in charges {
            let used = self.used.get(*prefix).copied().unwrap_or_default();
            let limits = self.rows.get(prefix).copied().unwrap_or_default();
            let counts = [
                (QuotaLimit::Bytes, limits.bytes_max, charge.bytes, used.bytes + charge.bytes),
                (QuotaLimit::Keys, limits.keys_max, charge.keys, used.keys + charge.keys),
            ];
            for (limit, max, more, would_be) in counts {
                // A write that adds nothing passes even above a limit that was lowered.
                if max != 0 && more != 0 && would_be > max {
                    let prefix = (*prefix).clone();
                    return Err(Refusal::PrefixQuota { prefix, limit, max, would_be });
                }
            }
        }
        Ok(())
    }

    /// Rebuilds the derived fields; `live` returns the live keys of a prefix.
    pub(crate) fn rebuild<'a, I: Iterator<Item = &'a KeyValue>>(
        &mut self,
        live: impl Fn(&Bytes) -> I,
    ) {
        self.used.clear();
        self.lengths.clear();
        let prefixes: Vec<Bytes> = self.list().map(|(prefix, ..)| prefix.clone()).collect();
        for prefix in prefixes {
            let keys = live(&prefix);
            self.count(prefix, keys);
        }
    }
}

/// The bytes that a put adds to the total.
fn put_cost(put: &PutRequest) -> u64 {
    VERSION_OVERHEAD_BYTES + live_bytes(&put.key, &put.value)
}

/// The bytes that a transaction adds to the total: those of its costlier branch, as in etcd.
pub(crate) fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| {
        let cost = |op: &RequestOp| match op {
            RequestOp::Put(put) => put_cost(put),
            RequestOp::Txn(txn) => txn_cost(txn),
            RequestOp::Range(_) | RequestOp::DeleteRange(_) => 0,
        };
        ops.iter().map(cost).sum::<u64>()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

impl Canonical for PrefixLimits {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.bytes_max);
        w.u64(self.keys_max);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { bytes_max: r.u64()?, keys_max: r.u64()? })
    }
}

impl Canonical for QuotaRequest {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Total { bytes_max } => {
                w.u8(0);
                w.u64(*bytes_max);
            }
            Self::Prefix { prefix, limits } => {
                w.u8(1);
                w.bytes(prefix);
                limits.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(Self::Total { bytes_max: r.u64()? }),
            1 => {
                let prefix = Bytes::copy_from_slice(r.bytes(limits::QUOTA_PREFIX_BYTES_MAX)?);
                Ok(Self::Prefix { prefix, limits: PrefixLimits::decode(r)? })
            }
            _ => Err(DecodeError::Invalid("quota request")),
        }
    }
}

impl Row for PrefixLimits {
    type Key = Bytes;
    const NAME: &'static str = "quotas";
    const PAGE_ROWS_MAX: usize = limits::QUOTAS_MAX + 1;

    fn encode_key(key: &Bytes, w: &mut Writer) {
        w.bytes(key);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
        Ok(Bytes::copy_from_slice(r.bytes(limits::QUOTA_PREFIX_BYTES_MAX)?))
    }
}
