//! Flips bits anywhere in any file: the member reports the damage and names the file, or the flip
//! touched no stored data. It never returns wrong data (SEGMENT-1, STATEFILE-2).

#![allow(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{
    CACHE, Dice, INSTANCE, Log, Model, NO_RESERVE, SMALL, disk, mark, open_state, open_wal, owner,
};
use redb::{ReadableTable, TableDefinition};
use satrap_ring_storage::{
    Config, Member, Owner, Record, Reserve, State, StorageError, Wal, WalConfig,
    files::Files,
    sim::{SECTOR_BYTES, SimDisk, Survival},
};

/// A log of three segments, some of them used before.
fn a_log(sealed: bool) -> (SimDisk, Log, Log) {
    let sim = SimDisk::new(1);
    let mut dice = Dice(11);
    let (mut log, mut before) = (Log::default(), Log::default());
    let (mut wal, _) = open_wal(disk(&sim)).unwrap();
    // Long enough that segments are reused, then without purging until there are three.
    let mut more = 15;
    while wal.size().commits < 300 || more > 0 {
        more -= u64::from(wal.size().segments >= 3 && more > 0);
        let mut records = log.random(&mut dice);
        if wal.size().commits >= 300 {
            let index = log.last.map_or(1, |last| last + 1);
            records = vec![Record::Append { index, bytes: dice.bytes(3_000) }];
        }
        wal.commit(&records).unwrap();
        before = log.clone();
        records.iter().for_each(|record| log.apply(record));
    }
    if sealed {
        wal.seal().unwrap();
    }
    (sim, log, before)
}

