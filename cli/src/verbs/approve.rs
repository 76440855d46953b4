//! `satrap approve`: adds an operator's signature to a saved change.
//!
//! The approver sees what the signed bytes do, and with `--matches` checks that the resulting
//! content is the one they reviewed, without trusting whoever made the file.

use std::path::PathBuf;

use satrap_certify::Action;

use crate::{
    client::Connection, content, error::CliError, operator, output::Output, verbs::publish,
};

/// Arguments of `approve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The change, as `--out` saved it
    change: PathBuf,
    /// Sign with this key (repeatable); without it, only show what the change does
    #[arg(long = "operator", value_name = "FILE")]
    operators: Vec<PathBuf>,
    /// Sign only if the bundle will hold exactly this directory or PEM file
    #[arg(long, value_name = "PATH")]
    matches: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// Approves.
///
/// # Errors
///
/// If the change is for another realm, or does not result in what the approver reviewed.
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
    let mut signed = operator::read_change(&args.change)?;
    let genesis = args.connection.genesis()?;
    let (ours, theirs) = (genesis.realm().genesis_hash(), &signed.change.genesis_hash);
    if ours != theirs {
        return Err(CliError::rule(
            "V1",
            format!(
                "the change is for the realm with genesis {}, this one has {}; do not sign it",
                hex::encode(theirs),
                hex::encode(ours)
            ),
        ));
    }
    if let Some(path) = &args.matches {
        let reviewed = content::read(path)?.root();
        let Action::Publish(publish) = &signed.change.action else {
            return Err(CliError::usage(
                "--matches is for changes that publish; this one leaves no content to compare",
            ));
        };
        if publish.root != reviewed {
            return Err(CliError::rule(
                "V7",
                format!(
                    "the change results in root {}, {} has {}; do not sign it",
                    hex::encode(publish.root),
                    path.display(),
                    hex::encode(reviewed)
                ),
            ));
        }
    }
    if args.operators.is_empty() {
        return output.show(&operator::Summary::of(&signed));
    }
    operator::approve(&mut signed, &args.operators)?;
    publish::save(&args.change, &signed, output)
}
