//! Bounds the length of the log, in bytes and in entries: requests snapshots, then purges.
//!
//! openraft counts entries only. One entry may hold a few bytes or a whole update, so a log of a
//! thousand entries takes between a few kilobytes and some gigabytes, all of it in memory. So this
//! module measures both the trigger and the part to keep in entries and in bytes.

use openraft::{Raft, async_runtime::WatchReceiver as _, errors::Fatal};

use super::{
    log_store::{LogSize, LogStore},
    platform::Platform,
    state_machine::StateMachine,
    types::Types,
};
use crate::limits::{LOG_BYTES_MAX, LOG_ENTRIES_MAX, LOG_KEEP_BYTES};

/// The thresholds of log compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// A snapshot is due once the log exceeds either of these.
    pub max: LogSize,
    /// The part of the log to keep, for members that were away briefly.
    pub keep: LogSize,
}

impl Compaction {
    /// Compacts a log of more than `entries` entries, and keeps a quarter of them.
    #[must_use]
    pub fn beyond(entries: u64) -> Self {
        Self {
            max: LogSize { entries, bytes: LOG_BYTES_MAX },
            keep: LogSize { entries: entries / 4, bytes: LOG_KEEP_BYTES },
        }
    }
}

impl Default for Compaction {
    fn default() -> Self {
        Self::beyond(LOG_ENTRIES_MAX)
    }
}

/// Compacts the log whenever that is due, until Raft stops.
///
/// # Errors
///
/// The reason why Raft stopped, unless a shutdown was requested.
pub async fn run<P: Platform>(
    raft: Raft<Types<P>, StateMachine<P>>,
    log: LogStore<P>,
    limits: Compaction,
) -> Result<(), Fatal<Types<P>>> {
    let mut metrics = raft.data_metrics();
    // The last request, so that a snapshot in progress is not requested again.
    let (mut asked, mut purged) = (None, None);
    loop {
        let (applied, snapshot) = {
            let now = metrics.borrow_and_update();
            (now.last_applied.map(|id| id.index), now.snapshot.map(|id| id.index))
        };
        let size = log.size();
        let due = size.entries > limits.max.entries || size.bytes > limits.max.bytes;
        // Wait until the log has grown by `max` since the last request, because the kept part may
        // exceed `keep` until the purge is done.
        if due && applied > snapshot && applied > asked && snapshot >= asked {
            raft.trigger().snapshot().await?;
            asked = applied;
        }
        // This runs after every entry, and `purge_point` walks the log, so check the threshold
        // first.
        if due
            && let Some(point) = snapshot.and_then(|at| log.purge_point(at, limits.keep))
            && Some(point) > purged
        {
            raft.trigger().purge_log(point).await?;
            purged = Some(point);
        }
        if metrics.changed().await.is_err() {
            return Ok(());
        }
    }
}
