//! Tests of the hub: against a naive model, and cases that etcd once got wrong.

mod model;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::model::{Run, World, caller};
use super::*;
use crate::{
    kv::request::{KeyRange, Revision},
    refusal::Refusal,
};

/// WATCH-1 to WATCH-6 through 320 random runs. 000-33, 000-39, 000-53.
#[test]
fn the_model_agrees() {
    for seed in 0..320 {
        let mut run = Run::new(seed);
        for _ in 0..200 {
            run.act();
        }
        run.finish();
    }
}

fn open(start: &str, end: &str, from: Revision) -> Open {
    Open {
        watch_id: 0,
        range: KeyRange {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
        },
        start: from,
        no_put: false,
        no_delete: false,
        prev_kv: false,
        progress_notify: false,
        fragment: false,
    }
}

fn put(world: &mut World, key: &str, value: &'static [u8]) {
    world.write(&[(key.as_bytes().to_vec(), Some(Bytes::from_static(value)))].into());
}

fn delete(world: &mut World, key: &str) {
    world.write(&[(key.as_bytes().to_vec(), None)].into());
}

fn drain(hub: &mut Hub, world: &World) -> Vec<Message> {
    while hub.step(world) {}
    hub.take_outbox().into_iter().map(|(_, message)| message).collect()
}

