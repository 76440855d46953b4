//! Puts and linearizable ranges from etcd's own `benchmark` program, which is the load that users put on
//! both systems.
//!
//! The program is pinned by the Go module in `bench/etcd-benchmark` and built by this one. A run of it is
//! a number of requests, not a duration: a first, short run of each load finds out how many fill the
//! time that was asked for.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{
    Args, Bench, Cluster,
    table::{head, median, row},
};

/// Requests of the run that finds out how fast a system is.
const CALIBRATION_REQUESTS: u64 = 2_000;
/// The key of every range; 8 bytes like those of the program's puts.
const KEY: &str = "bench-01";

/// One way to call the program.
struct Load {
    clients: u64,
    connections: u64,
    operation: Operation,
    /// Least throughput, as a multiple of etcd's.
    rate_goal: &'static str,
    /// Most CPU of the servers for an operation, as a multiple of etcd's.
    cpu_goal: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Put,
    Range,
}

const LOADS: [Load; 4] = [
    Load {
        clients: 1,
        connections: 1,
        operation: Operation::Put,
        rate_goal: ">= 1.2",
        cpu_goal: "",
    },
    Load {
        clients: 1,
        connections: 1,
        operation: Operation::Range,
        rate_goal: ">= 1.2",
        cpu_goal: "",
    },
    Load {
        clients: 256,
        connections: 64,
        operation: Operation::Put,
        rate_goal: ">= 3",
        cpu_goal: "<= 0.2",
    },
    Load {
        clients: 256,
        connections: 64,
        operation: Operation::Range,
        rate_goal: ">= 3",
        cpu_goal: "<= 0.2",
    },
];

/// The figures that one run printed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Report {
    requests_per_s: f64,
    p50_s: f64,
    p99_s: f64,
}

/// One measurement of one system.
struct Measured {
    report: Report,
    cpu_us: f64,
}

/// Measures every load, the systems in turn, and prints the tables.
///
/// # Errors
///
/// If the program cannot be built or run, a member ends, or a request fails.
pub async fn run(args: &Args) -> Bench<()> {
    let program = match &args.benchmark {
        Some(path) => path.clone(),
        None => build().await?,
    };
    let systems = args.systems()?;
    let clusters = [Cluster::start(&systems[0]).await?, Cluster::start(&systems[1]).await?];
    for load in LOADS.iter().filter(|load| args.clients.contains(&(load.clients as usize))) {
        let mut rounds: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        let mut requests = [0; 2];
        for (cluster, requests) in clusters.iter().zip(&mut requests) {
            let first =
                load.measure(&program, cluster, CALIBRATION_REQUESTS * load.clients.min(16));
            let first = cluster.while_all_run(first).await?;
            *requests = (first.report.requests_per_s * args.seconds as f64) as u64;
        }
        for _ in 0..args.rounds {
            for ((cluster, requests), measured) in clusters.iter().zip(requests).zip(&mut rounds) {
                let one = load.measure(&program, cluster, requests);
                measured.push(cluster.while_all_run(one).await?);
            }
        }
        load.print(args.rounds, &rounds);
    }
    Ok(())
}

/// Builds the program as its module pins it.
async fn build() -> Bench<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("etcd-benchmark");
    let program = std::env::current_dir()?.join("target/etcd-benchmark");
    let built = Command::new("go")
        .args(["build", "-mod=readonly", "-o"])
        .arg(&program)
        .arg("go.etcd.io/etcd/v3/tools/benchmark")
        .current_dir(&module)
        .status()
        .await;
    match built {
        Ok(status) if status.success() => Ok(program),
        Ok(status) => Err(format!("go build in {}: {status}", module.display()).into()),
        Err(error) => Err(format!("cannot run go: {error}; install it or give --benchmark").into()),
    }
}

impl Load {
    async fn measure(&self, program: &Path, cluster: &Cluster, total: u64) -> Bench<Measured> {
        let endpoints: Vec<_> =
            (0..cluster.len()).map(|n| cluster.address(n).to_string()).collect();
        let mut command = Command::new(program);
        command
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .arg("--target-leader")
            .arg(format!("--conns={}", self.connections))
            .arg(format!("--clients={}", self.clients));
        match self.operation {
            Operation::Put => command.args(["put", "--val-size=256", "--key-space-size=100000"]),
            Operation::Range => command.args(["range", KEY, "--consistency=l"]),
        };
        command.arg(format!("--total={total}")).stdin(Stdio::null()).kill_on_drop(true);
        let before = cluster.cpu();
        let output = command.output().await?;
        let cpu = cluster.cpu().saturating_sub(before);
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("etcd's benchmark: {}; {why}", output.status).into());
        }
        let report = Report::parse(&text)?;
        Ok(Measured { report, cpu_us: cpu.as_secs_f64() * 1e6 / total as f64 })
    }

    fn print(&self, rounds: usize, measured: &[Vec<Measured>; 2]) {
        let Self { clients, connections, operation, .. } = self;
        let title = format!("etcd's benchmark: {operation:?}, {clients} clients on {connections}");
        head(&title, rounds);
        let print = |what: &str, of: fn(&Measured) -> f64, goal: &str| {
            let [etcd, satrap] =
                measured.each_ref().map(|rounds| median(rounds.iter().map(of).collect()));
            row(what, etcd, satrap, goal);
        };
        print("operations/s", |m| m.report.requests_per_s, self.rate_goal);
        print("server CPU us/operation", |m| m.cpu_us, self.cpu_goal);
        print("p50 ms", |m| m.report.p50_s * 1e3, "");
        print("p99 ms", |m| m.report.p99_s * 1e3, "");
    }
}

impl Report {
    /// The figures in what the program printed.
    fn parse(text: &str) -> Bench<Self> {
        if let Some((_, errors)) = text.split_once("Error distribution:") {
            return Err(format!("etcd's benchmark: requests failed: {}", errors.trim()).into());
        }
        let after = |name: &str| {
            let (_, rest) = text.split_once(name)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let missing = |name: &str| format!("etcd's benchmark printed no `{name}`: {text}");
        let figure = |name: &str| after(name).ok_or_else(|| missing(name));
        Ok(Self {
            requests_per_s: figure("Requests/sec:")?,
            p50_s: figure("\n  50% in")?,
            p99_s: figure("\n  99% in")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\nSummary:\n  Total:\t1.9850 secs.\n  Requests/sec:\t1007.5501\n\n\
        Response time histogram:\n  0.0006 [1]\t|\n\nLatency distribution:\n  50% in 0.0010 secs.\n  \
        99% in 0.0021 secs.\n  99.9% in 0.0040 secs.\n";

    #[test]
    fn a_report_is_read() {
        let report = Report::parse(PRINTED).expect("a report");
        assert_eq!(report, Report { requests_per_s: 1007.5501, p50_s: 0.001, p99_s: 0.0021 });
    }

    #[test]
    fn failed_requests_are_no_measurement() {
        let printed = format!("{PRINTED}\nError distribution:\n  [3]\tetcdserver: no leader\n");
        let error = Report::parse(&printed).expect_err("requests failed").to_string();
        assert!(error.contains("etcdserver: no leader"), "{error}");
        assert!(Report::parse("").is_err());
    }
}
