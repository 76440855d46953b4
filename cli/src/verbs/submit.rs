//! `satrap submit`: sends a saved change to the validators.
//!
//! The parts of a publish go one after the other, each once the one before is decided. Those that
//! were decided in an earlier attempt are left out: the head of the bundle says which they are.

use std::{fmt, path::PathBuf};

use satrap_certify::{Action, Interest};
use satrap_host::clock;
use serde::Serialize;

use crate::{
    changes::Changes,
    client::{Client, Connection, Patience},
    error::CliError,
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
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
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
) -> Result<(), CliError> {
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
) -> Result<Decision, CliError> {
    let say = |text: &str| output.note(text);
    let started = clock::monotonic();
    let (parts, total) = (changes.parts(), changes.parts().len());
    let decided = block_on(async {
        let done = if total > 1 { decided_parts(client, changes).await } else { 0 };
        // If all were, the last one is submitted again, and found to be decided.
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

/// How many of the parts are decided, as the certified head of the bundle shows. A bundle that is
/// elsewhere, or cannot be read, is left to the validators to judge.
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

/// Says how far the parts of a publish came.
fn in_part(error: CliError, before: usize, total: usize) -> CliError {
    if total == 1 {
        return error;
    }
    let CliError { kind, rule, message } = error;
    let part = before + 1;
    let message = match before {
        0 => format!("part {part} of {total}: {message}"),
        _ => format!(
            "part {part} of {total}: {message}\nthe {before} before it are decided, so the bundle is \
             between its old content and the new one; give the same command again to go on"
        ),
    };
    CliError { kind, rule, message }
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
