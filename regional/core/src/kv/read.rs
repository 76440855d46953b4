//! Ranges: which versions a read finds, in which order, and what it counts.
//!
//! A range over a million keys takes long, and who reads holds the lock that writes need. So a
//! range is a [`Scan`] that can stop anywhere and go on later, at the same revision; a plain
//! [`Store::range`] is a scan that does not stop.
//!
//! # Deliberately absent
//!
//! etcd's order among keys that are equal in what they are sorted by. It follows from an unstable
//! sort; here such keys stay in key order.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Bounds, Event, KeyValue, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget, Store,
};
use crate::Refusal;

/// How much one step of a scan may do.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Keys to look at; at least one.
    pub keys: usize,
    /// Stop after this many bytes of keys and values were found.
    pub bytes: usize,
}

impl Budget {
    /// Everything in one step.
    pub const UNLIMITED: Self = Self { keys: usize::MAX, bytes: usize::MAX };
}

/// Whether a scan has seen its whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Scan::step`] again.
    More,
    /// Call [`Scan::finish`].
    Done,
}

/// A range that is being read, step by step, at one revision.
#[derive(Debug)]
pub struct Scan {
    request: RangeRequest,
    /// The revision it reads at.
    at: Revision,
    /// The store's revision when it began.
    header: Revision,
    /// Keep this many; everything if none.
    keep: Option<usize>,
    /// Go on at this key.
    resume: Option<Bytes>,
    found: Vec<Event>,
    /// How much [`Scan::take`] gave away; at most the limit.
    taken: usize,
    count: i64,
}

impl Scan {
    /// Begins to read. Nothing is read yet.
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
        })
    }

    /// Reads on, until the range or the budget ends.
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
            let Some(event) = versions.at(self.at) else { continue };
            self.count += 1;
            if self.keep.is_none_or(|keep| self.found.len() + self.taken < keep) {
                bytes += event.key_and_value().len();
                self.found.push(Arc::clone(event));
            }
        }
        Ok(Progress::Done)
    }

    /// Takes out what was found since the last call, for an answer in parts: what is taken is in
    /// its place and will not be in [`Scan::finish`]. Nothing, if only the whole answer has an
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

    /// The revision it reads at.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.at
    }

    /// The answer: without what was taken out, but with everything counted.
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
    /// Whether the answer is in key order because that is how keys are found.
    #[must_use]
    pub fn is_unsorted(&self) -> bool {
        self.target == SortTarget::Key && self.order != SortOrder::Descend
    }

    /// Whether some of the keys found are left out for their revisions.
    #[must_use]
    pub fn is_filtered(&self) -> bool {
        self.modified != Bounds::default() || self.created != Bounds::default()
    }
}

fn limit(request: &RangeRequest) -> Option<usize> {
    usize::try_from(request.limit).ok().filter(|&limit| limit > 0)
}

/// How many of the found keys are of interest. As in etcd, an order that is not asked for does not
/// lift the limit, even if a sort target is given: then the first keys are taken and sorted.
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
