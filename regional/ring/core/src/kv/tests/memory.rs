//! Tests of memory use, of reclaiming, and of the validation at a restart.

use bytes::Bytes;

use super::*;

/// A version owns exactly its bytes, whatever request it came in.
#[test]
fn a_live_key_does_not_keep_the_entry_it_came_in() {
    let entry = Bytes::from(vec![7; 1 << 20]);
    let mut store = Store::new();
    let request = PutRequest::of(entry.slice(..3), entry.slice(3..5));
    store.put(&request, &mut ()).unwrap();
    drop(request);
    assert!(entry.is_unique());
    assert_eq!(store.get(&[7, 7, 7]).unwrap().value(), [7, 7]);
}

/// Guards the size of records: a million keys must stay cheap.
#[test]
fn records_keep_their_size() {
    assert_eq!(size_of::<KeyValue>(), 72);
    assert_eq!(size_of::<index::Versions>(), 16);
    assert_eq!(size_of::<index::Key>(), 32);
}

/// COMPACT-1, and that no call exceeds its budget.
#[test]
fn reclaiming_gives_back_all_but_what_can_be_read() {
    let mut store = Store::new();
    for round in 0..10 {
        for n in 0..50 {
            put(&mut store, &format!("{n}"), &format!("{round}"));
        }
    }
    delete(&mut store, key("0"));
    put(&mut store, "last", "1");
    store.take_events();
    let gone = Arc::downgrade(&store.events_at(2)[0]);
    let all = store.sizes();
    assert_eq!(all.held_bytes, all.resident_bytes);
    store.compact(store.revision()).unwrap();
    let held = store.sizes().held_bytes;
    assert!(held < all.held_bytes / 9);
    assert_eq!(store.sizes().resident_bytes, all.resident_bytes);
    let mut calls = 0;
    let mut before = all.resident_bytes;
    while store.reclaim(10) == Reclaimed::More {
        calls += 1;
        let now = store.sizes();
        assert!(before - now.resident_bytes <= 11 * (VERSION_OVERHEAD_BYTES + 4));
        assert_eq!(now.held_bytes, held);
        before = now.resident_bytes;
    }
    assert!(calls >= 90, "{calls}");
    assert_eq!(store.sizes().resident_bytes, held);
    assert!(gone.upgrade().is_none());
    assert_eq!(store.events(0, usize::MAX).count(), 1);
}

/// One deletion of many keys is one revision, and still no call exceeds its budget.
#[test]
fn a_revision_with_many_writes_is_reclaimed_in_parts() {
    let mut store = Store::new();
    for n in 0..1_000 {
        put(&mut store, &format!("{n:04}"), "");
    }
    delete(&mut store, KeyRange::all());
    put(&mut store, "a", "1");
    store.take_events();
    let weak: Vec<_> = store.events_at(1_002).iter().map(Arc::downgrade).collect();
    let alive = || weak.iter().filter(|w| w.strong_count() > 0).count();
    store.compact(1_003).unwrap();
    let mut last = alive();
    while store.reclaim(7) == Reclaimed::More {
        let now = alive();
        assert!(last - now <= 7);
        last = now;
    }
    assert_eq!(alive(), 0);
}

/// A digest or a compaction at any revision visits few writes, also next to a large revision.
#[test]
fn sums_are_known_near_every_revision() {
    let mut store = Store::new();
    for n in 0..99 {
        put(&mut store, &format!("{n}"), "");
    }
    delete(&mut store, KeyRange::all());
    for n in 0..9 {
        put(&mut store, &format!("{n}"), "");
    }
    for revision in 1..=store.revision() {
        let marked = store.marks.before(revision).revision;
        let between: usize = (marked + 1..=revision).map(|r| store.events_at(r).len()).sum();
        assert!(marked <= revision && between < 4, "{between} from {marked} to {revision}");
    }
}

/// Events that the disk has not taken are kept for it, also after a compaction.
#[test]
fn events_are_handed_to_the_disk_once() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "a", "2");
    store.compact(3).unwrap();
    while store.reclaim(1) == Reclaimed::More {}
    assert_eq!(shown(&store.take_events()), "a=1 a=2");
    put(&mut store, "a", "3");
    assert_eq!(shown(&store.take_events()), "a=3");
    assert_eq!(shown(&store.take_events()), "");
}

