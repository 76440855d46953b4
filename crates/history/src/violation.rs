//! What a checker reports: the rule that was broken, and the operations that broke it.

use std::fmt;

/// The rules, with their ids where the invariant catalogue has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// K1: what was acknowledged stands in the log at exactly its revision.
    Acknowledged,
    /// K2: revisions are dense and unique, and the log is consistent in itself.
    Dense,
    /// K3: an answer is no older than what was known when it was asked for.
    RealTime,
    /// K4: a transaction is one revision, whole.
    Atomic,
    /// Every answer equals the state at its revision.
    ReadsState,
    /// K5: nothing is in the log that nobody asked for.
    NoPhantom,
    /// K6: an operation of unknown outcome happened at most once.
    AtMostOnce,
    /// K7: members agree.
    MembersAgree,
    /// K8: compaction hides what lies below it, all of that, and nothing else.
    Compaction,
    /// The per-key search found no order that explains a key's operations.
    KeyOrder,
    /// The search over the whole store found no order that explains all operations.
    StoreOrder,
    /// A search ran out of its budget, which is a failure of the run.
    Exhausted,
    /// W1: events of a watch never go back.
    WatchOrdered,
    /// W2: no event comes twice.
    WatchUnique,
    /// W3: a revision is not split over responses.
    WatchAtomic,
    /// W4: between the first and the last event none is missing, and none is invented.
    WatchReliable,
    /// W5: a watch from a revision gets the first matching event at or behind it.
    WatchResumable,
    /// W6: a progress notification is behind no event that is still to come.
    WatchBookmarkable,
    /// W7: only what was asked for is delivered.
    WatchFilter,
    /// W8: the value before the event is the one of the revision before.
    WatchBefore,
    /// W9: an event says it created the key exactly if the key was absent.
    WatchCreate,
    /// W10: after healing every open watch reaches the head in time.
    WatchLive,
    /// W11: a watch behind compaction is told so, with the revision.
    WatchCancel,
    /// A watch from a future revision delivers nothing early.
    WatchFuture,
    /// L1: no lease ends before its time.
    LeaseEarly,
    /// L2: no lease comes back.
    LeaseRevived,
    /// L3: every lease ends.
    LeaseLate,
    /// L4: the tokens of a lock strictly increase.
    TokenIncreases,
    /// L5: a guarded resource never goes back to an older token.
    ResourceRegressed,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// What happened, naming the operations.
    pub what: String,
}

impl Violation {
    /// A violation of `rule`.
    #[must_use]
    pub fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self { rule, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}
