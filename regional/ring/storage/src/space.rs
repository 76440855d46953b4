//! Watches the free disk space, and holds a reserve with which a member gets out of a full disk.
//!
//! A ring that runs out of disk must still write: compactions, alarms, leases and votes are log
//! entries too. So a reserve file holds space that is released when the log cannot create a
//! segment, and the ring stops accepting writes well before that.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{StorageError, files::Files, limits};

const RESERVE: &str = "reserve";

/// Size of the reserve, and the threshold for low space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceConfig {
    /// Size of the reserve file; 0 for none.
    pub reserve_bytes: u64,
    /// [`Space::Low`] is reported below this much free space.
    pub low_bytes: u64,
}

impl Default for SpaceConfig {
    fn default() -> Self {
        Self { reserve_bytes: limits::RESERVE_BYTES, low_bytes: limits::SPACE_LOW_BYTES }
    }
}

/// The state of the free disk space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Enough space.
    Plenty {
        /// Bytes free.
        free_bytes: u64,
    },
    /// The ring must refuse writes; requests that free space still work.
    Low {
        /// Bytes free.
        free_bytes: u64,
    },
    /// As [`Space::Low`], and the reserve has been released.
    Reserve {
        /// Bytes free.
        free_bytes: u64,
    },
}

impl Space {
    /// Whether the ring may accept writes.
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
    /// Creates the reserve file, if there is room for it.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn open(files: Arc<dyn Files>, config: SpaceConfig) -> Result<Self, StorageError> {
        let held = match files.open(RESERVE) {
            _ if config.reserve_bytes == 0 => true,
            Ok(file) => {
                file.len().map_err(StorageError::io(RESERVE, "read the size of"))?
                    == config.reserve_bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(StorageError::io(RESERVE, "open")(error)),
        };
        let reserve = Self { files, config, held: Mutex::new(held) };
        reserve.refill()?;
        Ok(reserve)
    }

    fn held(&self) -> MutexGuard<'_, bool> {
        // A single flag is valid even after a panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of the free disk space.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn space(&self) -> Result<Space, StorageError> {
        let free_bytes = self
            .files
            .free_bytes()
            .map_err(StorageError::io(RESERVE, "read the free disk space for"))?;
        Ok(match *self.held() {
            false => Space::Reserve { free_bytes },
            true if free_bytes < self.config.low_bytes => Space::Low { free_bytes },
            true => Space::Plenty { free_bytes },
        })
    }

    /// Releases the reserve to the file system; returns whether it was held.
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
        self.files.sync_dir().map_err(StorageError::io(RESERVE, "sync the directory of"))?;
        *held = false;
        Ok(true)
    }

    /// Holds the reserve again once the disk is no longer low; returns whether it is held now.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`]
    pub fn refill(&self) -> Result<bool, StorageError> {
        let mut held = self.held();
        if *held {
            return Ok(true);
        }
        let free = self
            .files
            .free_bytes()
            .map_err(StorageError::io(RESERVE, "read the free disk space for"))?;
        if free >= self.config.reserve_bytes + self.config.low_bytes {
            let file = self.files.create(RESERVE).map_err(StorageError::io(RESERVE, "create"))?;
            match file.allocate(self.config.reserve_bytes) {
                Ok(()) => *held = true,
                Err(error) if crate::files::is_full(&error) => {
                    self.files.remove(RESERVE).map_err(StorageError::io(RESERVE, "remove"))?;
                }
                Err(error) => return Err(StorageError::io(RESERVE, "allocate space for")(error)),
            }
        }
        Ok(*held)
    }
}
