//! Writes a checkpoint into its transaction, and keeps the totals that a load compares.

use redb::{ReadableTable, Table as EngineTable, WriteTransaction};

use super::{
    Checkpoint, CheckpointRow, ChunkKey, DatabaseFault, HISTORY, History, META, PAGES, Table,
    Totals, checkpoint_row, chunk, chunk_key_bytes, put_meta, verified_content, with_digest,
};
use crate::{
    StorageError,
    limits::{CHUNK_BYTES, CHUNK_SMALL_BYTES},
};

/// STATEFILE-1
pub(super) fn checkpoint(txn: &WriteTransaction, new: &Checkpoint) -> Result<(), DatabaseFault> {
    let before = checkpoint_row(&txn.open_table(META)?)?.unwrap_or_default();
    if new.applied.index < before.applied.index || new.compacted < before.compacted {
        let what = format!(
            "a checkpoint at {} compacted to {}, after one at {} compacted to {}",
            new.applied.index, new.compacted, before.applied.index, before.compacted
        );
        return Err(StorageError::Order(what).into());
    }
    let mut totals = before.totals;
    {
        let mut table = txn.open_table(PAGES)?;
        for (name, bytes) in &new.pages {
            put_page(&mut table, &mut totals, name, bytes.as_deref())?;
        }
        history(&mut txn.open_table(HISTORY)?, &mut totals, &new.history)?;
    }
    let (applied, compacted) = (new.applied.clone(), new.compacted);
    put_meta(txn, CheckpointRow::KEY, &CheckpointRow { applied, compacted, totals }.encode())
}

fn put_page(
    table: &mut EngineTable<'_, &'static str, &'static [u8]>,
    totals: &mut Totals,
    name: &str,
    bytes: Option<&[u8]>,
) -> Result<(), DatabaseFault> {
    let sealed = bytes.map(|bytes| with_digest(Table::Page, name.as_bytes(), bytes));
    let old = match &sealed {
        Some(row) => table.insert(name, row.as_slice())?,
        None => table.remove(name)?,
    };
    if let Some(old) = old {
        totals.remove(Table::Page, old.value());
    }
    if let Some(row) = sealed {
        totals.add(Table::Page, &row);
    }
    Ok(())
}

pub(super) type HistoryTable<'txn> = EngineTable<'txn, ChunkKey, &'static [u8]>;

/// Appends new rows; the first one joins the last stored row if that is small.
fn history(
    table: &mut HistoryTable<'_>,
    totals: &mut Totals,
    new: &History,
) -> Result<(), DatabaseFault> {
    let Some(((first, _), chunk)) = new.chunks.first() else { return Ok(()) };
    let mut chunks = &new.chunks[..];
    if let Some((key, mut joined)) = last_chunk(table)? {
        let last = versions_end(key, &joined)?;
        if *first <= last {
            return Err(StorageError::Order(format!("revision {first} after {last}")).into());
        }
        if joined.len() < CHUNK_SMALL_BYTES && joined.len() + chunk.len() <= CHUNK_BYTES {
            joined.extend_from_slice(chunk);
            replace_chunk(table, totals, key, Some(&joined))?;
            chunks = &chunks[1..];
        }
    }
    chunks.iter().try_for_each(|(key, chunk)| replace_chunk(table, totals, *key, Some(chunk)))
}

fn last_chunk(
    table: &impl ReadableTable<ChunkKey, &'static [u8]>,
) -> Result<Option<(ChunkKey, Vec<u8>)>, DatabaseFault> {
    let Some((key, row)) = table.last()? else { return Ok(None) };
    let key = key.value();
    let content = verified_content(Table::History, &chunk_key_bytes(key), row.value())?;
    Ok(Some((key, content.to_vec())))
}

/// Revision of the last version in a row.
fn versions_end(key: ChunkKey, chunk: &[u8]) -> Result<u64, DatabaseFault> {
    chunk::versions(key, chunk).try_fold(key.0, |last, v| Ok(last.max(v?.revision)))
}

/// Puts or removes one row, and updates the totals.
pub(super) fn replace_chunk(
    table: &mut HistoryTable<'_>,
    totals: &mut Totals,
    key: ChunkKey,
    chunk: Option<&[u8]>,
) -> Result<(), DatabaseFault> {
    let sealed = chunk.map(|chunk| with_digest(Table::History, &chunk_key_bytes(key), chunk));
    let old = match &sealed {
        Some(row) => table.insert(key, row.as_slice())?,
        None => table.remove(key)?,
    };
    if let Some(old) = old {
        totals.remove(Table::History, old.value());
    }
    if let Some(row) = sealed {
        totals.add(Table::History, &row);
    }
    Ok(())
}
