//! A simulated disk that loses power, fails, fills up and lies about syncs, on command and from a
//! seed.
//!
//! The disk implements the same [`Files`] that production uses. It keeps three images in memory:
//! the content that a reader sees, the durable content, and the writes since the last sync. A crash
//! keeps a seeded choice of those writes, in units of a sector or a name. The same calls with the
//! same seed give the same disk.
//!
//! # Deliberately absent
//!
//! No time: [`SimDisk::counters`] counts the operations, and the caller charges time for them. No
//! torn sectors: a sector is old or new, as disks promise.

mod faults;
mod image;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::faults::{Faults, Survival};
use self::{faults::Chance, image::Image};
use crate::{
    files::{File, Files},
    state::RedbFile,
};

/// The unit that a crash keeps or loses as a whole.
pub const SECTOR_BYTES: usize = 512;

/// The operations that a disk has performed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls that change something or sync.
    pub operations: u64,
    /// Calls of [`File::sync_data`] and [`Files::sync_dir`].
    pub syncs: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

/// A simulated disk with one directory. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<Inner>>);

type Inode = u64;

#[derive(Debug)]
struct Inner {
    chance: Chance,
    faults: Faults,
    counters: Counters,
    images: BTreeMap<Inode, Image>,
    next_inode: Inode,
    live: BTreeMap<String, Inode>,
    durable: BTreeMap<String, Inode>,
    /// Changes of names that are not durable yet, in order.
    pending: Vec<NameChange>,
    /// Counts crashes; a handle from before the last crash fails.
    boot: u64,
    power: bool,
    /// Whether the file system has turned read-only, until it is mounted again.
    read_only: bool,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, Inode),
    Unlink(String),
    Rename(String, String, Inode),
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: Inode,
    boot: u64,
}

impl SimDisk {
    /// An empty disk whose choices follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            chance: Chance(seed),
            faults: Faults::default(),
            counters: Counters::default(),
            images: BTreeMap::new(),
            next_inode: 0,
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            boot: 0,
            power: true,
            read_only: false,
        })))
    }

    /// A copy of this disk, as a crash that loses nothing would leave it; its choices follow from
    /// `seed`. Tests use it to restore an old backup, or to damage one disk in many ways.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let fork = Self::new(seed);
        {
            let (inner, copy) = (self.inner(), &mut *fork.inner());
            copy.images = inner.images.clone();
            copy.next_inode = inner.next_inode;
            copy.live = inner.live.clone();
            copy.durable = inner.durable.clone();
            copy.pending = inner.pending.clone();
        }
        fork.crash(Survival::All);
        fork
    }

    /// Sets the faults of the operations from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// The operations performed so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner().counters
    }

    /// Cuts the power and restores it: `survival` of the unsynced sectors and names are kept. Open
    /// files fail from now on, and all faults are cleared.
    pub fn crash(&self, survival: Survival) {
        let inner = &mut *self.inner();
        for change in std::mem::take(&mut inner.pending) {
            if inner.chance.keeps(survival) {
                change.apply(&mut inner.durable);
            }
        }
        inner.live = inner.durable.clone();
        let linked: Vec<Inode> = inner.live.values().copied().collect();
        inner.images.retain(|inode, _| linked.contains(inode));
        for image in inner.images.values_mut() {
            image.crash(&mut inner.chance, survival);
        }
        inner.boot += 1;
        (inner.power, inner.read_only, inner.faults) = (true, false, Faults::default());
    }

    /// Ends the process that uses the disk, as SIGKILL does: all its writes are readable, synced or
    /// not, but become durable only with the next sync. Open files fail from now on, and all faults
    /// are cleared. A file system that turned read-only is mounted again, without those writes.
    pub fn kill(&self) {
        if self.inner().read_only {
            return self.crash(Survival::None);
        }
        let inner = &mut *self.inner();
        inner.images.values_mut().for_each(|image| image.handles = 0);
        inner.boot += 1;
        (inner.power, inner.faults) = (true, Faults::default());
    }

    /// Whether the file system has turned read-only, until the next crash or kill.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.inner().read_only
    }

    /// Flips the bits of `mask` in a durable byte, as bit rot does.
    ///
    /// # Panics
    ///
    /// If there is no such byte: the test is wrong.
    pub fn rot(&self, name: &str, offset: u64, mask: u8) {
        let inner = &mut *self.inner();
        let inode = inner.live.get(name).expect("the file that rots exists");
        inner.images.get_mut(inode).expect("a name has a file").rot(offset, mask);
    }

    /// The content of a file, as a reader sees it.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.inner();
        let image = inner.images.get(inner.live.get(name)?)?;
        Some(image.live().to_vec())
    }

    /// A file as a storage backend of redb; it is created if there is none.
    ///
    /// # Errors
    ///
    /// From the faults that are set.
    pub fn backend(&self, name: &str) -> io::Result<RedbFile> {
        let file = match self.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(name)?,
            found => found?,
        };
        Ok(RedbFile::new(file))
    }

    fn handle(&self, inner: &mut Inner, inode: Inode) -> Arc<dyn File> {
        inner.images.get_mut(&inode).expect("a name has a file").handles += 1;
        Arc::new(SimFile { disk: self.clone(), inode, boot: inner.boot })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panicking test must not hide its message behind a poisoned lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(image) = self.disk.inner().image(self.inode, self.boot) {
            image.handles -= 1;
        }
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is off")
}

