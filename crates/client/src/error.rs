//! Errors between a client and the ring.

use tonic::{Code, Status};

use crate::tenure::Lost;

/// Why something was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The ring refused, or could not be reached. With [`Code::Unavailable`],
    /// [`Code::DeadlineExceeded`] or [`Code::Unknown`] a write may have been done nevertheless.
    #[error("the ring: {0}")]
    Ring(Box<Status>),
    /// The lease or the role that we held, or waited with, has ended.
    #[error("lost: {0}")]
    Lost(#[from] Lost),
    /// Others kept writing the same key.
    #[error("gave up after {0} conflicts")]
    Contended(u32),
    /// The ring, or something that says it is one, does not keep to the protocol.
    #[error("the answer makes no sense: {0}")]
    Nonsense(&'static str),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Ring(Box::new(status))
    }
}

impl Error {
    /// Whether the same question may be answered a little later. Only for questions that change
    /// nothing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let Self::Ring(status) = self else { return false };
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
    }
}
