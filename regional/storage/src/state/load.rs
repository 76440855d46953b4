//! Reads the whole state when a member starts (C2).

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::{
    CheckpointRow, FILE, HISTORY, Loaded, META, PAGES, Row, Table, Totals, checkpoint_row, chunk,
    chunk_key_bytes, unseal,
};
use crate::StorageError;

/// Shows every row to `visit` until that says no; the result is then none of anybody's business.
pub(super) fn load(
    txn: &ReadTransaction,
    visit: &mut dyn FnMut(Row<'_>) -> bool,
) -> Result<Option<Loaded>, StorageError> {
    let Some(expected) = checkpoint_row(&txn.open_table(META)?)? else { return Ok(None) };
    let (mut found, mut versions) = (Totals::default(), 0);
    let pages = txn.open_table(PAGES)?;
    for row in pages.iter()? {
        let (name, row) = row?;
        let (name, row) = (name.value(), row.value());
        found.add(Table::Page, row);
        let bytes = unseal(Table::Page, name.as_bytes(), row)?;
        if !visit(Row::Page { name, bytes }) {
            return Ok(None);
        }
    }
    let history = txn.open_table(HISTORY)?;
    for row in history.iter()? {
        let (key, row) = row?;
        let (key, row) = (key.value(), row.value());
        found.add(Table::History, row);
        let content = unseal(Table::History, &chunk_key_bytes(key), row)?;
        for version in chunk::versions(key, content) {
            if !visit(Row::Version(version?)) {
                return Ok(None);
            }
            versions += 1;
        }
    }
    // The engine's own counts must agree too: a lost branch shows in one of the three.
    let counts = (pages.len()?, history.len()?);
    if found != expected.totals || counts != (found.pages, found.chunks) {
        return Err(StorageError::damaged(FILE, 0, "rows are missing, or too many"));
    }
    let CheckpointRow { applied, compacted, .. } = expected;
    Ok(Some(Loaded { applied, compacted, pages: found.pages, versions }))
}