impl Inner {
    /// Counts an operation that changes something, and fails it if a fault is set for it.
    fn operation(&mut self) -> io::Result<()> {
        if !self.power {
            return Err(no_power());
        }
        let number = self.counters.operations;
        self.counters.operations += 1;
        if self.faults.power_cut_at.is_some_and(|at| number >= at) {
            self.power = false;
            return Err(no_power());
        }
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if self.faults.error_at == Some(number) {
            return Err(io::Error::other("injected: input/output error"));
        }
        Ok(())
    }

    fn readable(&self) -> io::Result<()> {
        if self.power { Ok(()) } else { Err(no_power()) }
    }

    fn used_bytes(&self) -> u64 {
        let live = self.live.values().filter_map(|inode| self.images.get(inode));
        live.map(|image| image.live().len() as u64).sum()
    }

    fn free_bytes(&self) -> u64 {
        self.faults.capacity_bytes.saturating_sub(self.used_bytes())
    }

    fn image(&mut self, inode: Inode, boot: u64) -> io::Result<&mut Image> {
        if boot != self.boot {
            return Err(io::Error::other("this file was opened before the crash"));
        }
        self.images.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn grow(&mut self, inode: Inode, boot: u64, bytes: u64) -> io::Result<()> {
        let free = self.free_bytes();
        let length = self.image(inode, boot)?.live().len() as u64;
        if bytes.saturating_sub(length) > free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }
}

impl NameChange {
    /// Performs the change, unless the change that it builds on was lost.
    fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                    names.insert(to.clone(), *inode);
                }
            }
        }
    }
}

impl Files for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inner = &mut *self.inner();
        inner.readable()?;
        let inode = *inner.live.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(inner, inode))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inner = &mut *self.inner();
        inner.operation()?;
        let inode = inner.next_inode;
        inner.next_inode += 1;
        inner.images.insert(inode, Image::default());
        inner.change(NameChange::Link(name.to_owned(), inode));
        Ok(self.handle(inner, inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.operation()?;
        let inode = *inner.live.get(from).ok_or(io::ErrorKind::NotFound)?;
        inner.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.operation()?;
        if !inner.live.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.change(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.inner();
        inner.readable()?;
        Ok(inner.live.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.operation()?;
        inner.counters.syncs += 1;
        if inner.faults.error_at_sync() {
            return Err(io::Error::other("injected: sync failed"));
        }
        if inner.faults.read_only_at_sync() {
            // The second sync of a real directory fails, though the first may not.
            inner.read_only = true;
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if !inner.faults.lying_sync {
            inner.durable = inner.live.clone();
            inner.pending.clear();
            let linked: Vec<Inode> = inner.live.values().copied().collect();
            inner.images.retain(|inode, image| image.handles > 0 || linked.contains(inode));
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let inner = self.inner();
        inner.readable()?;
        Ok(inner.free_bytes())
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let inner = &mut *self.disk.inner();
        inner.readable()?;
        Ok(inner.image(self.inode, self.boot)?.live().len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = &mut *self.disk.inner();
        inner.readable()?;
        inner.counters.read_bytes += buffer.len() as u64;
        inner.image(self.inode, self.boot)?.read(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inner = &mut *self.disk.inner();
        inner.operation()?;
        inner.counters.written_bytes += bytes.len() as u64;
        inner.grow(self.inode, self.boot, offset + bytes.len() as u64)?;
        inner.image(self.inode, self.boot)?.write(offset, bytes);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let inner = &mut *self.disk.inner();
        inner.operation()?;
        inner.grow(self.inode, self.boot, bytes)?;
        inner.image(self.inode, self.boot)?.set_len(bytes);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if self.len()? < bytes {
            return self.set_len(bytes);
        }
        self.disk.inner().operation()
    }

    fn sync_data(&self) -> io::Result<()> {
        let inner = &mut *self.disk.inner();
        inner.operation()?;
        inner.counters.syncs += 1;
        let (fails, lies) = (inner.faults.error_at_sync(), inner.faults.lying_sync);
        let ends = inner.faults.read_only_at_sync();
        inner.read_only |= ends;
        let mut chance = inner.chance.fork();
        let image = inner.image(self.inode, self.boot)?;
        if fails {
            image.fail_sync(&mut chance);
            return Err(io::Error::other("injected: sync failed"));
        }
        match (lies, ends) {
            (true, _) => {}
            (false, true) => image.sync_what_was_written(),
            (false, false) => image.sync(),
        }
        Ok(())
    }
}
