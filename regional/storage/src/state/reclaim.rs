//! Gives space back while the member serves, a bounded piece at a time.
//!
//! Compaction makes versions superfluous; their rows stay until they are rewritten here. One call
//! reads a bounded number of bytes, drops what the state machine no longer needs, joins rows that
//! became small, and commits once. Calls go round and round, so nobody ever waits for a full pass.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{CompactionError, ReadTransaction, ReadableDatabase, ReadableTable};

use super::{
    CheckpointRow, ChunkKey, HISTORY, META, PAGES, State, StorageError, Table, checkpoint_row,
    chunk, chunk_key_bytes, guarded,
    put::{HistoryTable, replace_chunk},
    put_meta, unseal, write,
};
use crate::limits::{CHUNK_BYTES, CHUNK_SMALL_BYTES};

/// Where the next piece begins.
#[derive(Debug, Default)]
pub(super) struct Cursors(Mutex<Positions>);

#[derive(Clone, Copy, Debug, Default)]
struct Positions {
    reclaim: ChunkKey,
    scrub: ChunkKey,
}

impl Cursors {
    fn lock(&self) -> MutexGuard<'_, Positions> {
        // Any position is a good one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts over: the file is another one.
    pub(super) fn reset(&self) {
        *self.lock() = Positions::default();
    }
}

/// What one call of [`State::reclaim`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes of rows read.
    pub read_bytes: u64,
    /// Versions dropped.
    pub versions: u64,
    /// By how much the rows shrank.
    pub freed_bytes: u64,
    /// Whether the end was reached; the next call starts over.
    pub wrapped: bool,
}

/// What one call of [`State::scrub`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes of rows compared with their digests.
    pub read_bytes: u64,
    /// Whether the end was reached; the next call starts over.
    pub wrapped: bool,
}

/// Neighbors that are to become one row.
#[derive(Default)]
struct Run {
    keys: Vec<ChunkKey>,
    content: Vec<u8>,
    changed: bool,
}

/// Rows to rewrite: the keys to remove, then the content for the first of them.
type Rewrite = (Vec<ChunkKey>, Vec<u8>);

/// What a piece of history comes down to.
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
    /// `is_needed` is called with no lock held. What it says no to must never be needed again.
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
            let txn = database.begin_read()?;
            let mut plan = guarded(|| plan(&txn, start, budget_bytes, is_needed))?;
            drop(txn);
            if !plan.rewrites.is_empty() {
                let bytes = plan.rewrites.iter().map(|(_, content)| content.len()).sum::<usize>();
                self.check_room(database, bytes as u64)?;
                plan.done.freed_bytes = write(database, |txn| {
                    let mut row = checkpoint_row(&txn.open_table(META)?)?.unwrap_or_default();
                    let before = row.totals.bytes;
                    rewrite(&mut txn.open_table(HISTORY)?, &mut row, &plan.rewrites)?;
                    put_meta(txn, CheckpointRow::KEY, &row.encode())?;
                    Ok(before.saturating_sub(row.totals.bytes))
                })?;
                guarded(|| self.usage.follow(database))?;
            }
            self.reclaim.lock().reclaim = plan.next;
            Ok(plan.done)
        })
    }

    /// Compares about `budget_bytes` of rows with their digests, from where the last call ended.
    ///
    /// # Errors
    ///
    /// [`StorageError::Damaged`] naming the row; this member must be rebuilt from its peers.
    pub fn scrub(&self, budget_bytes: usize) -> Result<Scrubbed, StorageError> {
        let start = self.reclaim.lock().scrub;
        let txn = self.begin_read()?;
        let (done, next) = guarded(|| scrub(&txn, start, budget_bytes))?;
        self.reclaim.lock().scrub = next;
        Ok(done)
    }

    /// Makes the file as small as its content allows; says whether that changed anything.
    ///
    /// Takes time in proportion to what is in the file, and checkpoints wait for it; the log does
    /// not. Called when an operator asks, never by itself: the engine reuses what was reclaimed.
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
        let result = guarded(|| match database.compact() {
            Ok(changed) => Ok(changed),
            Err(CompactionError::TransactionInProgress) => {
                Err(StorageError::Order("a snapshot is being read; ask again later".into()))
            }
            Err(error) => Err(StorageError::from(redb::Error::from(error))),
        })
        // The engine leaves its free-space map unrecorded; a commit records it, so that a crash
        // costs no repair.
        .and_then(|changed| write(database, |_| Ok(changed)))
        .and_then(|changed| {
            self.usage.reset();
            guarded(|| self.usage.follow(database)).map(|()| changed)
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
) -> Result<Plan, StorageError> {
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
        let content = unseal(Table::History, &chunk_key_bytes(key), row)?;
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
    /// Whether a row of `kept` should become part of this one.
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
) -> Result<(), StorageError> {
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
) -> Result<(Scrubbed, ChunkKey), StorageError> {
    let mut done = Scrubbed { read_bytes: 0, wrapped: false };
    if start == ChunkKey::default() {
        for row in txn.open_table(PAGES)?.iter()? {
            let (name, row) = row?;
            unseal(Table::Page, name.value().as_bytes(), row.value())?;
            done.read_bytes += row.value().len() as u64;
        }
    }
    for row in txn.open_table(HISTORY)?.range(start..)? {
        let (key, row) = row?;
        if done.read_bytes >= budget_bytes as u64 {
            return Ok((done, key.value()));
        }
        unseal(Table::History, &chunk_key_bytes(key.value()), row.value())?;
        done.read_bytes += row.value().len() as u64;
    }
    done.wrapped = true;
    Ok((done, ChunkKey::default()))
}
