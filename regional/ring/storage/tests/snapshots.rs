//! Transfers a checkpoint: whole, in pieces, interrupted, from a lying sender (SNAPFILE-1 to
//! SNAPFILE-4), and through files.

#![allow(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::{io::Cursor, sync::Arc};

use bytes::Bytes;
use common::{CACHE, Dice, INSTANCE, Model, NO_RESERVE, SMALL, disk, mark, open_state, owner};
use satrap_ring_storage::{
    Checkpoint, Config, Member, Owner, Reserve, State, StorageError,
    limits::FRAME_BYTES_MAX,
    sim::{Faults, SimDisk, Survival},
    snapshot::{self, FileError, Frame, ReceiveError, Received, Receiver, Refused, Restore},
};

const OTHER: [u8; 16] = [9; 16];

fn other() -> Owner {
    Owner { member: "m2".into(), ..owner() }
}

/// A state of several megabytes, with a page and a version that are longer than frames.
fn a_state(seed: u64) -> (SimDisk, State, Model) {
    let sim = SimDisk::new(seed);
    let (mut dice, mut model) = (Dice(seed), Model::default());
    let state = open_state(disk(&sim)).unwrap();
    for round in 0..30 {
        let mut checkpoint = model.random_checkpoint(&mut dice);
        if round == 9 {
            let bytes = Bytes::from(dice.bytes(1_000).repeat(3_000));
            model.pages.insert("large".into(), bytes.clone());
            checkpoint.pages.push(("large".into(), Some(bytes)));
        }
        state.checkpoint(&checkpoint).unwrap();
    }
    (sim, state, model)
}

fn frames(state: &State) -> Vec<Frame> {
    let mut reader = state.reader().unwrap().unwrap();
    std::iter::from_fn(|| reader.frame().unwrap()).collect()
}

fn receiver(sim: &SimDisk) -> Receiver {
    Receiver::open(disk(sim), CACHE, &other(), OTHER).unwrap()
}

fn accept_all(receiver: &mut Receiver, frames: &[Frame]) {
    for frame in frames {
        receiver.accept(&frame.bytes).unwrap();
    }
}

fn receive(sim: &SimDisk, frames: &[Frame]) -> Received {
    let mut receiver = receiver(sim);
    accept_all(&mut receiver, frames);
    receiver.finish().unwrap()
}

fn open_other(sim: &SimDisk) -> State {
    State::open(disk(sim), CACHE, &other(), OTHER).unwrap()
}

#[test]
fn a_snapshot_arrives_as_it_was_while_the_state_moves_on() {
    let (_sim, state, model) = a_state(1);
    let mut reader = state.reader().unwrap().unwrap();
    assert_eq!(reader.header().applied, mark(model.applied));
    let target = SimDisk::new(2);
    let there = open_other(&target);
    let mut receiver = receiver(&target);
    let mut dice = Dice(3);
    let mut later = model.clone();
    while let Some(frame) = reader.frame().unwrap() {
        assert!(frame.bytes.len() <= FRAME_BYTES_MAX);
        let accepted = receiver.accept(&frame.bytes).unwrap();
        assert_eq!(accepted.next, frame.number + 1);
        // SNAPFILE-1
        state.checkpoint(&later.random_checkpoint(&mut dice)).unwrap();
        state.reclaim(1 << 20, |key, revision| later.needs(key, revision)).unwrap();
    }
    there.replace(receiver.finish().unwrap()).unwrap();
    model.check(&there).unwrap();
    later.check(&state).unwrap();
    there.checkpoint(&model.clone().random_checkpoint(&mut dice)).unwrap();
    drop(there);
    assert!(open_other(&target).applied().unwrap().unwrap().0.index > model.applied);
}

