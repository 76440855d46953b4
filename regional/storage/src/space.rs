//! Notices a full disk before it is full, and keeps room to get out of it.
//!
//! A ring that runs out of disk must still write: compaction, the alarm that says so, leases and
//! votes are log entries too. So a reserve file holds space that is given back when a segment of the
//! log cannot be made, and the ring is told to stop taking writes well before that.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{StorageError, files::Files, limits};

const RESERVE: &str = "reserve";

/// How much is held back, and when to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceConfig {
    /// Size of the reserve file; 0 to keep none.
    pub reserve_bytes: u64,
    /// Less than this free is [`Space::Low`].
    pub low_bytes: u64,
}

impl Default for SpaceConfig {
    fn default() -> Self {
        Self { reserve_bytes: limits::RESERVE_BYTES, low_bytes: limits::SPACE_LOW_BYTES }
    }
}

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Enough.
    Plenty {
        /// Bytes free.
        free_bytes: u64,
    },
    /// The ring must stop taking writes; what frees space still works.
    Low {
        /// Bytes free.
        free_bytes: u64,
    },
    /// As [`Space::Low`], and the reserve is in use.
    Reserve {
        /// Bytes free.
        free_bytes: u64,
    },
}

impl Space {
    /// Whether the ring may take writes.
    #[must_use]
    pub fn takes_writes(self) -> bool {
        matches!(self, Self::Plenty { .. })
    }
}

/// The reserve file of a data directory.
#[derive(Debug)]
pub struct Reserve {
    files: Arc<dyn Files>,
    config: SpaceConfig,
    held: Mutex<bool>,
}

impl Reserve {
    /// Makes sure that the reserve is held, if there is room for it.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn open(files: Arc<dyn Files>, config: SpaceConfig) -> Result<Self, StorageError> {
        let held = match files.open(RESERVE) {
            _ if config.reserve_bytes == 0 => true,
            Ok(file) => {
                file.len().map_err(StorageError::io(RESERVE, "size"))? == config.reserve_bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(StorageError::io(RESERVE, "open")(error)),
        };
        let reserve = Self { files, config, held: Mutex::new(held) };
        reserve.refill()?;
        Ok(reserve)
    }

    fn held(&self) -> MutexGuard<'_, bool> {
        // One flag is whole even after a panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much room there is.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn space(&self) -> Result<Space, StorageError> {
        let free_bytes =
            self.files.free_bytes().map_err(StorageError::io(RESERVE, "free space"))?;
        Ok(match *self.held() {
            false => Space::Reserve { free_bytes },
            true if free_bytes < self.config.low_bytes => Space::Low { free_bytes },
            true => Space::Plenty { free_bytes },
        })
    }

    /// Gives the reserve back to the file system; says whether there was one.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn release(&self) -> Result<bool, StorageError> {
        let mut held = self.held();
        if !*held || self.config.reserve_bytes == 0 {
            return Ok(false);
        }
        self.files.remove(RESERVE).map_err(StorageError::io(RESERVE, "remove"))?;
        self.files.sync_dir().map_err(StorageError::io(RESERVE, "sync the directory"))?;
        *held = false;
        Ok(true)
    }

    /// Holds the reserve again once the disk is no longer low; says whether it is held now.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn refill(&self) -> Result<bool, StorageError> {
        let mut held = self.held();
        if *held {
            return Ok(true);
        }
        let free = self.files.free_bytes().map_err(StorageError::io(RESERVE, "free space"))?;
        if free >= self.config.reserve_bytes + self.config.low_bytes {
            let file = self.files.create(RESERVE).map_err(StorageError::io(RESERVE, "create"))?;
            match file.allocate(self.config.reserve_bytes) {
                Ok(()) => *held = true,
                Err(error) if crate::files::is_full(&error) => {
                    self.files.remove(RESERVE).map_err(StorageError::io(RESERVE, "remove"))?;
                }
                Err(error) => return Err(StorageError::io(RESERVE, "allocate")(error)),
            }
        }
        Ok(*held)
    }
}
