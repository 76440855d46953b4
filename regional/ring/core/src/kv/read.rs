//! Range reads: the versions that a read finds, their order, and their count.
//!
//! A range over a million keys takes long, and a reader holds the lock that writes need. So a range
//! is a [`Scan`] that can stop anywhere and continue later, at the same revision; a plain
//! [`Store::range`] is a scan without a stop.
//!
//! # Deliberately absent
//!
//! etcd's order among keys with equal sort fields. It follows from an unstable sort; here such keys
//! stay in key order.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Bounds, Event, KeyValue, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget, Store,
};
use crate::Refusal;

/// The bounds of one step of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Keys to visit; at least one.
    pub keys: usize,
    /// Bytes of keys and values after which the step ends.
    pub bytes: usize,
}

impl Budget {
    /// No bounds.
    pub const UNLIMITED: Self = Self { keys: usize::MAX, bytes: usize::MAX };
}

/// Whether a scan is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Scan::step`] again.
    More,
    /// Call [`Scan::finish`].
    Done,
}

/// A range that is read at one revision, step by step.
#[derive(Debug)]
pub struct Scan {
    request: RangeRequest,
    /// The revision it reads at.
    at: Revision,
    /// The store's revision at the start of the scan.
    header: Revision,
    /// The number of versions to keep; `None` keeps all.
    keep: Option<usize>,
    /// The key to continue at.
    resume: Option<Bytes>,
    found: Vec<Event>,
    /// The number of versions that [`Scan::take`] returned; at most the limit.
    taken: usize,
    count: i64,
    /// The keys visited, as far as every member has them, and the bytes of the versions kept.
    visited: (usize, usize),
}

impl Scan {
    /// Starts a scan. Reads nothing yet.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn begin(store: &Store, request: &RangeRequest) -> Result<Self, Refusal> {
        let at = store.readable(request.revision)?;
        Ok(Self {
            keep: keep(request),
            request: request.clone(),
            at,
            header: store.horizon(),
            resume: None,
            found: Vec::new(),
            taken: 0,
            count: 0,
            visited: (0, 0),
        })
    }

    /// Continues until the range or the budget ends.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] if the revision was compacted since the last step.
    pub fn step(&mut self, store: &Store, budget: Budget) -> Result<Progress, Refusal> {
        if self.at < store.compacted {
            return Err(Refusal::Compacted { compacted: store.compacted });
        }
        let resume = self.resume.take();
        let (mut keys, mut bytes) = (0, 0);
        for (key, versions) in store.index.walk(&self.request.range, resume.as_deref()) {
            if keys >= budget.keys.max(1) || bytes >= budget.bytes {
                self.resume = Some(Bytes::copy_from_slice(key));
                return Ok(Progress::More);
            }
            keys += 1;
            self.visited.0 += usize::from(versions.is_held(store.compacted));
            let Some(event) = versions.at(self.at) else { continue };
            self.count += 1;
            if self.keep.is_none_or(|keep| self.found.len() + self.taken < keep) {
                bytes += event.key_and_value().len();
                self.visited.1 += event.key_and_value().len();
                self.found.push(Arc::clone(event));
            }
        }
        Ok(Progress::Done)
    }

    /// The keys visited so far, and the bytes of keys and values found. The same on every member (KV-4).
    #[must_use]
    pub fn visited(&self) -> (usize, usize) {
        self.visited
    }

    /// Takes the versions found since the last call, for a response in parts: their order is final
    /// and [`Scan::finish`] will not return them. Returns nothing if only the whole response has an
    /// order or a limit: a sorted or filtered range cannot be answered in parts.
    pub fn take(&mut self) -> Vec<Event> {
        if !self.request.is_unsorted() || self.request.is_filtered() {
            return Vec::new();
        }
        let room = limit(&self.request).map_or(usize::MAX, |limit| limit - self.taken);
        let rest = self.found.split_off(self.found.len().min(room));
        let taken = core::mem::replace(&mut self.found, rest);
        self.taken += taken.len();
        taken
    }

    /// The revision of the scan.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.at
    }

    /// The response: without the versions taken before, but counting them.
    #[must_use]
    pub fn finish(self) -> RangeResponse {
        let mut kvs = self.found;
        if self.request.is_filtered() {
            kvs.retain(|event| passes(&self.request, event));
        }
        sort(&mut kvs, &self.request);
        let room = limit(&self.request).map_or(usize::MAX, |limit| limit - self.taken);
        let more = kvs.len() > room;
        kvs.truncate(room);
        RangeResponse { revision: self.header, kvs, more, count: self.count }
    }
}

impl Store {
    /// Reads keys.
    ///
    /// # Errors
    ///
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let mut scan = Scan::begin(self, request)?;
        scan.step(self, Budget::UNLIMITED)?;
        Ok(scan.finish())
    }
}

impl RangeRequest {
    /// Whether the response is in key order without sorting.
    #[must_use]
    pub fn is_unsorted(&self) -> bool {
        self.target == SortTarget::Key && self.order != SortOrder::Descend
    }

    /// Whether the request filters by revision.
    #[must_use]
    pub fn is_filtered(&self) -> bool {
        self.modified != Bounds::default() || self.created != Bounds::default()
    }
}

fn limit(request: &RangeRequest) -> Option<usize> {
    usize::try_from(request.limit).ok().filter(|&limit| limit > 0)
}

/// The number of found keys to keep. As in etcd, a sort target without an order does not lift the
/// limit: the first keys are kept and sorted.
fn keep(request: &RangeRequest) -> Option<usize> {
    if request.count_only {
        return Some(0);
    }
    let is_found_order = request.order == SortOrder::None || request.is_unsorted();
    // One more than the limit, to know whether there is more.
    let keep = limit(request).map(|limit| limit.saturating_add(1));
    if is_found_order && !request.is_filtered() { keep } else { None }
}

fn passes(request: &RangeRequest, event: &KeyValue) -> bool {
    let within = |bounds: Bounds, revision: Revision| {
        (bounds.max == 0 || revision <= bounds.max) && (bounds.min == 0 || revision >= bounds.min)
    };
    within(request.modified, event.mod_revision) && within(request.created, event.create_revision)
}

/// A sort target without an order means ascending, as in etcd.
fn sort(kvs: &mut [Event], request: &RangeRequest) {
    if request.is_unsorted() {
        return;
    }
    let compare = |a: &Event, b: &Event| match request.target {
        SortTarget::Key => a.key().cmp(b.key()),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value().cmp(b.value()),
    };
    match request.order {
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
    }
}
