//! Measures checkpoints, restart, snapshot and reclaim with a million keys of 256 bytes.
//!
//! `cargo run --release -p satrap-ring-storage --example state_bench [DIRECTORY]`

use std::{env, error::Error, path::Path, sync::Arc, time::Instant};

use satrap_ring_storage::{
    Checkpoint, History, Mark, Owner, Row, State, StateConfig, StorageError, Version,
    files::{DirFiles, Files},
    snapshot::{self, Receiver},
};

const KEYS: u64 = 1_000_000;
const VALUE_BYTES: usize = 256;
/// Keys of one checkpoint: about as many as a busy ring writes in half a second.
const CHECKPOINT_KEYS: u64 = 10_000;
const RECLAIM_BYTES: usize = 4 << 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn timed<T>(what: &str, run: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let start = Instant::now();
    let value = run()?;
    println!("{what:<44} {:>9.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(value)
}

fn open(files: &Arc<dyn Files>) -> Outcome<State> {
    let owner = Owner { ring: [0; 32], member: "bench".into() };
    Ok(State::open(files.clone(), StateConfig::default(), &owner, [0; 16])?)
}

fn fill(state: &State) -> Outcome<()> {
    let value = [0x5a; VALUE_BYTES];
    for first in (1..=KEYS).step_by(usize::try_from(CHECKPOINT_KEYS)?) {
        let mut history = History::default();
        for revision in first..first + CHECKPOINT_KEYS {
            let key = format!("key/{revision:012}");
            history.push(Version { revision, key: key.as_bytes(), body: &value })?;
        }
        let applied = Mark { index: first, ..Mark::default() };
        state.checkpoint(&Checkpoint { applied, history, ..Checkpoint::default() })?;
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let root = env::args().nth(1).unwrap_or_else(|| "state_bench_data".into());
    let root = Path::new(&root);
    let files: Arc<dyn Files> = Arc::new(DirFiles::open(root)?);
    let state = open(&files)?;
    timed("100 checkpoints of 10 000 keys", || fill(&state))?;
    println!("{:?}", state.size()?);
    drop(state);
    let state = timed("open", || open(&files))?;
    timed("load, every digest compared", || {
        let mut bytes = 0;
        state.load(|row| {
            if let Row::Version(version) = row {
                bytes += version.key.len() + version.body.len();
            }
            Ok::<_, StorageError>(())
        })?;
        Ok(bytes)
    })?;
    let path = root.join("snapshot");
    timed("snapshot to a file", || {
        let mut out = std::fs::File::create(&path)?;
        let mut reader = state.reader()?.ok_or("no checkpoint")?;
        snapshot::save(&mut reader, &mut out)?;
        Ok(out.sync_data()?)
    })?;
    timed("verify the file", || Ok(snapshot::verify(&mut std::fs::File::open(&path)?)?))?;
    timed("receive a snapshot and put it in place", || {
        let owner = Owner { ring: [0; 32], member: "bench".into() };
        let mut receiver = Receiver::open(files.clone(), StateConfig::default(), &owner, [0; 16])?;
        let mut reader = state.reader()?.ok_or("no checkpoint")?;
        while let Some(frame) = reader.frame()? {
            receiver.accept(&frame.bytes)?;
        }
        drop(reader);
        Ok(state.replace(receiver.finish()?)?)
    })?;
    let (mut calls, mut wrapped) = (0, false);
    timed("reclaim nine versions of ten, all calls", || {
        while !wrapped {
            wrapped = state.reclaim(RECLAIM_BYTES, |_, revision| revision % 10 == 0)?.wrapped;
            calls += 1;
        }
        Ok(())
    })?;
    println!("{calls} calls of {RECLAIM_BYTES} bytes; {:?}", state.size()?);
    timed("shrink", || Ok(state.shrink()?))?;
    println!("{:?}", state.size()?);
    drop((state, files));
    std::fs::remove_dir_all(root)?;
    Ok(())
}
