//! The tables of the state, and the digests that protect their rows.
//!
//! Every row begins with the digest of its table, key and content. The digests of all pages and
//! history rows add up to one sum, which the checkpoint row of the same transaction holds: so a
//! load detects a lost or extra row as surely as a changed one.

use bytes::{Buf, BufMut, Bytes};
use redb::TableDefinition;

use super::DatabaseFault;
use crate::Mark;

/// History rows, by the revision of their first version and the number of versions of that revision
/// before it.
pub(crate) const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");
/// Pages: all state but the history.
pub(crate) const PAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pages");
/// Identity and checkpoint.
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// The key of a history row.
pub(crate) type ChunkKey = (u64, u32);

pub(crate) const DIGEST_BYTES: usize = 32;

/// The table of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Table {
    Page = 1,
    History = 2,
    Meta = 3,
}

/// The digest of a row.
pub(crate) fn digest(table: Table, key: &[u8], content: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[table as u8]);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(content);
    hasher.finalize()
}

/// A row: the digest of `content`, then `content`.
pub(crate) fn with_digest(table: Table, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(DIGEST_BYTES + content.len());
    row.put_slice(digest(table, key, content).as_bytes());
    row.put_slice(content);
    row
}

/// The content of a row, compared with its digest.
pub(crate) fn verified_content<'a>(
    table: Table,
    key: &[u8],
    row: &'a [u8],
) -> Result<&'a [u8], DatabaseFault> {
    let (expected, content) = row
        .split_first_chunk::<DIGEST_BYTES>()
        .ok_or_else(|| damaged_row(table, key, "is cut short"))?;
    if digest(table, key, content) != *expected {
        return Err(damaged_row(table, key, "does not match its digest"));
    }
    Ok(content)
}

pub(crate) fn damaged_row(table: Table, key: &[u8], what: &str) -> DatabaseFault {
    let row = match (table, key.try_into()) {
        (Table::History, Ok(key)) => {
            let (revision, part) = chunk_key(key);
            format!("history row {revision}.{part}")
        }
        (Table::History, Err(_)) => "history row".to_owned(),
        (Table::Page, _) => format!("page `{}`", String::from_utf8_lossy(key)),
        (Table::Meta, _) => format!("row `{}`", String::from_utf8_lossy(key)),
    };
    DatabaseFault::damaged(format!("{row} {what}"))
}

/// The bytes of a history key; they sort as the keys do.
pub(crate) fn chunk_key_bytes(key: ChunkKey) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&key.0.to_be_bytes());
    bytes[8..].copy_from_slice(&key.1.to_be_bytes());
    bytes
}

pub(crate) fn chunk_key(bytes: &[u8; 12]) -> ChunkKey {
    let mut rest = &bytes[..];
    (rest.get_u64(), rest.get_u32())
}

/// Count, bytes and digests of the rows of pages and history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub pages: u64,
    pub chunks: u64,
    pub bytes: u64,
    /// Wrapping sum of the digests' first half.
    pub sum: u128,
}

impl Totals {
    pub(crate) fn add(&mut self, table: Table, row: &[u8]) {
        *self.count(table) += 1;
        self.bytes += row.len() as u64;
        self.sum = self.sum.wrapping_add(half(row));
    }

    pub(crate) fn remove(&mut self, table: Table, row: &[u8]) {
        // Wrapping: a damaged row must cause an error, not a panic.
        let count = self.count(table);
        *count = count.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub(row.len() as u64);
        self.sum = self.sum.wrapping_sub(half(row));
    }

    fn count(&mut self, table: Table) -> &mut u64 {
        if table == Table::Page { &mut self.pages } else { &mut self.chunks }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.pages);
        out.put_u64_le(self.chunks);
        out.put_u64_le(self.bytes);
        out.put_u128_le(self.sum);
    }

    pub(crate) fn decode(content: &mut &[u8]) -> Option<Self> {
        Some(Self {
            pages: content.try_get_u64_le().ok()?,
            chunks: content.try_get_u64_le().ok()?,
            bytes: content.try_get_u64_le().ok()?,
            sum: content.try_get_u128_le().ok()?,
        })
    }
}

fn half(row: &[u8]) -> u128 {
    row.first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes))
}

/// The row that every checkpoint replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckpointRow {
    pub applied: Mark,
    pub compacted: u64,
    pub totals: Totals,
}

impl CheckpointRow {
    pub(crate) const KEY: &'static str = "checkpoint";

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.compacted);
        self.totals.encode(&mut out);
        out.put_u64_le(self.applied.index);
        out.put_slice(&self.applied.id);
        out
    }

    pub(crate) fn decode(mut content: &[u8]) -> Option<Self> {
        let compacted = content.try_get_u64_le().ok()?;
        let totals = Totals::decode(&mut content)?;
        let index = content.try_get_u64_le().ok()?;
        Some(Self {
            applied: Mark { index, id: Bytes::copy_from_slice(content) },
            compacted,
            totals,
        })
    }
}
