//! Decides how much a test run tries: little on any machine, everything in the gate.
//!
//! `cargo test --workspace` must pass within minutes for an ordinary user. Tests that need root,
//! network namespaces or loop devices, and storms of hundreds of seeds, run in full where
//! [`VARIABLE`] is `thorough`; `.ci/run` sets it. A quick run prints a line on standard error for
//! everything it leaves out or shortens.
//!
//! # Invariants
//!
//! - **EFFORT-1** A thorough run leaves nothing out. A test whose root, namespace or device is
//!   missing then fails; whether the machine could run a test is never asked.
//! - **EFFORT-2** A quick run names everything it leaves out, also when the test harness captures
//!   the output of tests that pass.

use std::{io::Write as _, thread};

/// The environment variable that chooses: `quick`, which is the default, or `thorough`.
pub const VARIABLE: &str = "SATRAP_TESTS";

/// How much a test run tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Passes within minutes, for any user.
    Quick,
    /// Runs everything in full.
    Thorough,
}

impl Effort {
    /// Reads the effort from the value of [`VARIABLE`]; without a value it is a quick run.
    ///
    /// # Errors
    ///
    /// If the value is neither `quick` nor `thorough`. The text names both.
    pub fn parse(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("" | "quick") => Ok(Self::Quick),
            Some("thorough") => Ok(Self::Thorough),
            Some(other) => {
                Err(format!("{VARIABLE}={other:?} is invalid: use `quick` or `thorough`"))
            }
        }
    }

    /// The effort of this process.
    ///
    /// # Panics
    ///
    /// If [`VARIABLE`] has another value: a gate with a typing error must not pass by trying little.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where tests read the effort")]
    pub fn chosen() -> Self {
        let value = std::env::var(VARIABLE).ok();
        Self::parse(value.as_deref()).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Whether the running test is left out, because this run is quick. Says so, with what the test
/// `needs`: a noun phrase such as "root and network namespaces".
#[must_use]
pub fn leaves_out(needs: &str) -> bool {
    let is_quick = Effort::chosen() == Effort::Quick;
    if is_quick {
        say(&format!("left out, needs {needs}"));
    }
    is_quick
}

/// `thorough` in a thorough run, else `quick`, after saying that only so many were tried. `units`
/// is a plural noun such as "power cuts".
#[must_use]
pub fn count(units: &str, quick: u64, thorough: u64) -> u64 {
    match Effort::chosen() {
        Effort::Thorough => thorough,
        Effort::Quick => {
            say(&format!("{quick} of {thorough} {units}"));
            quick
        }
    }
}

/// Writes past the harness, which captures the `print` macros only (EFFORT-2).
fn say(text: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // A test must not fail because its standard error is closed.
    drop(writeln!(std::io::stderr(), "quick run: {test}: {text} ({VARIABLE}=thorough runs all)"));
}

#[cfg(test)]
mod tests {
    use super::Effort;

    #[test]
    fn an_unknown_value_is_refused_and_names_the_known_ones() {
        assert_eq!(Effort::parse(None), Ok(Effort::Quick));
        assert_eq!(Effort::parse(Some("quick")), Ok(Effort::Quick));
        assert_eq!(Effort::parse(Some("thorough")), Ok(Effort::Thorough));
        let error = Effort::parse(Some("through")).unwrap_err();
        assert_eq!(error, "SATRAP_TESTS=\"through\" is invalid: use `quick` or `thorough`");
    }
}
