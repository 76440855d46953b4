//! Errors of a run itself, which say nothing about the store that it tests.

use std::{io, process::Command};

/// An error outside the history of a run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A tool of the operating system refused; most of them want root.
    #[error("{command}: {output}")]
    Tool {
        /// The command line.
        command: String,
        /// Its output.
        output: String,
    },
    /// A file, a process or a socket.
    #[error("{what}: {error}")]
    Io {
        /// The action that failed.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The ring did not do what the run needs, such as elect a leader, in time.
    #[error("the ring did not {0}")]
    Ring(String),
    /// The run had too little load, a fault without effect, or an answer that it cannot judge.
    #[error("the run is inconclusive: {0}")]
    Inconclusive(String),
}

impl RunError {
    /// Puts what was tried before an error.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// Runs a tool to its end and returns what it printed.
///
/// # Errors
///
/// If it cannot be started, or does not succeed.
pub fn tool(program: &str, arguments: &[&str]) -> Result<String, RunError> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(RunError::io(command()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RunError::Tool { command: command(), output })
}
