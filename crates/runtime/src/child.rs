//! Starts a daemon of this program as a child that ends with its parent, whatever the parent died of.
//!
//! The child's standard input is a pipe of which only the parent has the other end. The kernel
//! closes that end when the parent is gone: after a clean end, a panic, SIGKILL or a closed terminal
//! alike, on every system, and also if the parent died before the child ran. The child stops then, as
//! its argument `--until-stdin-closes` asks, and does so as if it had got SIGTERM.
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

/// The end of a log, which says why a process died.
const LAST_LINES_BYTES: usize = 2_000;

/// The program to run, and how.
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
    /// Apart from `process`, which closes its standard input as soon as its end is waited for.
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
        let config = OsString::from(&self.config);
        let mut command = Command::new(&self.program);
        command
            .args([self.verb.as_ref(), "run".as_ref(), "--config".as_ref(), &*config])
            .arg("--until-stdin-closes");
        spawn(command, &self.log)
    }

    /// How it ended and the last lines of its log, for a person.
    #[must_use]
    pub fn how_it_ended(&self, status: ExitStatus) -> String {
        how_it_ended(status, &self.log)
    }
}

/// Starts `command`, whose output is appended to `log`. It is killed when the returned value is
/// dropped; whether it ends with this process is up to the program.
///
/// # Errors
///
/// If the log cannot be opened or the program cannot be started; the error names which.
pub fn spawn(mut command: Command, log: &Path) -> io::Result<Running> {
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
    };
    let output = fs::OpenOptions::new().create(true).append(true).open(log);
    let output = output.map_err(named(log))?;
    let program = PathBuf::from(command.as_std().get_program());
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-c in the terminal reaches the whole process group; only the parent acts on it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(named(&program))?;
    let stdin = process.stdin.take();
    Ok(Running { process, _stdin: stdin })
}

/// How a process ended and the last lines of its `log`, for a person.
#[must_use]
pub fn how_it_ended(status: ExitStatus, log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_LINES_BYTES)..]);
    format!("{status}; the end of its log {}:\n{}", log.display(), tail.trim_end())
}
