//! Reclaims the space of compacted versions while the member serves, and scrubs rows, a bounded
//! piece at a time.
//!
//! Compaction makes versions superfluous; their rows stay until they are rewritten here. One call
//! reads a bounded number of bytes, drops the versions that the state machine no longer needs,
//! joins rows that became small, and commits once. Calls continue where the last one ended, so no
//! request waits for a full pass.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{CompactionError, ReadTransaction, ReadableTable};

use super::{
    CheckpointRow, ChunkKey, DatabaseFault, FILE, HISTORY, META, PAGES, State, StorageError, Table,
    checkpoint_row, chunk, chunk_key_bytes,
    engine::read,
    guarded,
    put::{HistoryTable, replace_chunk},
    put_meta, verified_content, write,
};
use crate::limits::{CHUNK_BYTES, CHUNK_SMALL_BYTES};

/// The keys at which the next calls begin.
#[derive(Debug, Default)]
pub(super) struct Cursors(Mutex<Positions>);

#[derive(Clone, Copy, Debug, Default)]
struct Positions {
    reclaim: ChunkKey,
    scrub: ChunkKey,
}

impl Cursors {
    fn lock(&self) -> MutexGuard<'_, Positions> {
        // Every position is valid, even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts over, because the file was replaced.
    pub(super) fn reset(&self) {
        *self.lock() = Positions::default();
    }
}

/// The result of one call of [`State::reclaim`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes of rows read.
    pub read_bytes: u64,
    /// Versions dropped.
    pub versions: u64,
    /// Bytes by which the rows shrank.
    pub freed_bytes: u64,
    /// Whether the end was reached; the next call starts over.
    pub wrapped: bool,
}

/// The result of one call of [`State::scrub`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes of rows compared with their digests.
    pub read_bytes: u64,
    /// Whether the end was reached; the next call starts over.
    pub wrapped: bool,
}

/// Adjacent rows that are to become one.
#[derive(Default)]
struct Run {
    keys: Vec<ChunkKey>,
    content: Vec<u8>,
    changed: bool,
}

/// Rows to rewrite: the keys to remove, then the content for the first of them.
type Rewrite = (Vec<ChunkKey>, Vec<u8>);

/// The rewrites for a piece of history.
#[derive(Default)]
struct Plan {
    rewrites: Vec<Rewrite>,
    next: ChunkKey,
    done: Reclaimed,
}

impl State {
    /// Reads about `budget_bytes` of history from where the last call ended, and rewrites rows
    /// without the versions for which `is_needed(key, revision)` is false.
    ///
    /// `is_needed` is called with no lock held. A version that it rejects must never be needed
    /// again.
    ///
    /// # Errors
    ///
    /// As for [`State::checkpoint`].
    pub fn reclaim(
        &self,
        budget_bytes: usize,
        is_needed: impl FnMut(&[u8], u64) -> bool,
    ) -> Result<Reclaimed, StorageError> {
        self.change(|database| {
            let start = self.reclaim.lock().reclaim;
            let mut plan = read(FILE, database, |txn| plan(txn, start, budget_bytes, is_needed))?;
            if !plan.rewrites.is_empty() {
                let bytes = plan.rewrites.iter().map(|(_, content)| content.len()).sum::<usize>();
                self.check_room(database, bytes as u64)?;
                plan.done.freed_bytes = write(FILE, database, |txn| {
                    let mut row = checkpoint_row(&txn.open_table(META)?)?.unwrap_or_default();
                    let before = row.totals.bytes;
                    rewrite(&mut txn.open_table(HISTORY)?, &mut row, &plan.rewrites)?;
                    put_meta(txn, CheckpointRow::KEY, &row.encode())?;
                    Ok(before.saturating_sub(row.totals.bytes))
                })?;
                guarded(FILE, || self.usage.follow(database))?;
            }
            self.reclaim.lock().reclaim = plan.next;
            Ok(plan.done)
        })
    }

    /// Compares about `budget_bytes` of rows with their digests, from where the last call ended.
    ///
    /// # Errors
    ///
    /// [`StorageError::Damaged`] naming the row; the operator must rebuild this member from its
    /// peers.
    pub fn scrub(&self, budget_bytes: usize) -> Result<Scrubbed, StorageError> {
        let start = self.reclaim.lock().scrub;
        let txn = self.begin_read()?;
        let (done, next) = guarded(FILE, || scrub(&txn, start, budget_bytes))?;
        self.reclaim.lock().scrub = next;
        Ok(done)
    }

