//! The records of the log, and the rules for which record may follow which.
//!
//! # Invariants
//!
//! - SEGMENT-2: The log has no hole: an entry follows the last one, or the last one purged.
//! - WAL-4: The committed mark never points past the log. A mark that would is left out, so that
//!   the mark on disk is always a lower bound.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes};

use crate::{
    Mark, StorageError,
    limits::{MARK_BYTES_MAX, VOTE_BYTES_MAX},
};

/// One change to the log of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The entry that follows the last one, as its owner encoded it.
    Append {
        /// Its index.
        index: u64,
        /// Its content.
        bytes: Bytes,
    },
    /// The new vote, as its owner encoded it.
    Vote(Bytes),
    /// Removes all entries from this index on.
    Truncate {
        /// The first index to remove.
        from: u64,
    },
    /// Removes all entries up to this mark; the next entry follows it.
    Purge(Mark),
    /// A new lower bound of the committed entries; left out unless it is in the log and newer.
    Committed(Mark),
}

mod kind {
    pub const APPEND: u8 = 1;
    pub const VOTE: u8 = 2;
    pub const TRUNCATE: u8 = 3;
    pub const PURGE: u8 = 4;
    pub const COMMITTED: u8 = 5;
    pub const LAST: u8 = 6;
    pub const SEAL: u8 = 7;
}

/// The content of a segment: the caller's records, and those of the log itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Record(Record),
    /// The index of the last entry, at the head of a segment.
    Last(Option<u64>),
    /// No change; proves that the group before it was synced.
    Seal,
}

impl Record {
    /// Size of the record in a segment, in bytes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Append { bytes, .. } => 1 + 8 + 4 + bytes.len(),
            Self::Vote(bytes) => 1 + 4 + bytes.len(),
            Self::Truncate { .. } => 1 + 8,
            Self::Purge(mark) | Self::Committed(mark) => 1 + 8 + 4 + mark.id.len(),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Append { index, bytes } => {
                out.put_u8(kind::APPEND);
                out.put_u64_le(*index);
                put_bytes(out, bytes);
            }
            Self::Vote(bytes) => {
                out.put_u8(kind::VOTE);
                put_bytes(out, bytes);
            }
            Self::Truncate { from } => {
                out.put_u8(kind::TRUNCATE);
                out.put_u64_le(*from);
            }
            Self::Purge(mark) => put_mark(out, kind::PURGE, mark),
            Self::Committed(mark) => put_mark(out, kind::COMMITTED, mark),
        }
    }

    fn check_size(&self) -> Result<(), StorageError> {
        let (what, bytes, bytes_max) = match self {
            Self::Vote(bytes) => ("vote", bytes.len(), VOTE_BYTES_MAX),
            Self::Purge(mark) | Self::Committed(mark) => ("mark", mark.id.len(), MARK_BYTES_MAX),
            // The size of the segment bounds it when it is written.
            Self::Append { .. } | Self::Truncate { .. } => return Ok(()),
        };
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(StorageError::TooLarge { what, bytes: bytes as u64, bytes_max: bytes_max as u64 })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("a record fits a segment"));
    out.put_slice(bytes);
}

fn put_mark(out: &mut Vec<u8>, kind: u8, mark: &Mark) {
    out.put_u8(kind);
    out.put_u64_le(mark.index);
    put_bytes(out, &mark.id);
}

impl Item {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Record(record) => record.encode(out),
            Self::Last(last) => {
                out.put_u8(kind::LAST);
                out.put_u8(u8::from(last.is_some()));
                out.put_u64_le(last.unwrap_or_default());
            }
            Self::Seal => out.put_u8(kind::SEAL),
        }
    }

    /// Decodes one item from the front of `body`; the error names the fault.
    pub(super) fn decode(body: &mut &[u8]) -> Result<Self, String> {
        let short = |_| "a record is cut short".to_owned();
        let record = match body.try_get_u8().map_err(short)? {
            kind::APPEND => {
                let index = body.try_get_u64_le().map_err(short)?;
                Record::Append { index, bytes: take_bytes(body)? }
            }
            kind::VOTE => Record::Vote(take_bytes(body)?),
            kind::TRUNCATE => Record::Truncate { from: body.try_get_u64_le().map_err(short)? },
            kind::PURGE => Record::Purge(take_mark(body)?),
            kind::COMMITTED => Record::Committed(take_mark(body)?),
            kind::LAST => {
                let known = body.try_get_u8().map_err(short)? == 1;
                let last = body.try_get_u64_le().map_err(short)?;
                return Ok(Self::Last(known.then_some(last)));
            }
            kind::SEAL => return Ok(Self::Seal),
            unknown => return Err(format!("a record of unknown kind {unknown}")),
        };
        Ok(Self::Record(record))
    }
}

