//! Measures durable appends per second: the log of this crate, and the same entries in redb.
//!
//! `cargo run --release -p satrap-ring-storage --example wal_bench [DIRECTORY]`
//!
//! Entries are 256 bytes and a 24-byte header, as an entry of one small put; a batch is one commit
//! with one sync. Rounds alternate, and the middle one of five counts.

use std::{env, error::Error, path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use redb::{Database, Durability, TableDefinition};
use satrap_ring_storage::{
    Mark, Owner, Record, Reserve, SpaceConfig, Wal, WalConfig,
    files::{DirFiles, Files},
};

const ENTRY_BYTES: usize = 256 + 24;
const ROUNDS: usize = 5;
const ROUND_SECONDS: f64 = 1.0;
const BATCHES: [u64; 3] = [1, 16, 256];
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

type Outcome<T> = Result<T, Box<dyn Error>>;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

/// Microseconds that this thread has spent on a processor.
fn cpu_us() -> Outcome<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let spent_ns: f64 = text.split_whitespace().next().ok_or("no schedstat")?.parse()?;
    Ok(spent_ns / 1e3)
}

/// The figures of one round.
#[derive(Clone, Copy)]
struct Rate {
    commits_per_s: f64,
    /// Counts alike on a busy machine and an idle one, unlike the rate.
    cpu_us_per_commit: f64,
}

/// The rate of `commit`, which gets the index of its first entry.
fn rate(next: &mut u64, batch: u64, mut commit: impl FnMut(u64) -> Outcome<()>) -> Outcome<Rate> {
    let (start, cpu_start) = (now(), cpu_us()?);
    let mut commits = 0;
    while start.elapsed().as_secs_f64() < ROUND_SECONDS {
        commit(*next)?;
        *next += batch;
        commits += 1;
    }
    let commits = f64::from(commits);
    Ok(Rate {
        commits_per_s: commits / start.elapsed().as_secs_f64(),
        cpu_us_per_commit: (cpu_us()? - cpu_start) / commits,
    })
}

struct WalSide {
    wal: Wal,
    next: u64,
}

impl WalSide {
    fn new(root: &Path) -> Outcome<Self> {
        let files: Arc<dyn Files> = Arc::new(DirFiles::open(root)?);
        let space = SpaceConfig { reserve_bytes: 0, low_bytes: 0 };
        let reserve = Arc::new(Reserve::open(files.clone(), space)?);
        let owner = Owner { ring: [0; 32], member: "bench".into() };
        let (wal, _) = Wal::open(files, reserve, WalConfig::default(), &owner, [0; 16])?;
        Ok(Self { wal, next: 1 })
    }

    fn round(&mut self, batch: u64, entry: &Bytes) -> Outcome<Rate> {
        let wal = &mut self.wal;
        rate(&mut self.next, batch, |first| {
            let mut records: Vec<Record> = (first..first + batch)
                .map(|index| Record::Append { index, bytes: entry.clone() })
                .collect();
            // The log is kept short, as a ring does; segments are then used again.
            if first / 65_536 != (first + batch) / 65_536 {
                records.push(Record::Purge(Mark { index: first, id: Bytes::new() }));
            }
            Ok(wal.commit(&records)?)
        })
    }
}

struct RedbSide {
    database: Database,
    next: u64,
}

impl RedbSide {
    fn round(&mut self, batch: u64, entry: &Bytes) -> Outcome<Rate> {
        let database = &self.database;
        rate(&mut self.next, batch, |first| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            txn.set_two_phase_commit(true);
            txn.set_quick_repair(true);
            {
                let mut table = txn.open_table(LOG)?;
                for index in first..first + batch {
                    table.insert(index, &entry[..])?;
                }
                if first / 65_536 != (first + batch) / 65_536 {
                    table.retain_in::<u64, _>(..=first, |_, _| false)?;
                }
            }
            Ok(txn.commit()?)
        })
    }
}

fn print(name: &str, batch: u64, rounds: &mut [Rate]) {
    rounds.sort_by(|a, b| a.commits_per_s.total_cmp(&b.commits_per_s));
    let Rate { commits_per_s, cpu_us_per_commit } = rounds[rounds.len() / 2];
    let entries_per_s = commits_per_s * batch as f64;
    let cpu_us_per_entry = cpu_us_per_commit / batch as f64;
    println!(
        "{name:<4} batch {batch:>3}: {commits_per_s:>7.0} commits/s {entries_per_s:>9.0} entries/s \
         {cpu_us_per_commit:>7.1} us CPU/commit {cpu_us_per_entry:>6.2} us CPU/entry"
    );
}

fn main() -> Outcome<()> {
    let root = env::args().nth(1).unwrap_or_else(|| "wal_bench_data".into());
    let root = Path::new(&root);
    std::fs::create_dir_all(root)?;
    let entry = Bytes::from(vec![0x5a; ENTRY_BYTES]);
    let mut wal = WalSide::new(&root.join("wal"))?;
    let database = Database::create(root.join("log.redb"))?;
    let mut redb = RedbSide { database, next: 1 };
    println!("entries of {ENTRY_BYTES} bytes, middle of {ROUNDS} rounds of {ROUND_SECONDS} s");
    for batch in BATCHES {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(wal.round(batch, &entry)?);
            theirs.push(redb.round(batch, &entry)?);
        }
        print("wal", batch, &mut ours);
        print("redb", batch, &mut theirs);
    }
    println!("log: {:?}", wal.wal.size());
    drop((wal, redb));
    std::fs::remove_dir_all(root)?;
    Ok(())
}
