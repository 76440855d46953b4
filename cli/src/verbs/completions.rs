//! `satrap completions SHELL`.

use clap::CommandFactory as _;
use clap_complete::Shell;
use satrap_operator::Error;

use crate::{output::Output, verbs::Cli};

/// For example: `satrap completions bash > /etc/bash_completion.d/satrap`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
///
/// If standard output cannot be written.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "satrap", &mut script);
    output.bytes(&script)
}
