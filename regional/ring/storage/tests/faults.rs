//! Disk errors, full disks and oversized requests.

#![allow(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{Dice, INSTANCE, Log, Model, SMALL, disk, mark, open_state, open_wal, owner};
use satrap_ring_storage::{
    Checkpoint, History, Record, Reserve, Space, SpaceConfig, StorageError, Version, Wal,
    files::Files,
    limits::{
        APPLIED_BYTES_MAX, MARK_BYTES_MAX, PAGE_NAME_BYTES_MAX, SEGMENT_BYTES_MIN,
        VERSION_BYTES_MAX, VOTE_BYTES_MAX,
    },
    sim::{Faults, SimDisk, Survival},
};

fn entry(index: u64, bytes: usize) -> Record {
    Record::Append { index, bytes: vec![index as u8; bytes].into() }
}

fn item(index: u64) -> (u64, Bytes) {
    (index, vec![index as u8; 5_000].into())
}

/// WAL-3: whichever operation fails, the log acknowledges nothing after it, and a restart is
/// consistent.
#[test]
fn any_single_error_stops_the_log_and_loses_nothing() {
    let mut stopped = 0;
    for at in 0..260 {
        for sync in [false, true] {
            let sim = SimDisk::new(at);
            let faults = Faults {
                error_at: (!sync).then_some(at),
                error_after_syncs: sync.then_some(at),
                ..Faults::default()
            };
            sim.set_faults(faults);
            let mut dice = Dice(77);
            let mut acked = Log::default();
            let mut attempted = Log::default();
            if let Ok((mut wal, _)) = open_wal(disk(&sim)) {
                for _ in 0..150 {
                    let records = acked.random(&mut dice);
                    records.iter().for_each(|record| attempted.apply(record));
                    if let Err(error) = wal.commit(&records) {
                        assert!(matches!(error, StorageError::Io { .. }), "{error}");
                        assert!(matches!(wal.commit(&records), Err(StorageError::Stopped)));
                        stopped += 1;
                        break;
                    }
                    acked = attempted.clone();
                }
            }
            sim.crash(dice.survival());
            let (_, recovered) = open_wal(disk(&sim)).unwrap();
            let found = Log::of(&recovered);
            assert!([acked.seen(), attempted.seen()].contains(&found), "at {at}, sync {sync}");
        }
    }
    assert!(stopped > 300, "{stopped}");
}

/// WAL-2: readers still see the bytes that a failed sync has lost, so a restarted process must not
/// take readable for durable.
#[test]
fn bytes_lost_by_a_failed_sync_are_not_durable_because_they_are_readable() {
    let mut unacknowledged = 0;
    for at in 0..60 {
        let sim = SimDisk::new(at);
        sim.set_faults(Faults { error_after_syncs: Some(at), ..Faults::default() });
        let Ok((mut wal, _)) = open_wal(disk(&sim)) else { continue };
        let failed = (1..).find(|index| wal.commit(&[entry(*index, 5_000)]).is_err()).unwrap();
        drop(wal);
        sim.kill();
        let (_, restarted) = open_wal(disk(&sim)).unwrap();
        unacknowledged += usize::from(restarted.entries.last() == Some(&item(failed)));
        sim.crash(Survival::None);
        let (_, after) = open_wal(disk(&sim)).unwrap();
        assert!(after.entries == restarted.entries, "sync {at}");
    }
    assert!(unacknowledged > 20, "{unacknowledged}");
}

/// STATEFILE-3
#[test]
fn any_single_error_stops_the_state_and_loses_nothing() {
    let mut stopped = 0;
    for at in (0..400).step_by(7) {
        for sync in [false, true] {
            let sim = SimDisk::new(at);
            let faults = Faults {
                error_at: (!sync).then_some(at),
                error_after_syncs: (sync && at < 100).then_some(at),
                ..Faults::default()
            };
            sim.set_faults(faults);
            let mut dice = Dice(78);
            let mut allowed = vec![Model::default()];
            if let Ok(state) = open_state(disk(&sim)) {
                for _ in 0..30 {
                    let mut next = allowed.last().unwrap().clone();
                    let checkpoint = next.random_checkpoint(&mut dice);
                    if state.checkpoint(&checkpoint).is_err() {
                        allowed.push(next);
                        let again = state.checkpoint(&checkpoint);
                        assert!(matches!(again, Err(StorageError::Stopped)));
                        stopped += 1;
                        break;
                    }
                    allowed = vec![next];
                }
            }
            sim.crash(dice.survival());
            let state = open_state(disk(&sim)).unwrap();
            assert!(allowed.iter().any(|model| model.check(&state).is_ok()), "at {at} {sync}");
        }
    }
    assert!(stopped > 20, "{stopped}");
}

