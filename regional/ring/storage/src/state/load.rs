//! Reads the whole state, of this member when it starts or of a received snapshot, and compares
//! each row with its digest and all rows with the totals of the checkpoint (STATEFILE-2).

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::{
    CheckpointRow, DatabaseFault, HISTORY, Loaded, META, PAGES, Row, Table, Totals, checkpoint_row,
    chunk, chunk_key_bytes, verified_content,
};

/// Passes every row to `visit`, pages first. Stops when `visit` returns false; the caller must then
/// ignore the result.
pub(super) fn load(
    txn: &ReadTransaction,
    visit: &mut dyn FnMut(Row<'_>) -> bool,
) -> Result<Option<Loaded>, DatabaseFault> {
    let Some(expected) = checkpoint_row(&txn.open_table(META)?)? else { return Ok(None) };
    let (mut found, mut versions) = (Totals::default(), 0);
    let pages = txn.open_table(PAGES)?;
    for row in pages.iter()? {
        let (name, row) = row?;
        let (name, row) = (name.value(), row.value());
        found.add(Table::Page, row);
        let bytes = verified_content(Table::Page, name.as_bytes(), row)?;
        if !visit(Row::Page { name, bytes }) {
            return Ok(None);
        }
    }
    let history = txn.open_table(HISTORY)?;
    for row in history.iter()? {
        let (key, row) = row?;
        let (key, row) = (key.value(), row.value());
        found.add(Table::History, row);
        let content = verified_content(Table::History, &chunk_key_bytes(key), row)?;
        for version in chunk::versions(key, content) {
            if !visit(Row::Version(version?)) {
                return Ok(None);
            }
            versions += 1;
        }
    }
    // redb counts the rows of each table itself. Its counts, those of the checkpoint and those of
    // the rows that were read must all agree: damage to an inner node of a tree hides rows.
    let counts = (pages.len()?, history.len()?);
    if found != expected.totals || counts != (found.pages, found.chunks) {
        let Totals { pages, chunks, .. } = found;
        return Err(DatabaseFault::damaged(format!(
            "the tables hold {pages} pages and {chunks} history rows, which do not match the \
             checkpoint's totals: rows are missing, extra or replaced"
        )));
    }
    let CheckpointRow { applied, compacted, .. } = expected;
    Ok(Some(Loaded { applied, compacted, pages: found.pages, versions }))
}
