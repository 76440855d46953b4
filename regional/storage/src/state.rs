//! The state of a member as of its last checkpoint, from which it restarts.
//!
//! The log already made everything durable, so a checkpoint is never on the way of an
//! acknowledgment. It bounds how much log there is, is what a restarting member reads, and is the
//! snapshot that a lagging member receives.
//!
//! # Invariants
//!
//! - **C1** A checkpoint is one transaction: history, pages, the compacted revision and the mark it
//!   was applied up to belong together, always. (etcd 3.5 stored the mark apart from the data, and
//!   members diverged.)
//! - **C2** Every row is compared with its digest whenever it is read, and all rows of a load with
//!   their sum. What does not match is named and never used.
//! - **C3** After a failed write every later call fails; what is on disk is then unknown.
//! - **C4** The file appears under its name only once it is complete, so an empty or short one there
//!   is damage. It belongs to the same ring, member and instance as the log beside it.
//!
//! # Deliberately absent
//!
//! No query by key: what is served is in memory. No merging of versions: the state machine says which
//! are still needed ([`State::reclaim`]), and nobody else decides that.

mod backend;
mod chunk;
mod engine;
mod load;
mod put;
mod reclaim;
mod rows;
mod usage;

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, Ordering},
};

use bytes::{Buf, BufMut, Bytes};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

pub use self::{
    backend::Backend,
    chunk::{History, Version},
    reclaim::{Reclaimed, Scrubbed},
};
pub(crate) use self::{
    chunk::versions as chunk_versions,
    engine::{create, guarded, open as open_database, write},
    put::put_page,
    rows::{
        CheckpointRow, ChunkKey, HISTORY, META, PAGES, Table, Totals, chunk_key, chunk_key_bytes,
        seal, unseal,
    },
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

/// The file.
pub(crate) const FILE: &str = "state.redb";
const CREATING: &str = "state.creating";
const IDENTITY: &str = "identity";
const FORMAT: u32 = 1;

/// How the state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateConfig {
    /// Page cache of the engine.
    pub cache_bytes: usize,
}

impl Default for StateConfig {
    fn default() -> Self {
        Self { cache_bytes: STATE_CACHE_BYTES }
    }
}

/// Everything that changed since the last checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// What the state has applied, with the membership; opaque but for the index.
    pub applied: Mark,
    /// Revisions up to here are compacted.
    pub compacted: u64,
    /// New history; its revisions are above those of all checkpoints before.
    pub history: History,
    /// Changed pages, and removed ones.
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
    /// An event; some may be compacted and not yet reclaimed.
    Version(Version<'a>),
}

/// What a load found beside the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// As in [`Checkpoint`].
    pub applied: Mark,
    /// As in [`Checkpoint`].
    pub compacted: u64,
    /// Pages that were read.
    pub pages: u64,
    /// Versions that were read.
    pub versions: u64,
}

/// How large the state is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSize {
    /// The file: etcd's `dbSize`.
    pub file_bytes: u64,
    /// What is in use of it: etcd's `dbSizeInUse`.
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
    /// None only while the file is being replaced, and for good if that failed.
    database: RwLock<Option<Database>>,
    reclaim: reclaim::Cursors,
    usage: usage::Usage,
    /// C3
    failed: AtomicBool,
}

/// Whose state it is (C4).
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

    fn decode(mut content: &[u8]) -> Result<Self, String> {
        let short = |_| "it is cut short".to_owned();
        let format = content.try_get_u32_le().map_err(short)?;
        if format != FORMAT {
            return Err(format!("format {format}, this release reads {FORMAT}"));
        }
        let (mut ring, mut instance) = (RingDigest::default(), InstanceId::default());
        content.try_copy_to_slice(&mut ring).map_err(short)?;
        content.try_copy_to_slice(&mut instance).map_err(short)?;
        let member = String::from_utf8_lossy(content).into_owned();
        Ok(Self { owner: Owner { ring, member }, instance })
    }
}

