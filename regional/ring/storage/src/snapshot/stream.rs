//! Verifies a stream of frames from an untrusted sender: a peer or a snapshot file.
//!
//! The sender may lie, cut, repeat or reorder. The stream accepts a frame only in its place, a row
//! only with its digest and in order, and the end only after as many rows as the header announced.

use bytes::{Buf, BufMut};

use super::{
    Header, Refused,
    frame::{self, Chain, Kind},
};
use crate::{
    limits::{PAGE_NAME_BYTES_MAX, ROW_BYTES_MAX},
    state::{ChunkKey, Table, Totals, chunk_key, verified_content},
};

const ROW_PREFIX_BYTES: usize = 1 + 4 + 4;

/// A row whose digest matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VerifiedRow {
    Page(String, Vec<u8>),
    Chunk(ChunkKey, Vec<u8>),
}

/// The position in a stream, from which a receiver can resume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Number of the next frame.
    pub next: u64,
    pub chain: Chain,
    /// Digest of the header frame, which identifies the stream.
    pub stream: Chain,
    pub totals: Totals,
    /// Whether the last frame has arrived and all rows are there.
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

/// The content of an accepted frame.
#[derive(Debug)]
pub(super) enum Step {
    Header,
    Rows(Vec<VerifiedRow>),
    /// The last frame: the snapshot is complete.
    Complete,
}

/// A stream that is being verified.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub progress: Progress,
    pub header: Option<Header>,
    /// The beginning of a row that the next frame continues.
    partial: Vec<u8>,
}

impl Stream {
    /// A stream that continues at `progress`.
    pub(super) fn resume(header: Header, progress: Progress) -> Self {
        Self { progress, header: Some(header), partial: Vec::new() }
    }

