//! Bugs that a simulation can inject, to prove that its checks find them.

/// A bug in the ring, in its disk, or in its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Writes are acknowledged before they are durable.
    AcknowledgedBeforeSync,
    /// A restarted member has forgotten its vote.
    VoteForgotten,
    /// A member that lost its disk continues under its old instance.
    LostDiskVotes,
    /// A linearizable read is answered from a member's local state without a proof.
    StaleRead,
}

impl Bug {
    /// All bugs.
    pub const ALL: [Self; 4] =
        [Self::AcknowledgedBeforeSync, Self::VoteForgotten, Self::LostDiskVotes, Self::StaleRead];
}
