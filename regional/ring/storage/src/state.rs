//! The state database (redb): a member's state as of its last checkpoint. A restarting member loads
//! it.
//!
//! It holds *history* (the versions of keys, by revision) and *pages* (named byte strings for all
//! other state; they are not redb's pages).
//!
//! The log already made every entry durable, so no acknowledgment waits for a checkpoint. A
//! checkpoint bounds the length of the log, is the state that a restarting member reads, and is the
//! snapshot that a lagging member receives.
//!
//! # Invariants
//!
//! - **STATEFILE-1** A checkpoint is one transaction: history, pages, the compacted revision and
//!   the log id of the last applied entry (etcd's consistent index) always belong together. (etcd
//!   3.5 stored that id apart from the data, and members diverged.)
//! - **STATEFILE-2** Every read compares a row with its digest, and a load also compares the sum of
//!   all digests with the stored sum. The error names a row that does not match, and its content is
//!   never used.
//! - **STATEFILE-3** After a failed write every later call fails, because the content on disk is
//!   unknown.
//! - **STATEFILE-4** The file appears under its name only once it is complete, so an empty or short
//!   file there is damage. It belongs to the same ring, member and instance as the log beside it.
//!
//! # Deliberately absent
//!
//! No query by key: requests are served from memory. No compaction of its own: the state machine
//! decides which versions are still needed ([`State::reclaim`]).

mod chunk;
mod engine;
mod load;
mod put;
mod reclaim;
mod redb_file;
mod rows;
mod usage;

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, Ordering},
};

use bytes::{Buf, BufMut, Bytes};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

pub(crate) use self::{
    chunk::versions as chunk_versions,
    engine::{DatabaseFault, create, guarded, open as open_database, read, write},
    rows::{
        CheckpointRow, ChunkKey, HISTORY, META, PAGES, Table, Totals, chunk_key, chunk_key_bytes,
        verified_content, with_digest,
    },
};
pub use self::{
    chunk::{History, Version},
    reclaim::{Reclaimed, Scrubbed},
    redb_file::RedbFile,
};
use crate::{
    InstanceId, Mark, Owner, RingDigest, StorageError,
    files::Files,
    limits::{
        APPLIED_BYTES_MAX, CHECKPOINT_SPARE_BYTES, PAGE_BYTES_MAX, PAGE_NAME_BYTES_MAX,
        STATE_CACHE_BYTES,
    },
    snapshot::{INCOMING, Received},
};

/// The name of the file.
pub(crate) const FILE: &str = "state.redb";
const CREATING: &str = "state.creating";
const IDENTITY: &str = "identity";
const FORMAT: u32 = 1;

/// Configuration of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateConfig {
    /// Size of redb's cache, in bytes.
    pub cache_bytes: usize,
}

impl Default for StateConfig {
    fn default() -> Self {
        Self { cache_bytes: STATE_CACHE_BYTES }
    }
}

/// All changes since the last checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// The last applied entry, with the membership; opaque except for the index.
    pub applied: Mark,
    /// The compacted revision.
    pub compacted: u64,
    /// New history; its revisions are above those of all earlier checkpoints.
    pub history: History,
    /// Changed pages, and `None` for removed ones.
    pub pages: Vec<(String, Option<Bytes>)>,
}

/// One row of a load: pages first, by name, then history, by revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// A page.
    Page {
        /// Its name.
        name: &'a str,
        /// Its content.
        bytes: &'a [u8],
    },
    /// A version of a key. A compacted version stays until [`State::reclaim`] removes it.
    Version(Version<'a>),
}

/// The metadata and row counts of a loaded checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// As in [`Checkpoint`].
    pub applied: Mark,
    /// As in [`Checkpoint`].
    pub compacted: u64,
    /// Pages read.
    pub pages: u64,
    /// Versions read.
    pub versions: u64,
}

/// The size of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSize {
    /// Size of the file: etcd's `dbSize`.
    pub file_bytes: u64,
    /// Bytes of the file that are in use: etcd's `dbSizeInUse`.
    pub used_bytes: u64,
    /// Pages.
    pub pages: u64,
    /// History rows.
    pub chunks: u64,
}

