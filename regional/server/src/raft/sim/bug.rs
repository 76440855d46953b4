//! What can be wrong on purpose: a simulation that has never failed proves nothing.

/// A mistake in the ring, in its disk, or in who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Writes are acknowledged before they are durable.
    AcknowledgedBeforeSync,
    /// A restarted member does not know whom it voted for.
    VoteForgotten,
    /// A member that lost its disk goes on under its old instance.
    LostDiskVotes,
    /// A read that must be linearizable is answered from what a member happens to have.
    StaleRead,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::AcknowledgedBeforeSync, Self::VoteForgotten, Self::LostDiskVotes, Self::StaleRead];
}
