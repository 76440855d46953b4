//! Snapshot files: saving, verifying, reading and restoring them. A file holds the frames of
//! [`super::frame`], one after the other.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use super::{
    Header, INCOMING, Reader, ReceiveError, Receiver, Refused,
    frame::{self, Chain, PREFIX_BYTES},
    stream::{Step, Stream, VerifiedRow},
};
use crate::{
    InstanceId, Mark, Owner, Record, Reserve, RingDigest, Row, StateConfig, StorageError, Wal,
    WalConfig,
    files::Files,
    state::{
        DatabaseFault, Table, chunk_key_bytes, chunk_versions, put_in_place, verified_content,
    },
};

/// etcd's clients pad a snapshot with zeros to a multiple of this, and append a SHA-256.
const PADDING_UNIT_BYTES: usize = 512;
const PADDING_DIGEST_BYTES: usize = 32;

/// The reason why a snapshot file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The content of the file is invalid.
    #[error("the snapshot cannot be used: {0}")]
    Refused(#[from] Refused),
    /// The file system failed on the snapshot file.
    #[error("the snapshot file: {0}")]
    Io(#[from] io::Error),
    /// The data directory failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<ReceiveError> for FileError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Refused(refused) => refused.into(),
            ReceiveError::Storage(error) => error.into(),
        }
    }
}

/// A summary of a snapshot file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The ring whose state it holds.
    pub ring: RingDigest,
    /// As in [`crate::Checkpoint`].
    pub applied: Mark,
    /// As in [`crate::Checkpoint`].
    pub compacted: u64,
    /// Pages in the file.
    pub pages: u64,
    /// History rows in the file.
    pub chunks: u64,
    /// Bytes of all rows.
    pub row_bytes: u64,
    /// The digest over the whole file; `None` if only its header was read.
    pub digest: Option<[u8; 32]>,
}

impl Status {
    fn new(header: &Header, digest: Option<Chain>) -> Self {
        Self {
            ring: header.ring,
            applied: header.applied.clone(),
            compacted: header.compacted,
            pages: header.totals.pages,
            chunks: header.totals.chunks,
            row_bytes: header.totals.bytes,
            digest,
        }
    }
}

/// Writes all frames of `reader` to `out`. The caller makes the file durable and gives it its name.
///
/// # Errors
///
/// [`FileError`]
pub fn save(reader: &mut Reader, out: &mut impl Write) -> Result<Status, FileError> {
    reader.seek(0)?;
    let mut digest = None;
    while let Some(frame) = reader.frame()? {
        out.write_all(&frame.bytes)?;
        digest = frame.bytes.last_chunk().copied();
    }
    out.flush()?;
    Ok(Status::new(&reader.header, digest))
}

/// Reads the summary in the first frame of a file.
///
/// # Errors
///
/// [`FileError`]
pub fn status(source: &mut impl Read) -> Result<Status, FileError> {
    let mut stream = Stream::default();
    stream.accept(&next_frame(source)?.ok_or(Refused::Incomplete)?)?;
    Ok(Status::new(&stream.header.unwrap_or_default(), None))
}

/// Reads all of a file and compares every digest in it.
///
/// # Errors
///
/// [`FileError::Refused`] names the fault.
pub fn verify(source: &mut impl Read) -> Result<Status, FileError> {
    read(source, |_| Ok::<_, FileError>(()))
}

/// Verifies the file as [`verify`] does, and passes every row to `visit`: pages first, by name,
/// then history, by revision. The rows are valid only once this call has succeeded.
///
/// # Errors
///
/// The errors of `visit`, or as for [`verify`].
pub fn read<E: From<FileError>>(
    source: &mut impl Read,
    mut visit: impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<Status, E> {
    let mut stream = Stream::default();
    loop {
        let frame = next_frame(source)?.ok_or(FileError::from(Refused::Incomplete))?;
        match stream.accept(&frame).map_err(FileError::from)? {
            Step::Header => {}
            Step::Rows(rows) => rows.iter().try_for_each(|row| show(row, &mut visit))?,
            Step::Complete => break,
        }
    }
    end(source)?;
    Ok(Status::new(&stream.header.unwrap_or_default(), Some(stream.progress.chain)))
}

fn damaged(_: DatabaseFault) -> FileError {
    Refused::Row("a row does not match its digest, or is cut short").into()
}

fn show<E: From<FileError>>(
    row: &VerifiedRow,
    visit: &mut impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    match row {
        VerifiedRow::Page(name, row) => {
            let bytes = verified_content(Table::Page, name.as_bytes(), row).map_err(damaged)?;
            visit(Row::Page { name, bytes })
        }
        VerifiedRow::Chunk(key, row) => {
            let content = verified_content(Table::History, &chunk_key_bytes(*key), row);
            chunk_versions(*key, content.map_err(damaged)?)
                .try_for_each(|version| visit(Row::Version(version.map_err(damaged)?)))
        }
    }
}

/// The next frame of a file, or `None` at its end.
fn next_frame(source: &mut impl Read) -> Result<Option<Vec<u8>>, FileError> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut filled = 0;
    while filled < PREFIX_BYTES {
        match source.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(Refused::Malformed("the file is cut short").into()),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut frame = prefix.to_vec();
    frame.resize(frame::length(&prefix)?, 0);
    match source.read_exact(&mut frame[PREFIX_BYTES..]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Refused::Malformed("the file is cut short").into())
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Some(frame)),
    }
}

