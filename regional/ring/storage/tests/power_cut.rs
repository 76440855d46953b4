//! Cuts the power at any moment, and again during recovery: acknowledged commits survive (WAL-2),
//! nothing else does but the one commit in progress, the log has no hole (SEGMENT-2), and a vote
//! never goes back (WAL-1).

#![allow(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use common::{
    CACHE, Dice, INSTANCE, Log, Model, NO_RESERVE, SMALL, disk, mark, open_state, open_wal, owner,
};
use satrap_ring_storage::{
    Config, Member, Record, Reserve, StorageError, Wal, WalConfig,
    limits::ZERO_BYTES,
    sim::{Faults, SimDisk},
};

const LOG_SEEDS: u64 = 2_000;
const STATE_SEEDS: u64 = 300;
const MEMBER_SEEDS: u64 = 200;
const LIARS: u64 = 60;
const LARGE_GROUP_SEEDS: u64 = 100;

/// Kills only the process at times; recovery must then make durable all that it returns.
fn die(sim: &SimDisk, dice: &mut Dice) {
    match dice.below(3) {
        0 => sim.kill(),
        _ => sim.crash(dice.survival()),
    }
}

/// One run of a log; returns the number of reused segments, or the fault that a crash revealed.
fn log_run(seed: u64, lying_sync: bool) -> Result<usize, String> {
    let sim = SimDisk::new(seed);
    let mut dice = Dice(seed ^ 0xd1ce);
    let (mut acked, mut reused) = (Log::default(), 0);
    for life in 0..3 {
        let boot = sim.counters().operations;
        // Names matter during creation and rotation, so some cuts come early.
        let late = if life == 0 { 500 } else { 200 };
        let cut = if dice.below(4) == 0 { dice.below(12) } else { dice.below(late) };
        let faults = Faults { power_cut_at: Some(boot + cut), lying_sync, ..Faults::default() };
        sim.set_faults(faults);
        let (allowed, reuses) = log_life(&sim, &mut dice, &mut acked)?;
        reused += reuses;
        die(&sim, &mut dice);
        // A second crash, during the recovery from the first one.
        let boot = sim.counters().operations;
        let cut = boot + dice.below(12);
        sim.set_faults(Faults { power_cut_at: Some(cut), ..Faults::default() });
        let early = open_wal(disk(&sim));
        let early = early.ok().map(|(_, recovered)| Log::of(&recovered));
        die(&sim, &mut dice);
        let (wal, recovered) = open_wal(disk(&sim)).map_err(|error| error.to_string())?;
        let found = Log::of(&recovered);
        if !allowed.iter().any(|log| log.seen() == found) {
            return Err(format!("seed {seed}: recovered {found:?}, not one of {allowed:?}"));
        }
        if early.is_some_and(|early| early != found) {
            return Err(format!("seed {seed}: what recovery returned was lost again"));
        }
        acked = allowed.into_iter().find(|log| log.seen() == found).unwrap_or_default();
        if wal.last_index() != acked.last {
            return Err(format!("seed {seed}: the log ends elsewhere"));
        }
    }
    Ok(reused)
}

/// Commits until the power fails; returns the logs that recovery may find, and the number of reused
/// segments.
fn log_life(sim: &SimDisk, dice: &mut Dice, acked: &mut Log) -> Result<(Vec<Log>, usize), String> {
    let Ok((mut wal, recovered)) = open_wal(disk(sim)) else {
        return Ok((vec![acked.clone()], 0));
    };
    if Log::of(&recovered) != acked.seen() {
        return Err("a clean start differs from what was found before".into());
    }
    let mut reused = 0;
    loop {
        let records = acked.random(dice);
        let mut attempted = acked.clone();
        records.iter().for_each(|record| attempted.apply(record));
        let before = wal.size();
        match wal.commit(&records) {
            Ok(()) => *acked = attempted,
            Err(StorageError::Io { .. }) => {
                // WAL-3
                assert!(matches!(wal.commit(&records), Err(StorageError::Stopped)));
                assert!(matches!(wal.seal(), Err(StorageError::Stopped)));
                return Ok((vec![acked.clone(), attempted], reused));
            }
            Err(error) => return Err(error.to_string()),
        }
        reused += usize::from(before.spares > wal.size().spares);
        if dice.below(30) == 0 && wal.seal().is_err() {
            return Ok((vec![acked.clone()], reused));
        }
    }
}

