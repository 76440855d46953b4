//! One file per verb.

pub mod approve;
pub mod blocks;
pub mod completions;
pub mod daemon;
pub mod etcd;
pub mod get;
pub mod govern;
pub mod init;
pub mod member;
pub mod publish;
pub mod quota;
pub mod recover;
pub mod retire;
pub mod signing;
pub mod snapshot;
pub mod status;
pub mod submit;
pub mod verify;

use std::time::Duration;

use clap::{Parser, Subcommand};
use satrap_dev as dev;
use satrap_operator::{Error, Kind};
use tokio::time::timeout;

use crate::output::Output;

/// Operates a Satrap realm: publishes certified config through a quorum of validators, reads and
/// verifies it, and runs validators, regions and edges
#[derive(Debug, Parser)]
#[command(name = "satrap", version, propagate_version = true)]
pub struct Cli {
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// The command to run
    #[command(subcommand)]
    pub verb: Verb,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a realm: genesis, certificates, keys, one directory per process
    Init(init::Args),
    /// Publish a directory or a PEM file as a new version of a bundle
    Publish(publish::Args),
    /// Take a bundle out of the directory, with all its entries
    Retire(retire::Args),
    /// Add an operator's approval to a saved change
    Approve(approve::Args),
    /// Submit a saved change
    Submit(submit::Args),
    /// Read a bundle, verified against the genesis
    Get(get::Args),
    /// Verify a saved certificate and content against a genesis, without any network
    Verify(verify::Args),
    /// Show validators, regions and edges on one screen
    Status(status::Args),
    /// Export decided blocks as Tendermint light blocks
    Blocks(blocks::Args),
    /// Change operators, region keys or validators
    #[command(subcommand)]
    Govern(govern::Verb),
    /// Point an etcd client at a region
    #[command(subcommand)]
    Etcd(etcd::Verb),
    /// Limit what the keys of a region, or those with a prefix, may hold
    #[command(subcommand)]
    Quota(quota::Verb),
    /// Save the state of a ring to a file, check such a file, or make a new ring from it
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    /// Add, remove or replace members of a running ring
    #[command(subcommand)]
    Member(member::Verb),
    /// After the loss of a majority: compare the survivors, and make one of them the ring
    #[command(subcommand)]
    Recover(recover::Verb),
    /// Run a whole realm on this machine and watch a real config travel through it
    Dev(dev::Args),
    /// Run a validator
    #[command(subcommand)]
    Validator(daemon::Validator),
    /// Run a member of a region
    #[command(subcommand)]
    Region(daemon::Region),
    /// Run an edge agent
    #[command(subcommand)]
    Edge(daemon::Edge),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

impl Verb {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// [`Error`] names the party at fault and the remedy.
    pub fn run(self, output: &Output) -> Result<(), Error> {
        match self {
            Self::Init(args) => init::run(&args, output),
            Self::Publish(args) => publish::run(&args, output),
            Self::Retire(args) => retire::run(&args, output),
            Self::Approve(args) => approve::run(&args, output),
            Self::Submit(args) => submit::run(&args, output),
            Self::Get(args) => get::run(&args, output),
            Self::Verify(args) => verify::run(&args, output),
            Self::Status(args) => status::run(&args, output),
            Self::Blocks(args) => blocks::run(&args, output),
            Self::Govern(verb) => govern::run(&verb, output),
            Self::Etcd(verb) => etcd::run(&verb, output),
            Self::Quota(verb) => quota::run(&verb, output),
            Self::Snapshot(verb) => snapshot::run(&verb, output),
            Self::Member(verb) => member::run(&verb, output),
            Self::Recover(verb) => recover::run(&verb, output),
            Self::Dev(args) => run_dev(args, output),
            Self::Validator(daemon::Validator::Run(args)) => daemon::validator(&args),
            Self::Region(daemon::Region::Run(args)) => daemon::region(&args),
            Self::Edge(daemon::Edge::Run(args)) => daemon::edge(&args),
            Self::Completions(args) => completions::run(&args, output),
        }
    }
}

fn run_dev(args: dev::Args, output: &Output) -> Result<(), Error> {
    let json = output.json;
    block_on(async move { dev::run(args, json).await.map_err(Error::from) })
}

/// Runs a read that a change will be built on, for at most `patience`; nothing is submitted yet.
pub(crate) fn block_on_within<T>(
    patience: Duration,
    what: &str,
    task: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    block_on(async {
        let seconds = patience.as_secs();
        let late = |_| {
            Error::unavailable(format!(
                "could not {what} within {seconds} s; `satrap status` shows which servers answer"
            ))
        };
        timeout(patience, task).await.map_err(late)?
    })
    .map_err(|error| match error.kind {
        Kind::Unavailable => {
            Error { message: format!("not submitted: {}", error.message), ..error }
        }
        Kind::Usage | Kind::Refused | Kind::Internal | Kind::Undecided => error,
    })
}

/// Runs a verb that talks to servers.
pub(crate) fn block_on<T>(task: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = satrap_runtime::runtime::current_thread();
    runtime.map_err(|e| Error::internal(format!("event queue: {e}")))?.block_on(task)
}