#[test]
fn an_interrupted_transfer_goes_on_near_where_it_was() {
    let (_sim, state, model) = a_state(1);
    // Several syncs of the receiver fit in.
    let mut checkpoint = Checkpoint { applied: mark(model.applied), ..Checkpoint::default() };
    checkpoint.compacted = model.compacted;
    for page in 0..30 {
        let bytes = Bytes::from(vec![page; 1 << 20]);
        checkpoint.pages.push((format!("p{page}"), Some(bytes)));
    }
    state.checkpoint(&checkpoint).unwrap();
    let frames = frames(&state);
    let target = SimDisk::new(2);
    let half = frames.len() / 2;
    let mut first = receiver(&target);
    accept_all(&mut first, &frames[..half]);
    drop(first);
    let mut second = receiver(&target);
    let next = second.next();
    assert!(next > 10 && next <= half as u64, "{next} of {half}");
    // Another reader of the same checkpoint, which has to seek the frame.
    let mut reader = state.reader().unwrap().unwrap();
    let header = reader.frame().unwrap().unwrap();
    assert_eq!(second.accept(&header.bytes).unwrap().next, next, "the header changes nothing");
    reader.seek(next).unwrap();
    while let Some(frame) = reader.frame().unwrap() {
        assert_eq!(frame, frames[frame.number as usize]);
        second.accept(&frame.bytes).unwrap();
    }
    reader.seek(3).unwrap();
    assert_eq!(reader.frame().unwrap().unwrap(), frames[3]);
    assert!(reader.seek(frames.len() as u64 + 1).is_err());
    let there = open_other(&target);
    there.replace(second.finish().unwrap()).unwrap();
    assert_eq!(there.applied().unwrap(), state.applied().unwrap());
    // A newer checkpoint starts over.
    let mut third = receiver(&target);
    accept_all(&mut third, &frames[..half]);
    checkpoint.applied = mark(model.applied + 1);
    state.checkpoint(&checkpoint).unwrap();
    let header = self::frames(&state).remove(0);
    assert_eq!(third.accept(&header.bytes).unwrap().next, 1);
}

/// Damage to the received file says nothing about this member's own data.
#[test]
fn damage_to_a_received_snapshot_names_its_own_file() {
    let (_sim, state, _) = a_state(1);
    let target = SimDisk::new(2);
    let there = open_other(&target);
    let received = receive(&target, &frames(&state));
    for offset in 0..target.content("state.incoming").unwrap().len() / 4096 {
        target.rot("state.incoming", 4096 * offset as u64 + 40, 0xff);
    }
    let loaded = there.load_received::<StorageError>(&received, |_| Ok(()));
    let error = loaded.unwrap_err();
    assert!(error.to_string().starts_with("state.incoming: "), "{error}");
    assert!(!error.to_string().contains("move the data directory away"), "{error}");
    assert!(!error.is_fatal(), "{error}");
    // The next transfer starts over.
    let received = receive(&target, &frames(&state));
    there.load_received::<StorageError>(&received, |_| Ok(())).unwrap();
}

/// As for the log: content that is readable after a failed sync may not be on disk.
#[test]
fn a_transfer_that_failed_to_sync_begins_anew() {
    let (_sim, state, model) = a_state(1);
    let frames = frames(&state);
    let mut failures = 0;
    for at in 0..40 {
        let target = SimDisk::new(at);
        target.set_faults(Faults { error_after_syncs: Some(at), ..Faults::default() });
        let transfer = || -> Result<(), ReceiveError> {
            let mut receiver = Receiver::open(disk(&target), CACHE, &other(), OTHER)?;
            frames.iter().try_for_each(|frame| receiver.accept(&frame.bytes).map(drop))?;
            Ok(receiver.finish().map(drop)?)
        };
        failures += usize::from(transfer().is_err());
        // Only the process restarts; the next receiver opens the file that this one left.
        target.kill();
        let received = receive(&target, &frames);
        open_other(&target).replace(received).unwrap();
        target.crash(Survival::None);
        model.check(&open_other(&target)).unwrap_or_else(|why| panic!("sync {at}: {why}"));
    }
    assert!(failures > 5, "{failures}");
}