impl State {
    /// Opens the state that lies beside the log `instance` of `owner`, or creates an empty one.
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
        guarded(|| check_identity(&database, &identity))?;
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

    /// Stores `checkpoint` in one transaction (C1); on disk when this returns.
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`], [`StorageError::TooLarge`] and [`StorageError::NoSpace`] change
    /// nothing. After any other error the process must stop (C3).
    pub fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StorageError> {
        check_sizes(checkpoint)?;
        let pages = checkpoint.pages.iter().filter_map(|(_, bytes)| bytes.as_ref());
        let bytes = checkpoint.history.bytes() + pages.map(Bytes::len).sum::<usize>();
        self.change(|database| {
            self.check_room(database, bytes as u64)?;
            write(database, |txn| put::checkpoint(txn, checkpoint))?;
            guarded(|| self.usage.follow(database))
        })
    }

    /// Reads everything, in order. None if there was no checkpoint yet.
    ///
    /// # Errors
    ///
    /// The error of `visit`, or [`StorageError::Damaged`] naming the row (C2). Rows that were
    /// visited before must then be forgotten.
    pub fn load<E: From<StorageError>>(
        &self,
        mut visit: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<Option<Loaded>, E> {
        visit_rows(&self.begin_read()?, &mut visit)
    }

    /// As [`State::load`], of a snapshot that has arrived and is not in place yet.
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
        let txn = guarded(|| Ok(database.begin_read()?))?;
        visit_rows(&txn, &mut visit)
    }

    /// What the last checkpoint had applied, and its compacted revision.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn applied(&self) -> Result<Option<(Mark, u64)>, StorageError> {
        let txn = self.begin_read()?;
        let row = guarded(|| checkpoint_row(&txn.open_table(META)?))?;
        Ok(row.map(|row| (row.applied, row.compacted)))
    }

    /// How large the state is.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn size(&self) -> Result<StateSize, StorageError> {
        let txn = self.begin_read()?;
        let totals = guarded(|| checkpoint_row(&txn.open_table(META)?))?.unwrap_or_default().totals;
        let file = self.files.open(FILE).map_err(StorageError::io(FILE, "open"))?;
        let file_bytes = file.len().map_err(StorageError::io(FILE, "size"))?;
        let Totals { pages, chunks, bytes, .. } = totals;
        let used_bytes = self.usage.bytes(bytes, file_bytes);
        Ok(StateSize { file_bytes, used_bytes, pages, chunks })
    }

    /// Puts a snapshot that has arrived in the place of this state. Snapshots that are being read
    /// from the old one end with an error.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the process must stop. Either state may then be in place, whole.
    pub fn replace(&self, received: Received) -> Result<(), StorageError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(StorageError::Stopped);
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let opened = put_in_place(&*self.files, INCOMING).and_then(|()| {
            let database = open_database(&*self.files, FILE, self.config.cache_bytes)?;
            guarded(|| {
                check_identity(&database, &self.identity)?;
                check_received(&database, &received)
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
        // What a panicking holder left behind is none, and none is an error.
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, StorageError> {
        let database = self.database();
        let database = database.as_ref().ok_or(StorageError::Stopped)?;
        guarded(|| Ok(database.begin_read()?))
    }

    pub(crate) fn ring(&self) -> RingDigest {
        self.identity.owner.ring
    }

    /// C3
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

    /// Refuses what would fill the disk: the engine could not take back a half-written file.
    fn check_room(&self, database: &Database, bytes: u64) -> Result<(), StorageError> {
        let txn = database.begin_read()?;
        let used = checkpoint_row(&txn.open_table(META)?)?.unwrap_or_default().totals.bytes;
        let file = self.files.open(FILE).map_err(StorageError::io(FILE, "open"))?;
        let file_bytes = file.len().map_err(StorageError::io(FILE, "size"))?;
        // Rows fill about two thirds of the pages that they take, at worst.
        let unused_bytes = file_bytes.saturating_sub(used.saturating_add(used / 2));
        let needed_bytes = (2 * bytes + CHECKPOINT_SPARE_BYTES).saturating_sub(unused_bytes);
        let free_bytes = self.files.free_bytes().map_err(StorageError::io(FILE, "free space"))?;
        if free_bytes < needed_bytes {
            return Err(StorageError::NoSpace { needed_bytes, free_bytes });
        }
        Ok(())
    }
}

fn visit_rows<E: From<StorageError>>(
    txn: &ReadTransaction,
    visit: &mut impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<Option<Loaded>, E> {
    let mut refused = None;
    let loaded = guarded(|| {
        load::load(txn, &mut |row| {
            let visited = visit(row);
            visited.map_err(|error| refused = Some(error)).is_ok()
        })
    });
    refused.map_or(Ok(loaded?), Err)
}

/// C4
fn create_empty(
    files: &dyn Files,
    config: StateConfig,
    identity: &Identity,
) -> Result<(), StorageError> {
    let database = create(files, CREATING, config.cache_bytes)?;
    write(&database, |txn| put_identity(txn, identity))?;
    drop(database);
    put_in_place(files, CREATING)
}

/// Gives the complete file `from` its name.
pub(crate) fn put_in_place(files: &dyn Files, from: &str) -> Result<(), StorageError> {
    files.rename(from, FILE).map_err(StorageError::io(FILE, "rename"))?;
    files.sync_dir().map_err(StorageError::io(FILE, "sync the directory"))
}

/// Creates the tables, and says whose they are.
pub(crate) fn put_identity(
    txn: &WriteTransaction,
    identity: &Identity,
) -> Result<(), StorageError> {
    txn.open_table(HISTORY)?;
    txn.open_table(PAGES)?;
    put_meta(txn, IDENTITY, &identity.encode())
}

pub(crate) fn put_meta(
    txn: &WriteTransaction,
    key: &str,
    content: &[u8],
) -> Result<(), StorageError> {
    let row = seal(Table::Meta, key.as_bytes(), content);
    txn.open_table(META)?.insert(key, row.as_slice())?;
    Ok(())
}

pub(crate) fn meta(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Vec<u8>>, StorageError> {
    let Some(row) = table.get(key)? else { return Ok(None) };
    Ok(Some(unseal(Table::Meta, key.as_bytes(), row.value())?.to_vec()))
}

pub(crate) fn checkpoint_row(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<CheckpointRow>, StorageError> {
    let Some(content) = meta(table, CheckpointRow::KEY)? else { return Ok(None) };
    let row = CheckpointRow::decode(&content);
    row.map(Some).ok_or_else(|| StorageError::damaged(FILE, 0, "the checkpoint row is cut short"))
}

pub(crate) fn check_identity(database: &Database, expected: &Identity) -> Result<(), StorageError> {
    let txn = database.begin_read()?;
    let damaged = |what: String| StorageError::damaged(FILE, 0, format!("identity: {what}"));
    let content = meta(&txn.open_table(META)?, IDENTITY)?;
    let found = Identity::decode(&content.ok_or_else(|| damaged("it is missing".into()))?)
        .map_err(damaged)?;
    if found.owner != expected.owner {
        let (file, member) = (FILE.to_owned(), found.owner.member);
        return Err(StorageError::Foreign { file, member });
    }
    if found.instance != expected.instance {
        return Err(damaged("it belongs to another log than the one beside it".into()));
    }
    Ok(())
}

fn check_received(database: &Database, received: &Received) -> Result<(), StorageError> {
    let row = checkpoint_row(&database.begin_read()?.open_table(META)?)?;
    if row.is_some_and(|row| row.applied == received.header.applied) {
        return Ok(());
    }
    Err(StorageError::damaged(FILE, 0, "this is not the snapshot that was received"))
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
