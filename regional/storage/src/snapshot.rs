//! A checkpoint on its way to another member, or to a file.
//!
//! The checkpoint in the database *is* the snapshot: sending one streams the rows of a read
//! transaction, so nothing is built, held in memory or paused for it.
//!
//! ```text
//!   [`Reader`]  header ─▶ rows ─▶ rows ─▶ ... ─▶ trailer      frames of at most 512 KiB
//!                 │         │                       │
//!   [`Receiver`]  is it mine? is it next, and whole? is it all? ─▶ [`crate::State::replace`]
//! ```
//!
//! # Invariants
//!
//! - **N1** All frames of a stream are of one checkpoint, however long sending takes.
//! - **N2** A frame is used only in its place: its digest covers all frames before it. A row is used
//!   only if it has its digest, and the whole only if it has the announced rows, no more, no less.
//! - **N3** What is in place is not touched before the whole has arrived, is verified and durable.
//!   Then it is replaced by a rename.
//! - **N4** A transfer that was interrupted, by either side or by a power cut, goes on near where it
//!   was, if the sender still offers the same checkpoint; otherwise it starts over.
//!
//! # Deliberately absent
//!
//! No proof that the checkpoint is what the log led to: that is the ring's trust in its members, and
//! members compare state digests for it. No compression: frames travel inside mTLS between members
//! of one region, and values are often compressed already.

mod file;
mod frame;
mod receive;
mod stream;

use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes};
use redb::ReadTransaction;

pub(crate) use self::receive::INCOMING;
pub use self::{
    file::{Edit, FileError, PageReader, Restore, Status, read, restore, save, status, verify},
    receive::{Accepted, Received, Receiver},
};
use self::{
    frame::{Chain, Kind, PAYLOAD_BYTES_MAX},
    stream::row_prefix,
};
use crate::{
    Mark, RingDigest, State, StorageError,
    limits::APPLIED_BYTES_MAX,
    state::{
        ChunkKey, HISTORY, META, PAGES, Table, Totals, checkpoint_row, chunk_key_bytes, guarded,
        unseal,
    },
};

const FORMAT: u32 = 1;

/// What is wrong with a stream. The sender's fault; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a frame, or not one that may stand here.
    #[error("{0}")]
    Malformed(&'static str),
    /// Lost, repeated or reordered.
    #[error("frame {found} where frame {expected} belongs")]
    OutOfOrder {
        /// The frame that belongs here.
        expected: u64,
        /// The frame that came.
        found: u64,
    },
    /// Changed on the way, or of another stream.
    #[error("frame {frame} does not have its digest")]
    Digest {
        /// Which one.
        frame: u64,
    },
    /// From another release.
    #[error("format {0}, this release reads {FORMAT}")]
    Format(u32),
    /// Of another ring.
    #[error("this is a snapshot of another ring")]
    Ring,
    /// A row that nobody can have stored.
    #[error("{0}")]
    Row(&'static str),
    /// The last frame came, and something is missing.
    #[error("rows are missing")]
    Incomplete,
}

/// Why a frame was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The sender's fault.
    #[error("snapshot refused: {0}")]
    Refused(#[from] Refused),
    /// The disk's.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The ring.
    pub ring: RingDigest,
    /// As in [`crate::Checkpoint`].
    pub applied: Mark,
    /// As in [`crate::Checkpoint`].
    pub compacted: u64,
    pub(crate) totals: Totals,
}

impl Header {
    /// Bytes of all rows.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.totals.bytes
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(FORMAT);
        out.put_slice(&self.ring);
        out.put_u64_le(self.compacted);
        self.totals.encode(&mut out);
        out.put_u64_le(self.applied.index);
        out.put_slice(&self.applied.id);
        out
    }

    fn decode(mut content: &[u8]) -> Result<Self, Refused> {
        let short = Refused::Malformed("the header is cut short");
        let format = content.try_get_u32_le().map_err(|_| short.clone())?;
        if format != FORMAT {
            return Err(Refused::Format(format));
        }
        let mut ring = RingDigest::default();
        content.try_copy_to_slice(&mut ring).map_err(|_| short.clone())?;
        let compacted = content.try_get_u64_le().map_err(|_| short.clone())?;
        let totals = Totals::decode(&mut content).ok_or_else(|| short.clone())?;
        let index = content.try_get_u64_le().map_err(|_| short)?;
        if content.len() > APPLIED_BYTES_MAX {
            return Err(Refused::Malformed("the applied mark is longer than the limit"));
        }
        let applied = Mark { index, id: Bytes::copy_from_slice(content) };
        Ok(Self { ring, applied, compacted, totals })
    }
}

/// One piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its place, from 0.
    pub number: u64,
    /// What travels; at most [`crate::limits::FRAME_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// The row a frame begins with, or goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    Header,
    /// The page at or behind this name.
    Pages(String),
    /// The chunk at or behind this key.
    History(ChunkKey),
    Trailer,
    End,
}

/// Where a frame begins.
#[derive(Clone, Debug)]
struct Position {
    cursor: Cursor,
    /// Bytes of that row in earlier frames.
    skip: usize,
    /// Digest of the frame before.
    chain: Chain,
}