#[test]
fn a_full_disk_uses_the_reserve_then_says_so_then_recovers() {
    let sim = SimDisk::new(1);
    let segment = SEGMENT_BYTES_MIN;
    let capacity_bytes = 12 * segment;
    sim.set_faults(Faults { capacity_bytes, ..Faults::default() });
    let config = SpaceConfig { reserve_bytes: 2 * segment, low_bytes: 3 * segment };
    let files: Arc<dyn Files> = disk(&sim);
    let reserve = Arc::new(Reserve::open(files.clone(), config).unwrap());
    let (mut wal, _) = Wal::open(files, reserve.clone(), SMALL, &owner(), INSTANCE).unwrap();
    let mut seen = Vec::new();
    let mut index = 0;
    let error = loop {
        let space = reserve.space().unwrap();
        let name = match space {
            Space::Plenty { .. } => "plenty",
            Space::Low { .. } => "low",
            Space::Reserve { .. } => "reserve",
        };
        assert_eq!(space.takes_writes(), name == "plenty");
        if seen.last() != Some(&name) {
            seen.push(name);
        }
        if let Err(error) = wal.commit(&[entry(index + 1, 20_000)]) {
            break error;
        }
        index += 1;
    };
    assert_eq!(seen, ["plenty", "low", "reserve"], "the warning comes first");
    assert!(!error.is_fatal() && error.is_full(), "{error}");
    assert!(index > 60, "{index}");
    // Nothing was changed, and records that need no new segment still work.
    wal.commit(&[Record::Vote(Bytes::from_static(b"v"))]).unwrap();
    assert!(wal.commit(&[entry(index + 1, 20_000)]).unwrap_err().is_full());
    wal.commit(&[Record::Purge(mark(index - 5))]).unwrap();
    for index in index + 1..index + 30 {
        wal.commit(&[entry(index, 20_000)]).unwrap();
        wal.commit(&[Record::Purge(mark(index - 5))]).unwrap();
    }
    assert!(reserve.refill().unwrap(), "there is room for it again");
    assert!(reserve.space().unwrap().takes_writes());
    drop(wal);
    let (_, recovered) = open_wal(disk(&sim)).unwrap();
    assert_eq!(recovered.entries.len(), 5);
    assert_eq!(recovered.vote, Some(Bytes::from_static(b"v")));
}

#[test]
fn a_checkpoint_that_does_not_fit_changes_nothing() {
    let sim = SimDisk::new(1);
    let (mut dice, mut model) = (Dice(1), Model::default());
    let state = open_state(disk(&sim)).unwrap();
    state.checkpoint(&model.random_checkpoint(&mut dice)).unwrap();
    let used = sim.content("state.redb").unwrap().len() as u64;
    sim.set_faults(Faults { capacity_bytes: used + (1 << 20), ..Faults::default() });
    let compacted = model.compacted;
    let mut large = Checkpoint { applied: mark(1_000), compacted, ..Checkpoint::default() };
    large.pages.push(("p".into(), Some(vec![1; 10 << 20].into())));
    let error = state.checkpoint(&large).unwrap_err();
    assert!(error.is_full() && !error.is_fatal(), "{error}");
    model.check(&state).unwrap();
    sim.set_faults(Faults::default());
    state.checkpoint(&large).unwrap();
    assert_eq!(state.applied().unwrap().unwrap().0, mark(1_000));
}

