//! Prints what it measured, on this machine, in this run.
//!
//! ```sh
//! cargo build --profile production -p satrap -p satrap-bench
//! target/production/satrap-bench certificate
//! target/production/satrap-bench propagation            # loopback
//! target/production/satrap-bench propagation --matrix   # five continents
//! target/production/satrap-bench idle
//! target/production/satrap-bench etcd --etcd PATH       # the ring beside etcd
//! ```

mod certificate;
mod etcd;
mod idle;
mod matrix;
mod propagation;
mod proxy;
mod realm;
mod stats;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    measured: Measured,
}

#[derive(Subcommand)]
enum Measured {
    /// Size of a certificate on the wire and time to verify it, beside Tendermint's light client.
    Certificate,
    /// Time from submission to the last edge, through real processes.
    Propagation {
        /// Put the processes on five continents.
        #[arg(long)]
        matrix: bool,
        /// How many configs to publish.
        #[arg(long, default_value_t = 100)]
        publishes: usize,
    },
    /// The ring beside etcd: throughput, watches, restart, failover, compaction.
    Etcd(etcd::Args),
    /// Memory of an idle edge and CPU of an idle validator.
    Idle {
        /// How long to watch.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    match args.measured {
        Measured::Certificate => certificate::run(),
        Measured::Propagation { matrix, publishes } => {
            satrap_runtime::runtime::current_thread()?.block_on(propagation::run(matrix, publishes))
        }
        Measured::Etcd(args) => {
            satrap_runtime::runtime::current_thread()?.block_on(etcd::run(args))
        }
        Measured::Idle { seconds } => {
            satrap_runtime::runtime::current_thread()?.block_on(idle::run(seconds))
        }
    }
}
