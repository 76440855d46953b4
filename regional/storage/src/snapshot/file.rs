//! Snapshots in files: the same frames, one after the other.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};

use super::{
    Header, INCOMING, Reader, ReceiveError, Receiver, Refused,
    frame::{self, Chain, PREFIX_BYTES},
    stream::{SealedRow, Step, Stream},
};
use crate::{
    InstanceId, Mark, Owner, Record, Reserve, RingDigest, Row, StateConfig, StorageError, Wal,
    WalConfig,
    files::Files,
    state::{
        CheckpointRow, PAGES, Table, chunk_key_bytes, chunk_versions, put_in_place, put_page,
        unseal,
    },
};

/// etcd's clients save a snapshot with zeros up to a multiple of this, and a SHA-256 behind them.
const PADDING_UNIT_BYTES: usize = 512;
const PADDING_DIGEST_BYTES: usize = 32;

/// Why a snapshot file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file is not what was saved.
    #[error("the snapshot cannot be used: {0}")]
    Refused(#[from] Refused),
    /// From the file system, about the snapshot file.
    #[error("the snapshot file: {0}")]
    Io(#[from] io::Error),
    /// From the data directory.
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

/// What is in a snapshot file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The ring it was taken of.
    pub ring: RingDigest,
    /// As in [`crate::Checkpoint`].
    pub applied: Mark,
    /// As in [`crate::Checkpoint`].
    pub compacted: u64,
    /// Pages in it.
    pub pages: u64,
    /// History rows in it.
    pub chunks: u64,
    /// Bytes of all rows.
    pub row_bytes: u64,
    /// Over all of the file; none if only its header was read.
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

/// Reads what a file says it is, from its first frame.
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
/// [`FileError::Refused`] says what is wrong.
pub fn verify(source: &mut impl Read) -> Result<Status, FileError> {
    read(source, |_| Ok::<_, FileError>(()))
}

/// As [`verify`], and shows every row: pages first, by name, then history, by revision. Rows count
/// only once this has returned well.
///
/// # Errors
///
/// Those of `visit`, or as [`verify`].
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

fn show<E: From<FileError>>(
    row: &SealedRow,
    visit: &mut impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    match row {
        SealedRow::Page(name, row) => {
            let bytes = unseal(Table::Page, name.as_bytes(), row).map_err(FileError::from)?;
            visit(Row::Page { name, bytes })
        }
        SealedRow::Chunk(key, row) => {
            let content = unseal(Table::History, &chunk_key_bytes(*key), row);
            chunk_versions(*key, content.map_err(FileError::from)?)
                .try_for_each(|version| visit(Row::Version(version.map_err(FileError::from)?)))
        }
    }
}

/// The next frame of a file; none at its end.
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

/// Nothing follows, or what etcd's clients put there. Their digest proves nothing that the frames
/// have not proven.
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
    Err(Refused::Malformed("there is something behind the last frame").into())
}

/// The data directory that a snapshot is restored into.
#[derive(Debug)]
pub struct Restore {
    /// Holds no data of a member yet.
    pub files: Arc<dyn Files>,
    /// Of that directory.
    pub reserve: Arc<Reserve>,
    /// Whose data it will be.
    pub owner: Owner,
    /// Drawn now: a restored member is a new one.
    pub instance: InstanceId,
    /// The ring that the snapshot must be of; none to take any.
    pub ring: Option<RingDigest>,
    /// Of the new log.
    pub wal: WalConfig,
}

/// What a restore changes: whatever must not come back as it was.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// Replaces the mark: log id and membership of the new ring.
    pub applied: Mark,
    /// Pages to replace or remove, as in [`crate::Checkpoint`].
    pub pages: Vec<(String, Option<Bytes>)>,
}

/// Reads one page of a snapshot that is being restored.
pub type PageReader<'a> = dyn Fn(&str) -> Result<Option<Bytes>, StorageError> + 'a;

/// Makes a data directory from a snapshot, whose state is as `edit` changes it, and whose log
/// begins behind the mark that `edit` returns.
///
/// # Errors
///
/// [`FileError`]; the directory is then incomplete, and every later attempt is refused until it is
/// emptied.
pub fn restore(
    source: &mut impl Read,
    target: &Restore,
    edit: impl FnOnce(&Status, &PageReader<'_>) -> Result<Edit, StorageError>,
) -> Result<Status, FileError> {
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
    // The rows arrive as those of the ring they are of; the state is completed as the owner's.
    let from = Owner { ring: found, member: owner.member.clone() };
    let mut receiver = Receiver::open(files.clone(), StateConfig::default(), &from, *instance)?;
    let mut accepted = receiver.accept(&first)?;
    while !accepted.complete {
        accepted = receiver.accept(&next_frame(source)?.ok_or(Refused::Incomplete)?)?;
    }
    end(source)?;
    let header = receiver.header().cloned().unwrap_or_default();
    let status = Status::new(&header, Some(receiver.chain()));
    let mut applied = Mark::default();
    receiver.finish_as(owner, |txn, row| {
        let edit = edit(&status, &|name| page(txn, name))?;
        applied = edit.applied.clone();
        edited(txn, row, edit)
    })?;
    let (mut wal, _) = Wal::open(files.clone(), reserve.clone(), *wal, owner, *instance)?;
    wal.commit(&[Record::Purge(applied)])?;
    wal.seal()?;
    put_in_place(&**files, INCOMING)?;
    Ok(status)
}

fn is_data(name: &str) -> bool {
    name.starts_with("wal-") || name.starts_with("state.")
}

fn page(txn: &WriteTransaction, name: &str) -> Result<Option<Bytes>, StorageError> {
    let table = txn.open_table(PAGES)?;
    let Some(row) = table.get(name)? else { return Ok(None) };
    let content = unseal(Table::Page, name.as_bytes(), row.value())?;
    Ok(Some(Bytes::copy_from_slice(content)))
}

fn edited(
    txn: &WriteTransaction,
    mut row: CheckpointRow,
    edit: Edit,
) -> Result<CheckpointRow, StorageError> {
    let mut table = txn.open_table(PAGES)?;
    for (name, bytes) in &edit.pages {
        put_page(&mut table, &mut row.totals, name, bytes.as_deref())?;
    }
    row.applied = edit.applied;
    Ok(row)
}
