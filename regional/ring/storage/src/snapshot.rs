//! Snapshots: a checkpoint as a stream of frames, sent to another member or written to a file.
//!
//! The checkpoint in the database *is* the snapshot: the sender streams the rows of a read
//! transaction, so it builds nothing, holds nothing in memory and pauses nothing.
//!
//! ```text
//!   [`Reader`]  header ─▶ rows ─▶ rows ─▶ ... ─▶ trailer      frames of at most 512 KiB
//!                 │         │                       │
//!   [`Receiver`]  is it mine? is it next, and whole? is it all? ─▶ [`crate::State::replace`]
//! ```
//!
//! # Invariants
//!
//! - **SNAPFILE-1** All frames of a stream are of one checkpoint, however long sending takes.
//! - **SNAPFILE-2** A receiver accepts a frame only in its place: the frame's digest covers all
//!   frames before it. It accepts a row only with the row's digest, and the snapshot only with
//!   exactly the announced rows.
//! - **SNAPFILE-3** The receiver leaves the state in place untouched until the whole snapshot has
//!   arrived, is verified and durable. A rename then replaces the state.
//! - **SNAPFILE-4** A transfer that either side or a power cut interrupted goes on near where it
//!   stopped, if the sender still offers the same checkpoint; otherwise it starts over.
//!
//! # Deliberately absent
//!
//! No proof that the checkpoint follows from the log: a ring trusts its members for that, and
//! members compare state digests. No compression: frames travel inside mTLS between members of one
//! region, and values are often compressed already.

mod file;
mod frame;
mod receive;
mod stream;

use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes};
use redb::ReadTransaction;

pub(crate) use self::receive::INCOMING;
pub use self::{
    file::{FileError, Restore, Status, read, restore, save, status, verify},
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
        ChunkKey, DatabaseFault, FILE, HISTORY, META, PAGES, Table, Totals, checkpoint_row,
        chunk_key_bytes, guarded, verified_content,
    },
};

const FORMAT: u32 = 1;

/// The fault in a stream. It is the sender's; the receiver changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The bytes are no frame, or a frame of this kind may not come here.
    #[error("{0}")]
    Malformed(&'static str),
    /// A frame is missing, repeated or reordered.
    #[error("frame {found} where frame {expected} belongs")]
    OutOfOrder {
        /// The number that is next.
        expected: u64,
        /// The number that arrived.
        found: u64,
    },
    /// The frame was changed on the way, or is of another stream.
    #[error("frame {frame} does not match its digest")]
    Digest {
        /// Its number.
        frame: u64,
    },
    /// The stream is in the format of another release.
    #[error("the snapshot has format {0}, and this release reads format {FORMAT}")]
    Format(u32),
    /// The snapshot is of another ring.
    #[error("this is a snapshot of another ring")]
    Ring,
    /// The row cannot be one that this crate stored.
    #[error("{0}")]
    Row(&'static str),
    /// The last frame has arrived, and rows are missing.
    #[error("rows are missing")]
    Incomplete,
}

/// The reason why a receiver did not accept a frame.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The frame is at fault, and with it the sender.
    #[error("snapshot refused: {0}")]
    Refused(#[from] Refused),
    /// The receiver's disk is at fault.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The description of a snapshot, which its first frame carries.
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

/// One frame of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number, from 0.
    pub number: u64,
    /// Its encoding; at most [`crate::limits::FRAME_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// The row that a frame begins with or continues.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    Header,
    /// The page at or after this name.
    Pages(String),
    /// The chunk at or after this key.
    History(ChunkKey),
    Trailer,
    End,
}

/// The start of a frame in the rows.
#[derive(Clone, Debug)]
struct Position {
    cursor: Cursor,
    /// Bytes of that row in earlier frames.
    skip: usize,
    /// Digest of the frame before.
    chain: Chain,
}

/// Reads one checkpoint as frames (SNAPFILE-1). A reader keeps superseded rows in the file, so drop
/// it soon.
#[derive(Debug)]
pub struct Reader {
    txn: ReadTransaction,
    header: Header,
    /// The starts of the frames reached so far.
    positions: Vec<Position>,
    next: usize,
}

impl State {
    /// A reader of the last checkpoint, or `None` before the first one.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn reader(&self) -> Result<Option<Reader>, StorageError> {
        let txn = self.begin_read()?;
        let row = guarded(FILE, || checkpoint_row(&txn.open_table(META)?))?;
        Ok(row.map(|row| {
            let (applied, compacted, totals) = (row.applied, row.compacted, row.totals);
            let header = Header { ring: self.ring(), applied, compacted, totals };
            let start = Position { cursor: Cursor::Header, skip: 0, chain: Chain::default() };
            Reader { txn, header, positions: vec![start], next: 0 }
        }))
    }
}

impl Reader {
    /// The description of the snapshot.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Continues with frame `number`, forward or back (SNAPFILE-4).
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

    /// The next frame, or `None` after the last.
    ///
    /// # Errors
    ///
    /// [`StorageError::Damaged`] naming a row that does not match its digest; such a row is never
    /// sent.
    pub fn frame(&mut self) -> Result<Option<Frame>, StorageError> {
        let position = self.positions[self.next].clone();
        let (kind, payload, cursor, skip) = match position.cursor {
            Cursor::End => return Ok(None),
            Cursor::Header => (Kind::Header, self.header.encode(), Cursor::Pages("".into()), 0),
            Cursor::Trailer => (Kind::Trailer, Vec::new(), Cursor::End, 0),
            cursor @ (Cursor::Pages(_) | Cursor::History(_)) => {
                let mut filling = Filling { payload: Vec::new(), skip: position.skip };
                let next = guarded(FILE, || fill(&self.txn, cursor, &mut filling))?;
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

    /// Adds a row, or the part of it that fits if the row is longer than a frame. Returns whether
    /// the row is complete.
    fn add(&mut self, table: Table, key: &[u8], row: &[u8]) -> Result<bool, DatabaseFault> {
        let prefix = row_prefix(table, key, row);
        if self.skip == 0 {
            // Check a row before sending any part of it.
            verified_content(table, key, row)?;
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

/// Fills a payload with rows from `cursor` on; returns the start of the next frame.
fn fill(
    txn: &ReadTransaction,
    cursor: Cursor,
    filling: &mut Filling,
) -> Result<Cursor, DatabaseFault> {
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
