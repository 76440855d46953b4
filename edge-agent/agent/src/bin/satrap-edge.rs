//! The edge agent alone, for machines that run nothing else of Satrap.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use satrap_edge_agent::{Config, run};
use satrap_host::{runtime, telemetry};

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
}

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("satrap-edge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    telemetry::init(&args.log, telemetry::LogFormat::Auto)?;
    let config = Config::load(&args.config)?;
    Ok(runtime::current_thread()?.block_on(run(config))?)
}
