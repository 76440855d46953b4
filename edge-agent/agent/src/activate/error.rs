//! Why a version could not be made active.

use std::{io, path::PathBuf};

use crate::paths::PathError;

/// Why files, links or the hook failed for a version.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivateError {
    /// The keys cannot be files here (ACTIVATE-3, ACTIVATE-4).
    #[error(transparent)]
    Path(#[from] PathError),
    /// The hook failed.
    #[error("hook failed: {0}")]
    Hook(String),
    /// The hook cannot be started: it is not there, or the host has no memory or processes left.
    #[error("hook `{program}` did not start: {source}")]
    Start {
        /// The configured program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A directory or file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is where a link belongs (ACTIVATE-5).
    #[error("{path} is not a link of this agent; move it away, and the agent makes its own")]
    Foreign {
        /// Where.
        path: PathBuf,
    },
}
