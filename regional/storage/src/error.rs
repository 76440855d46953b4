//! Why the data of a member cannot be read or written, and what to do then.

use std::io;

/// What a call of this crate can end with.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The disk does not hold what was written to it.
    #[error(
        "{file}, byte {offset}: {what}; move the data directory away, and let this member rejoin \
         under a new name"
    )]
    Damaged {
        /// Which file of the data directory.
        file: String,
        /// Where in it; 0 if the engine does not say.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The data belongs to somebody else.
    #[error(
        "{file} holds the data of member `{member}` of another ring or another member; check \
         `data_dir`, `region`, `name` and `genesis`"
    )]
    Foreign {
        /// Which file of the data directory.
        file: String,
        /// Whose it is.
        member: String,
    },
    /// The file system failed. What is on disk is unknown, so the process must stop.
    #[error("{file}: {doing}: {source}")]
    Io {
        /// Which file of the data directory.
        file: String,
        /// What was asked of it.
        doing: &'static str,
        /// What the file system said.
        source: io::Error,
    },
    /// The database engine failed; as for [`StorageError::Io`].
    #[error("state.redb: {0}")]
    Engine(#[source] Box<redb::Error>),
    /// There is no room, and nothing was changed: free some, then ask again.
    #[error("the disk is full: {needed_bytes} bytes are needed, {free_bytes} are free")]
    NoSpace {
        /// For what was asked.
        needed_bytes: u64,
        /// On the file system.
        free_bytes: u64,
    },
    /// The caller asked for something that would make the log or the state inconsistent. Nothing
    /// was changed.
    #[error("refused: {0}")]
    Order(String),
    /// The caller's record is over a limit. Nothing was changed.
    #[error("{what} of {bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// What is too long.
        what: &'static str,
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        bytes_max: u64,
    },
    /// An earlier call failed, and what is on disk is unknown since; the process must restart.
    #[error("an earlier write failed; this member must restart")]
    Stopped,
}

impl StorageError {
    /// Whether the process must stop. Otherwise nothing was changed and it may go on.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Foreign { .. }
            | Self::Io { .. }
            | Self::Engine(_)
            | Self::Stopped => true,
            Self::NoSpace { .. } | Self::Order(_) | Self::TooLarge { .. } => false,
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => crate::files::is_full(source),
            Self::Engine(error) => {
                matches!(&**error, redb::Error::Io(source) if crate::files::is_full(source))
            }
            _ => false,
        }
    }

    pub(crate) fn damaged(file: &str, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset, what: what.into() }
    }

    pub(crate) fn io(file: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { file, doing, source }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = if error.is_full() {
            io::ErrorKind::StorageFull
        } else if matches!(error, StorageError::Damaged { .. }) {
            io::ErrorKind::InvalidData
        } else {
            io::ErrorKind::Other
        };
        io::Error::new(kind, error)
    }
}
