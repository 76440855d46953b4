//! Opens and writes the one database file of a process.
//!
//! Data that a member acknowledged must outlive it, and it must not pretend to have data that it
//! lost. The disk is the adversary here: it tears writes, fails to sync, and flips bits.
//!
//! # Rules
//!
//! - **STORE-1** An error from [`write`] or [`open`] is fatal. A failed fsync may have dropped the dirty
//!   pages it reported, so a second one that succeeds proves nothing. The process stops, restarts
//!   and opens the file again.
//! - **STORE-2** Every commit is two-phase and immediate, and records its allocator state: after a power
//!   cut the primary slot is valid, and opening costs no full repair walk.
//! - **STORE-3** A file is checked in full when it is opened. Content that fails its checksum is refused:
//!   under STORE-2 the engine does not fall back to an older commit, which would forget an acknowledged
//!   write or a cast vote. Only free-space bookkeeping is rebuilt. The operator moves a
//!   damaged file away, and the process gets its content from others again.
//! - **STORE-4** A file appears under its name only once it is complete, so an empty or short file there
//!   is damage and never a fresh start.
//! - **STORE-5** The engine may panic on a corrupt image; opening turns that into an error.
//!
//! # Deliberately absent
//!
//! No retries (STORE-1), and no choice of durability per write: a caller that can wait batches more.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Builder, Database, Durability, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::{Fault, Unusable, files};

/// Why the database cannot be used. Always fatal (STORE-1).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file does not hold what was written to it (STORE-3).
    #[error("{path} is damaged ({what}); move this file away, keep all others, and start again")]
    Damaged {
        /// The database file.
        path: String,
        /// The damage that the check found.
        what: String,
    },
    /// The engine failed.
    #[error("the database failed: {0}")]
    Engine(#[from] redb::Error),
    /// The file system failed.
    #[error("cannot read or write the database file: {0}")]
    File(#[from] io::Error),
}

impl StoreError {
    /// The same, as a fault of the setting `key`, which says where the file at `path` is.
    #[must_use]
    pub fn unusable(self, key: &'static str, path: &Path) -> Unusable {
        match self {
            Self::Damaged { path, what } => {
                let why = format!("{path} is damaged ({what})");
                let remedy = "move this file away, keep all others, and start again";
                Unusable::new(key, Fault::Machine, why, remedy)
            }
            Self::Engine(error @ redb::Error::DatabaseAlreadyOpen) => {
                let why = format!("another process uses {}: {error}", path.display());
                Unusable::new(key, Fault::InUse, why, "stop it, or choose another directory")
            }
            Self::File(error) | Self::Engine(redb::Error::Io(error)) => {
                Unusable::directory(key, path, &error)
            }
            Self::Engine(error) => {
                let why = format!("{}: {error}", path.display());
                Unusable::new(key, Fault::Machine, why, "check the disk (`dmesg`)")
            }
        }
    }
}

macro_rules! engine_errors {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Engine(error.into())
            }
        }
    )*};
}
engine_errors!(
    StorageError,
    TableError,
    DatabaseError,
    TransactionError,
    CommitError,
    SetDurabilityError
);

/// Opens the database at `path`, creating it if there is none, with a cache of `cache_bytes`.
///
/// # Errors
///
/// [`StoreError`]; [`StoreError::Damaged`] says what the operator must do.
pub fn open(path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    if !path.try_exists()? {
        create(path)?;
    }
    let damaged = |what: String| StoreError::Damaged { path: path.display().to_string(), what };
    // STORE-5: nothing outlives the unwinding but the path and the error.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut database = Builder::new().set_cache_size(cache_bytes).open(path)?;
        let intact = database.check_integrity()?;
        Ok::<_, redb::DatabaseError>((database, intact))
    }));
    match opened {
        Ok(Ok((database, intact))) => {
            if !intact {
                tracing::warn!(path = %path.display(), "rebuilt the free-space map of the database");
            }
            Ok(database)
        }
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Corrupted(what)))) => {
            Err(damaged(what))
        }
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(error))))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Err(damaged(error.to_string()))
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(damaged("the engine panicked on it".to_owned())),
    }
}

/// Runs `change` in one transaction and returns once it is on disk (STORE-2).
///
/// # Errors
///
/// The error of `change`, after which nothing is written, or a [`StoreError`] from the commit,
/// after which the process must stop (STORE-1).
pub fn write<T, E: From<StoreError>>(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<T, E>,
) -> Result<T, E> {
    let mut transaction = database.begin_write().map_err(StoreError::from)?;
    transaction.set_durability(Durability::Immediate).map_err(StoreError::from)?;
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(true);
    let value = change(&transaction)?;
    transaction.commit().map_err(StoreError::from)?;
    Ok(value)
}

/// Runs `query` on one consistent snapshot.
///
/// # Errors
///
/// The error of `query`, or a [`StoreError`].
pub fn read<T, E: From<StoreError>>(
    database: &Database,
    query: impl FnOnce(&ReadTransaction) -> Result<T, E>,
) -> Result<T, E> {
    query(&database.begin_read().map_err(StoreError::from)?)
}