/// The open state.
#[derive(Debug)]
pub struct State {
    files: Arc<dyn Files>,
    config: StateConfig,
    identity: Identity,
    /// `None` only while the file is being replaced, and permanently after a failed replacement.
    database: RwLock<Option<Database>>,
    reclaim: reclaim::Cursors,
    usage: usage::Usage,
    /// STATEFILE-3
    failed: AtomicBool,
}

/// The owner and the instance of a state (STATEFILE-4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub owner: Owner,
    pub instance: InstanceId,
}

impl Identity {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(FORMAT);
        out.put_slice(&self.owner.ring);
        out.put_slice(&self.instance);
        out.put_slice(self.owner.member.as_bytes());
        out
    }

    fn decode(mut content: &[u8]) -> Result<Self, DatabaseFault> {
        let short = |_| DatabaseFault::damaged("the identity is cut short");
        let format = content.try_get_u32_le().map_err(short)?;
        if format != FORMAT {
            let file = FILE.to_owned();
            return Err(StorageError::Format { file, format, supported: FORMAT }.into());
        }
        let (mut ring, mut instance) = (RingDigest::default(), InstanceId::default());
        content.try_copy_to_slice(&mut ring).map_err(short)?;
        content.try_copy_to_slice(&mut instance).map_err(short)?;
        let member = String::from_utf8_lossy(content).into_owned();
        Ok(Self { owner: Owner { ring, member }, instance })
    }
}

impl State {
    /// Opens the state of `owner` in `files`, or creates an empty one. `instance` is the instance id
    /// of the log in the same directory.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the member must not start.
    pub fn open(
        files: Arc<dyn Files>,
        config: StateConfig,
        owner: &Owner,
        instance: InstanceId,
    ) -> Result<Self, StorageError> {
        owner.check()?;
        let identity = Identity { owner: owner.clone(), instance };
        let names = files.list().map_err(StorageError::io("the data directory", "list"))?;
        if !names.iter().any(|name| name == FILE) {
            create_empty(&*files, config, &identity)?;
        }
        let database = engine::open(&*files, FILE, config.cache_bytes)?;
        read(FILE, &database, |txn| check_identity(txn, &identity))?;
        Ok(Self {
            files,
            config,
            identity,
            database: RwLock::new(Some(database)),
            reclaim: reclaim::Cursors::default(),
            usage: usage::Usage::default(),
            failed: AtomicBool::new(false),
        })
    }

