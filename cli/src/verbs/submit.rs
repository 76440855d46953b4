//! `satrap submit`: sends a saved change to the validators.

use std::{fmt, path::PathBuf};

use satrap_certify::SignedChange;
use satrap_host::clock;
use serde::Serialize;

use crate::{
    client::{Client, Connection},
    error::CliError,
    operator::{self, Summary},
    output::Output,
    verbs::block_on,
};

/// Arguments of `submit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The change, as `--out` saved it
    change: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

/// A decided change.
#[derive(Serialize)]
struct Submitted {
    change: Summary,
    height: u64,
    version: u64,
    decided_ms: u64,
    by: String,
}

/// Submits.
///
/// # Errors
///
/// The validators' refusal with its rule, or that nobody answered.
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
    let signed = operator::read_change(&args.change)?;
    let client = Client::open(&args.connection)?;
    decide(&client, &signed, output)
}

/// Submits `signed` and prints the decision.
pub(super) fn decide(
    client: &Client,
    signed: &SignedChange,
    output: &Output,
) -> Result<(), CliError> {
    let started = clock::monotonic();
    let decided = block_on(client.submit(signed))?;
    let decided_ms = (clock::monotonic() - started).as_millis();
    output.show(&Submitted {
        change: Summary::of(signed),
        height: decided.height,
        version: decided.version,
        decided_ms: u64::try_from(decided_ms).unwrap_or(u64::MAX),
        by: decided.by.label,
    })
}

impl fmt::Display for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { height, decided_ms, by, .. } = self;
        writeln!(f, "{}", self.change.action)?;
        writeln!(f, "  decided   at height {height} in {decided_ms} ms, says {by}")
    }
}