#[test]
fn holes_and_contradictions_are_refused_and_change_nothing() {
    let sim = SimDisk::new(1);
    let (mut wal, _) = open_wal(disk(&sim)).unwrap();
    wal.commit(&(1..=9).map(|index| entry(index, 10)).collect::<Vec<_>>()).unwrap();
    wal.commit(&[Record::Committed(mark(5)), Record::Purge(mark(3))]).unwrap();
    let refused = |wal: &mut Wal, records: &[Record], expected: &str| {
        let error = wal.commit(records).unwrap_err();
        assert!(!error.is_fatal());
        assert_eq!(error.to_string(), expected);
    };
    refused(&mut wal, &[entry(11, 1)], "refused: entry 11 after 9 leaves a hole");
    refused(&mut wal, &[entry(9, 1)], "refused: entry 9 after 9 leaves a hole");
    refused(&mut wal, &[entry(10, 1), entry(12, 1)], "refused: entry 12 after 10 leaves a hole");
    let truncate = |from| Record::Truncate { from };
    refused(&mut wal, &[truncate(3)], "refused: truncate from 3, which is purged");
    refused(&mut wal, &[truncate(5)], "refused: truncate from 5, which is committed");
    // WAL-4: a mark beyond the log, or an old one, is left out.
    let before = wal.size();
    wal.commit(&[Record::Committed(mark(10)), Record::Committed(mark(4))]).unwrap();
    wal.commit(&[]).unwrap();
    assert_eq!(wal.size(), before, "nothing was written");
    assert_eq!(wal.committed(), Some(&mark(5)));
    wal.commit(&[entry(10, 1), Record::Committed(mark(10))]).unwrap();
    assert_eq!(wal.committed(), Some(&mark(10)));
    drop(wal);
    let (_, recovered) = open_wal(disk(&sim)).unwrap();
    assert_eq!(recovered.entries.iter().map(|e| e.0).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9, 10]);
    let state = open_state(disk(&sim)).unwrap();
    let at = |applied, compacted, revision| {
        let mut history = History::default();
        history.push(Version { revision, key: b"k", body: b"" }).unwrap();
        Checkpoint { applied: mark(applied), compacted, history, pages: Vec::new() }
    };
    state.checkpoint(&at(5, 2, 7)).unwrap();
    for (applied, compacted, revision) in [(4, 2, 8), (5, 1, 8), (5, 2, 7), (6, 3, 1)] {
        let error = state.checkpoint(&at(applied, compacted, revision)).unwrap_err();
        assert!(matches!(error, StorageError::Order(_)), "{error}");
    }
    state.checkpoint(&at(6, 2, 8)).unwrap();
    let mut history = History::default();
    history.push(Version { revision: 9, key: b"k", body: b"" }).unwrap();
    assert!(history.push(Version { revision: 8, key: b"k", body: b"" }).is_err());
}

/// Truncated entries must not keep a segment in use.
#[test]
fn truncated_entries_hold_no_segment() {
    let sim = SimDisk::new(1);
    let (mut wal, _) = open_wal(disk(&sim)).unwrap();
    for index in 1..=40 {
        wal.commit(&[entry(index, 10_000)]).unwrap();
    }
    wal.commit(&[Record::Truncate { from: 3 }]).unwrap();
    for index in 3..=15 {
        wal.commit(&[entry(index, 10_000)]).unwrap();
    }
    let before = wal.size().segments;
    wal.commit(&[Record::Purge(mark(3))]).unwrap();
    assert!(before >= 4 && wal.size().segments <= 2, "{before} then {:?}", wal.size());
}

