//! The edge agent alone, for machines that run nothing else of Satrap.

use std::{fmt::Display, path::PathBuf, process::ExitCode};

use clap::Parser;
use satrap_edge_agent::{Config, run};
use satrap_identity::config::ConfigError;
use satrap_runtime::{Fault, RunUntil, runtime, telemetry};

/// Takes config from a region and believes none of it until it has verified it.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Log level, such as `info` or `warn,satrap_edge_agent=debug`
    #[arg(long, value_name = "LEVELS", default_value = "info")]
    log: String,
    /// Stop when standard input is closed, as it is when a parent that holds its other end is gone
    #[arg(long)]
    until_stdin_closes: bool,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to do if standard error is closed too.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::from(Fault::Setting.code()),
                false => ExitCode::SUCCESS,
            };
        }
    };
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err((fault, error)) => {
            eprintln!("satrap-edge: {error}");
            ExitCode::from(fault.code())
        }
    }
}

fn start(args: &Args) -> Result<(), (Fault, String)> {
    let setting = |error: &dyn Display| (Fault::Setting, error.to_string());
    let located = |error: &dyn Display| format!("{}: {error}", args.config.display());
    let config = Config::load(&args.config).map_err(|error| match error {
        ConfigError::Key { .. } => (Fault::Setting, located(&error)),
        error => setting(&error),
    })?;
    telemetry::init(&args.log, telemetry::LogFormat::Auto).map_err(|error| setting(&error))?;
    let runtime = runtime::current_thread().map_err(|e| (Fault::Machine, e.to_string()))?;
    let until = if args.until_stdin_closes { RunUntil::StdinCloses } else { RunUntil::Signal };
    runtime.block_on(run(config, until)).map_err(|error| (error.fault(), located(&error)))
}
