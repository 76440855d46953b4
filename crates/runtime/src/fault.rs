//! Says why a process cannot start: which setting, what is wrong with it, what to do, whose fault.
//!
//! A process that does not start is read about in one line, by a person who did not write it, and in
//! an exit code, by a supervisor that must know whether to try again.

use std::{fmt::Display, io, net::SocketAddr, path::Path};

use crate::lock::LockError;

/// Whose fault it is, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A setting, or a file that it names: starting again does not help.
    Setting,
    /// Another process uses what this one needs: later it may work.
    InUse,
    /// This machine: its disk, memory or limits.
    Machine,
}

impl Fault {
    /// The exit code, as in `sysexits.h`.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Setting => 64,
            Self::InUse => 69,
            Self::Machine => 70,
        }
    }
}

/// A setting that a process cannot start with.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {why}; {remedy}")]
pub struct Unusable {
    key: &'static str,
    why: String,
    remedy: String,
    fault: Fault,
}

impl Unusable {
    /// The setting `key` has a fault; `why` says which, `remedy` what to do.
    pub fn new(key: &'static str, fault: Fault, why: impl Display, remedy: impl Display) -> Self {
        Self { key, why: why.to_string(), remedy: remedy.to_string(), fault }
    }

    /// The address at `key` cannot be listened on.
    #[must_use]
    pub fn listen(key: &'static str, address: SocketAddr, error: &io::Error) -> Self {
        let (fault, remedy) = match error.kind() {
            io::ErrorKind::AddrInUse => {
                (Fault::InUse, "stop the process that listens there, or choose another address")
            }
            io::ErrorKind::AddrNotAvailable => {
                (Fault::Setting, "choose an address of this host, or 0.0.0.0 for all of them")
            }
            io::ErrorKind::PermissionDenied => {
                (Fault::Setting, "choose a port above 1023, or grant CAP_NET_BIND_SERVICE")
            }
            _ => (Fault::Machine, "check the network and the limit on open files (`ulimit -n`)"),
        };
        Self::new(key, fault, format!("cannot listen on {address}: {error}"), remedy)
    }

    /// The directory at `key` cannot be used.
    #[must_use]
    pub fn directory(key: &'static str, path: &Path, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let (fault, remedy) = match error.kind() {
            Kind::PermissionDenied => {
                (Fault::Setting, "let the user of this process write there, or choose another")
            }
            Kind::ReadOnlyFilesystem | Kind::NotADirectory | Kind::AlreadyExists => {
                (Fault::Setting, "choose a directory on a disk that can be written")
            }
            Kind::ResourceBusy => (Fault::InUse, "stop that process, or choose another directory"),
            Kind::StorageFull | Kind::QuotaExceeded => (Fault::Machine, "free space on the disk"),
            _ => (Fault::Machine, "check the disk (`dmesg`)"),
        };
        Self::new(key, fault, format!("cannot use {}: {error}", path.display()), remedy)
    }

    /// The directory at `key` has another owner, or cannot be locked.
    #[must_use]
    pub fn locked(key: &'static str, error: &LockError) -> Self {
        match error {
            LockError::InUse { .. } => {
                let remedy = "stop that process, or choose another directory";
                Self::new(key, Fault::InUse, error, remedy)
            }
            LockError::File { directory, error } => Self::directory(key, directory, error),
        }
    }

    /// The operating system refused a thread, a runtime or a signal handler.
    #[must_use]
    pub fn resources(key: &'static str, error: &io::Error) -> Self {
        let why = format!("the operating system refused a thread or event queue: {error}");
        Self::new(key, Fault::Machine, why, "raise the limits on threads and open files")
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_remedy_and_its_fault() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let listen = |kind| Unusable::listen("listen", address, &io::Error::from(kind));
        let used = listen(io::ErrorKind::AddrInUse);
        assert_eq!(used.fault(), Fault::InUse);
        assert_eq!(
            used.to_string(),
            "`listen`: cannot listen on 127.0.0.1:80: address in use; stop the process that listens \
             there, or choose another address"
        );
        assert_eq!(listen(io::ErrorKind::PermissionDenied).fault(), Fault::Setting);
        assert_eq!(listen(io::ErrorKind::OutOfMemory).fault(), Fault::Machine);
        let directory = |kind| {
            Unusable::directory("data_dir", Path::new("/data"), &io::Error::from(kind)).fault()
        };
        assert_eq!(directory(io::ErrorKind::ResourceBusy), Fault::InUse);
        assert_eq!(directory(io::ErrorKind::StorageFull), Fault::Machine);
        assert_eq!(directory(io::ErrorKind::NotADirectory), Fault::Setting);
    }
}