/// Checks that nothing follows the last frame but the padding of etcd's clients. Their SHA-256 is
/// not compared: the digests of the frames already cover the content.
fn end(source: &mut impl Read) -> Result<(), FileError> {
    let mut rest = Vec::new();
    let rest_bytes_max = PADDING_UNIT_BYTES + PADDING_DIGEST_BYTES;
    source.take(rest_bytes_max as u64).read_to_end(&mut rest)?;
    let padding = rest.len().checked_sub(PADDING_DIGEST_BYTES).map(|zeros| &rest[..zeros]);
    let padded =
        padding.is_some_and(|p| p.len() < PADDING_UNIT_BYTES && p.iter().all(|byte| *byte == 0));
    if rest.is_empty() || padded {
        return Ok(());
    }
    Err(Refused::Malformed("data follows the last frame").into())
}

/// The data directory that a snapshot is restored into.
#[derive(Debug)]
pub struct Restore {
    /// The data directory; it holds no data of a member yet.
    pub files: Arc<dyn Files>,
    /// The reserve of that directory.
    pub reserve: Arc<Reserve>,
    /// The owner of the restored data.
    pub owner: Owner,
    /// A newly drawn id, because a restored member is a new instance.
    pub instance: InstanceId,
    /// The ring that the snapshot must be of; `None` accepts any.
    pub ring: Option<RingDigest>,
    /// Configuration of the new log.
    pub wal: WalConfig,
}

/// Creates a data directory from a snapshot. Its log begins after the last entry that the snapshot
/// includes.
///
/// # Errors
///
/// [`FileError`]; the directory is then incomplete, and further attempts fail until it is emptied.
pub fn restore(source: &mut impl Read, target: &Restore) -> Result<Status, FileError> {
    let Restore { files, reserve, owner, instance, ring, wal } = target;
    let names = files.list().map_err(StorageError::io("the data directory", "list"))?;
    if let Some(name) = names.iter().find(|name| is_data(name)) {
        let what = format!("the data directory already holds `{name}`");
        return Err(StorageError::Order(what).into());
    }
    let first = next_frame(source)?.ok_or(Refused::Incomplete)?;
    let mut header = Stream::default();
    header.accept(&first)?;
    let found = header.header.map_or(RingDigest::default(), |header| header.ring);
    if ring.is_some_and(|ring| ring != found) {
        return Err(Refused::Ring.into());
    }
    // The receiver expects the ring of the snapshot; `finish_as` then writes the owner's identity.
    let from = Owner { ring: found, member: owner.member.clone() };
    let mut receiver = Receiver::open(files.clone(), StateConfig::default(), &from, *instance)?;
    let mut accepted = receiver.accept(&first)?;
    while !accepted.complete {
        accepted = receiver.accept(&next_frame(source)?.ok_or(Refused::Incomplete)?)?;
    }
    end(source)?;
    let header = receiver.header().cloned().unwrap_or_default();
    let status = Status::new(&header, Some(receiver.chain()));
    receiver.finish_as(owner)?;
    let (mut wal, _) = Wal::open(files.clone(), reserve.clone(), *wal, owner, *instance)?;
    wal.commit(&[Record::Purge(header.applied)])?;
    wal.seal()?;
    put_in_place(&**files, INCOMING)?;
    Ok(status)
}

fn is_data(name: &str) -> bool {
    name.starts_with("wal-") || name.starts_with("state.")
}
