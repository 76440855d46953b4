//! Starts a daemon of this program as a child that ends with its parent, whatever the parent died of.
//!
//! The child's standard input is a pipe of which only the parent has the other end. The kernel
//! closes that end when the parent is gone: after a clean end, a panic, SIGKILL or a closed terminal
//! alike, on every system, and also if the parent died before the child ran. The child was told to
//! stop then (`--until-stdin-closes`), and does so as if it had got SIGTERM.
//!
//! # Deliberately absent
//!
//! `PR_SET_PDEATHSIG`: only Linux has it, it follows the parent's thread rather than its process,
//! and a parent that dies before the child asks for it is missed.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::process::{Child, ChildStdin, Command};

/// So much of the end of a log says why a process died.
const LAST_WORDS_BYTES: usize = 2_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The program.
    pub program: PathBuf,
    /// `validator`, `region` or `edge`.
    pub verb: &'static str,
    /// Its configuration.
    pub config: PathBuf,
    /// Where its output is appended.
    pub log: PathBuf,
}

/// A child that was started.
#[derive(Debug)]
pub struct Running {
    /// The process; killed when dropped.
    pub process: Child,
    /// Apart from `process`, which closes its standard input as soon as somebody waits for its end.
    _stdin: Option<ChildStdin>,
}

impl Running {
    /// Closes the child's standard input, as the end of this process would.
    #[must_use]
    pub fn ask_to_stop(self) -> Child {
        self.process
    }
}

impl Daemon {
    /// Starts it. It is killed when the returned value is dropped, and ends with this process.
    ///
    /// # Errors
    ///
    /// If the log cannot be opened or the program cannot be started; the error names which.
    pub fn spawn(&self) -> io::Result<Running> {
        let named = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(named(&self.log))?;
        let config = OsString::from(&self.config);
        let mut process = Command::new(&self.program)
            .args([self.verb.as_ref(), "run".as_ref(), "--config".as_ref(), &*config])
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-c in the terminal reaches the whole process group; only the parent acts on it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(named(&self.program))?;
        let stdin = process.stdin.take();
        Ok(Running { process, _stdin: stdin })
    }

    /// How it ended and the end of its log, for a person.
    #[must_use]
    pub fn last_words(&self, status: ExitStatus) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LAST_WORDS_BYTES)..]);
        let log = self.log.display();
        format!("{status}; the end of its log {log}:\n{}", tail.trim_end())
    }
}
