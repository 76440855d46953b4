//! Opens and writes the database engine, with errors that say what to do.
//!
//! The rules are those of `satrap_host::store` (D1 to D5), over [`Files`] instead of a path, so that
//! a simulation can take the disk away. One differs: content is not checked in full when the file is
//! opened, because [`super::State::load`] reads all of it anyway, and compares more than the engine
//! would: each row with its digest, and all rows together with the sum of their digests.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use redb::{
    Builder, CommitError, Database, DatabaseError, Durability, SetDurabilityError,
    StorageError as EngineError, TableError, TransactionError, WriteTransaction,
};

use super::{FILE, backend::Backend};
use crate::{
    StorageError,
    files::{File, Files},
};

impl From<redb::Error> for StorageError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Corrupted(what) => Self::damaged(FILE, 0, what),
            redb::Error::Io(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::damaged(FILE, 0, error.to_string())
            }
            error => Self::Engine(Box::new(error)),
        }
    }
}

macro_rules! engine_errors {
    ($($error:ident),*) => {$(
        impl From<$error> for StorageError {
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

/// Runs `body`, which reads what may be damaged: the engine panics on some images.
pub(crate) fn guarded<T, E: From<StorageError>>(
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    // What was half done is dropped: the caller stops, or has read only.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(StorageError::damaged(FILE, 0, "the engine cannot make sense of it").into())
    })
}

/// Opens the database `name`; an empty file is damage and never a fresh start.
pub(crate) fn open(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
) -> Result<Database, StorageError> {
    let file = files.open(name).map_err(StorageError::io(name, "open"))?;
    if file.len().map_err(StorageError::io(name, "size"))? == 0 {
        return Err(StorageError::damaged(name, 0, "the file is empty"));
    }
    // A process that was killed may have left content and name in memory only, and the log is purged
    // up to what is found here.
    file.sync_data().map_err(StorageError::io(name, "sync"))?;
    files.sync_dir().map_err(StorageError::io("the data directory", "sync"))?;
    start(file, cache_bytes)
}

/// Creates an empty database under `name`.
pub(crate) fn create(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
) -> Result<Database, StorageError> {
    start(files.create(name).map_err(StorageError::io(name, "create"))?, cache_bytes)
}

fn start(file: Arc<dyn File>, cache_bytes: usize) -> Result<Database, StorageError> {
    guarded(|| {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        Ok(builder.create_with_backend(Backend::new(file))?)
    })
}

/// Runs `change` in one transaction that is on disk when this returns: two-phase, and with the
/// allocator's state, so that a power cut costs neither the commit nor a repair.
pub(crate) fn write<T>(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    guarded(|| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        let value = change(&transaction)?;
        transaction.commit()?;
        Ok(value)
    })
}
