//! `satrap-histories`: more runs than a test has time for, against etcd or a ring.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use clap::{Parser, Subcommand};
use satrap_histories::{
    RunError,
    cluster::{Etcd, Store},
    failover::{measure, percentile},
    fencing::experiment,
    holder::{Holder, hold},
    resource::{Guard, Resource, guard},
    run::{Options, WATCHERS, many},
    satrap::Satrap,
};

/// The default election timeout of members: short enough for elections within most faults.
const ELECTION_MS: u32 = 250;

/// Runs a live ring of three under faults and checks what its clients saw. Wants root.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Histories under faults.
    Run {
        #[command(flatten)]
        program: Program,
        /// How many runs.
        #[arg(long, default_value_t = 20)]
        runs: u64,
        /// The seed of the first run; each further one has the next.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Rounds of faults in each run.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Watchers in each run.
        #[arg(long, default_value_t = WATCHERS)]
        watchers: u32,
        /// How many runs side by side.
        #[arg(long, default_value_t = 1)]
        at_once: usize,
    },
    /// Holders of roles that are stopped past their lease, with guarded resources and without.
    Fencing {
        /// The satrap binary.
        #[arg(long)]
        satrap: PathBuf,
        /// How often a holder is stopped.
        #[arg(long, default_value_t = 8)]
        pauses: usize,
    },
    /// The time from the death of a leader to the next acknowledged write.
    Failover {
        #[command(flatten)]
        program: Program,
        /// How many leaders are killed.
        #[arg(long, default_value_t = 50)]
        kills: usize,
        /// Milliseconds without a heartbeat until a follower becomes a candidate.
        #[arg(long, default_value_t = 1_000)]
        election_ms: u32,
    },
    /// A holder of a role, as the experiment starts it.
    #[command(hide = true)]
    Holder(Holder),
    /// A resource, as the experiment starts it.
    #[command(hide = true)]
    Resource(Resource),
}

/// The program that the members run.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Program {
    /// The satrap binary.
    #[arg(long)]
    satrap: Option<PathBuf>,
    /// The etcd binary.
    #[arg(long)]
    etcd: Option<PathBuf>,
}

impl Program {
    fn store(&self, election_ms: u32) -> Result<Box<dyn Store>, RunError> {
        Ok(match (&self.satrap, &self.etcd) {
            (Some(binary), _) => Box::new(Satrap::new(binary, election_ms)?),
            (None, Some(binary)) => Box::new(Etcd { binary: binary.clone(), election_ms }),
            (None, None) => {
                return Err(RunError::Inconclusive("there is no program to run".into()));
            }
        })
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Run { program, runs, seed, rounds, watchers, at_once } => {
            let seeds: Vec<_> = (seed..seed + runs).collect();
            histories(&program, &seeds, (rounds, watchers), at_once)
        }
        Verb::Fencing { satrap, pauses } => fencing(&satrap, pauses),
        Verb::Failover { program, kills, election_ms } => failover(&program, kills, election_ms),
        Verb::Holder(holder) => hold(&holder),
        Verb::Resource(resource) => guard(&resource),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn histories(
    program: &Program,
    seeds: &[u64],
    (rounds, watchers): (usize, u32),
    at_once: usize,
) -> Result<(), RunError> {
    let failed = Mutex::new(Vec::new());
    let make = |seed| Ok((program.store(ELECTION_MS)?, Options { seed, rounds, watchers }));
    many(seeds, at_once, make, |seed, made| {
        let is_well = match made {
            Ok(summary) => {
                println!("{summary}");
                summary.violations.iter().take(5).for_each(|violation| println!("  {violation}"));
                summary.violations.is_empty()
            }
            Err(error) => {
                println!("seed {seed}: {error}");
                false
            }
        };
        if !is_well {
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.is_empty() {
        Ok(())
    } else {
        Err(RunError::Inconclusive(format!("seeds {failed:?}")))
    }
}

fn fencing(satrap: &Path, pauses: usize) -> Result<(), RunError> {
    let own = std::env::current_exe().map_err(RunError::io("the path of this program"))?;
    for guard in [Guard::Tokens, Guard::Nothing] {
        let outcome = experiment(Box::new(Satrap::new(satrap, ELECTION_MS)?), &own, guard, pauses)?;
        println!("{guard:?}: {outcome:?}");
    }
    Ok(())
}

fn failover(program: &Program, kills: usize, election_ms: u32) -> Result<(), RunError> {
    let times = measure(program.store(election_ms)?, kills)?;
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    let most = times.last().copied().unwrap_or_default();
    println!("{kills} leaders killed: p50 {p50:?}, p99 {p99:?}, most {most:?}");
    Ok(())
}