#[test]
fn an_acknowledged_commit_survives_any_power_cut() {
    let mut reused = 0;
    for seed in 0..LOG_SEEDS {
        reused += log_run(seed, false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(reused > 100, "only {reused} segments were used again; the test proves too little");
}

/// WAL-5: some file systems report success for a sync during which they fail.
#[test]
fn an_acknowledged_commit_survives_a_file_system_that_turns_read_only() {
    for seed in 0..LOG_SEEDS {
        let sim = SimDisk::new(seed);
        let mut dice = Dice(seed ^ 0xd1ce);
        let mut acked = Log::default();
        for _ in 0..3 {
            let syncs = Some(dice.below(60));
            sim.set_faults(Faults { read_only_after_syncs: syncs, ..Faults::default() });
            let (allowed, _) = log_life(&sim, &mut dice, &mut acked).unwrap();
            sim.kill();
            let found = Log::of(&open_wal(disk(&sim)).unwrap().1);
            let log = allowed.into_iter().find(|log| log.seen() == found);
            acked = log.unwrap_or_else(|| panic!("seed {seed}: recovered {found:?}"));
        }
    }
}

/// WAL-5 beyond the first bytes that are zeroed: groups that end in the next ones, and groups that are
/// larger.
#[test]
fn a_commit_survives_a_file_system_that_turns_read_only_at_any_place_of_a_segment() {
    let config = WalConfig { segment_bytes: 4 * ZERO_BYTES as u64 };
    let open = |sim: &SimDisk| {
        let reserve = Reserve::open(disk(sim), NO_RESERVE).unwrap();
        Wal::open(disk(sim), Arc::new(reserve), config, &owner(), INSTANCE)
    };
    let mut reached = BTreeSet::new();
    for seed in 0..LARGE_GROUP_SEEDS {
        let sim = SimDisk::new(seed);
        let mut dice = Dice(seed ^ 0x1a46e);
        let syncs = Some(dice.below(40));
        sim.set_faults(Faults { read_only_after_syncs: syncs, ..Faults::default() });
        let (mut acked, mut written) = (BTreeMap::new(), 0);
        if let Ok((mut wal, _)) = open(&sim) {
            for index in 1.. {
                let bytes = dice.below(3 * ZERO_BYTES as u64 / 2) as usize;
                let bytes = Bytes::from(vec![dice.roll() as u8; bytes]);
                written += bytes.len();
                let record = Record::Append { index, bytes: bytes.clone() };
                if wal.commit(&[record]).is_err() {
                    break;
                }
                acked.insert(index, bytes);
            }
        }
        reached.insert(written / ZERO_BYTES);
        sim.kill();
        let found: BTreeMap<_, _> = open(&sim).unwrap().1.entries.into_iter().collect();
        // The commit in progress may have survived.
        let lost = acked.iter().find(|(index, bytes)| found.get(index) != Some(bytes));
        assert!(lost.is_none(), "seed {seed}: entry {} is lost", lost.unwrap().0);
        assert!(found.len() <= acked.len() + 1, "seed {seed}");
    }
    assert!(reached.len() > 8, "the logs ended in too few places: {reached:?}");
}

/// The positive control: this test catches a disk that lies about its syncs.
#[test]
fn a_disk_that_lies_about_its_syncs_is_caught() {
    let caught = (0..LIARS).filter(|seed| log_run(*seed, true).is_err()).count() as u64;
    assert!(caught > LIARS * 8 / 10, "only {caught} of {LIARS} liars were caught");
}

fn state_run(seed: u64, lying_sync: bool) -> Result<(), String> {
    let sim = SimDisk::new(seed);
    let mut dice = Dice(seed ^ 0x57a7e);
    let mut acked = Model::default();
    for _ in 0..2 {
        let cut = sim.counters().operations + dice.below(400);
        sim.set_faults(Faults { power_cut_at: Some(cut), lying_sync, ..Faults::default() });
        let allowed = state_life(&sim, &mut dice, &mut acked);
        die(&sim, &mut dice);
        let cut = sim.counters().operations + dice.below(8);
        sim.set_faults(Faults { power_cut_at: Some(cut), ..Faults::default() });
        let early = open_state(disk(&sim)).and_then(|state| state.applied()).ok();
        die(&sim, &mut dice);
        let state = open_state(disk(&sim)).map_err(|error| error.to_string())?;
        let wrong: Vec<_> = allowed.iter().map(|model| model.check(&state)).collect();
        let Some(found) = wrong.iter().position(Result::is_ok) else {
            return Err(format!("{wrong:?}"));
        };
        acked = allowed[found].clone();
        let applied = state.applied().map_err(|error| error.to_string())?;
        if early.is_some_and(|early| early != applied) {
            return Err("what recovery returned was lost again".into());
        }
    }
    Ok(())
}

/// Checkpoints until the power fails; returns the states that recovery may find.
fn state_life(sim: &SimDisk, dice: &mut Dice, acked: &mut Model) -> Vec<Model> {
    let Ok(state) = open_state(disk(sim)) else { return vec![acked.clone()] };
    loop {
        let done = match dice.below(12) {
            0..=2 => state.reclaim(30_000, |key, revision| acked.needs(key, revision)).map(|_| ()),
            3 => state.shrink().map(|_| ()),
            4 => state.scrub(100_000).map(|_| ()),
            _ => {
                let mut attempted = acked.clone();
                let checkpoint = attempted.random_checkpoint(dice);
                if state.checkpoint(&checkpoint).is_err() {
                    let stopped = state.checkpoint(&checkpoint);
                    assert!(matches!(stopped, Err(StorageError::Stopped)));
                    return vec![acked.clone(), attempted];
                }
                *acked = attempted;
                Ok(())
            }
        };
        if done.is_err() {
            return vec![acked.clone()];
        }
    }
}

#[test]
fn a_checkpoint_survives_any_power_cut() {
    for seed in 0..STATE_SEEDS {
        state_run(seed, false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn a_disk_that_lies_to_the_state_is_caught() {
    let caught = (0..LIARS).filter(|seed| state_run(*seed, true).is_err()).count() as u64;
    assert!(caught > LIARS * 6 / 10, "only {caught} of {LIARS} liars were caught");
}

fn entry(index: u64) -> Record {
    let bytes = index.to_be_bytes().repeat(1 + (index % 200) as usize).into();
    Record::Append { index, bytes }
}

/// Log and state together, as a member uses them: the log is purged only up to durable checkpoints,
/// so every acknowledged entry is in the state, or in the log after it.
fn member_run(seed: u64) -> Result<(), String> {
    let sim = SimDisk::new(seed);
    let mut dice = Dice(seed ^ 0x3e3b);
    let config = Config { space: NO_RESERVE, wal: SMALL, state: CACHE };
    let mut acked = 0;
    for _ in 0..3 {
        let cut = sim.counters().operations + dice.below(600);
        sim.set_faults(Faults { power_cut_at: Some(cut), ..Faults::default() });
        if let Ok(member) = Member::open(disk(&sim), config, &owner(), INSTANCE) {
            member_life(member, &mut dice, &mut acked);
        }
        die(&sim, &mut dice);
        let member = Member::open(disk(&sim), config, &owner(), INSTANCE);
        let member = member.map_err(|error| error.to_string())?;
        let applied = member.state.applied().map_err(|error| error.to_string())?;
        let applied = applied.map_or(0, |(mark, _)| mark.index);
        let entries: BTreeMap<u64, _> = member.recovered.entries.iter().cloned().collect();
        for index in applied + 1..=acked {
            let Record::Append { bytes, .. } = entry(index) else { unreachable!() };
            if entries.get(&index) != Some(&bytes) {
                return Err(format!("entry {index} of {acked} is lost; the state has {applied}"));
            }
        }
        acked = acked.max(applied).max(member.wal.last_index().unwrap_or(0));
    }
    Ok(())
}

fn member_life(mut member: Member, dice: &mut Dice, acked: &mut u64) {
    let mut last = member.wal.last_index().unwrap_or(0);
    let mut model = Model { applied: 0, ..Model::default() };
    loop {
        let first = last + 1;
        last += 1 + dice.below(30);
        let records: Vec<_> = (first..=last).map(entry).collect();
        if member.wal.commit(&records).is_err() {
            return;
        }
        *acked = last;
        if dice.below(6) > 0 {
            continue;
        }
        let mut checkpoint = model.random_checkpoint(dice);
        checkpoint.history = satrap_ring_storage::History::default();
        (checkpoint.applied, checkpoint.compacted) = (mark(last), 0);
        if member.state.checkpoint(&checkpoint).is_err() {
            return;
        }
        let purge = Record::Purge(mark(last - dice.below(20).min(last)));
        if member.wal.commit(&[Record::Committed(mark(last)), purge]).is_err() {
            return;
        }
    }
}

#[test]
fn log_and_state_together_hold_every_acknowledged_entry() {
    for seed in 0..MEMBER_SEEDS {
        member_run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// The simulation itself: the same seed leaves the same bytes.
#[test]
fn the_same_seed_leaves_the_same_disk() {
    let image = |seed: u64| {
        let sim = SimDisk::new(seed);
        let mut dice = Dice(seed);
        let cut = Faults { power_cut_at: Some(150), ..Faults::default() };
        sim.set_faults(cut);
        let _ = log_life(&sim, &mut dice, &mut Log::default());
        sim.crash(dice.survival());
        sim.set_faults(Faults { power_cut_at: Some(400), ..Faults::default() });
        state_life(&sim, &mut dice, &mut Model::default());
        sim.crash(dice.survival());
        let files: Arc<dyn satrap_ring_storage::files::Files> = disk(&sim);
        let names = files.list().unwrap();
        names.into_iter().map(|name| sim.content(&name)).collect::<Vec<_>>()
    };
    for seed in 0..10 {
        assert!(image(seed) == image(seed), "seed {seed}");
    }
}
