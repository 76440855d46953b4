//! Estimates how much of the state's file is in use: etcd's `dbSizeInUse`.
//!
//! Only the engine knows which pages are free, and it walks all of its trees to count them. So the
//! engine is asked again only once the rows have grown or shrunk by half; in between, the figure
//! follows the size of the rows. The walk runs on the checkpoint thread, and costs as much as the
//! load at a restart.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase};

use super::{DatabaseFault, META, checkpoint_row};

/// Changes below this size are not worth a walk.
const ROWS_BYTES_MIN: u64 = 256 * 1024;
/// The least that the engine itself uses: a header and one page for each table.
const ENGINE_BYTES_MIN: u64 = 16 * 1024;

/// The last figures of the engine.
#[derive(Debug, Default)]
pub(super) struct Usage(Mutex<Option<Measured>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Measured {
    /// Bytes of the rows at that time.
    rows_bytes: u64,
    /// Bytes of the pages that were in use.
    pages_bytes: u64,
}

impl Usage {
    fn lock(&self) -> MutexGuard<'_, Option<Measured>> {
        // The value is replaced as a whole, so it is valid even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the engine's figures, because the file was replaced.
    pub(super) fn reset(&self) {
        *self.lock() = None;
    }

    /// Asks the engine, if that is due.
    pub(super) fn follow(&self, database: &Database) -> Result<(), DatabaseFault> {
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

    /// The estimated bytes in use, for rows of `rows_bytes` in a file of `file_bytes`.
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