fn take_bytes(body: &mut &[u8]) -> Result<Bytes, String> {
    let bytes = body.try_get_u32_le().map_or(usize::MAX, |bytes| bytes as usize);
    if bytes > body.len() {
        return Err("a record is cut short".to_owned());
    }
    Ok(body.copy_to_bytes(bytes))
}

fn take_mark(body: &mut &[u8]) -> Result<Mark, String> {
    let index = body.try_get_u64_le().map_err(|_| "a record is cut short".to_owned())?;
    Ok(Mark { index, id: take_bytes(body)? })
}

/// The ends of the log, which decide which record may follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub last: Option<u64>,
    pub purged: Option<u64>,
    pub committed: Option<u64>,
}

impl Ends {
    /// Checks and follows `record`; returns whether it must be written.
    pub(super) fn follow(&mut self, record: &Record) -> Result<bool, StorageError> {
        record.check_size()?;
        match record {
            // SEGMENT-2
            Record::Append { index, .. } => {
                if self.last.is_some_and(|last| last.checked_add(1) != Some(*index)) {
                    let last = self.last.unwrap_or_default();
                    return Err(order(format!("entry {index} after {last} leaves a hole")));
                }
                self.last = Some(*index);
            }
            Record::Truncate { from } => {
                if self.purged.is_some_and(|purged| *from <= purged) {
                    return Err(order(format!("truncate from {from}, which is purged")));
                }
                // WAL-4
                if self.committed.is_some_and(|committed| *from <= committed) {
                    return Err(order(format!("truncate from {from}, which is committed")));
                }
                self.last = self.last.min(from.checked_sub(1));
            }
            Record::Purge(mark) => {
                if Some(mark.index) <= self.purged {
                    return Ok(false);
                }
                self.purged = Some(mark.index);
                self.last = self.last.max(self.purged);
            }
            // WAL-4
            Record::Committed(mark) => {
                if Some(mark.index) > self.last || Some(mark.index) <= self.committed {
                    return Ok(false);
                }
                self.committed = Some(mark.index);
            }
            Record::Vote(_) => {}
        }
        Ok(true)
    }
}

fn order(what: String) -> StorageError {
    StorageError::Order(what)
}

/// The state of the log but for its entries; the head of each new segment repeats it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub ends: Ends,
    pub vote: Option<Bytes>,
    pub purged: Option<Mark>,
    pub committed: Option<Mark>,
}

impl Meta {
    /// Applies a record that [`Ends::follow`] accepted.
    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(vote.clone()),
            Record::Purge(mark) => self.purged = Some(mark.clone()),
            Record::Committed(mark) => self.committed = Some(mark.clone()),
            Record::Append { .. } | Record::Truncate { .. } => {}
        }
    }

    /// The items at the head of a segment.
    pub(super) fn head(&self) -> Vec<Item> {
        let marks = [
            self.vote.clone().map(Record::Vote),
            self.purged.clone().map(Record::Purge),
            self.committed.clone().map(Record::Committed),
        ];
        let records = marks.into_iter().flatten().map(Item::Record);
        // The end comes first: a committed mark is refused beyond it (WAL-4).
        [Item::Last(self.ends.last)].into_iter().chain(records).collect()
    }
}

/// The entries that are neither truncated nor purged.
#[derive(Debug, Default)]
pub(super) struct Entries(VecDeque<(u64, Bytes)>);

impl Entries {
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Append { index, bytes } => self.0.push_back((index, bytes)),
            Record::Truncate { from } => {
                while self.0.pop_back_if(|(index, _)| *index >= from).is_some() {}
            }
            Record::Purge(mark) => {
                while self.0.pop_front_if(|(index, _)| *index <= mark.index).is_some() {}
            }
            Record::Vote(_) | Record::Committed(_) => {}
        }
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.0.front().map(|(index, _)| *index)
    }

    pub(super) fn into_vec(self) -> Vec<(u64, Bytes)> {
        self.0.into()
    }
}