#[test]
fn limits_hold_at_and_over() {
    let sim = SimDisk::new(1);
    let (mut wal, _) = open_wal(disk(&sim)).unwrap();
    let long = |bytes: usize| Bytes::from(vec![1; bytes]);
    let too_large = |result: Result<(), StorageError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StorageError::TooLarge { .. }), "{error}");
    };
    wal.commit(&[Record::Vote(long(VOTE_BYTES_MAX))]).unwrap();
    too_large(wal.commit(&[Record::Vote(long(VOTE_BYTES_MAX + 1))]));
    let purge = |bytes| Record::Purge(satrap_ring_storage::Mark { index: 1, id: long(bytes) });
    too_large(wal.commit(&[purge(MARK_BYTES_MAX + 1)]));
    wal.commit(&[purge(MARK_BYTES_MAX)]).unwrap();
    // Commits around the size of a segment, and far beyond it.
    let mut index = 1;
    for bytes in (130_000..132_000).step_by(97).chain([1_000_000]) {
        index += 1;
        wal.commit(&[entry(index, bytes)]).unwrap();
    }
    drop(wal);
    let (mut wal, recovered) = open_wal(disk(&sim)).unwrap();
    assert_eq!(recovered.entries.len() as u64, index - 1);
    assert_eq!(recovered.entries.last().unwrap().1.len(), 1_000_000);
    wal.commit(&[Record::Purge(mark(index))]).unwrap();
    let size = wal.size();
    assert!(size.segments == 1 && size.spares <= 2, "large segments are not kept: {size:?}");
    let state = open_state(disk(&sim)).unwrap();
    let page = |name: usize, id: usize| Checkpoint {
        applied: satrap_ring_storage::Mark { index: 1, id: long(id) },
        pages: vec![("p".repeat(name), Some(Bytes::new()))],
        ..Checkpoint::default()
    };
    too_large(state.checkpoint(&page(PAGE_NAME_BYTES_MAX + 1, 0)));
    too_large(state.checkpoint(&page(1, APPLIED_BYTES_MAX + 1)));
    state.checkpoint(&page(PAGE_NAME_BYTES_MAX, APPLIED_BYTES_MAX)).unwrap();
    let body = vec![0; VERSION_BYTES_MAX];
    let mut history = History::default();
    let version = |bytes: usize| Version { revision: 1, key: b"k", body: &body[..bytes] };
    too_large(history.push(version(VERSION_BYTES_MAX)));
    history.push(version(VERSION_BYTES_MAX - 17)).unwrap();
    assert_eq!(history.first_revision(), Some(1));
    let small = satrap_ring_storage::WalConfig { segment_bytes: SEGMENT_BYTES_MIN - 1 };
    let files: Arc<dyn Files> = disk(&sim);
    let reserve = Arc::new(Reserve::open(files.clone(), common::NO_RESERVE).unwrap());
    assert!(Wal::open(files, reserve, small, &owner(), INSTANCE).is_err());
}

/// Compaction frees rows a piece at a time, and the engine reuses the freed space.
#[test]
fn reclaim_frees_a_bounded_piece_per_call_and_space_is_reused() {
    let sim = SimDisk::new(1);
    let state = open_state(disk(&sim)).unwrap();
    let body = [7; 256];
    let fill = |from: u64| {
        let mut history = History::default();
        for revision in from..from + 8_000 {
            let key = format!("key{}", revision % 10);
            history.push(Version { revision, key: key.as_bytes(), body: &body }).unwrap();
        }
        let (applied, compacted) = (mark(from), from.saturating_sub(1));
        state.checkpoint(&Checkpoint { applied, compacted, history, pages: Vec::new() }).unwrap();
    };
    let reclaim = |newest: u64| {
        let (mut calls, mut freed) = (0, 0);
        loop {
            let done = state.reclaim(300_000, |_, revision| revision > newest - 10).unwrap();
            assert!(done.read_bytes < 300_000 + 70_000, "{done:?}");
            calls += 1;
            freed += done.freed_bytes;
            if done.wrapped {
                return (calls, freed);
            }
        }
    };
    fill(1);
    let full = state.size().unwrap();
    let (calls, freed) = reclaim(8_000);
    assert!(calls >= 7 && freed > 2_000_000, "{calls} calls, {freed} bytes");
    let small = state.size().unwrap();
    assert!(small.used_bytes < full.used_bytes / 10, "{small:?} after {full:?}");
    assert_eq!(small.chunks, 1);
    for round in 1..6 {
        fill(round * 8_000 + 1);
        reclaim((round + 1) * 8_000);
    }
    let reused = state.size().unwrap();
    assert!(reused.file_bytes <= 2 * full.file_bytes, "{reused:?} after {full:?}");
    assert!(state.shrink().unwrap());
    let shrunk = state.size().unwrap();
    assert!(shrunk.file_bytes < full.file_bytes / 2, "{shrunk:?} after {reused:?}");
    let reader = state.reader().unwrap().unwrap();
    assert!(matches!(state.shrink(), Err(StorageError::Order(_))), "a snapshot is being read");
    drop(reader);
    assert_eq!(state.load(|_| Ok::<_, StorageError>(())).unwrap().unwrap().versions, 10);
    drop(state);
}