/// STORE-4: builds the empty database beside `path` and moves it there once it is complete.
fn create(path: &Path) -> Result<(), StoreError> {
    let staged = path.with_added_extension("new");
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let database = Builder::new().create(&staged)?;
    write(&database, |_| Ok::<_, StoreError>(()))?;
    drop(database);
    fs::rename(&staged, path)?;
    files::sync_directory(files::parent(path))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{ReadableTable, TableDefinition};

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("t");
    const CACHE_BYTES: usize = 1 << 20;
    const ENTRIES: u64 = 500;
    /// The file header: magic, flags, layout, and two commit slots.
    const HEADER_BYTES: usize = 320;
    const FLAGS_OFFSET: usize = 9;

    fn value(key: u64) -> Vec<u8> {
        key.to_be_bytes().repeat(20)
    }

    fn fill(path: &Path) {
        let database = open(path, CACHE_BYTES).unwrap();
        for keys in [0..ENTRIES / 2, ENTRIES / 2..ENTRIES] {
            write(&database, |txn| {
                let mut table = txn.open_table(TABLE)?;
                for key in keys {
                    table.insert(key, value(key).as_slice())?;
                }
                Ok::<_, StoreError>(())
            })
            .unwrap();
        }
    }

    fn entries(database: &Database) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        read(database, |txn| {
            let table = txn.open_table(TABLE)?;
            table
                .iter()?
                .map(|entry| entry.map(|(k, v)| (k.value(), v.value().to_vec())))
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
    }

    fn expected() -> Vec<(u64, Vec<u8>)> {
        (0..ENTRIES).map(|key| (key, value(key))).collect()
    }

    #[test]
    fn content_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fill(&path);
        assert_eq!(entries(&open(&path, CACHE_BYTES).unwrap()).unwrap(), expected());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing staged is left");
    }

    #[test]
    fn a_copy_taken_while_open_is_a_crash_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, crashed) = (dir.path().join("db"), dir.path().join("crashed"));
        fill(&path);
        let database = open(&path, CACHE_BYTES).unwrap();
        write(&database, |txn| {
            txn.open_table(TABLE)?.insert(ENTRIES, [1].as_slice())?;
            Ok::<_, StoreError>(())
        })
        .unwrap();
        fs::copy(&path, &crashed).unwrap();
        let reopened = entries(&open(&crashed, CACHE_BYTES).unwrap()).unwrap();
        assert_eq!(reopened.len() as u64, ENTRIES + 1);
    }

    #[test]
    fn a_refused_change_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fill(&path);
        let database = open(&path, CACHE_BYTES).unwrap();
        let refused = write(&database, |txn| {
            txn.open_table(TABLE)?.insert(0, [].as_slice())?;
            Err::<(), _>(StoreError::File(io::Error::other("changed my mind")))
        });
        let refused = refused.unwrap_err().to_string();
        assert_eq!(refused, "cannot read or write the database file: changed my mind");
        assert_eq!(entries(&database).unwrap(), expected());
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let _first = open(&path, CACHE_BYTES).unwrap();
        let error = open(&path, CACHE_BYTES).unwrap_err();
        assert!(matches!(error, StoreError::Engine(redb::Error::DatabaseAlreadyOpen)), "{error}");
        assert_eq!(error.unusable("data_dir", &path).fault(), Fault::InUse);
    }

    #[test]
    fn empty_truncated_and_foreign_files_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fill(&path);
        let image = fs::read(&path).unwrap();
        let half = &image[..image.len() / 2];
        for content in [&[][..], &image[..100], half, &[0x5a; 8192], &vec![0; image.len()]] {
            fs::write(&path, content).unwrap();
            let error = open(&path, CACHE_BYTES).unwrap_err();
            assert!(
                matches!(error, StoreError::Damaged { .. }),
                "{} bytes: {error}",
                content.len()
            );
        }
    }

    /// STORE-3: damage may go unnoticed only where nothing is stored.
    #[test]
    fn a_flipped_byte_is_noticed_or_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fill(&path);
        let image = fs::read(&path).unwrap();
        let mut noticed = 0;
        let header = (0..HEADER_BYTES).map(|offset| (offset, 0xff));
        let header_bits = (0..8).map(|bit| (FLAGS_OFFSET, 1 << bit));
        let spread = (0..100).map(|step| ((step * 104_729) % image.len(), 0xff));
        for (offset, mask) in header.chain(header_bits).chain(spread) {
            let mut damaged = image.clone();
            damaged[offset] ^= mask;
            fs::write(&path, &damaged).unwrap();
            match open(&path, CACHE_BYTES) {
                Err(_) => noticed += 1,
                Ok(database) => {
                    assert_eq!(entries(&database).unwrap(), expected(), "at {offset} {mask:#x}");
                }
            }
        }
        assert!(noticed > 0, "no flip hit stored content; the test proves nothing");
    }
}
