//! 000-31 and 001-34: the operations that etcd does not have.

use proptest::prelude::*;
use satrap_ring_core::{
    Keyspace, Refusal, Reply, Request, Response,
    keyspace::{PutIfRevision, PutSequential},
};

use crate::{
    fencing::recovery,
    ring::{Ring, text},
};

fn put_if(ring: &mut Ring, expected_revision: i64, value: &str) -> Reply {
    ring.ask(Request::PutIfRevision(PutIfRevision {
        key: text("k"),
        expected_revision,
        value: text(value),
        lease: 0,
        want_value: true,
    }))
}

fn sequential(ring: &mut Ring, prefix: &str) -> Result<String, Refusal> {
    let request = PutSequential { prefix: text(prefix), value: text(""), lease: 0 };
    match ring.ask(Request::PutSequential(request))? {
        Response::PutSequential { key, .. } => Ok(String::from_utf8(key.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refused_put_says_what_is_there_000_31() {
    let mut ring = Ring::new();
    let absent = Refusal::Conflict { at: 1, current: 0, value: None };
    assert_eq!(put_if(&mut ring, 7, "x"), Err(absent));
    assert_eq!(put_if(&mut ring, 0, "first").unwrap().revision(), 2);
    let conflict = Refusal::Conflict { at: 2, current: 2, value: Some(text("first")) };
    assert_eq!(put_if(&mut ring, 0, "x"), Err(conflict));
    assert_eq!(put_if(&mut ring, 2, "second").unwrap().revision(), 3);
    ring.delete("k").unwrap();
    assert_eq!(put_if(&mut ring, 0, "again").unwrap().revision(), 5, "deleted is not there");
}

#[test]
fn of_many_racers_exactly_one_wins_000_31() {
    let mut ring = Ring::new();
    ring.put("k", "0").unwrap();
    for round in 2..30 {
        let won = (0..10).filter(|n| put_if(&mut ring, round, &n.to_string()).is_ok()).count();
        assert_eq!(won, 1);
    }
}

#[test]
fn a_taken_place_is_refused_and_the_next_write_moves_on_001_34() {
    let mut ring = Ring::new();
    let place = |revision| format!("q/00000000{revision:019}");
    assert_eq!(sequential(&mut ring, "q/").unwrap(), place(2));
    ring.put(&place(4), "by hand").unwrap();
    let taken = Refusal::Conflict { at: 3, current: 3, value: None };
    assert_eq!(sequential(&mut ring, "q/"), Err(taken));
    ring.put("other", "").unwrap();
    assert_eq!(sequential(&mut ring, "q/").unwrap(), place(5));
    assert_eq!(sequential(&mut ring, ""), Err(Refusal::EmptyKey));
}

proptest! {
    /// 001-34: over other writes, deletions, compactions, restarts and recoveries.
    #[test]
    fn suffixes_strictly_increase_001_34(steps in prop::collection::vec(0..8_u8, 1..60)) {
        let mut ring = Ring::new();
        let mut last = String::new();
        let mut checkpoint = (Default::default(), Vec::new(), 0);
        for step in steps {
            match step {
                0..4 => {
                    let key = sequential(&mut ring, "q/").unwrap();
                    prop_assert!(key > last, "{key} after {last}");
                    prop_assert_eq!(key.len(), 2 + 27);
                    last = key;
                }
                4 => { ring.delete(&last).unwrap(); }
                5 => { let _ = ring.ask(Request::Compact { revision: ring.keyspace.store().revision() }); }
                6 => {
                    let changes = ring.keyspace.take_changes();
                    let (pages, events, epoch): &mut (satrap_ring_core::keyspace::Pages, Vec<_>, u32) = &mut checkpoint;
                    pages.extend(changes.pages);
                    events.extend(changes.events);
                    *epoch = ring.keyspace.epoch();
                }
                _ => {
                    // An old state comes back without a leap: only the epoch tells it apart.
                    let epoch = ring.keyspace.epoch() + 1;
                    let (pages, events, _) = &mut checkpoint;
                    ring.keyspace = Keyspace::restore(pages, events.iter().cloned()).unwrap();
                    ring.ask(Request::Recovery(recovery(epoch, 0))).unwrap();
                }
            }
        }
    }
}
