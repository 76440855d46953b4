//! `satrap validator run`, `satrap region run`, `satrap edge run`: the three daemons.
//!
//! A daemon prints nothing on standard output; its log goes to standard error. It runs until it is
//! told to stop or must not go on, and its exit code tells a supervisor which.

use std::{fmt::Display, path::PathBuf};

use satrap_identity::config::ConfigError;
use satrap_operator::Error;
use satrap_runtime::{
    Fault, RunUntil, runtime,
    telemetry::{self, LogFormat},
};

/// Threads of a server: consensus has its own, these serve connections.
const SERVER_THREADS: usize = 4;

/// The engines write several lines per block at `info`.
const DEFAULT_LEVELS: &str = "info,arc_malachitebft_core_consensus=warn,openraft=off";

/// Arguments of `run`.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// Its configuration, as `satrap init` writes it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Log level, such as `info` or `warn,satrap_runtime=debug`
    #[arg(long, value_name = "LEVELS", default_value = DEFAULT_LEVELS)]
    log: String,
    /// Shape of log lines
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    log_format: Format,
    /// Stop when standard input is closed, as it is when a parent that holds its other end is gone
    #[arg(long)]
    until_stdin_closes: bool,
}

impl RunArgs {
    fn until(&self) -> RunUntil {
        if self.until_stdin_closes { RunUntil::StdinCloses } else { RunUntil::Signal }
    }

    /// The error of a daemon with this configuration, which decides the exit code.
    fn failed(&self, error: impl Display, fault: Fault) -> Error {
        let message = format!("{}: {error}", self.config.display());
        match fault {
            Fault::Setting => Error::usage(message),
            Fault::InUse => Error::unavailable(message),
            Fault::Machine => Error::internal(message),
        }
    }
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere
    Auto,
    /// Text
    Text,
    /// One JSON object per line
    Json,
}

/// `satrap validator …`
#[derive(Debug, clap::Subcommand)]
pub enum Validator {
    /// Run until told to stop
    Run(RunArgs),
}

/// `satrap region …`
#[derive(Debug, clap::Subcommand)]
pub enum Region {
    /// Run until told to stop
    Run(RunArgs),
}

/// `satrap edge …`
#[derive(Debug, clap::Subcommand)]
pub enum Edge {
    /// Run until told to stop
    Run(RunArgs),
}

/// Runs a validator.
///
/// # Errors
///
/// If it cannot start, or must not go on.
pub fn validator(args: &RunArgs) -> Result<(), Error> {
    let config = satrap_global_node::Config::load(&args.config).map_err(|e| refuse(args, e))?;
    start_log(args)?;
    let runtime = runtime::multi_thread("validator", SERVER_THREADS).map_err(Error::internal)?;
    let ran = runtime.block_on(satrap_global_node::run(config, args.until()));
    ran.map_err(|error| args.failed(&error, error.fault()))
}

/// Runs a member of a region.
///
/// # Errors
///
/// If it cannot start, or must not go on.
pub fn region(args: &RunArgs) -> Result<(), Error> {
    let config = satrap_region_server::Config::load(&args.config).map_err(|e| refuse(args, e))?;
    start_log(args)?;
    let ran = satrap_region_server::run(config, args.until());
    ran.map_err(|error| args.failed(&error, error.fault()))
}

/// Runs an edge agent.
///
/// # Errors
///
/// If it cannot start, or must not go on.
pub fn edge(args: &RunArgs) -> Result<(), Error> {
    let config = satrap_edge_agent::Config::load(&args.config).map_err(|e| refuse(args, e))?;
    start_log(args)?;
    // The agent runs beside a workload and takes one thread.
    let runtime = runtime::current_thread().map_err(Error::internal)?;
    let ran = runtime.block_on(satrap_edge_agent::run(config, args.until()));
    ran.map_err(|error| args.failed(&error, error.fault()))
}

fn refuse(args: &RunArgs, error: ConfigError) -> Error {
    match error {
        // The others name the file themselves.
        ConfigError::Key { .. } => Error::usage(format!("{}: {error}", args.config.display())),
        error => Error::usage(error),
    }
}

fn start_log(args: &RunArgs) -> Result<(), Error> {
    let format = match args.log_format {
        Format::Auto => LogFormat::Auto,
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    telemetry::init(&args.log, format).map_err(Error::usage)
}
