//! How much of the file is in use: etcd's `dbSizeInUse`.
//!
//! Only the engine knows which pages are free, and to say so it walks through all of its trees. So it
//! is asked again once the rows have grown or shrunk by half since the last time; in between, their
//! bytes tell how far the figure has moved. That walk is on the thread of the checkpoints, and costs
//! as much as a restart reads.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase};

use super::{META, StorageError, checkpoint_row};

/// Changes of small states are not worth a look.
const ROWS_BYTES_MIN: u64 = 256 * 1024;
/// What the engine takes for itself, at least: a header and one page for each table.
const ENGINE_BYTES_MIN: u64 = 16 * 1024;

/// What the engine said last.
#[derive(Debug, Default)]
pub(super) struct Usage(Mutex<Option<Measured>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Measured {
    /// Of the rows at that time.
    rows_bytes: u64,
    /// Of the pages that were not free.
    pages_bytes: u64,
}

impl Usage {
    fn lock(&self) -> MutexGuard<'_, Option<Measured>> {
        // Replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what the engine said: the file is another one.
    pub(super) fn reset(&self) {
        *self.lock() = None;
    }

    /// Asks the engine, if that is due.
    pub(super) fn follow(&self, database: &Database) -> Result<(), StorageError> {
        let row = checkpoint_row(&database.begin_read()?.open_table(META)?)?;
        let rows_bytes = row.unwrap_or_default().totals.bytes;
        let due = |last: Measured| {
            rows_bytes.abs_diff(last.rows_bytes) > (last.rows_bytes / 2).max(ROWS_BYTES_MIN)
        };
        if self.lock().is_some_and(|last| !due(last)) {
            return Ok(());
        }
        let txn = database.begin_write()?;
        let stats = txn.stats()?;
        txn.abort()?;
        let pages_bytes = stats.allocated_pages() * stats.page_size() as u64;
        *self.lock() = Some(Measured { rows_bytes, pages_bytes });
        Ok(())
    }

    /// How much is in use now that the rows are of `rows_bytes`, in a file of `file_bytes`.
    pub(super) fn bytes(&self, rows_bytes: u64, file_bytes: u64) -> u64 {
        let used = match *self.lock() {
            Some(last) => {
                last.pages_bytes.saturating_add(rows_bytes).saturating_sub(last.rows_bytes)
            }
            None => rows_bytes,
        };
        used.max(ENGINE_BYTES_MIN).min(file_bytes)
    }
}