/// A watch at the compacted revision receives its events, deletions too; a watch below it is
/// canceled with the compacted revision.
#[test]
fn watching_from_the_compacted_revision() {
    let (mut world, mut hub) = (World::new(), Hub::new(1));
    put(&mut world, "a", b"1");
    delete(&mut world, "a");
    put(&mut world, "b", b"1");
    world.compacted = 3;
    let stream = hub.open_stream(caller(false), 0, 1);
    for (key, end, from) in [("a", "", 3), ("a", "z", 3), ("a", "", 2), ("a", "z", 2)] {
        hub.open(&world, stream, caller(false), open(key, end, from));
    }
    let mut told = BTreeMap::<i64, Vec<Revision>>::new();
    let mut lost = Vec::new();
    for message in drain(&mut hub, &world) {
        match message {
            Message::Events { watch_id, batch, .. } => {
                let revisions = batch.events.iter().map(|told| told.event.mod_revision);
                told.entry(watch_id).or_default().extend(revisions);
            }
            Message::Compacted { watch_id, compacted: 3 } => lost.push(watch_id),
            Message::Created { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    lost.sort_unstable();
    assert_eq!(told, [(0, vec![3]), (1, vec![3, 4])].into());
    assert_eq!(lost, [2, 3]);
}

/// A snapshot may replace the state by one that begins after the events sent: no watch continues
/// with a gap, and a watch that starts later still waits.
#[test]
fn a_snapshot_ahead_cancels_watches_that_would_miss_an_event() {
    let (mut world, mut hub) = (World::new(), Hub::new(1));
    put(&mut world, "a", b"1");
    let stream = hub.open_stream(caller(false), 0, 1);
    hub.open(&world, stream, caller(false), open("a", "", 0));
    hub.open(&world, stream, caller(false), open("a", "", 9));
    drain(&mut hub, &world);
    for _ in 0..4 {
        put(&mut world, "a", b"2");
    }
    world.compacted = 5;
    let messages = drain(&mut hub, &world);
    assert_eq!(messages, [Message::Compacted { watch_id: 0, compacted: 5 }]);
    for _ in 0..3 {
        put(&mut world, "a", b"3");
    }
    let messages = drain(&mut hub, &world);
    let [Message::Events { watch_id: 1, revision: 9, .. }] = &messages[..] else {
        panic!("{messages:?}")
    };
}

/// A client that does not read fills only its own buffer, does not delay its neighbor, and gets all
/// events when it reads.
#[test]
fn a_slow_client_waits_alone() {
    let (mut world, mut hub) = (World::new(), Hub::new(1));
    let slow = hub.open_stream(caller(false), 0, 1);
    let fast = hub.open_stream(caller(false), 0, 1);
    for stream in [slow, fast] {
        hub.open(&world, stream, caller(false), open("a", "", 0));
    }
    let mut told = [0_usize; 2];
    let mut owed = 0;
    for _ in 0..30_000 {
        put(&mut world, "a", b"x");
        hub.step(&world);
        for (stream, message) in hub.take_outbox() {
            if let Message::Events { batch, .. } = &message {
                told[usize::from(stream == fast)] += batch.events.len();
            }
            if stream == fast {
                hub.sent(fast, message.cost());
            } else {
                owed += message.cost();
            }
        }
    }
    assert_eq!(told[1], 30_000);
    assert!(told[0] <= limits::STREAM_BUFFER_EVENTS_MAX, "{}", told[0]);
    assert_eq!(hub.behind(), 1);
    while told[0] < 30_000 {
        let before = told[0];
        hub.sent(slow, std::mem::take(&mut owed));
        while hub.step(&world) && hub.buffered(slow) == 0 {}
        for (_, message) in hub.take_outbox() {
            owed += message.cost();
            let Message::Events { batch, .. } = message else { continue };
            told[0] += batch.events.len();
        }
        assert!(told[0] > before, "lost after {before}");
    }
    assert_eq!(told[0], 30_000);
    hub.sent(slow, owed);
    drain(&mut hub, &world);
    assert_eq!(hub.behind(), 0);
}

/// GHSA-xg4h-6gfc-h4m8: permission to read one key does not permit a watch of every later one, and
/// a revoked permission ends the watch at its next event.
#[test]
fn permission_is_asked_at_every_event() {
    let (mut world, mut hub) = (World::new(), Hub::new(1));
    let stream = hub.open_stream(caller(true), 0, 1);
    hub.open(&world, stream, caller(true), open("a", "\0", 0));
    put(&mut world, "b", b"1");
    assert!(matches!(drain(&mut hub, &world)[..], [_, Message::Events { .. }]));
    world.auth_revision += 1;
    world.forbidden_below = b"x".to_vec();
    put(&mut world, "b", b"2");
    let denied = Message::Denied { watch_id: 0, refusal: Refusal::PermissionDenied, revision: 3 };
    assert_eq!(drain(&mut hub, &world), [denied]);
    put(&mut world, "b", b"3");
    assert!(drain(&mut hub, &world).is_empty());
    hub.open(&world, stream, caller(true), open("a", "\0", 0));
    let refused =
        Message::Refused { reason: Reason::Denied(Refusal::PermissionDenied), revision: 4 };
    assert_eq!(drain(&mut hub, &world), [refused]);
}

/// WATCH-7: however much history there is, a step is short and does not delay synced watchers.
#[test]
fn a_long_history_is_sent_in_short_steps_and_delays_no_watcher() {
    const PAST: usize = 4 * limits::STEP_EVENTS_MAX;
    let (mut world, mut hub) = (World::new(), Hub::new(1));
    for _ in 0..PAST {
        put(&mut world, "a", b"x");
    }
    let present = hub.open_stream(caller(false), 0, 1);
    hub.open(&world, present, caller(false), open("b", "", 0));
    drain(&mut hub, &world);
    let past = hub.open_stream(caller(false), 0, 1);
    hub.open(&world, past, caller(false), open("a", "b", 2));
    let (mut steps, mut told) = (0, 0);
    while told < PAST {
        put(&mut world, "b", b"y");
        hub.step(&world);
        let (mut now, mut then) = (0, 0);
        for (stream, message) in hub.take_outbox() {
            hub.sent(stream, message.cost());
            let Message::Events { batch, .. } = message else { continue };
            *(if stream == present { &mut now } else { &mut then }) += batch.events.len();
        }
        assert_eq!(now, 1, "the present waits in step {steps}");
        assert!(then <= limits::STEP_EVENTS_MAX, "{then} events in step {steps}");
        (steps, told) = (steps + 1, told + then);
    }
    assert!(steps >= PAST / limits::STEP_EVENTS_MAX);
}