/// COMPACT-2: a scan below a new compaction is refused, not answered with gaps.
#[test]
fn a_scan_behind_a_compaction_is_refused() {
    let mut store = Store::new();
    for n in 0..10 {
        put(&mut store, &format!("{n}"), "");
    }
    let mut scan = Scan::begin(&store, &RangeRequest::of(KeyRange::all())).unwrap();
    let budget = Budget { keys: 4, bytes: usize::MAX };
    assert_eq!(scan.step(&store, budget), Ok(Progress::More));
    delete(&mut store, key("8"));
    assert_eq!(scan.step(&store, budget), Ok(Progress::More));
    store.compact(12).unwrap();
    assert_eq!(scan.step(&store, budget), Err(Refusal::Compacted { compacted: 12 }));
}

fn event(key: &str, mod_revision: Revision, sub_revision: u32, version: i64) -> Event {
    let create_revision = if version == 0 { 0 } else { mod_revision - version + 1 };
    let stamp = Stamp { create_revision, mod_revision, sub_revision, version, lease: 0 };
    Arc::new(KeyValue::new(key.as_bytes(), b"", stamp))
}

#[test]
fn a_restart_does_not_believe_events_that_cannot_be() {
    use RestoreError::{Contradiction, Gap, OutOfOrder};
    let restore = |compacted, events: &[Event]| {
        Store::restore(compacted, events.to_vec()).map(|store| store.revision())
    };
    let a = || event("a", 2, 0, 1);
    assert_eq!(restore(-1, &[a(), event("a", 3, 0, 2)]), Ok(3));
    assert_eq!(restore(-1, &[a(), event("a", 4, 0, 2)]), Err(Gap(3)));
    assert_eq!(restore(-1, &[event("a", 2, 1, 1)]), Err(Gap(2)));
    assert_eq!(restore(-1, &[a(), a()]), Err(Gap(2)));
    assert_eq!(restore(-1, &[a(), event("b", 3, 0, 1), event("c", 2, 1, 1)]), Err(OutOfOrder(2)));
    assert_eq!(restore(-1, &[a(), event("a", 3, 0, 3)]), Err(Contradiction(3)));
    assert_eq!(restore(-1, &[event("a", 2, 0, 0)]), Err(Contradiction(2)));
    // Before the compacted revision there may be gaps, but no disorder.
    assert_eq!(restore(9, &[event("a", 5, 3, 1), event("b", 7, 0, 2), event("a", 9, 0, 0)]), Ok(9));
    assert_eq!(restore(9, &[event("a", 5, 0, 1), event("b", 5, 0, 2)]), Err(OutOfOrder(5)));
    assert_eq!(restore(9, &[event("a", 1, 0, 1)]), Err(OutOfOrder(1)));
    assert_eq!(restore(9, &[event("a", 9, 1, 1)]), Err(Gap(9)));
    assert_eq!(restore(9, &[]), Ok(9));
    assert_eq!(restore(9, &[event("a", 11, 0, 1)]), Err(Gap(10)));
}

/// The digest depends on every field.
#[test]
fn a_tally_tells_versions_apart() {
    let stamp =
        Stamp { create_revision: 1, mod_revision: 2, sub_revision: 3, version: 4, lease: 5 };
    let others = [
        KeyValue::new(b"ab", b"c", stamp),
        KeyValue::new(b"a", b"bc", stamp),
        KeyValue::new(b"a", b"bd", stamp),
        KeyValue::new(b"a", b"bc", Stamp { create_revision: 9, ..stamp }),
        KeyValue::new(b"a", b"bc", Stamp { mod_revision: 9, ..stamp }),
        KeyValue::new(b"a", b"bc", Stamp { sub_revision: 9, ..stamp }),
        KeyValue::new(b"a", b"bc", Stamp { version: 9, ..stamp }),
        KeyValue::new(b"a", b"bc", Stamp { lease: 9, ..stamp }),
    ];
    let digests: BTreeSet<u128> = others.iter().map(|kv| Tally::of(kv).digest).collect();
    assert_eq!(digests.len(), others.len());
    // Members of different builds compare digests, so the numbers must not change.
    assert_eq!(Tally::of(&others[0]).digest, 30_977_483_654_158_037_480_233_422_492_265_891_606);
}
