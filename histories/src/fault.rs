//! The faults that a ring may meet, and which of them together.

use satrap_history::random::Random;

/// Faults that use the same means exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Processes die or are paused.
    Process,
    /// Packets are lost.
    Network,
    /// Disks are slow, full or broken.
    Disk,
    /// Members come and go.
    Membership,
    /// An operator's change while the ring works.
    Maintenance,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Any member is killed.
    KillAny,
    /// The leader is killed.
    KillLeader,
    /// More than half are killed.
    KillMajority,
    /// All are killed at once.
    KillAll,
    /// Any member is paused.
    PauseAny,
    /// The leader is paused, for longer than an election takes.
    PauseLeader,
    /// A member is paused again and again.
    Strobe,
    /// The leader is cut from the other members.
    IsolateLeader,
    /// Any member is cut from the others.
    IsolateAny,
    /// No two members hear each other.
    IsolateAll,
    /// The leader is heard and hears nothing.
    Deaf,
    /// The leader hears and is not heard.
    Mute,
    /// Two members reach a third, and not each other.
    Bridge,
    /// A member is cut again and again.
    Flapping,
    /// A share of all packets is lost.
    Loss,
    /// Clients are cut from a member that its peers still reach.
    ClientsCut,
    /// A disk does a few writes a second.
    SlowDisk,
    /// A disk is full, and its member restarts on it.
    FullDisk,
    /// A disk fails every write.
    BrokenDisk,
    /// A member is added as a learner and promoted, and another is removed.
    Replace,
    /// Snapshots are taken.
    Snapshot,
    /// Members are defragmented.
    Defragment,
    /// Leadership is handed over.
    MoveLeader,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::KillAny,
        Self::KillLeader,
        Self::KillMajority,
        Self::KillAll,
        Self::PauseAny,
        Self::PauseLeader,
        Self::Strobe,
        Self::IsolateLeader,
        Self::IsolateAny,
        Self::IsolateAll,
        Self::Deaf,
        Self::Mute,
        Self::Bridge,
        Self::Flapping,
        Self::Loss,
        Self::ClientsCut,
        Self::SlowDisk,
        Self::FullDisk,
        Self::BrokenDisk,
        Self::Replace,
        Self::Snapshot,
        Self::Defragment,
        Self::MoveLeader,
    ];

    /// The means it uses.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::KillAny | Self::KillLeader | Self::KillMajority | Self::KillAll => Class::Process,
            Self::PauseAny | Self::PauseLeader | Self::Strobe => Class::Process,
            Self::IsolateLeader | Self::IsolateAny | Self::IsolateAll => Class::Network,
            Self::Deaf | Self::Mute | Self::Bridge => Class::Network,
            Self::Flapping | Self::Loss | Self::ClientsCut => Class::Network,
            Self::SlowDisk | Self::FullDisk | Self::BrokenDisk => Class::Disk,
            Self::Replace => Class::Membership,
            Self::Snapshot | Self::Defragment | Self::MoveLeader => Class::Maintenance,
        }
    }
}

/// The faults of a run, round by round; those of one round overlap.
///
/// Every other seed overlaps two classes in every round. Successive seeds begin at successive
/// faults, so that a dozen runs meet every one of them several times.
#[must_use]
pub fn plan(seed: u64, rounds: usize) -> Vec<Vec<Fault>> {
    let mut random = Random::new(seed);
    let overlaps = seed % 2 == 1;
    let all = Fault::ALL.len() as u64;
    (0..rounds as u64)
        .map(|round| {
            let turn = seed.wrapping_mul(7).wrapping_add(round) % all;
            let first = Fault::ALL[turn as usize];
            let others: Vec<_> =
                Fault::ALL.into_iter().filter(|other| other.class() != first.class()).collect();
            let second = overlaps.then(|| *random.pick(&others));
            [first].into_iter().chain(second).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_dozen_runs_meet_every_fault_and_half_of_them_overlap() {
        let plans: Vec<_> = (1..=12).map(|seed| plan(seed, 7)).collect();
        let met: BTreeSet<Fault> = plans.iter().flatten().flatten().copied().collect();
        assert_eq!(met.len(), Fault::ALL.len(), "{met:?}");
        let overlaps = plans.iter().filter(|rounds| rounds.iter().all(|round| round.len() == 2));
        assert_eq!(overlaps.count(), 6);
        for round in plans.iter().flatten() {
            let classes: BTreeSet<_> = round.iter().map(|fault| fault.class()).collect();
            assert_eq!(classes.len(), round.len(), "{round:?}");
        }
    }
}