    /// Stores `checkpoint` in one transaction (STATEFILE-1), durably.
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`], [`StorageError::TooLarge`] and [`StorageError::NoSpace`] change
    /// nothing. After any other error the process must stop (STATEFILE-3).
    pub fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StorageError> {
        check_sizes(checkpoint)?;
        let pages = checkpoint.pages.iter().filter_map(|(_, bytes)| bytes.as_ref());
        let bytes = checkpoint.history.bytes() + pages.map(Bytes::len).sum::<usize>();
        self.change(|database| {
            self.check_room(database, bytes as u64)?;
            write(FILE, database, |txn| put::checkpoint(txn, checkpoint))?;
            guarded(FILE, || self.usage.follow(database))
        })
    }

    /// Reads all rows, in order. Returns `None` if there was no checkpoint yet.
    ///
    /// # Errors
    ///
    /// The error of `visit`, or [`StorageError::Damaged`] naming the row (STATEFILE-2). The caller
    /// must then discard the rows that it visited.
    pub fn load<E: From<StorageError>>(
        &self,
        mut visit: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<Option<Loaded>, E> {
        visit_rows(FILE, &self.begin_read()?, &mut visit)
    }

    /// Loads, as [`State::load`] does, a snapshot that has arrived and is not in place yet.
    ///
    /// # Errors
    ///
    /// As [`State::load`].
    pub fn load_received<E: From<StorageError>>(
        &self,
        _received: &Received,
        mut visit: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<Option<Loaded>, E> {
        let database = engine::open(&*self.files, INCOMING, self.config.cache_bytes)?;
        let txn = guarded(INCOMING, || Ok(database.begin_read()?))?;
        visit_rows(INCOMING, &txn, &mut visit)
    }

    /// The last applied entry and the compacted revision of the last checkpoint.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn applied(&self) -> Result<Option<(Mark, u64)>, StorageError> {
        let txn = self.begin_read()?;
        let row = guarded(FILE, || checkpoint_row(&txn.open_table(META)?))?;
        Ok(row.map(|row| (row.applied, row.compacted)))
    }

    /// The size of the state.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn size(&self) -> Result<StateSize, StorageError> {
        let txn = self.begin_read()?;
        let row = guarded(FILE, || checkpoint_row(&txn.open_table(META)?))?;
        let totals = row.unwrap_or_default().totals;
        let file = self.files.open(FILE).map_err(StorageError::io(FILE, "open"))?;
        let file_bytes = file.len().map_err(StorageError::io(FILE, "read the size of"))?;
        let Totals { pages, chunks, bytes, .. } = totals;
        let used_bytes = self.usage.bytes(bytes, file_bytes);
        Ok(StateSize { file_bytes, used_bytes, pages, chunks })
    }

    /// Replaces this state with a snapshot that has arrived. Open snapshot readers of the old state
    /// then return an error.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop. One of the two states is then in place, complete.
    pub fn replace(&self, received: Received) -> Result<(), StorageError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(StorageError::Stopped);
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let opened = put_in_place(&*self.files, INCOMING).and_then(|()| {
            let database = open_database(&*self.files, FILE, self.config.cache_bytes)?;
            read(FILE, &database, |txn| {
                check_identity(txn, &self.identity)?;
                check_received(txn, &received)
            })?;
            Ok(database)
        });
        match opened {
            Ok(opened) => {
                *database = Some(opened);
                self.reclaim.reset();
                self.usage.reset();
                Ok(())
            }
            Err(error) => {
                self.failed.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        // A thread that panicked while it replaced the state left `None`, which callers report as
        // an error.
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, StorageError> {
        let database = self.database();
        let database = database.as_ref().ok_or(StorageError::Stopped)?;
        guarded(FILE, || Ok(database.begin_read()?))
    }

    pub(crate) fn ring(&self) -> RingDigest {
        self.identity.owner.ring
    }

    /// STATEFILE-3
    fn change<T>(
        &self,
        change: impl FnOnce(&Database) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(StorageError::Stopped);
        }
        let database = self.database();
        let result = change(database.as_ref().ok_or(StorageError::Stopped)?);
        if result.as_ref().is_err_and(StorageError::is_fatal) {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    /// Refuses a checkpoint that would fill the disk: the engine could not undo a half-written
    /// file.
    fn check_room(&self, database: &Database, bytes: u64) -> Result<(), StorageError> {
        let row = read(FILE, database, |txn| checkpoint_row(&txn.open_table(META)?))?;
        let used = row.unwrap_or_default().totals.bytes;
        let file = self.files.open(FILE).map_err(StorageError::io(FILE, "open"))?;
        let file_bytes = file.len().map_err(StorageError::io(FILE, "read the size of"))?;
        // In the worst case, rows fill only about two thirds of redb's B-tree pages.
        let unused_bytes = file_bytes.saturating_sub(used.saturating_add(used / 2));
        // Twice the bytes: the rows in such pages, and copies of the pages that redb replaces, which
        // it frees only after the commit.
        let needed_bytes = (2 * bytes + CHECKPOINT_SPARE_BYTES).saturating_sub(unused_bytes);
        let free_bytes = self
            .files
            .free_bytes()
            .map_err(StorageError::io(FILE, "read the free disk space for"))?;
        if free_bytes < needed_bytes {
            return Err(StorageError::NoSpace { needed_bytes, free_bytes });
        }
        Ok(())
    }
}

fn visit_rows<E: From<StorageError>>(
    file: &str,
    txn: &ReadTransaction,
    visit: &mut impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<Option<Loaded>, E> {
    let mut refused = None;
    let loaded = guarded(file, || {
        load::load(txn, &mut |row| {
            let visited = visit(row);
            visited.map_err(|error| refused = Some(error)).is_ok()
        })
    });
    refused.map_or(Ok(loaded?), Err)
}

/// STATEFILE-4
fn create_empty(
    files: &dyn Files,
    config: StateConfig,
    identity: &Identity,
) -> Result<(), StorageError> {
    let database = create(files, CREATING, config.cache_bytes)?;
    write(CREATING, &database, |txn| put_identity(txn, identity))?;
    drop(database);
    put_in_place(files, CREATING)
}

/// Renames the complete file `from` to its final name.
pub(crate) fn put_in_place(files: &dyn Files, from: &str) -> Result<(), StorageError> {
    files.rename(from, FILE).map_err(StorageError::io(from, "rename"))?;
    files.sync_dir().map_err(StorageError::io(FILE, "sync the directory of"))
}

/// Creates the tables, and stores their owner and instance.
pub(crate) fn put_identity(
    txn: &WriteTransaction,
    identity: &Identity,
) -> Result<(), DatabaseFault> {
    txn.open_table(HISTORY)?;
    txn.open_table(PAGES)?;
    put_meta(txn, IDENTITY, &identity.encode())
}

pub(crate) fn put_meta(
    txn: &WriteTransaction,
    key: &str,
    content: &[u8],
) -> Result<(), DatabaseFault> {
    let row = with_digest(Table::Meta, key.as_bytes(), content);
    txn.open_table(META)?.insert(key, row.as_slice())?;
    Ok(())
}

pub(crate) fn meta(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Vec<u8>>, DatabaseFault> {
    let Some(row) = table.get(key)? else { return Ok(None) };
    Ok(Some(verified_content(Table::Meta, key.as_bytes(), row.value())?.to_vec()))
}

pub(crate) fn checkpoint_row(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<CheckpointRow>, DatabaseFault> {
    let Some(content) = meta(table, CheckpointRow::KEY)? else { return Ok(None) };
    let row = CheckpointRow::decode(&content);
    row.map(Some).ok_or_else(|| DatabaseFault::damaged("the checkpoint row is cut short"))
}

pub(crate) fn check_identity(
    txn: &ReadTransaction,
    expected: &Identity,
) -> Result<(), DatabaseFault> {
    let content = meta(&txn.open_table(META)?, IDENTITY)?;
    let content = content.ok_or_else(|| DatabaseFault::damaged("the identity is missing"))?;
    let found = Identity::decode(&content)?;
    if found.owner != expected.owner {
        return Err(StorageError::foreign(FILE, found.owner, &expected.owner).into());
    }
    if found.instance != expected.instance {
        return Err(DatabaseFault::damaged(
            "its instance id differs from that of the write-ahead log in the same directory; the \
             two files come from different data directories",
        ));
    }
    Ok(())
}

fn check_received(txn: &ReadTransaction, received: &Received) -> Result<(), DatabaseFault> {
    let row = checkpoint_row(&txn.open_table(META)?)?;
    if row.is_some_and(|row| row.applied == received.header.applied) {
        return Ok(());
    }
    Err(DatabaseFault::damaged(
        "the checkpoint in the file is not the last applied entry of the received snapshot",
    ))
}

fn check_sizes(checkpoint: &Checkpoint) -> Result<(), StorageError> {
    let pages = checkpoint.pages.iter().flat_map(|(name, bytes)| {
        let bytes = bytes.as_ref().map_or(0, Bytes::len);
        [("page name", name.len(), PAGE_NAME_BYTES_MAX), ("page", bytes, PAGE_BYTES_MAX)]
    });
    let applied = ("applied mark", checkpoint.applied.id.len(), APPLIED_BYTES_MAX);
    match pages.chain([applied]).find(|(_, bytes, bytes_max)| bytes > bytes_max) {
        Some((what, bytes, bytes_max)) => {
            Err(StorageError::TooLarge { what, bytes: bytes as u64, bytes_max: bytes_max as u64 })
        }
        None => Ok(()),
    }
}