#[test]
fn liars_are_refused_by_name_and_harm_nothing() {
    let (_sim, state, model) = a_state(1);
    let frames = frames(&state);
    assert!(frames.len() > 5);
    let target = SimDisk::new(2);
    let there = open_other(&target);
    there.checkpoint(&Checkpoint { applied: mark(1), ..Checkpoint::default() }).unwrap();
    let mut receiver = receiver(&target);
    let refused = |receiver: &mut Receiver, bytes: &[u8]| match receiver.accept(bytes) {
        Err(ReceiveError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    let mut dice = Dice(5);
    for (at, frame) in frames.iter().enumerate() {
        for _ in 0..40 {
            let mut bytes = frame.bytes.clone();
            let flipped = dice.below(bytes.len() as u64) as usize;
            bytes[flipped] ^= 1 << dice.below(8);
            refused(&mut receiver, &bytes);
            refused(&mut receiver, &frame.bytes[..flipped]);
        }
        refused(&mut receiver, b"");
        refused(&mut receiver, &[&frame.bytes[..], b"x"].concat());
        if at > 1 {
            let (expected, found) = (at as u64, at as u64 - 1);
            let again = refused(&mut receiver, &frames[at - 1].bytes);
            assert_eq!(again, Refused::OutOfOrder { expected, found });
        }
        if at > 0 && at + 2 < frames.len() {
            let (expected, found) = (at as u64, at as u64 + 1);
            let ahead = refused(&mut receiver, &frames[at + 1].bytes);
            assert_eq!(ahead, Refused::OutOfOrder { expected, found });
        }
        if at + 1 < frames.len() || at == 0 {
            receiver.accept(&frame.bytes).unwrap();
        }
    }
    assert!(matches!(receiver.finish(), Err(StorageError::Order(_))), "the last frame is missing");
    assert_eq!(there.applied().unwrap().unwrap().0, mark(1), "what is in place is as it was");
    there.replace(receive(&target, &frames)).unwrap();
    model.check(&there).unwrap();
}

/// A sender whose digests are valid, but whose rows are wrong.
#[test]
fn a_consistent_lie_is_refused_too() {
    let (_sim, state, _) = a_state(1);
    let target = SimDisk::new(2);
    let foreign = Owner { ring: [3; 32], ..other() };
    let mut elsewhere = Receiver::open(disk(&target), CACHE, &foreign, OTHER).unwrap();
    let error = elsewhere.accept(&frames(&state)[0].bytes).unwrap_err();
    assert!(matches!(error, ReceiveError::Refused(Refused::Ring)), "{error}");
    // Frames of another checkpoint, each valid in itself.
    let before = frames(&state);
    let mut dice = Dice(8);
    let applied = state.applied().unwrap().unwrap();
    let page = ("zz".to_owned(), Some(dice.bytes(9_000)));
    let more = Checkpoint {
        applied: applied.0,
        compacted: applied.1,
        pages: vec![page],
        ..Checkpoint::default()
    };
    state.checkpoint(&more).unwrap();
    let after = frames(&state);
    let mut receiver = receiver(&target);
    receiver.accept(&before[0].bytes).unwrap();
    let error = receiver.accept(&after[1].bytes).unwrap_err();
    assert!(matches!(error, ReceiveError::Refused(Refused::Digest { frame: 1 })), "{error}");
}

#[test]
fn a_full_disk_refuses_a_snapshot_before_it_starts() {
    let (_sim, state, _) = a_state(1);
    let target = SimDisk::new(2);
    let mut receiver = receiver(&target);
    target.set_faults(Faults { capacity_bytes: 3 << 20, ..Faults::default() });
    let error = receiver.accept(&frames(&state)[0].bytes).unwrap_err();
    assert!(matches!(error, ReceiveError::Storage(StorageError::NoSpace { .. })), "{error}");
    target.set_faults(Faults::default());
    receiver.accept(&frames(&state)[0].bytes).unwrap();
}

/// SNAPFILE-3, SNAPFILE-4: power fails anywhere between the first frame and the swap.
#[test]
fn a_power_cut_leaves_the_old_state_or_the_new_one() {
    let (_sim, state, model) = a_state(1);
    let frames = frames(&state);
    let (mut old, mut new, mut resumed) = (0, 0, 0);
    let prepare = |seed| {
        let target = SimDisk::new(seed);
        let there = open_other(&target);
        there.checkpoint(&Checkpoint { applied: mark(1), ..Checkpoint::default() }).unwrap();
        (target, there)
    };
    let (target, there) = prepare(0);
    let start = target.counters().operations;
    there.replace(receive(&target, &frames)).unwrap();
    let whole = target.counters().operations - start;
    for seed in 0..150 {
        let (target, there) = prepare(seed);
        let mut dice = Dice(seed);
        // Half of the cuts strike around the swap.
        let cut = if seed % 2 == 0 { dice.below(whole) } else { whole - dice.below(12) };
        let cut = target.counters().operations + cut;
        target.set_faults(Faults { power_cut_at: Some(cut), ..Faults::default() });
        let transfer = || -> Result<(), ReceiveError> {
            let mut receiver = Receiver::open(disk(&target), CACHE, &other(), OTHER)?;
            for frame in &frames {
                receiver.accept(&frame.bytes)?;
            }
            Ok(there.replace(receiver.finish()?)?)
        };
        let done = transfer().is_ok();
        drop(there);
        target.crash(dice.survival());
        let there = open_other(&target);
        let applied = there.applied().unwrap().unwrap().0.index;
        assert!(!done || applied == model.applied, "seed {seed}: a finished swap is lost");
        if applied == model.applied {
            model.check(&there).unwrap();
            new += 1;
            continue;
        }
        assert_eq!(applied, 1, "seed {seed}");
        old += 1;
        let mut receiver = receiver(&target);
        resumed += usize::from(receiver.next() > 0);
        let next = receiver.accept(&frames[0].bytes).unwrap().next as usize;
        accept_all(&mut receiver, &frames[next..]);
        there.replace(receiver.finish().unwrap()).unwrap();
        model.check(&there).unwrap();
    }
    assert!(old > 20 && new > 20 && resumed > 5, "{old} old, {new} new, {resumed} resumed");
}

fn saved(state: &State) -> Vec<u8> {
    let mut file = Vec::new();
    snapshot::save(&mut state.reader().unwrap().unwrap(), &mut file).unwrap();
    file
}

fn restore_into(sim: &SimDisk) -> Restore {
    let reserve = Arc::new(Reserve::open(disk(sim), NO_RESERVE).unwrap());
    let owner = Owner { ring: [5; 32], member: "new".into() };
    Restore { files: disk(sim), reserve, owner, instance: INSTANCE, ring: None, wal: SMALL }
}

#[test]
fn a_saved_file_is_verified_and_restored_as_a_new_member() {
    let (_sim, state, model) = a_state(1);
    let file = saved(&state);
    let status = snapshot::status(&mut Cursor::new(&file)).unwrap();
    assert_eq!((status.ring, status.digest), (owner().ring, None));
    let verified = snapshot::verify(&mut Cursor::new(&file)).unwrap();
    assert!(verified.digest.is_some());
    assert_eq!(verified.applied, mark(model.applied));
    let target = SimDisk::new(2);
    let restore = restore_into(&target);
    let other_ring = Restore { ring: Some([6; 32]), ..restore_into(&target) };
    let error = snapshot::restore(&mut Cursor::new(&file), &other_ring).unwrap_err();
    assert!(matches!(error, FileError::Refused(Refused::Ring)), "{error}");
    let done = snapshot::restore(&mut Cursor::new(&file), &restore).unwrap();
    assert_eq!((done.digest, done.compacted), (verified.digest, model.compacted));
    let config = Config { space: NO_RESERVE, wal: SMALL, state: CACHE };
    let member = Member::open(disk(&target), config, &restore.owner, [0; 16]).unwrap();
    assert_eq!(member.recovered.instance, INSTANCE);
    let purged = Some(mark(model.applied));
    assert_eq!((member.recovered.purged, member.recovered.vote), (purged, None));
    model.check(&member.state).unwrap();
    drop(member.state);
    let error = snapshot::restore(&mut Cursor::new(&file), &restore).unwrap_err();
    assert!(error.to_string().contains("already holds"), "{error}");
}

#[test]
fn a_damaged_file_is_never_restored() {
    let (_sim, state, _) = a_state(2);
    let file = saved(&state);
    let mut dice = Dice(1);
    for _ in 0..150 {
        let at = dice.below(file.len() as u64) as usize;
        let mut flipped = file.clone();
        flipped[at] ^= 1 << dice.below(8);
        for bytes in [&flipped[..], &file[..at], &[&file[..], b"x"].concat()] {
            let error = snapshot::verify(&mut Cursor::new(bytes)).unwrap_err();
            assert!(matches!(error, FileError::Refused(_)), "{error}");
        }
    }
    let target = SimDisk::new(2);
    let restore = restore_into(&target);
    let cut = &file[..file.len() - 1];
    snapshot::restore(&mut Cursor::new(cut), &restore).unwrap_err();
    let config = Config { space: NO_RESERVE, wal: SMALL, state: CACHE };
    let opened = Member::open(disk(&target), config, &restore.owner, [0; 16]).unwrap();
    assert!(opened.recovered.created, "an interrupted restore left no member behind");
}
