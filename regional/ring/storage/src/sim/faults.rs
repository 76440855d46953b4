//! The faults of a simulated disk, and its seeded choices.

/// The faults to inject. Numbers of operations count as [`super::Counters::operations`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// From this operation on nothing happens, until [`super::SimDisk::crash`].
    pub power_cut_at: Option<u64>,
    /// This operation fails and changes nothing.
    pub error_at: Option<u64>,
    /// The sync after this many fails: some sectors are durable, others never will be, though
    /// readers see them.
    pub error_after_syncs: Option<u64>,
    /// The file system turns read-only during the sync after this many, as ext4 does: that sync reports
    /// success, but only bytes that replace durable ones are durable.
    pub read_only_after_syncs: Option<u64>,
    /// Syncs report success and do nothing.
    pub lying_sync: bool,
    /// The capacity of the disk.
    pub capacity_bytes: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            power_cut_at: None,
            error_at: None,
            error_after_syncs: None,
            read_only_after_syncs: None,
            lying_sync: false,
            capacity_bytes: u64::MAX,
        }
    }
}

impl Faults {
    /// Counts one sync; says whether it is the one that fails.
    pub(super) fn error_at_sync(&mut self) -> bool {
        count_down(&mut self.error_after_syncs)
    }

    /// Counts one sync; says whether it is the one during which the file system turns read-only.
    pub(super) fn read_only_at_sync(&mut self) -> bool {
        count_down(&mut self.read_only_after_syncs)
    }
}

fn count_down(left: &mut Option<u64>) -> bool {
    match left {
        Some(0) => {
            *left = None;
            true
        }
        Some(more) => {
            *more -= 1;
            false
        }
        None => false,
    }
}

/// The share of unsynced writes that survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    None,
    /// Everything, as when only the process died.
    All,
    /// Each sector and name with this chance in 256.
    Some(u8),
}

/// Seeded choices: SplitMix64.
#[derive(Clone, Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    pub(super) fn keeps(&mut self, survival: Survival) -> bool {
        match survival {
            Survival::None => false,
            Survival::All => true,
            Survival::Some(chance) => self.next() & 0xff < u64::from(chance),
        }
    }
}
