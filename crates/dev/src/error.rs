//! Why `dev` ends with an error.

use std::{path::PathBuf, time::Duration};

use satrap_operator::{Error, Kind};

use crate::processes::Death;

/// A realm that has not come up, or not converged, by then will not.
pub const CONVERGE_WITHIN: Duration = Duration::from_secs(120);

/// Why `dev` ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The command line, the state directory, or this machine.
    #[error(transparent)]
    Cli(#[from] Error),
    /// The realm does not do what it should.
    #[error("{0}")]
    Realm(String),
    /// Some process did not arrive in time.
    #[error("after {CONVERGE_WITHIN:?} still missing: {0}; the logs are in {1}")]
    Late(String, PathBuf),
    /// A process did not come up.
    #[error("{} did not start: {}", .0.name, .0.how)]
    Process(Death),
    /// A lie was not told, not refused, or refused by another rule.
    #[error("not every lie was told and refused by its rule")]
    Lies,
    /// The user pressed ctrl-c before it was done.
    #[error("stopped before every edge ran the config")]
    Interrupted,
}

impl From<DevError> for Error {
    fn from(error: DevError) -> Self {
        match error {
            DevError::Cli(error) => error,
            DevError::Lies => Self::refused(error),
            DevError::Late(..) | DevError::Interrupted => Self::unavailable(error),
            DevError::Realm(_) => Self::internal(error),
            // Its own exit code says whose fault it was.
            DevError::Process(ref death) => {
                let kinds = [Kind::Usage, Kind::Refused, Kind::Unavailable];
                let same = |kind: &Kind| death.code == Some(i32::from(kind.code()));
                let kind = kinds.into_iter().find(same).unwrap_or(Kind::Internal);
                Self { kind, rule: None, message: error.to_string() }
            }
        }
    }
}

/// This machine failed at `what`.
pub fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> DevError {
    move |error| Error::internal(format!("{what}: {error}")).into()
}
