//! Runs the real binary.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    path::Path,
    process::{Command, Output},
};

/// The exit code and output of a run of the binary.
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it was not killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Panics unless the exit code is `code` and standard error contains `expected`.
    #[track_caller]
    pub fn fails(self, code: i32, expected: &str) -> Self {
        let Self { code: found, out, err } = &self;
        assert!(*found == code && err.contains(expected), "exit {found}\n{out}\n{err}");
        self
    }

    /// Panics unless it succeeded, and returns standard output.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
        self.out
    }

    /// Standard output as JSON, after success.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.succeeds()).unwrap()
    }
}

/// The binary, with `dir` as its working directory.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_satrap"));
    command.current_dir(dir);
    command
}

/// Runs the binary in `dir`.
pub fn satrap(dir: &Path, args: &[&str]) -> Ran {
    Ran::of(command(dir).args(args).output().unwrap())
}
