//! The one user-facing binary.

use std::process::ExitCode;

use clap::Parser as _;
use satrap_cli::{Output, verbs::Cli};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do if standard error is closed too.
            let _ = error.print();
            return if error.use_stderr() {
                satrap_cli::Kind::Usage.exit_code()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let output = Output { json: cli.json };
    match cli.verb.run(&output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.fail(&error);
            error.kind.exit_code()
        }
    }
}
