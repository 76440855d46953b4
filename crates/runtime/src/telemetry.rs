//! Where log lines go and what they look like.
//!
//! Lines go to standard error, so that standard output stays free for what a command prints. A
//! person at a terminal gets text; everything else gets one JSON object per line. Warnings and errors
//! that repeat are summed up.
//!
//! # Deliberately absent
//!
//! No environment filter: two processes started with the same flags behave the same.

mod repeats;

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use repeats::Repeats;

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level flag does not parse.
    #[error("{0:?} is not a log level; expected `info`, or `warn,satrap_edge_agent=debug`")]
    Levels(String),
    /// This process logs already.
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging with `levels` such as `info` or `warn,satrap_edge_agent=debug`.
///
/// # Errors
///
/// [`TelemetryError`] if `levels` does not parse or logging already runs.
pub fn init(levels: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = parse(levels).ok_or_else(|| TelemetryError::Levels(levels.to_owned()))?;
    let text = match format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = fmt::layer().with_writer(Repeats::default());
    let lines = if text {
        lines.with_ansi(io::stderr().is_terminal()).boxed()
    } else {
        lines.json().flatten_event(true).boxed()
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|_| TelemetryError::Twice)
}

/// The library takes a bare word for the name of a target, so a mistyped level would silence all,
/// and it takes nothing at all for `error`.
fn parse(levels: &str) -> Option<Targets> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let known = levels.split(',').all(|part| part.contains('=') || is_level(part));
    known.then(|| levels.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_once_and_explains_what_is_wrong() {
        for bad in ["inof", "", "info,loud", "satrap_runtime=loud"] {
            let error = init(bad, LogFormat::Json).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad:?} is not a log level; ")), "{error}");
        }
        init("warn,satrap_runtime=debug", LogFormat::Json).unwrap();
        assert!(matches!(init("info", LogFormat::Auto), Err(TelemetryError::Twice)));
    }
}
