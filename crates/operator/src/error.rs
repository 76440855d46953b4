//! Why a verb failed, for a person and for a script.
//!
//! The exit code says who has to act: the caller (64), the author of the data (65), the operator of
//! the servers (69), or the operator of this machine (70). 75 says that a change was submitted and its
//! fate is not known yet. They are those of `sysexits.h`.
//!
//! A file that a person writes for this program (the description of a realm, a configuration, a key, a
//! list of validators) is part of the command line: a fault in it is 64. Content to publish, and files
//! that this program or a server made (a genesis, a certificate, a change, a snapshot), are data: 65.

use std::{fmt, process::ExitCode};

use crate::text::one_line;

/// The party at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line, or a file that a person wrote, is wrong.
    Usage,
    /// Data was refused by a rule: here, or by the validators.
    Refused,
    /// No server answered; later or elsewhere it may work.
    Unavailable,
    /// This machine failed: disk, randomness, sockets.
    Internal,
    /// A server took a change, and no decision was seen in time. It may still be decided, once.
    Undecided,
}

impl Kind {
    /// The exit code, as in `sysexits.h`.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Refused => 65,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Undecided => 75,
        }
    }

    /// The same for [`std::process`].
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The word in `--json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Undecided => "undecided",
        }
    }
}

/// A failed verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The party at fault.
    pub kind: Kind,
    /// The rule of `docs/spec/` that refused, if one did.
    pub rule: Option<String>,
    /// The fault, what was expected instead, and what to do.
    pub message: String,
}

impl Error {
    /// The command line, or a file it names.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Usage, rule: None, message: message.to_string() }
    }

    /// Data that is refused without a numbered rule.
    pub fn refused(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Refused, rule: None, message: message.to_string() }
    }

    /// Data that breaks `rule`.
    pub fn rule(rule: impl Into<String>, message: impl fmt::Display) -> Self {
        let rule = Some(rule.into());
        Self { kind: Kind::Refused, rule, message: message.to_string() }
    }

    /// No server answered.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Unavailable, rule: None, message: message.to_string() }
    }

    /// This machine failed.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Internal, rule: None, message: message.to_string() }
    }

    /// A submitted change of unknown fate.
    pub fn undecided(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Undecided, rule: None, message: message.to_string() }
    }

    /// A file that cannot be read or written. A missing file is the caller's mistake.
    pub fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let path = one_line(&path.display().to_string());
        // Errors without an OS code come from this program and already carry their advice.
        let advice = match (error.kind(), error.raw_os_error()) {
            (ErrorKind::NotFound, Some(_)) => "; check the path",
            (ErrorKind::PermissionDenied, Some(_)) => "; check the owner and mode of the file",
            _ => "",
        };
        let message = format!("{what} {path}: {error}{advice}");
        match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::AlreadyExists
            | ErrorKind::InvalidInput
            | ErrorKind::FileTooLarge => Self::usage(message),
            _ => Self::internal(message),
        }
    }
}

impl From<satrap_certify::Rejection> for Error {
    fn from(rejection: satrap_certify::Rejection) -> Self {
        Self::rule(rejection.rule(), &rejection)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "refused by rule {rule}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}
