//! Errors of the data directory, with the reason and the action that the operator should take.

use std::io;

use crate::Owner;

/// An error of any call of this crate.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The log or the state of this member is not what was written to the disk.
    #[error(
        "{file}: {what}; run `satrap member replace NAME` for this member, then move the data directory \
         away and start it again"
    )]
    Damaged {
        /// The file of the data directory.
        file: String,
        /// A description of the damage, with its place if that is known.
        what: String,
    },
    /// A file that was not in use yet, such as a snapshot that is being received, is not what was
    /// written to the disk. Log and state are unaffected.
    #[error(
        "{file}: {what}; the file was not in use yet, and the next attempt writes it from the start"
    )]
    DamagedUnused {
        /// The file of the data directory.
        file: String,
        /// A description of the damage.
        what: String,
    },
    /// A release with another format wrote the file, which was left as it is.
    #[error(
        "{file} has format {format}, and this release reads format {supported}; start the release \
         that wrote the file"
    )]
    Format {
        /// The file of the data directory.
        file: String,
        /// The format of the file.
        format: u32,
        /// The format that this release reads.
        supported: u32,
    },
    /// The data belongs to another ring or another member.
    #[error(
        "{file} belongs to member `{member}` of {ring}; check the data directory, and the names of \
         the ring and of this member"
    )]
    Foreign {
        /// The file of the data directory.
        file: String,
        /// The member that wrote the data.
        member: String,
        /// Whether its ring is "this ring" or "another ring".
        ring: &'static str,
    },
    /// The file system failed. The content on disk is unknown, so the process must stop.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// The file of the data directory.
        file: String,
        /// The error of the file system.
        source: io::Error,
    },
    /// The database engine failed; as for [`StorageError::Io`].
    #[error("{file}: {source}")]
    Engine {
        /// The file of the data directory.
        file: String,
        /// The error of the engine.
        source: Box<redb::Error>,
    },
    /// The disk has no room, and the call changed nothing: free some space, then try again.
    #[error("the disk is full: {needed_bytes} bytes are needed, {free_bytes} are free")]
    NoSpace {
        /// Bytes that the call needs.
        needed_bytes: u64,
        /// Bytes that are free on the file system.
        free_bytes: u64,
    },
    /// The caller asked for a change that would make the log or the state inconsistent. The call
    /// changed nothing.
    #[error("refused: {0}")]
    Order(String),
    /// The caller's record is over a limit. The call changed nothing.
    #[error("{what} of {bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// The kind of record that is too long.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// An earlier call failed, so the content on disk is unknown; the process must restart.
    #[error("an earlier write failed; this member must restart")]
    Stopped,
}

impl StorageError {
    /// Whether the process must stop. After any other error nothing was changed and the process may
    /// go on.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Format { .. }
            | Self::Foreign { .. }
            | Self::Io { .. }
            | Self::Engine { .. }
            | Self::Stopped => true,
            Self::DamagedUnused { .. }
            | Self::NoSpace { .. }
            | Self::Order(_)
            | Self::TooLarge { .. } => false,
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => crate::files::is_full(source),
            Self::Engine { source, .. } => {
                matches!(&**source, redb::Error::Io(source) if crate::files::is_full(source))
            }
            _ => false,
        }
    }

    pub(crate) fn damaged(file: &str, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), what: what.into() }
    }

    /// `file` belongs to `found`, and this process runs `expected`.
    pub(crate) fn foreign(file: &str, found: Owner, expected: &Owner) -> Self {
        let ring = if found.ring == expected.ring { "this ring" } else { "another ring" };
        Self::Foreign { file: file.to_owned(), member: found.member, ring }
    }

    /// `doing` is a verb, such as "read the size of".
    pub(crate) fn io(file: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { doing, file, source }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = if error.is_full() {
            io::ErrorKind::StorageFull
        } else if matches!(error, StorageError::Damaged { .. } | StorageError::DamagedUnused { .. })
        {
            io::ErrorKind::InvalidData
        } else {
            io::ErrorKind::Other
        };
        io::Error::new(kind, error)
    }
}
