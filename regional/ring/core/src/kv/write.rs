//! Puts and deletions; all writes of a request become one revision, or are rolled back (KV-1).

use std::sync::Arc;

use super::{
    DeleteRangeRequest, DeleteRangeResponse, Event, KeyRange, KeyValue, LeaseId, OpenWrite, Owner,
    PutRequest, PutResponse, Revision, Stamp, Store, VERSION_OVERHEAD_BYTES,
};
use crate::Refusal;

impl Store {
    /// Writes one key.
    ///
    /// # Errors
    ///
    /// [`Refusal::LeaseNotFound`], and [`Refusal::KeyNotFound`] if the request keeps the value or
    /// lease of a key that does not exist.
    pub fn put(
        &mut self,
        request: &PutRequest,
        owner: &mut impl Owner,
    ) -> Result<PutResponse, Refusal> {
        self.check_put(request, owner)?;
        let response = self.write(request)?;
        self.commit(owner);
        Ok(response)
    }

    /// Deletes the keys of a range that exist, all at one revision.
    pub fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
        owner: &mut impl Owner,
    ) -> DeleteRangeResponse {
        let response = self.erase(request);
        self.commit(owner);
        response
    }

    /// Deletes those of `keys` that exist, in this order and at one revision; returns their number.
    /// A lease deletes its keys in this way.
    pub fn delete_keys<K: AsRef<[u8]>>(
        &mut self,
        keys: impl IntoIterator<Item = K>,
        owner: &mut impl Owner,
    ) -> u64 {
        let mut deleted = 0;
        for key in keys {
            if self.contains(key.as_ref()) {
                self.record(key.as_ref(), Content::Deletion);
                deleted += 1;
            }
        }
        self.commit(owner);
        deleted
    }

    /// Checks before a request changes anything. In a transaction they see the state before it, as
    /// in etcd.
    pub(super) fn check_put(&self, put: &PutRequest, owner: &impl Owner) -> Result<(), Refusal> {
        if put.lease != 0 && !owner.lease_exists(put.lease) {
            return Err(Refusal::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && !self.contains(&put.key) {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    pub(super) fn write(&mut self, put: &PutRequest) -> Result<PutResponse, Refusal> {
        // Within a transaction an earlier deletion may have removed the key whose value is kept.
        // etcd's members panic there; here the transaction is refused.
        if (put.ignore_value || put.ignore_lease) && !self.contains(&put.key) {
            return Err(Refusal::KeyNotFound);
        }
        let content = Content::Put {
            value: (!put.ignore_value).then_some(&put.value[..]),
            lease: (!put.ignore_lease).then_some(put.lease),
        };
        let replaced = self.record(&put.key, content);
        let prev = if put.prev_kv { replaced.cloned() } else { None };
        Ok(PutResponse { revision: self.horizon(), prev })
    }

    pub(super) fn erase(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed = self.existing(&request.range);
        for event in &doomed {
            self.record(event.key(), Content::Deletion);
        }
        let deleted = i64::try_from(doomed.len()).expect("memory holds fewer keys");
        let prev = if request.prev_kv { doomed } else { Vec::new() };
        DeleteRangeResponse { revision: self.horizon(), deleted, prev }
    }

    fn existing(&self, range: &KeyRange) -> Vec<Event> {
        self.index
            .walk(range, None)
            .filter_map(|(_, versions)| versions.at(Revision::MAX))
            .cloned()
            .collect()
    }

    /// Writes the next version of `key` and returns the one it replaced.
    fn record(&mut self, key: &[u8], content: Content<'_>) -> Option<&Event> {
        let mod_revision = self.revision + 1;
        let sub_revision = u32::try_from(self.open.len()).expect("memory holds fewer writes");
        let (event, replaced) = self.index.push_with(key, |old| {
            let (value, stamp) = content.over(old.map(Arc::as_ref), mod_revision);
            Arc::new(KeyValue::new(key, value, Stamp { mod_revision, sub_revision, ..stamp }))
        });
        self.sums = self.sums.after(&event, replaced.as_deref());
        self.resident_bytes += cost(&event);
        self.open.push(OpenWrite { event, replaced });
        self.open.last().and_then(|write| write.replaced.as_ref())
    }

    /// Commits the writes of a request: one revision if there were any (KV-1).
    pub(super) fn commit(&mut self, owner: &mut impl Owner) {
        if self.open.is_empty() {
            return;
        }
        self.revision += 1;
        for OpenWrite { event, replaced } in &self.open {
            owner.wrote(event, replaced.as_ref());
        }
        let before = self.untaken.len();
        self.untaken.extend(self.open.drain(..).map(|write| write.event));
        self.log.push(&self.untaken[before..]);
        self.marks.note(self.revision, self.sums);
        self.settled = self.sums;
    }

    /// Rolls the writes of a request back, newest first (KV-1).
    pub(super) fn roll_back(&mut self) {
        while let Some(OpenWrite { event, .. }) = self.open.pop() {
            self.index.pop(event.key());
            self.resident_bytes -= cost(&event);
        }
        self.sums = self.settled;
    }
}

/// The share of a version in [`super::Sizes::resident_bytes`].
pub(super) fn cost(event: &KeyValue) -> u64 {
    event.key_and_value().len() as u64 + VERSION_OVERHEAD_BYTES
}

/// The content of the next version of a key.
enum Content<'a> {
    /// `None` keeps the current one.
    Put {
        value: Option<&'a [u8]>,
        lease: Option<LeaseId>,
    },
    Deletion,
}

impl<'a> Content<'a> {
    /// The value and the stamp, without sub-revision, of the version after `old`.
    fn over(self, old: Option<&'a KeyValue>, revision: Revision) -> (&'a [u8], Stamp) {
        let Self::Put { value, lease } = self else { return (&[], Stamp::default()) };
        let stamp = Stamp {
            create_revision: old.map_or(revision, |old| old.create_revision),
            version: old.map_or(0, |old| old.version) + 1,
            lease: lease.or(old.map(|old| old.lease)).unwrap_or_default(),
            ..Stamp::default()
        };
        (value.or(old.map(KeyValue::value)).unwrap_or_default(), stamp)
    }
}
