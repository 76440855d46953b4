//! Satrap's ring beside etcd: the same client program, three members each, fsync on, in one run.
//!
//! ```sh
//! cargo build --profile production -p satrap -p satrap-bench
//! target/production/satrap-bench etcd --etcd PATH-TO-ETCD
//! ```
//!
//! Machines are shared and noisy, so the two systems take turns; the figures to compare are ratios of
//! medians over the rounds. Both run plaintext on loopback towards clients; Satrap's members talk mTLS among
//! themselves, etcd's plaintext, because that is how each is usually benchmarked.

mod cluster;
mod compaction;
mod failover;
mod load;
mod program;
mod scale;
mod table;
mod throughput;
mod watch;
mod wire;

use std::{error::Error, path::PathBuf};

use clap::Args as ClapArgs;

pub use cluster::{Cluster, System};

use self::table::{head, median, row};

/// Result of every measurement; any error ends the benchmark.
pub type Bench<T> = Result<T, Box<dyn Error>>;

/// The measurement to make, and the servers to compare.
#[derive(ClapArgs, Clone, Debug)]
pub struct Args {
    /// The etcd program
    #[arg(long)]
    etcd: PathBuf,
    /// Let etcd's members speak TLS with each other, as Satrap's always do
    #[arg(long)]
    etcd_peer_tls: bool,
    /// The satrap program, unless it is the one beside this
    #[arg(long)]
    satrap: Option<PathBuf>,
    /// Etcd's `benchmark` program, unless it is to be built from `bench/etcd-benchmark`
    #[arg(long)]
    benchmark: Option<PathBuf>,
    /// How often each system gets its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Keys for `scale`, revisions for `compaction`
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Leaders killed in `failover`
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Of `throughput`, only these operations
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = throughput::Operation::ALL)]
    operations: Vec<throughput::Operation>,
    /// Of `throughput` and `program`, only so many clients at once
    #[arg(long, value_delimiter = ',', default_values_t = throughput::CLIENTS)]
    clients: Vec<usize>,
    /// Which measurements
    #[arg(value_enum, default_values_t = [Part::Throughput, Part::Program, Part::Watch, Part::Scale, Part::Failover, Part::Compaction])]
    parts: Vec<Part>,
}

/// One group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Puts and reads at 1, 64, 256 and 1 000 clients
    Throughput,
    /// Puts and ranges from etcd's own `benchmark` program
    Program,
    /// Memory and delay of many watches
    Watch,
    /// Restart and snapshot with many keys
    Scale,
    /// From the death of a leader to the next acknowledged write
    Failover,
    /// Puts while much is compacted and defragmented
    Compaction,
}

/// Runs the wanted parts.
///
/// # Errors
///
/// If a process cannot be started, or answers with an error where none is expected.
pub async fn run(args: Args) -> Bench<()> {
    for part in &args.parts {
        match part {
            Part::Throughput => throughput::run(&args).await?,
            Part::Program => program::run(&args).await?,
            Part::Watch => watch::run(&args).await?,
            Part::Scale => scale::run(&args).await?,
            Part::Failover => failover::run(&args).await?,
            Part::Compaction => compaction::run(&args).await?,
        }
    }
    Ok(())
}

impl Args {
    fn systems(&self) -> Bench<[System; 2]> {
        let satrap = self.satrap.clone().map_or_else(crate::realm::binary, Ok)?;
        let etcd = System::Etcd { program: self.etcd.clone(), peer_tls: self.etcd_peer_tls };
        Ok([etcd, System::Satrap(satrap)])
    }

    /// Measures both systems in turn, as often as wanted, and prints the medians: a row for each
    /// figure of a measurement, named and with its goal.
    async fn beside<const N: usize>(
        &self,
        title: &str,
        rows: [(&str, &str); N],
        measure: impl AsyncFn(&System) -> Bench<[f64; N]>,
    ) -> Bench<()> {
        let mut measured: [Vec<[f64; N]>; 2] = Default::default();
        for _ in 0..self.rounds {
            for (system, figures) in self.systems()?.iter().zip(&mut measured) {
                figures.push(measure(system).await?);
            }
        }
        head(title, self.rounds);
        for (n, (what, goal)) in rows.into_iter().enumerate() {
            let of = |figures: &Vec<[f64; N]>| median(figures.iter().map(|all| all[n]).collect());
            let [etcd, satrap] = measured.each_ref().map(of);
            row(what, etcd, satrap, goal);
        }
        Ok(())
    }
}