    /// Shrinks the file to its content; returns whether that changed anything.
    ///
    /// Takes time in proportion to the content of the file; checkpoints wait for it, the log does
    /// not. Runs only when an operator asks: the engine reuses reclaimed space anyway.
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`] while a snapshot is being read; otherwise as for
    /// [`State::checkpoint`].
    pub fn shrink(&self) -> Result<bool, StorageError> {
        use std::sync::atomic::Ordering;
        if self.failed.load(Ordering::Acquire) {
            return Err(StorageError::Stopped);
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_mut().ok_or(StorageError::Stopped)?;
        let result = guarded(FILE, || match database.compact() {
            Ok(changed) => Ok(changed),
            Err(CompactionError::TransactionInProgress) => {
                Err(StorageError::Order("a snapshot is being read; ask again later".into()).into())
            }
            Err(error) => Err(redb::Error::from(error).into()),
        })
        // After a compaction redb has not stored its map of free pages; a commit stores it, so that
        // the next open needs no repair after a crash.
        .and_then(|changed| write(FILE, database, |_| Ok(changed)))
        .and_then(|changed| {
            self.usage.reset();
            guarded(FILE, || self.usage.follow(database)).map(|()| changed)
        });
        if result.as_ref().is_err_and(StorageError::is_fatal) {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

fn plan(
    txn: &ReadTransaction,
    start: ChunkKey,
    budget_bytes: usize,
    mut is_needed: impl FnMut(&[u8], u64) -> bool,
) -> Result<Plan, DatabaseFault> {
    let table = txn.open_table(HISTORY)?;
    let (mut plan, mut run) = (Plan::default(), Run::default());
    plan.done.wrapped = true;
    for row in table.range(start..)? {
        let (key, row) = row?;
        let (key, row) = (key.value(), row.value());
        if plan.done.read_bytes >= budget_bytes as u64 {
            (plan.next, plan.done.wrapped) = (key, false);
            break;
        }
        plan.done.read_bytes += row.len() as u64;
        let content = verified_content(Table::History, &chunk_key_bytes(key), row)?;
        let mut kept = Vec::with_capacity(content.len());
        for version in chunk::versions(key, content) {
            let version = version?;
            if is_needed(version.key, version.revision) {
                version.encode(&mut kept);
            } else {
                plan.done.versions += 1;
            }
        }
        let changed = kept.len() != content.len();
        if !run.joins(&kept) {
            plan.rewrites.extend(std::mem::take(&mut run).finish());
        }
        run.keys.push(key);
        run.content.extend_from_slice(&kept);
        run.changed |= changed;
    }
    plan.rewrites.extend(run.finish());
    Ok(plan)
}

impl Run {
    /// Whether this row should be joined with `kept`.
    fn joins(&self, kept: &[u8]) -> bool {
        self.keys.is_empty()
            || (self.content.len().min(kept.len()) < CHUNK_SMALL_BYTES
                && self.content.len() + kept.len() <= CHUNK_BYTES)
    }

    fn finish(self) -> Option<Rewrite> {
        (self.changed || self.keys.len() > 1).then_some((self.keys, self.content))
    }
}

fn rewrite(
    table: &mut HistoryTable<'_>,
    row: &mut CheckpointRow,
    rewrites: &[Rewrite],
) -> Result<(), DatabaseFault> {
    for (keys, content) in rewrites {
        for (position, key) in keys.iter().enumerate() {
            // The joined row keeps the first key: it is not above its first version, and below the
            // row that follows.
            let content = (position == 0 && !content.is_empty()).then_some(&content[..]);
            replace_chunk(table, &mut row.totals, *key, content)?;
        }
    }
    Ok(())
}

fn scrub(
    txn: &ReadTransaction,
    start: ChunkKey,
    budget_bytes: usize,
) -> Result<(Scrubbed, ChunkKey), DatabaseFault> {
    let mut done = Scrubbed { read_bytes: 0, wrapped: false };
    if start == ChunkKey::default() {
        for row in txn.open_table(PAGES)?.iter()? {
            let (name, row) = row?;
            verified_content(Table::Page, name.value().as_bytes(), row.value())?;
            done.read_bytes += row.value().len() as u64;
        }
    }
    for row in txn.open_table(HISTORY)?.range(start..)? {
        let (key, row) = row?;
        if done.read_bytes >= budget_bytes as u64 {
            return Ok((done, key.value()));
        }
        verified_content(Table::History, &chunk_key_bytes(key.value()), row.value())?;
        done.read_bytes += row.value().len() as u64;
    }
    done.wrapped = true;
    Ok((done, ChunkKey::default()))
}