/// Reads one checkpoint as frames (N1). Holding it keeps old rows in the file, so not for long.
#[derive(Debug)]
pub struct Reader {
    txn: ReadTransaction,
    header: Header,
    /// Where each frame begins that was reached so far.
    positions: Vec<Position>,
    next: usize,
}

impl State {
    /// A reader of the last checkpoint. None if there was none yet.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn reader(&self) -> Result<Option<Reader>, StorageError> {
        let txn = self.begin_read()?;
        let row = guarded(|| checkpoint_row(&txn.open_table(META)?))?;
        Ok(row.map(|row| {
            let (applied, compacted, totals) = (row.applied, row.compacted, row.totals);
            let header = Header { ring: self.ring(), applied, compacted, totals };
            let start = Position { cursor: Cursor::Header, skip: 0, chain: Chain::default() };
            Reader { txn, header, positions: vec![start], next: 0 }
        }))
    }
}

impl Reader {
    /// What is being read.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes on with frame `number`, forward or back (N4).
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`] if there is no such frame, or as for [`Reader::frame`].
    pub fn seek(&mut self, number: u64) -> Result<(), StorageError> {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.next = number.min(self.positions.len() - 1);
        while self.next < number {
            if self.frame()?.is_none() {
                return Err(StorageError::Order(format!("the snapshot has no frame {number}")));
            }
        }
        Ok(())
    }

    /// The next frame. None after the last.
    ///
    /// # Errors
    ///
    /// [`StorageError::Damaged`] naming a row that does not have its digest, which is never sent.
    pub fn frame(&mut self) -> Result<Option<Frame>, StorageError> {
        let position = self.positions[self.next].clone();
        let (kind, payload, cursor, skip) = match position.cursor {
            Cursor::End => return Ok(None),
            Cursor::Header => (Kind::Header, self.header.encode(), Cursor::Pages("".into()), 0),
            Cursor::Trailer => (Kind::Trailer, Vec::new(), Cursor::End, 0),
            cursor @ (Cursor::Pages(_) | Cursor::History(_)) => {
                let mut filling = Filling { payload: Vec::new(), skip: position.skip };
                let next = guarded(|| fill(&self.txn, cursor, &mut filling))?;
                if filling.payload.is_empty() {
                    (Kind::Trailer, Vec::new(), Cursor::End, 0)
                } else {
                    (Kind::Rows, filling.payload, next, filling.skip)
                }
            }
        };
        let number = self.next as u64;
        let (bytes, chain) = frame::encode(kind, number, &payload, &position.chain);
        self.next += 1;
        if self.next == self.positions.len() {
            self.positions.push(Position { cursor, skip, chain });
        }
        Ok(Some(Frame { number, bytes }))
    }
}

/// A payload that is being filled.
struct Filling {
    payload: Vec<u8>,
    /// Bytes to leave out of the next row.
    skip: usize,
}

impl Filling {
    fn room(&self) -> usize {
        PAYLOAD_BYTES_MAX - self.payload.len()
    }

    /// Adds a row, or what fits of it if it is longer than a frame; says whether that is all of it.
    fn add(&mut self, table: Table, key: &[u8], row: &[u8]) -> Result<bool, StorageError> {
        let prefix = row_prefix(table, key, row);
        if self.skip == 0 {
            // A row is checked before any of it leaves.
            unseal(table, key, row)?;
            if !self.payload.is_empty() && prefix.len() + row.len() > self.room() {
                // Receivers can pause between rows only.
                return Ok(false);
            }
        }
        let whole = prefix.len() + row.len();
        let end = whole.min(self.skip + self.room());
        for (start, part) in [(0, &prefix[..]), (prefix.len(), row)] {
            let inside = |at: usize| at.clamp(start, start + part.len()) - start;
            self.payload.extend_from_slice(&part[inside(self.skip)..inside(end)]);
        }
        self.skip = if end == whole { 0 } else { end };
        Ok(end == whole)
    }
}

/// Fills a payload with rows from `cursor` on; returns where the next one begins.
fn fill(
    txn: &ReadTransaction,
    cursor: Cursor,
    filling: &mut Filling,
) -> Result<Cursor, StorageError> {
    let start = match cursor {
        Cursor::Pages(name) => {
            let table = txn.open_table(PAGES)?;
            for row in table.range::<&str>((Bound::Included(name.as_str()), Bound::Unbounded))? {
                let (name, row) = row?;
                if !filling.add(Table::Page, name.value().as_bytes(), row.value())? {
                    return Ok(Cursor::Pages(name.value().to_owned()));
                }
            }
            ChunkKey::default()
        }
        Cursor::History(key) => key,
        other => return Ok(other),
    };
    for row in txn.open_table(HISTORY)?.range(start..)? {
        let (key, row) = row?;
        if !filling.add(Table::History, &chunk_key_bytes(key.value()), row.value())? {
            return Ok(Cursor::History(key.value()));
        }
    }
    Ok(Cursor::Trailer)
}