fn segments(sim: &SimDisk) -> Vec<String> {
    sim.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

#[test]
fn a_flipped_bit_in_a_sealed_log_is_noticed_or_harmless() {
    let (sim, log, _) = a_log(true);
    let names = segments(&sim);
    assert!(names.len() >= 3);
    let mut dice = Dice(3);
    let (mut noticed, mut harmless) = (0, 0);
    for name in &names {
        let bytes = sim.content(name).unwrap().len() as u64;
        let spread: Vec<u64> = (0..400).map(|_| dice.below(bytes)).collect();
        for offset in (0..2 * SECTOR_BYTES as u64).chain(spread) {
            let damaged = sim.fork(1);
            damaged.rot(name, offset, 1 << dice.below(8));
            match open_wal(disk(&damaged)) {
                Ok((_, recovered)) => {
                    assert_eq!(Log::of(&recovered), log.seen(), "{name} at {offset}");
                    harmless += 1;
                }
                Err(error @ StorageError::Damaged { .. }) => {
                    assert!(error.to_string().contains("satrap member replace"), "{error}");
                    noticed += 1;
                }
                Err(error) => panic!("{name} at {offset}: {error}"),
            }
        }
    }
    assert!(noticed > 1_000 && harmless > 0, "{noticed} noticed, {harmless} harmless");
}

/// Without a seal, the very last commit may pass for an interrupted write; nothing before it may.
#[test]
fn damage_to_an_unsealed_log_costs_the_last_commit_at_most() {
    let (sim, log, before) = a_log(false);
    let name = segments(&sim).pop().unwrap();
    let (mut cut, mut noticed) = (0, 0);
    for offset in (0..60_000).step_by(23) {
        let damaged = sim.fork(1);
        damaged.rot(&name, offset, 4);
        match open_wal(disk(&damaged)) {
            Ok((_, recovered)) => {
                let found = Log::of(&recovered);
                assert!(found == log.seen() || found == before.seen(), "at {offset}");
                cut += usize::from(found != log.seen());
            }
            Err(StorageError::Damaged { .. }) => noticed += 1,
            Err(error) => panic!("at {offset}: {error}"),
        }
    }
    assert!(noticed > 100 && cut > 0, "{noticed} noticed, {cut} cut");
}

/// A client stores bytes that are shaped like groups of the log; then power fails in the middle of
/// the commit that holds them.
#[test]
fn a_client_cannot_forge_a_group() {
    let sim = SimDisk::new(1);
    let (mut wal, _) = open_wal(disk(&sim)).unwrap();
    wal.commit(&[Record::Vote(Bytes::from_static(b"mine"))]).unwrap();
    let name = segments(&sim).pop().unwrap();
    let genuine = sim.content(&name).unwrap()[SECTOR_BYTES..4 * SECTOR_BYTES].to_vec();
    // All alignments, with a sequence number that would fit.
    let mut forged = Vec::new();
    for shift in 0..8 {
        forged.extend_from_slice(&vec![0; shift]);
        let mut copy = genuine.clone();
        copy[16] += 2;
        forged.extend_from_slice(&copy);
    }
    let before = sim.content(&name).unwrap();
    wal.commit(&[Record::Append { index: 1, bytes: forged.into() }]).unwrap();
    let written = (0..before.len()).find(|at| sim.content(&name).unwrap()[*at] != before[*at]);
    drop(wal);
    sim.rot(&name, written.unwrap() as u64, 0xff);
    let (_, recovered) = open_wal(disk(&sim)).unwrap();
    assert_eq!(recovered.entries, []);
    assert_eq!(recovered.vote, Some(Bytes::from_static(b"mine")));
    assert!(recovered.cut.is_some());
    let (_, recovered) = open_wal(disk(&sim)).unwrap();
    assert_eq!(recovered.cut, None, "the tail was cleared");
}

#[test]
fn a_missing_segment_is_named() {
    let (sim, ..) = a_log(true);
    let names = segments(&sim);
    for (gone, expected) in [(&names[1], &names[1]), (&names[0], &names[1])] {
        let damaged = sim.fork(1);
        damaged.remove(gone).unwrap();
        let error = open_wal(disk(&damaged)).unwrap_err();
        let StorageError::Damaged { file, .. } = &error else { panic!("{error}") };
        assert_eq!(file, expected, "{error}");
    }
}

#[test]
fn the_log_of_another_owner_is_refused() {
    let (sim, ..) = a_log(true);
    let files: Arc<dyn Files> = disk(&sim);
    let reserve = Arc::new(Reserve::open(files.clone(), NO_RESERVE).unwrap());
    for other in [
        Owner { ring: [2; 32], ..owner() },
        Owner { member: "m2".into(), ..owner() },
        Owner { member: "m1\0".into(), ..owner() },
    ] {
        let opened = Wal::open(files.clone(), reserve.clone(), SMALL, &other, INSTANCE);
        let error = opened.unwrap_err();
        assert!(
            matches!(&error, StorageError::Foreign { member, .. } if member == "m1"),
            "{error}"
        );
    }
    // A config change is not damage.
    let larger = WalConfig { segment_bytes: 2 * SMALL.segment_bytes };
    let (wal, recovered) = Wal::open(files, reserve, larger, &owner(), [9; 16]).unwrap();
    assert_eq!((wal.instance(), recovered.created), (INSTANCE, false));
}

/// Changes the format of a segment, whose header ends with a checksum in its first sector.
fn set_segment_format(sim: &SimDisk, name: &str) {
    let mut header = sim.content(name).unwrap()[..SECTOR_BYTES].to_vec();
    header[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let crc = crc32fast::hash(&header[..SECTOR_BYTES - 4]);
    header[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    sim.open(name).unwrap().write_at(0, &header).unwrap();
}

/// Changes the format in the identity row of a state: the digest of table, key and content, then
/// the content, which begins with the format.
fn set_state_format(sim: &SimDisk) {
    const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
    let backend = sim.backend("state.redb").unwrap();
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut table = txn.open_table(META).unwrap();
        let mut content = table.get("identity").unwrap().unwrap().value()[32..].to_vec();
        content[..4].copy_from_slice(&2_u32.to_le_bytes());
        let mut row = vec![3];
        row.extend_from_slice(&8_u64.to_le_bytes());
        row.extend_from_slice(b"identity");
        row.extend_from_slice(&content);
        row.splice(.., blake3::hash(&row).as_bytes().iter().copied().chain(content));
        table.insert("identity", &row[..]).unwrap();
    }
    txn.commit().unwrap();
}

/// After a downgrade the data is good: the operator must not discard it.
#[test]
fn files_of_another_format_ask_for_the_release_that_wrote_them() {
    let (log, ..) = a_log(true);
    let segment = segments(&log).remove(0);
    set_segment_format(&log, &segment);
    let (state, _) = a_state();
    set_state_format(&state);
    let errors = [
        (segment, open_wal(disk(&log)).unwrap_err()),
        ("state.redb".to_owned(), open_state(disk(&state)).unwrap_err()),
    ];
    for (name, error) in errors {
        let expected = format!(
            "{name} has format 2, and this release reads format 1; start the release that wrote \
             the file"
        );
        assert_eq!(error.to_string(), expected);
    }
}

fn a_state() -> (SimDisk, Model) {
    let sim = SimDisk::new(1);
    let (mut dice, mut model) = (Dice(5), Model::default());
    let state = open_state(disk(&sim)).unwrap();
    for _ in 0..60 {
        let checkpoint = model.random_checkpoint(&mut dice);
        state.checkpoint(&checkpoint).unwrap();
    }
    state.reclaim(usize::MAX, |key, revision| model.needs(key, revision)).unwrap();
    drop(state);
    (sim, model)
}

/// Compares the state of `disk`, then again after one more checkpoint: damage to the engine's map
/// of free pages shows only when the engine uses one.
fn check_twice(sim: &SimDisk, model: &Model) -> Result<(), String> {
    let mut model = model.clone();
    let state = open_state(disk(sim)).map_err(|error| error.to_string())?;
    model.check(&state)?;
    let checkpoint = model.random_checkpoint(&mut Dice(4));
    state.checkpoint(&checkpoint).map_err(|error| error.to_string())?;
    drop(state);
    model.check(&open_state(disk(sim)).map_err(|error| error.to_string())?)
}

#[test]
fn a_flipped_bit_in_the_state_is_noticed_or_harmless() {
    let (sim, model) = a_state();
    let content = sim.content("state.redb").unwrap();
    let mut dice = Dice(9);
    let used: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
    let spread = (0..700).map(|_| used[dice.below(used.len() as u64) as usize] as u64);
    let (mut noticed, mut harmless, mut named) = (0, 0, 0);
    let mut masks = Dice(10);
    for offset in (0..320).chain(spread) {
        let damaged = sim.fork(1);
        damaged.rot("state.redb", offset, 1 << masks.below(8));
        match check_twice(&damaged, &model) {
            Ok(()) => harmless += 1,
            Err(error) => {
                assert!(!error.contains("differ") && !error.contains("not ("), "{offset}: {error}");
                named += usize::from(error.contains(" row ") || error.contains("page `"));
                noticed += 1;
            }
        }
    }
    // Most of the file is free, or the header's second slot.
    assert!(noticed > 150 && named > 50, "{noticed} noticed, {named} rows, {harmless} harmless");
}

#[test]
fn scrubbing_finds_what_a_flipped_bit_touched() {
    let (sim, model) = a_state();
    let state = open_state(disk(&sim)).unwrap();
    let mut pieces = 0;
    while !state.scrub(20_000).unwrap().wrapped {
        pieces += 1;
    }
    assert!(pieces > 3, "{pieces}");
    drop(state);
    let content = sim.content("state.redb").unwrap();
    // A body that is stored once, in the middle of a row.
    let body = model.versions.values().rfind(|body| body.len() > 500).unwrap();
    let at = content.windows(64).position(|window| window == &body[100..164]).unwrap();
    sim.rot("state.redb", at as u64, 2);
    let state = open_state(disk(&sim)).unwrap();
    let found = std::iter::repeat_with(|| state.scrub(20_000))
        .find_map(|done| done.map(|done| assert!(!done.wrapped)).err());
    let error = found.unwrap().to_string();
    assert!(error.contains("history row") && error.contains("digest"), "{error}");
    let error = state.reclaim(usize::MAX, |_, _| true).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let config = Config { space: NO_RESERVE, wal: SMALL, state: CACHE };
    let sim = SimDisk::new(1);
    let open = |sim: &SimDisk| Member::open(disk(sim), config, &owner(), INSTANCE).map(|_| ());
    let mut member = Member::open(disk(&sim), config, &owner(), INSTANCE).unwrap();
    let entries = (1..=9).map(|index| Record::Append { index, bytes: Bytes::new() });
    member.wal.commit(&entries.collect::<Vec<_>>()).unwrap();
    let checkpoint =
        |index| satrap_ring_storage::Checkpoint { applied: mark(index), ..Default::default() };
    member.state.checkpoint(&checkpoint(4)).unwrap();
    let early = sim.fork(1);
    member.state.checkpoint(&checkpoint(9)).unwrap();
    member.wal.commit(&[Record::Purge(mark(7))]).unwrap();
    drop(member);
    open(&sim).unwrap();
    let lost = |name: &str| {
        let sim = sim.fork(1);
        sim.remove(name).unwrap();
        open(&sim).unwrap_err().to_string()
    };
    assert!(lost("state.redb").contains("is missing"), "{}", lost("state.redb"));
    let log = segments(&sim).pop().unwrap();
    assert!(lost(&log).contains("the votes of this member"), "{}", lost(&log));
    // An old copy of the state beside a log that was purged since.
    let stale = sim.fork(1);
    let file = stale.create("state.redb").unwrap();
    file.write_at(0, &early.content("state.redb").unwrap()).unwrap();
    let error = open(&stale).unwrap_err().to_string();
    assert!(error.contains("purged up to"), "{error}");
    // The state of another instance of the same member.
    let other = SimDisk::new(1);
    drop(State::open(disk(&other), CACHE, &owner(), [8; 16]).unwrap());
    let file = sim.create("state.redb").unwrap();
    file.write_at(0, &other.content("state.redb").unwrap()).unwrap();
    assert!(
        open(&sim)
            .unwrap_err()
            .to_string()
            .contains("instance id differs from that of the write-ahead log")
    );
    // Empty, short and foreign files are damage and never a fresh start.
    for content in [&b""[..], b"x", &[0x5a; 9_000]] {
        sim.create("state.redb").unwrap().write_at(0, content).unwrap();
        assert!(matches!(open(&sim), Err(StorageError::Damaged { .. })), "{}", content.len());
    }
    sim.crash(Survival::All);
}
