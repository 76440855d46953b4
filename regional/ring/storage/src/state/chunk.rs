//! Encodes history as chunks: rows that hold many versions each.
//!
//! The engine is fastest with large values under ascending keys, and a row of 300 bytes costs about
//! as much as one of 60 KiB. So a row holds consecutive versions, as many as fit.

use bytes::{Buf, BufMut};

use super::{
    DatabaseFault,
    rows::{ChunkKey, Table, chunk_key_bytes, damaged_row},
};
use crate::{
    StorageError,
    limits::{CHUNK_BYTES, VERSION_BYTES_MAX},
};

/// Ahead of each version in a row: revision, length of the key, length of the body.
pub(super) const VERSION_HEADER_BYTES: usize = 8 + 4 + 4;

/// One event: the change of a key at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// Its main revision.
    pub revision: u64,
    /// The key.
    pub key: &'a [u8],
    /// The rest of the event, as its owner encoded it.
    pub body: &'a [u8],
}

impl Version<'_> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.revision);
        out.put_u32_le(self.key.len() as u32);
        out.put_u32_le(self.body.len() as u32);
        out.put_slice(self.key);
        out.put_slice(self.body);
    }

    pub(super) fn encoded_bytes(&self) -> usize {
        VERSION_HEADER_BYTES + self.key.len() + self.body.len()
    }
}

/// New history, in rows ready to be stored.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(super) chunks: Vec<(ChunkKey, Vec<u8>)>,
    /// Revision of the last version, and the number of versions of that revision.
    last: Option<(u64, u32)>,
    bytes: usize,
}

impl History {
    /// Adds the next version.
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`] if its revision is below that of the version before;
    /// [`StorageError::TooLarge`].
    pub fn push(&mut self, version: Version<'_>) -> Result<(), StorageError> {
        let bytes = version.encoded_bytes();
        if bytes > VERSION_BYTES_MAX {
            let (bytes, bytes_max) = (bytes as u64, VERSION_BYTES_MAX as u64);
            return Err(StorageError::TooLarge { what: "version", bytes, bytes_max });
        }
        let part = match self.last {
            Some((last, _)) if version.revision < last => {
                let what = format!("revision {} after {last}", version.revision);
                return Err(StorageError::Order(what));
            }
            Some((last, count)) if version.revision == last => count,
            _ => 0,
        };
        match self.chunks.last_mut() {
            Some((_, chunk)) if chunk.len() + bytes <= CHUNK_BYTES => version.encode(chunk),
            _ => {
                let mut chunk = Vec::new();
                version.encode(&mut chunk);
                self.chunks.push(((version.revision, part), chunk));
            }
        }
        self.last = Some((version.revision, part + 1));
        self.bytes += bytes;
        Ok(())
    }

    /// Bytes of all versions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Revision of the first version.
    #[must_use]
    pub fn first_revision(&self) -> Option<u64> {
        self.chunks.first().map(|((revision, _), _)| *revision)
    }
}

/// The versions of the row `key`.
pub(crate) fn versions(
    key: ChunkKey,
    mut chunk: &[u8],
) -> impl Iterator<Item = Result<Version<'_>, DatabaseFault>> {
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            return None;
        }
        let version = take_version(&mut chunk);
        if version.is_none() {
            chunk = &[];
        }
        let damaged = || damaged_row(Table::History, &chunk_key_bytes(key), "is cut short");
        Some(version.ok_or_else(damaged))
    })
}

fn take_version<'a>(chunk: &mut &'a [u8]) -> Option<Version<'a>> {
    let revision = chunk.try_get_u64_le().ok()?;
    let key_bytes = chunk.try_get_u32_le().ok()? as usize;
    let body_bytes = chunk.try_get_u32_le().ok()? as usize;
    let (key, rest) = chunk.split_at_checked(key_bytes)?;
    let (body, rest) = rest.split_at_checked(body_bytes)?;
    *chunk = rest;
    Some(Version { revision, key, body })
}
