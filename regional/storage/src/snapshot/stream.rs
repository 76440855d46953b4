//! Judges a stream of frames from whoever sends it: a peer, or a file from somewhere.
//!
//! The sender may lie, cut, repeat or reorder. Nothing it says is used before it fits: each frame
//! proves its place, each row its content, rows come in order, and there are as many as announced.

use bytes::{Buf, BufMut, Bytes};

use super::{
    Header, Refused,
    frame::{self, Chain, Kind},
};
use crate::{
    limits::{PAGE_NAME_BYTES_MAX, ROW_BYTES_MAX},
    state::{ChunkKey, Table, Totals, chunk_key, unseal},
};

const ROW_PREFIX_BYTES: usize = 1 + 4 + 4;

/// A row that has its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SealedRow {
    Page(String, Vec<u8>),
    Chunk(ChunkKey, Vec<u8>),
}

/// How far a stream has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Number of the next frame.
    pub next: u64,
    pub chain: Chain,
    /// Digest of the header frame: which stream this is.
    pub stream: Chain,
    pub totals: Totals,
    /// Whether the last frame has come, and everything fits.
    pub complete: bool,
    /// The last row, by table and key.
    pub last: Option<(u8, Vec<u8>)>,
}

impl Progress {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.next);
        out.put_slice(&self.chain);
        out.put_slice(&self.stream);
        self.totals.encode(&mut out);
        out.put_u8(u8::from(self.complete));
        if let Some((table, key)) = &self.last {
            out.put_u8(*table);
            out.put_slice(key);
        }
        out
    }

    pub(super) fn decode(mut content: &[u8]) -> Option<Self> {
        let next = content.try_get_u64_le().ok()?;
        let (mut chain, mut stream) = (Chain::default(), Chain::default());
        content.try_copy_to_slice(&mut chain).ok()?;
        content.try_copy_to_slice(&mut stream).ok()?;
        let totals = Totals::decode(&mut content)?;
        let complete = content.try_get_u8().ok()? == 1;
        let last = content.split_first().map(|(table, key)| (*table, key.to_vec()));
        Some(Self { next, chain, stream, totals, complete, last })
    }
}

/// What a frame brought.
#[derive(Debug)]
pub(super) enum Step {
    Header,
    Rows(Vec<SealedRow>),
    /// Everything has arrived, and fits.
    Complete,
}

/// A stream that is being judged.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub progress: Progress,
    pub header: Option<Header>,
    /// The beginning of a row that goes on in the next frame.
    partial: Vec<u8>,
}

impl Stream {
    /// A stream that goes on at `progress`.
    pub(super) fn resume(header: Header, progress: Progress) -> Self {
        Self { progress, header: Some(header), partial: Vec::new() }
    }

    /// Whether a row is only half there, so that no progress can be kept.
    pub(super) fn is_inside_row(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes the next frame. A refusal changes nothing.
    pub(super) fn accept(&mut self, bytes: &[u8]) -> Result<Step, Refused> {
        if self.progress.complete {
            return Err(Refused::Malformed("a frame after the last one"));
        }
        let frame = frame::open(bytes, self.progress.next, &self.progress.chain)?;
        let step = match (&self.header, frame.kind) {
            (None, Kind::Header) => {
                self.header = Some(Header::decode(frame.payload)?);
                self.progress.stream = frame.chain;
                Step::Header
            }
            (Some(header), Kind::Rows) => {
                let content = [&self.partial[..], frame.payload].concat();
                let mut progress = self.progress.clone();
                let (rows, rest) = take_rows(&content, &mut progress, header.totals)?;
                self.partial = rest.to_vec();
                self.progress = progress;
                Step::Rows(rows)
            }
            (Some(header), Kind::Trailer) => {
                if self.is_inside_row() || self.progress.totals != header.totals {
                    return Err(Refused::Incomplete);
                }
                self.progress.complete = true;
                Step::Complete
            }
            (None, _) => return Err(Refused::Malformed("rows ahead of the header")),
            (Some(_), Kind::Header) => return Err(Refused::Malformed("a second header")),
        };
        self.progress.next += 1;
        self.progress.chain = frame.chain;
        Ok(step)
    }
}

/// The whole rows at the head of `content`, and what is left.
fn take_rows<'a>(
    mut content: &'a [u8],
    progress: &mut Progress,
    announced: Totals,
) -> Result<(Vec<SealedRow>, &'a [u8]), Refused> {
    let mut rows = Vec::new();
    while let Some((table, key, row, rest)) = split_row(content)? {
        let sealed = check_row(table, key, row)?;
        if progress.last.as_ref().is_some_and(|last| (last.0, &last.1[..]) >= (table as u8, key)) {
            return Err(Refused::Row("rows are not in order"));
        }
        progress.last = Some((table as u8, key.to_vec()));
        progress.totals.add(table, row);
        let Totals { pages, chunks, bytes, .. } = progress.totals;
        if pages > announced.pages || chunks > announced.chunks || bytes > announced.bytes {
            return Err(Refused::Row("more rows than announced"));
        }
        rows.push(sealed);
        content = rest;
    }
    Ok((rows, content))
}

type SplitRow<'a> = (Table, &'a [u8], &'a [u8], &'a [u8]);

fn split_row(content: &[u8]) -> Result<Option<SplitRow<'_>>, Refused> {
    if content.len() < ROW_PREFIX_BYTES {
        return Ok(None);
    }
    let mut rest = content;
    let table = match rest.get_u8() {
        1 => Table::Page,
        2 => Table::History,
        _ => return Err(Refused::Row("a row of an unknown table")),
    };
    let (key_bytes, row_bytes) = (rest.get_u32_le() as usize, rest.get_u32_le() as usize);
    if key_bytes > PAGE_NAME_BYTES_MAX || row_bytes > ROW_BYTES_MAX {
        return Err(Refused::Row("a row is longer than the limit"));
    }
    let Some((key, rest)) = rest.split_at_checked(key_bytes) else { return Ok(None) };
    let Some((row, rest)) = rest.split_at_checked(row_bytes) else { return Ok(None) };
    Ok(Some((table, key, row, rest)))
}

fn check_row(table: Table, key: &[u8], row: &[u8]) -> Result<SealedRow, Refused> {
    unseal(table, key, row).map_err(|_| Refused::Row("a row does not have its digest"))?;
    let row = row.to_vec();
    match table {
        Table::Page => {
            let name = String::from_utf8(key.to_vec());
            let name = name.map_err(|_| Refused::Row("the name of a page is not text"))?;
            Ok(SealedRow::Page(name, row))
        }
        _ => {
            let key = key.try_into().map_err(|_| Refused::Row("a key of the wrong length"))?;
            Ok(SealedRow::Chunk(chunk_key(key), row))
        }
    }
}

/// A row as it travels.
pub(super) fn encode_row(table: Table, key: &[u8], row: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(ROW_PREFIX_BYTES + key.len() + row.len());
    out.put_u8(table as u8);
    out.put_u32_le(u32::try_from(key.len()).expect("a key within its limit"));
    out.put_u32_le(u32::try_from(row.len()).expect("a row within its limit"));
    out.put_slice(key);
    out.put_slice(row);
    out.into()
}
