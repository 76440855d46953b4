//! Lets the redb database engine use a [`File`], real or simulated, as its storage.

use std::{io, sync::Arc};

use redb::StorageBackend;

use crate::files::File;

/// A [`File`] as a storage backend of redb.
///
/// Does not implement redb's locks: the lock on the data directory already excludes other
/// processes.
#[derive(Debug)]
pub struct RedbFile(Arc<dyn File>);

impl RedbFile {
    /// A backend whose database is the content of `file`.
    #[must_use]
    pub fn new(file: Arc<dyn File>) -> Self {
        Self(file)
    }
}

impl StorageBackend for RedbFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // redb grows its file as it goes.
        self.0.sync_twice()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
