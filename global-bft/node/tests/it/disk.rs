//! Disks that survive crashes: the real store and a last-sign file in memory, with a power cut before or
//! after any operation.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use redb::Database;
use satrap_certify::{Block, Commit};
use satrap_global_node::{
    guard::Slots,
    store::{Decision, DiskError, Snapshot, Storage, Store},
};
use satrap_runtime::store::StoreError;

pub fn forget_log(database: &Database) {
    const LOG: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("log");
    let txn = database.begin_write().unwrap();
    txn.open_table(LOG).unwrap().retain(|_, _| false).unwrap();
    txn.commit().unwrap();
}

/// Counts down the operations until a crash.
#[derive(Clone)]
pub struct Fuse(pub Arc<AtomicI64>);

impl Fuse {
    pub fn burn(&self) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(io::Error::other("power cut"));
        }
        Ok(())
    }
}

fn disk_error(error: io::Error) -> DiskError {
    DiskError::Store(StoreError::File(error))
}

/// The real store, with a power cut before or after any operation. With `amnesia` it forgets the
/// log, which is the negative control of the crash tests.
pub struct FusedStore {
    pub store: Store,
    pub fuse: Fuse,
    pub amnesia: bool,
}

impl Storage for FusedStore {
    fn log(&mut self, entries: &[Vec<u8>]) -> Result<(), DiskError> {
        self.fuse.burn().map_err(disk_error)?;
        if !self.amnesia {
            self.store.log(entries)?;
        }
        self.fuse.burn().map_err(disk_error)
    }

    fn logged(&self) -> Result<Vec<Vec<u8>>, DiskError> {
        self.store.logged()
    }

    fn decide(&mut self, decision: &Decision) -> Result<(), DiskError> {
        self.fuse.burn().map_err(disk_error)?;
        self.store.decide(decision)?;
        self.fuse.burn().map_err(disk_error)
    }

    fn decided(&self, height: u64) -> Result<Option<(Block, Commit)>, DiskError> {
        self.store.decided(height)
    }

    fn snapshot(&self) -> Result<Option<Snapshot>, DiskError> {
        self.store.snapshot()
    }
}

/// The last-sign file of a node, which outlives its crashes.
#[derive(Clone)]
pub struct MemorySlots {
    pub slots: Arc<Mutex<[Vec<u8>; 2]>>,
    pub fuse: Fuse,
}

impl Slots for MemorySlots {
    fn read(&self) -> io::Result<[Vec<u8>; 2]> {
        Ok(self.slots.lock().unwrap().clone())
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        self.fuse.burn()?;
        self.slots.lock().unwrap()[slot] = bytes.to_vec();
        self.fuse.burn()
    }
}
