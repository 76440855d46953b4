//! The one user-facing binary.

use std::process::ExitCode;

use clap::Parser as _;
use satrap_cli::{Output, verbs::Cli};
use satrap_operator::{Error, Kind};

/// Prints help, the version, or the fault in the command line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nothing is left to do if standard output is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The command line did not parse, so this looks for the switch itself.
    let mut args = std::env::args_os().skip(1).take_while(|arg| arg != "--");
    if args.any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        Output { json: true }.fail(&Error::usage(text.trim_end()));
    } else {
        let _ = error.print();
    }
    Kind::Usage.exit_code()
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return usage(&error);
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
