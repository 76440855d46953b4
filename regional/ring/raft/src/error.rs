//! The errors that stop a ring member.

use std::path::Path;

use openraft::{ConfigError, errors::Fatal};
use satrap_runtime::{Fault, Unusable};

use crate::{disk::DiskError, peers::PeerError, platform::Platform, types::Types};

/// The reason why the ring cannot run. Always fatal.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// This member's data cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A peer's address or name is invalid.
    #[error("members: {0}")]
    Peer(#[from] PeerError),
    /// Raft's timeouts contradict each other.
    #[error("raft timing: {0}")]
    Timing(#[from] ConfigError),
    /// openraft failed or stopped.
    #[error("raft: {0}")]
    Raft(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The peer listener failed.
    #[error("peer listener: {0}")]
    Listener(#[from] tonic::transport::Error),
}

impl RingError {
    /// The fault in the data directory together with its path, or else the error itself.
    ///
    /// # Errors
    ///
    /// `self`, if the data directory is not at fault.
    pub fn in_data_dir(self, data_dir: &Path) -> Result<Unusable, Self> {
        match self {
            Self::Disk(error) => Ok(error.unusable(data_dir)),
            error => Err(error),
        }
    }

    /// The party at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Peer(_) | Self::Timing(_) => Fault::Setting,
            Self::Disk(_) | Self::Raft(_) | Self::Thread(_) | Self::Listener(_) => Fault::Machine,
        }
    }
}

impl<P: Platform> From<Fatal<Types<P>>> for RingError {
    fn from(fatal: Fatal<Types<P>>) -> Self {
        Self::Raft(Box::new(fatal))
    }
}
