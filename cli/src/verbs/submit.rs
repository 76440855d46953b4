//! `satrap submit`: sends a saved change to the validators.
//!
//! The parts of a publish go one after the other, each once the one before is decided. Those that
//! were decided in an earlier attempt are skipped: the head of the bundle shows which they are.

use std::{fmt, path::PathBuf};

use satrap_certify::{Action, Interest};
use satrap_operator::{
    Error, Kind,
    changes::Changes,
    client::{Client, Connection, Patience},
};
use satrap_runtime::clock;
use serde::Serialize;

use crate::{
    output::Output,
    verbs::{approve, block_on},
};

/// Arguments of `submit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The change, as `--out` saved it
    change: PathBuf,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    connection: Connection,
}

/// How a change was decided.
#[derive(Serialize)]
pub struct Decision {
    /// The height that decided it, or its last part.
    pub height: u64,
    /// The bundle's version after it; 0 if it is not a publish.
    pub version: u64,
    /// From submission to decision.
    pub decided_ms: u64,
    /// The server that answered, or showed the effect.
    pub by: String,
    /// Whether it had been decided before.
    pub before: bool,
}

/// A decided change.
#[derive(Serialize)]
struct Submitted {
    action: String,
    #[serde(flatten)]
    decision: Decision,
}

/// Submits.
///
/// # Errors
///
/// The validators' refusal with its rule, or whether the change was submitted at all.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let changes = Changes::read(&args.change)?;
    let client = Client::open(&args.connection)?;
    approve::check_realm(&changes, &client.genesis)?;
    show(&client, &changes, args.patience, output)
}

/// Submits `changes` and prints the decision.
pub(super) fn show(
    client: &Client,
    changes: &Changes,
    patience: Patience,
    output: &Output,
) -> Result<(), Error> {
    let action = approve::in_words(client, changes);
    let decision = decide(client, changes, patience, output)?;
    output.show(&Submitted { action, decision })
}

/// Submits `changes`, part by part, and waits for each decision.
pub(super) fn decide(
    client: &Client,
    changes: &Changes,
    patience: Patience,
    output: &Output,
) -> Result<Decision, Error> {
    let say = |text: &str| output.note(text);
    let started = clock::monotonic();
    let (parts, total) = (changes.parts(), changes.parts().len());
    let decided = block_on(async {
        let done = if total > 1 { decided_parts(client, changes).await } else { 0 };
        // If all were, the last one is submitted again, and turns out to be decided.
        let mut decided = None;
        for (n, part) in parts.iter().enumerate().skip(done.min(total - 1)) {
            let submitted = client.submit_within(part, patience.duration(), &say).await;
            let submitted = submitted.map_err(|error| in_part(error, n, total))?;
            if total > 1 {
                say(&format!("part {} of {total} is decided", n + 1));
            }
            decided = Some(submitted);
        }
        Ok(decided.expect("there is at least one part"))
    })?;
    let decided_ms = (clock::monotonic() - started).as_millis();
    Ok(Decision {
        height: decided.height,
        version: decided.version,
        decided_ms: u64::try_from(decided_ms).unwrap_or(u64::MAX),
        by: decided.by.label,
        before: decided.before,
    })
}

/// How many of the parts are decided, as the certified head of the bundle shows. Zero if the
/// bundle is at another version or cannot be read; then the validators judge the first part.
async fn decided_parts(client: &Client, changes: &Changes) -> usize {
    let Some(bundle) = changes.first().change.action.bundle() else { return 0 };
    let read = client.read(&Interest::Bundles(vec![bundle.clone()])).await;
    let Ok(read) = read else { return 0 };
    let Some(head) = read.replica.heads().get(bundle) else { return 0 };
    let made = changes.parts().iter().position(|part| match &part.change.action {
        Action::Publish(p) => p.root == head.root && p.expect_version + 1 == head.version,
        Action::Retire(_) | Action::Govern(..) => false,
    });
    made.map_or(0, |place| place + 1)
}

/// Adds to an error which part it concerns, and what to do about the others.
fn in_part(error: Error, before: usize, total: usize) -> Error {
    if total == 1 {
        return error;
    }
    let Error { kind, rule, message } = error;
    let part = before + 1;
    // The validators refuse the same bytes again.
    let next = match kind {
        Kind::Refused => "the other parts need a new change: `satrap publish` makes one from here",
        _ => "give the same command again to go on",
    };
    let message = match before {
        0 => format!("part {part} of {total}: {message}"),
        _ => format!(
            "part {part} of {total}: {message}\nthe {before} before it are decided, so the bundle is \
             between its old content and the new one; {next}"
        ),
    };
    Error { kind, rule, message }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { height, decided_ms, by, .. } = self;
        match (self.before, height) {
            (true, 0) => writeln!(f, "  decided   before, as {by} shows; nothing was left to do"),
            (true, _) => writeln!(
                f,
                "  decided   before, by height {height}, as {by} shows; nothing was left to do"
            ),
            (false, _) => {
                writeln!(f, "  decided   at height {height} in {decided_ms} ms, says {by}")
            }
        }
    }
}

impl fmt::Display for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.action)?;
        write!(f, "{}", self.decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_part_is_not_to_be_submitted_again() {
        let refused = in_part(Error::rule("V4", "stale"), 1, 3);
        assert_eq!((refused.kind, refused.rule.as_deref()), (Kind::Refused, Some("V4")));
        assert!(refused.message.ends_with("`satrap publish` makes one from here"), "{refused}");
        let late = in_part(Error::undecided("late"), 1, 3);
        assert!(late.message.ends_with("give the same command again to go on"), "{late}");
        let first = in_part(Error::rule("V4", "stale"), 0, 3);
        assert_eq!(first.message, "part 1 of 3: stale");
    }
}
