//! Decides whether what clients of a coordination store saw is what such a store promises.
//!
//! The store is not trusted: neither its answers, nor its log, nor its watches. They are compared
//! with each other, by checkers that trust different parts:
//!
//! ```text
//!  operations ──┬─▶ replay (A): against the log, by revision      HISTKV-1..HISTKV-8
//!               ├─▶ sequence: the keys that the store names     HISTKV-9
//!               ├─▶ keys (B): per key, without the log            KeyOrder
//!               └─▶ revisions (C): the whole store, short runs    StoreOrder
//!  watches ───────▶ watch: against the log                        HISTWATCH-1..HISTWATCH-11
//!  leases ────────▶ lease: in the clients' time                   HISTLEASE-1..HISTLEASE-3
//!  locks ─────────▶ fencing: tokens and guarded resources         HISTLEASE-4, HISTLEASE-5
//! ```
//!
//! # Invariants
//!
//! - No checker reports a violation of a history that a correct store may produce under any delay,
//!   loss or crash; `tests/clean.rs` tries hundreds.
//! - Each kind of wrong store in [`model::Bug`] is reported; `tests/bugs.rs` prints how often.
//! - A report names the operations.
//!
//! # Deliberately absent
//!
//! No wire types, clocks or sockets: recorders fill a [`Recording`] and hand it over. No tolerance:
//! a checker that runs out of its budget reports a violation.

pub mod evaluate;
pub mod fencing;
pub mod keys;
pub mod lease;
pub mod log;
pub mod model;
pub mod random;
pub mod replay;
pub mod revisions;
pub mod search;
pub mod sequence;
pub mod types;
pub mod violation;
pub mod watch;
pub mod workload;

pub use lease::LeaseLimits;
pub use log::{Digest, Event, MemberLog, Timeline};
pub use types::{
    Answer, Body, Compare, Failure, KeyValue, Nanos, Operation, Order, Outcome, Put, PutIf, Range,
    Request, Revision, Sequential, Span, Target, Txn,
};
pub use violation::{Rule, Violation};
pub use watch::{Delivered, Delivery, Filter, Healed, Watch, WatchEvent, WatchRequest};

/// All that was recorded of one run, from an empty store on.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The operations of clients.
    pub operations: Vec<Operation>,
    /// The watches and their deliveries.
    pub watches: Vec<Watch>,
    /// The log that each member reports.
    pub logs: Vec<MemberLog>,
    /// The digests of whole states that members report.
    pub digests: Vec<Digest>,
    /// Locks given.
    pub grants: Vec<fencing::Grant>,
    /// Accesses to guarded resources, in their order.
    pub accesses: Vec<fencing::Access>,
    /// By when watches must have caught up; `None` if that is not checked.
    pub healed: Option<Healed>,
    /// The limits for leases; `None` if they are not checked for being late.
    pub leases: Option<LeaseLimits>,
}

impl Recording {
    /// The time when a client first knew of a revision or a later one; the end of time if none did.
    pub fn first_known(&self) -> impl Fn(Revision) -> Nanos + use<> {
        let mut seen: Vec<(Revision, Nanos)> = self
            .operations
            .iter()
            .filter_map(|operation| Some((operation.answer()?.revision, operation.return_ns?)))
            .chain(self.watches.iter().flat_map(|w| w.revisions()).map(|(at, r)| (r, at)))
            .collect();
        seen.sort_unstable();
        let mut first = Nanos::MAX;
        for (_, at) in seen.iter_mut().rev() {
            first = first.min(*at);
            *at = first;
        }
        move |revision| {
            let behind = seen.partition_point(|(r, _)| *r < revision);
            seen.get(behind).map_or(Nanos::MAX, |(_, at)| *at)
        }
    }
}

/// The budget of the searches, in configurations for each key and for the store. At a few hundred
/// bytes each this bounds the memory to some hundred megabytes.
pub const STEPS_MAX: usize = 1_000_000;

/// Runs all checkers. Nothing found means that the recording keeps every rule of [`Rule`].
#[must_use]
pub fn check(recording: &Recording) -> Vec<Violation> {
    let (timeline, mut found) = Timeline::merge(&recording.logs);
    let (recording, unordered) = sequence::resolve(recording, &timeline);
    let recording = &recording;
    found.extend(unordered);
    found.extend(log::check_digests(&recording.digests));
    let (explained, broken) = replay::check(recording, &timeline);
    found.extend(broken);
    found.extend(keys::check(recording, STEPS_MAX));
    found.extend(revisions::check(recording, &timeline, &explained, STEPS_MAX));
    found.extend(watch::check(recording, &timeline));
    let never_late = LeaseLimits { late_ns_max: Nanos::MAX / 4, quorum_since_ns: 0 };
    found.extend(lease::check(recording, &explained, &recording.leases.unwrap_or(never_late)));
    found.extend(fencing::check(&recording.grants, &recording.accesses));
    found
}
