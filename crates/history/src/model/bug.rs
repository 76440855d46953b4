//! The ways in which a store may be wrong.

/// One fault of the store, or of what it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// An acknowledged write is undone, and its revision used again.
    LostAck,
    /// A linearizable read is answered from the past.
    StaleRead,
    /// As before, under the header of the present.
    StaleBody,
    /// An operation that went unanswered is done twice.
    AppliedTwice,
    /// A write that no client asked for.
    PhantomWrite,
    /// A refused write is done nevertheless.
    AppliedRefusal,
    /// Two writes are answered with the same revision.
    DuplicateRevision,
    /// A revision is left out.
    RevisionGap,
    /// Of a transaction only the first write is done.
    TornTxn,
    /// A transaction makes one revision for each of its writes.
    SplitTxn,
    /// The wrong branch of a transaction is taken.
    WrongBranch,
    /// A conditional write is done although another write came in between.
    GuardIgnored,
    /// A conditional write is refused although its condition holds.
    GuardRefuses,
    /// The number of a sequential key is below that of an earlier one.
    SequenceRegresses,
    /// A put is answered with a wrong value before it.
    WrongAnswerBefore,
    /// One member holds another value than the others.
    MemberDiverges,
    /// One member's whole state differs where its log does not.
    DigestDiffers,
    /// Compaction takes a key along that still lives.
    CompactionLosesKey,
    /// A read below the compaction is served.
    CompactedServed,
    /// A watcher misses an event in the middle.
    WatchSkips,
    /// A watcher misses the first event.
    WatchSkipsFirst,
    /// A watcher gets a response twice.
    WatchRepeats,
    /// A watcher gets two responses in the wrong order.
    WatchReorders,
    /// A revision with several events is split over two responses.
    WatchSplits,
    /// A progress notification comes before the events it covers.
    WatchEarlyProgress,
    /// An event comes with a wrong value before it.
    WatchWrongBefore,
    /// An event of a changed key says that it created the key.
    WatchWrongCreate,
    /// An event that was filtered out is delivered.
    WatchFilterLeaks,
    /// A watch from a later revision gets an earlier event.
    WatchEarlyFuture,
    /// A watch behind compaction goes on at the compaction without a word.
    WatchSilentCompaction,
    /// A watch behind compaction is canceled without the revision.
    WatchBareCancel,
    /// A watch stays open and delivers nothing any more.
    WatchStalls,
    /// A lease ends at half its time.
    LeaseEarly,
    /// A renewal brings an ended lease back.
    LeaseRevived,
    /// A lease does not end.
    LeaseImmortal,
    /// A lock gives a smaller token than before.
    TokenRegresses,
    /// A lock gives the same token to two holders.
    TokenRepeats,
    /// A resource does not look at tokens.
    Unguarded,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 38] = [
        Self::LostAck,
        Self::StaleRead,
        Self::StaleBody,
        Self::AppliedTwice,
        Self::PhantomWrite,
        Self::AppliedRefusal,
        Self::DuplicateRevision,
        Self::RevisionGap,
        Self::TornTxn,
        Self::SplitTxn,
        Self::WrongBranch,
        Self::WrongAnswerBefore,
        Self::GuardIgnored,
        Self::GuardRefuses,
        Self::SequenceRegresses,
        Self::MemberDiverges,
        Self::DigestDiffers,
        Self::CompactionLosesKey,
        Self::CompactedServed,
        Self::WatchSkips,
        Self::WatchSkipsFirst,
        Self::WatchRepeats,
        Self::WatchReorders,
        Self::WatchSplits,
        Self::WatchEarlyProgress,
        Self::WatchWrongBefore,
        Self::WatchWrongCreate,
        Self::WatchFilterLeaks,
        Self::WatchEarlyFuture,
        Self::WatchSilentCompaction,
        Self::WatchBareCancel,
        Self::WatchStalls,
        Self::LeaseEarly,
        Self::LeaseRevived,
        Self::LeaseImmortal,
        Self::TokenRegresses,
        Self::TokenRepeats,
        Self::Unguarded,
    ];
}
