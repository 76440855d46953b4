//! Memory and CPU of processes that are idle.

use std::{error::Error, fs, time::Duration};

use satrap_runtime::TaskGroup;
use tokio::time;

use crate::{propagation, realm::Realm};

/// `sysconf(_SC_CLK_TCK)` on every Linux this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Prints the table.
///
/// # Errors
///
/// If the realm does not start.
pub async fn run(seconds: u64) -> Result<(), Box<dyn Error>> {
    let tasks = TaskGroup::new();
    let (realm, mut processes) = Realm::start(&tasks, 1, false).await?;
    let pids = processes.pids();
    processes.while_all_run(measure(&realm, pids, seconds)).await?;
    tasks.shutdown().request();
    Ok(())
}

async fn measure(realm: &Realm, pids: Vec<u32>, seconds: u64) -> Result<(), Box<dyn Error>> {
    propagation::publish_once(realm).await?;
    let before: Vec<f64> = pids.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<_, _>>()?;
    time::sleep(Duration::from_secs(seconds)).await;
    println!("{:<12} {:>12} {:>12} {:>10}", "", "resident KiB", "of it file", "cpu %");
    for (index, (pid, before)) in pids.iter().zip(before).enumerate() {
        let kind = match index {
            0..4 => "validator",
            4..7 => "member",
            _ => "edge",
        };
        let cpu = (cpu_seconds(*pid)? - before) / seconds as f64 * 100.0;
        let (all, file) = (memory_kib(*pid, "VmRSS:")?, memory_kib(*pid, "RssFile:")?);
        println!("{kind:<12} {all:>12} {file:>12} {cpu:>10.2}");
    }
    Ok(())
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The fields after the name, which may contain spaces.
    let fields = stat.rsplit_once(") ").ok_or("stat")?.1;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || -> Result<f64, Box<dyn Error>> { Ok(fields.next().ok_or("stat")?.parse()?) };
    Ok((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

fn memory_kib(pid: u32, field: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).ok_or("status")?;
    Ok(line.split_whitespace().nth(1).ok_or("status")?.parse()?)
}
