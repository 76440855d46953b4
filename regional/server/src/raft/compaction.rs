//! Keeps the log short: snapshot, then purge, by bytes and by entries.
//!
//! openraft counts entries only. One adopted update may hold a whole realm, so a log of a thousand
//! entries may be a few megabytes or some gigabytes, and all of it is in memory. Here the trigger and
//! what stays are measured in both.

use openraft::{Raft, async_runtime::WatchReceiver as _, errors::Fatal};

use super::{
    log_store::{LogSize, LogStore},
    platform::Platform,
    state_machine::StateMachine,
    types::Types,
};
use crate::limits::{LOG_BYTES_MAX, LOG_ENTRIES_MAX, LOG_KEEP_BYTES};

/// When to compact, and what to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Beyond either of these, a snapshot is due.
    pub max: LogSize,
    /// This much stays in the log, for members that blinked.
    pub keep: LogSize,
}

impl Compaction {
    /// Compacts a log of more than so many `entries`, and keeps a quarter of them.
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

/// Compacts whenever it is due, until raft stops.
///
/// # Errors
///
/// The reason why raft stopped, unless it was asked to.
pub async fn run<P: Platform>(
    raft: Raft<Types<P>, StateMachine<P>>,
    log: LogStore<P>,
    limits: Compaction,
) -> Result<(), Fatal<Types<P>>> {
    let mut metrics = raft.data_metrics();
    // What was asked for last, so that one build in progress is not asked for again.
    let (mut asked, mut purged) = (None, None);
    loop {
        let (applied, snapshot) = {
            let now = metrics.borrow_and_update();
            (now.last_applied.map(|id| id.index), now.snapshot.map(|id| id.index))
        };
        let size = log.size();
        let due = size.entries > limits.max.entries || size.bytes > limits.max.bytes;
        // Growth of one `max` since the last request, because what is kept may exceed `keep` until
        // the purge is done.
        if due && applied > snapshot && applied > asked && snapshot >= asked {
            raft.trigger().snapshot().await?;
            asked = applied;
        }
        let point = snapshot.and_then(|snapshot| log.purge_point(snapshot, limits.keep));
        if due && let Some(point) = point.filter(|point| Some(*point) > purged) {
            raft.trigger().purge_log(point).await?;
            purged = Some(point);
        }
        if metrics.changed().await.is_err() {
            return Ok(());
        }
    }
}
