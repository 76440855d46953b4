//! Lets the database engine use [`File`]s, real or simulated.

use std::{io, sync::Arc};

use redb::StorageBackend;

use crate::files::File;

/// One file as the engine sees it.
///
/// Locks are not offered: the data directory is locked as a whole.
#[derive(Debug)]
pub struct Backend(Arc<dyn File>);

impl Backend {
    /// A database in `file`.
    #[must_use]
    pub fn new(file: Arc<dyn File>) -> Self {
        Self(file)
    }
}

impl StorageBackend for Backend {
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
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
