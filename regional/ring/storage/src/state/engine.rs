//! Opens the database engine (redb) and runs its transactions; turns its errors and panics into
//! [`StorageError`].
//!
//! The rules are those of `satrap_runtime::store` (STORE-1 to STORE-5), over [`Files`] instead of a
//! path, so that a simulation can replace the disk. STORE-3 differs: opening the file does not
//! check its whole content, because [`super::State::load`] reads all of it anyway and compares more
//! than redb would: each row with its digest, and all rows with the sum of their digests.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use redb::{
    Builder, CommitError, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase,
    SetDurabilityError, StorageError as EngineError, TableError, TransactionError,
    WriteTransaction,
};

use super::{FILE, redb_file::RedbFile};
use crate::{
    StorageError,
    files::{File, Files},
};

/// A failure inside a database, whose file it does not name. [`guarded`] adds the name.
#[derive(Debug)]
pub(crate) enum DatabaseFault {
    /// The content is not what was written.
    Damaged(String),
    /// The engine failed.
    Engine(redb::Error),
    /// The call is refused, or another file failed.
    Other(StorageError),
}

impl DatabaseFault {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    fn in_file(self, file: &str) -> StorageError {
        let file = file.to_owned();
        match self {
            Self::Damaged(what) if file == FILE => StorageError::Damaged { file, what },
            Self::Damaged(what) => StorageError::DamagedUnused { file, what },
            Self::Engine(source) => StorageError::Engine { file, source: Box::new(source) },
            Self::Other(error) => error,
        }
    }
}

impl From<StorageError> for DatabaseFault {
    fn from(error: StorageError) -> Self {
        Self::Other(error)
    }
}

impl From<redb::Error> for DatabaseFault {
    fn from(error: redb::Error) -> Self {
        let is_damage = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        };
        match error {
            redb::Error::Corrupted(what) => Self::Damaged(what),
            redb::Error::Io(error) if is_damage(&error) => Self::Damaged(error.to_string()),
            error => Self::Engine(error),
        }
    }
}

macro_rules! engine_errors {
    ($($error:ident),*) => {$(
        impl From<$error> for DatabaseFault {
            fn from(error: $error) -> Self {
                redb::Error::from(error).into()
            }
        }
    )*};
}
engine_errors!(
    EngineError,
    TableError,
    DatabaseError,
    TransactionError,
    CommitError,
    SetDurabilityError
);

/// Runs `body`, which uses the database in `file`, and names the file in its error. Reports a panic
/// as damage: the engine panics on some damaged files.
pub(crate) fn guarded<T>(
    file: &str,
    body: impl FnOnce() -> Result<T, DatabaseFault>,
) -> Result<T, StorageError> {
    // `AssertUnwindSafe`: the caller stops, or has only read, so it never uses half-changed data.
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| {
            let text = panic_text(&*payload);
            Err(DatabaseFault::Damaged(format!("the database engine (redb) panicked: {text}")))
        })
        .map_err(|fault| fault.in_file(file))
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no message")
}

/// Opens the database `name`; an empty file is damage and never a fresh start.
pub(crate) fn open(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
) -> Result<Database, StorageError> {
    let file = files.open(name).map_err(StorageError::io(name, "open"))?;
    if file.len().map_err(StorageError::io(name, "read the size of"))? == 0 {
        return Err(DatabaseFault::damaged("the file is empty").in_file(name));
    }
    // A process that was killed may have left the content and the name of the file in memory only.
    // The log is purged up to the mark that is read here, so both must be durable first.
    file.sync_data().map_err(StorageError::io(name, "sync"))?;
    files.sync_dir().map_err(StorageError::io("the data directory", "sync"))?;
    open_or_create_on(name, file, cache_bytes)
}

/// Creates an empty database under `name`.
pub(crate) fn create(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
) -> Result<Database, StorageError> {
    let file = files.create(name).map_err(StorageError::io(name, "create"))?;
    open_or_create_on(name, file, cache_bytes)
}

fn open_or_create_on(
    name: &str,
    file: Arc<dyn File>,
    cache_bytes: usize,
) -> Result<Database, StorageError> {
    guarded(name, || {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        Ok(builder.create_with_backend(RedbFile::new(file))?)
    })
}

/// Runs `read` on one version of the database in `file`.
pub(crate) fn read<T>(
    file: &str,
    database: &Database,
    read: impl FnOnce(&ReadTransaction) -> Result<T, DatabaseFault>,
) -> Result<T, StorageError> {
    guarded(file, || read(&database.begin_read()?))
}

/// Runs `change` in one transaction that is durable when this returns. The commit is two-phase and
/// includes the allocator's state, so a power cut does not lose the commit, and the next open needs
/// no repair.
pub(crate) fn write<T>(
    file: &str,
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<T, DatabaseFault>,
) -> Result<T, StorageError> {
    guarded(file, || {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        let value = change(&transaction)?;
        transaction.commit()?;
        Ok(value)
    })
}