    /// Whether the last frame ended inside a row; progress cannot be stored then.
    pub(super) fn is_inside_row(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Accepts the next frame. A refusal changes nothing.
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
                let before = self.partial.len();
                self.partial.extend_from_slice(frame.payload);
                let mut progress = self.progress.clone();
                match take_rows(&self.partial, &mut progress, header.totals) {
                    Ok((rows, rest_bytes)) => {
                        self.partial.drain(..self.partial.len() - rest_bytes);
                        self.progress = progress;
                        Step::Rows(rows)
                    }
                    Err(refused) => {
                        self.partial.truncate(before);
                        return Err(refused);
                    }
                }
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

/// The complete rows at the head of `content`, and the number of bytes after them.
fn take_rows(
    mut content: &[u8],
    progress: &mut Progress,
    announced: Totals,
) -> Result<(Vec<VerifiedRow>, usize), Refused> {
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
    Ok((rows, content.len()))
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

fn check_row(table: Table, key: &[u8], row: &[u8]) -> Result<VerifiedRow, Refused> {
    verified_content(table, key, row)
        .map_err(|_| Refused::Row("a row does not match its digest"))?;
    let row = row.to_vec();
    match table {
        Table::Page => {
            let name = String::from_utf8(key.to_vec());
            let name = name.map_err(|_| Refused::Row("the name of a page is not text"))?;
            Ok(VerifiedRow::Page(name, row))
        }
        _ => {
            let key = key.try_into().map_err(|_| Refused::Row("a key of the wrong length"))?;
            Ok(VerifiedRow::Chunk(chunk_key(key), row))
        }
    }
}

/// The encoding of a row's table, key and length, ahead of its content.
pub(super) fn row_prefix(table: Table, key: &[u8], row: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROW_PREFIX_BYTES + key.len());
    out.put_u8(table as u8);
    out.put_u32_le(u32::try_from(key.len()).expect("a key within its limit"));
    out.put_u32_le(u32::try_from(row.len()).expect("a row within its limit"));
    out.put_slice(key);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        snapshot::frame::encode,
        state::{chunk_key_bytes, with_digest},
    };

    fn encode_row(table: Table, key: &[u8], row: &[u8]) -> Vec<u8> {
        [&row_prefix(table, key, row), row].concat()
    }

    /// A sender whose digests are all valid.
    struct Sender {
        stream: Stream,
    }

    fn page(name: &str) -> (Table, Vec<u8>, Vec<u8>) {
        let key = name.as_bytes().to_vec();
        let row = with_digest(Table::Page, &key, b"content");
        (Table::Page, key, row)
    }

    fn chunk(revision: u64) -> (Table, Vec<u8>, Vec<u8>) {
        let key = chunk_key_bytes((revision, 0)).to_vec();
        let row = with_digest(Table::History, &key, b"versions");
        (Table::History, key, row)
    }

    impl Sender {
        fn announcing(rows: &[(Table, Vec<u8>, Vec<u8>)]) -> Self {
            let mut header = Header::default();
            rows.iter().for_each(|(table, _, row)| header.totals.add(*table, row));
            let mut sender = Self { stream: Stream::default() };
            sender.send(Kind::Header, &header.encode()).unwrap();
            sender
        }

        fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<Step, Refused> {
            let Progress { next, chain, .. } = self.stream.progress;
            self.stream.accept(&encode(kind, next, payload, &chain).0)
        }

        fn rows(&mut self, rows: &[(Table, Vec<u8>, Vec<u8>)]) -> Result<Step, Refused> {
            let rows: Vec<_> = rows.iter().map(|(t, key, row)| encode_row(*t, key, row)).collect();
            self.send(Kind::Rows, &rows.concat())
        }
    }

    #[test]
    fn rows_are_refused_out_of_order_twice_or_unannounced() {
        let rows = [page("a"), page("b"), chunk(1), chunk(2)];
        for (lie, expected) in [
            (vec![page("b"), page("a")], Refused::Row("rows are not in order")),
            (vec![page("a"), page("a")], Refused::Row("rows are not in order")),
            (vec![chunk(1), page("a")], Refused::Row("rows are not in order")),
            (vec![chunk(2), chunk(1)], Refused::Row("rows are not in order")),
            (vec![page("a"), page("b"), page("c")], Refused::Row("more rows than announced")),
        ] {
            let mut sender = Sender::announcing(&rows);
            assert_eq!(sender.rows(&lie).unwrap_err(), expected);
            // A refusal changes nothing: the right rows are still accepted.
            sender.rows(&rows).unwrap();
            assert!(matches!(sender.send(Kind::Trailer, b""), Ok(Step::Complete)));
            assert!(sender.send(Kind::Trailer, b"").is_err(), "nothing follows the last frame");
        }
    }

    #[test]
    fn rows_that_are_missing_changed_or_cut_are_refused() {
        let rows = [page("a"), chunk(1)];
        let mut sender = Sender::announcing(&rows);
        sender.rows(&rows[..1]).unwrap();
        assert_eq!(sender.send(Kind::Trailer, b"").unwrap_err(), Refused::Incomplete);
        let (table, key, mut row) = chunk(1);
        *row.last_mut().unwrap() ^= 1;
        let changed = sender.rows(&[(table, key, row)]).unwrap_err();
        assert_eq!(changed, Refused::Row("a row does not match its digest"));
        // The digest of another row: valid, but not the announced one.
        let (table, key, _) = chunk(1);
        let row = with_digest(table, &key, b"VERSIONS");
        sender.rows(&[(table, key, row)]).unwrap();
        assert_eq!(sender.send(Kind::Trailer, b"").unwrap_err(), Refused::Incomplete);
        let mut sender = Sender::announcing(&rows);
        let encoded = encode_row(rows[0].0, &rows[0].1, &rows[0].2);
        sender.send(Kind::Rows, &encoded[..20]).unwrap();
        assert!(sender.stream.is_inside_row());
        assert_eq!(sender.send(Kind::Trailer, b"").unwrap_err(), Refused::Incomplete);
        sender.send(Kind::Rows, &encoded[20..]).unwrap();
        assert!(!sender.stream.is_inside_row());
        assert!(sender.send(Kind::Header, &Header::default().encode()).is_err());
        let long = [&[1][..], &u32::MAX.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
        let refused = sender.send(Kind::Rows, &long).unwrap_err();
        assert_eq!(refused, Refused::Row("a row is longer than the limit"));
    }

    /// The parser never panics, whatever the payload of frames with valid digests.
    #[test]
    fn random_content_never_panics() {
        let mut word = 7_u64;
        let mut random = |bound: u64| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word % bound
        };
        for _ in 0..20_000 {
            let mut payload: Vec<u8> = (0..random(64)).map(|_| random(4) as u8).collect();
            if random(2) == 0 && !payload.is_empty() {
                let (_, key, row) = chunk(random(9));
                payload = encode_row(Table::History, &key, &row);
                let at = random(payload.len() as u64) as usize;
                payload[at] = random(256) as u8;
                payload.truncate(1 + random(payload.len() as u64) as usize);
            }
            let mut sender = Sender::announcing(&[chunk(1), chunk(2)]);
            let kind = [Kind::Header, Kind::Rows, Kind::Trailer][random(3) as usize];
            let _ = sender.send(kind, &payload);
            let _ = Header::decode(&payload);
            let _ = Progress::decode(&payload);
            let _ = Stream::default().accept(&payload);
        }
    }
}
