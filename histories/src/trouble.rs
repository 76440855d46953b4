//! Why a run could not be made, which is a failure of the run but says nothing of the store.

use std::{io, process::Command};

/// What went wrong around a run.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A tool of the operating system refused; most of them want root.
    #[error("{command}: {output}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file, a process or a socket.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The ring did not do what the run needs, such as elect a leader, in time.
    #[error("the ring did not {0}")]
    Ring(String),
    /// The run did not become what it should have been.
    #[error("the run does not count: {0}")]
    Worthless(String),
}

impl Trouble {
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
pub fn tool(program: &str, arguments: &[&str]) -> Result<String, Trouble> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(Trouble::io(command()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Trouble::Tool { command: command(), output })
}
