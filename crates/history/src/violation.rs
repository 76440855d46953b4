//! The report of a checker: the rule that was broken, and the operations that broke it.

use std::fmt;

/// The rules, with their ids where the invariant catalogue has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// HISTKV-1: an acknowledged write is in the log at exactly its revision.
    Acknowledged,
    /// HISTKV-2: revisions are dense and unique, and the log is consistent in itself.
    Dense,
    /// HISTKV-3: an answer is no older than what was known when it was asked for.
    RealTime,
    /// HISTKV-4: a transaction is one revision, whole.
    Atomic,
    /// Every answer equals the state at its revision.
    ReadsState,
    /// HISTKV-5: the log holds nothing that no client asked for.
    NoPhantom,
    /// HISTKV-6: an operation of unknown outcome happened at most once.
    AtMostOnce,
    /// HISTKV-7: members agree.
    MembersAgree,
    /// HISTKV-8: compaction hides what lies below it, all of that, and nothing else.
    Compaction,
    /// HISTKV-9: the numbers of sequential keys strictly increase.
    SequenceGrows,
    /// The per-key search found no order that explains a key's operations.
    KeyOrder,
    /// The search over the whole store found no order that explains all operations.
    StoreOrder,
    /// A search ran out of its budget, which is a failure of the run.
    Exhausted,
    /// HISTWATCH-1: events of a watch never go back.
    WatchOrdered,
    /// HISTWATCH-2: no event comes twice.
    WatchUnique,
    /// HISTWATCH-3: a revision is not split over responses.
    WatchAtomic,
    /// HISTWATCH-4: between the first and the last event none is missing, and none is invented.
    WatchReliable,
    /// HISTWATCH-5: a watch from a revision gets the first matching event at or behind it.
    WatchResumable,
    /// HISTWATCH-6: a progress notification is behind no event that is still to come.
    WatchBookmarkable,
    /// HISTWATCH-7: only what was asked for is delivered.
    WatchFilter,
    /// HISTWATCH-8: the value before the event is the one of the revision before.
    WatchBefore,
    /// HISTWATCH-9: an event says it created the key exactly if the key was absent.
    WatchCreate,
    /// HISTWATCH-10: after healing every open watch reaches the head in time.
    WatchLive,
    /// HISTWATCH-11: a watch behind compaction is canceled with the revision.
    WatchCancel,
    /// A watch from a future revision delivers nothing early.
    WatchFuture,
    /// HISTLEASE-1: no lease ends before its time.
    LeaseEarly,
    /// HISTLEASE-2: no lease comes back.
    LeaseRevived,
    /// HISTLEASE-3: every lease ends.
    LeaseLate,
    /// HISTLEASE-4: the tokens of a lock strictly increase.
    TokenIncreases,
    /// HISTLEASE-5: a guarded resource never goes back to an older token.
    ResourceRegressed,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// The description, which names the operations.
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
