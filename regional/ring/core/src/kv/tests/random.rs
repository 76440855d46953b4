//! Random requests to the store and to the model, with compactions, small steps of reclaiming and
//! restarts between them. Every answer must be the same (KV-1 to KV-5, TXN-1, TXN-2, COMPACT-1,
//! COMPACT-2).
//!
//! 000-05: revisions strictly increase without gaps, also across a restart. 001-36: a read at an
//! old revision answers what the keys held then.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::World;
use super::model::{LEASES, Model};
use crate::kv::*;

/// A revision relative to the store's.
#[derive(Clone, Copy, Debug)]
enum When {
    Now,
    Back(i64),
    Negative(i64),
}

#[derive(Clone, Debug)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    DeleteKeys(Vec<Bytes>),
    Txn(TxnRequest),
    Range(RangeRequest, When, usize),
    Compact(When),
    Reclaim(usize),
    Restart { pruned: bool },
}

fn some_key() -> impl Strategy<Value = Bytes> {
    const LONG: &[u8] = b"/registry/leases/kube-node-lease/node-0001";
    let keys: [&'static [u8]; 8] =
        [b"a", b"b", b"b\0", b"c", b"\0", b"\xff", LONG, LONG.split_at(41).0];
    prop::sample::select(keys.to_vec()).prop_map(Bytes::from_static)
}

fn some_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        3 => some_key().prop_map(KeyRange::key),
        2 => (some_key(), some_key()).prop_map(|(a, b)| KeyRange::between(a, b)),
        1 => some_key().prop_map(|start| KeyRange::between(start, vec![0])),
        1 => some_key().prop_map(KeyRange::prefix),
        1 => Just(KeyRange::all()),
    ]
}

fn some_put() -> impl Strategy<Value = PutRequest> {
    let value = prop::sample::select(vec!["", "1", "2", "a longer value"]);
    let lease = prop::sample::select(vec![0, 0, LEASES[0], LEASES[1], 99]);
    let flag = || prop::bool::weighted(0.15);
    (some_key(), value, lease, any::<bool>(), flag(), flag()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value: if ignore_value { "" } else { value }.into(),
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn some_delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (some_range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRangeRequest { range, prev_kv })
}

fn some_bounds() -> impl Strategy<Value = Bounds> {
    let revision = || prop_oneof![6 => Just(0), 1 => 1..20i64];
    (revision(), revision()).prop_map(|(min, max)| Bounds { min, max })
}

pub(super) fn some_range_request() -> impl Strategy<Value = RangeRequest> {
    use SortOrder::{Ascend, Descend, None};
    use SortTarget::{Create, Key, Mod, Value, Version};
    (
        some_range(),
        prop::sample::select(vec![0, 0, 1, 2, 3, -1, i64::MAX]),
        prop::sample::select(vec![None, None, Ascend, Descend]),
        prop::sample::select(vec![Key, Key, Version, Create, Mod, Value]),
        (any::<bool>(), prop::bool::weighted(0.1)),
        some_bounds(),
        some_bounds(),
    )
        .prop_map(
            |(range, limit, order, target, (keys_only, count_only), modified, created)| {
                let of = RangeRequest::of(range);
                RangeRequest {
                    limit,
                    order,
                    target,
                    keys_only,
                    count_only,
                    modified,
                    created,
                    ..of
                }
            },
        )
}

fn some_when() -> impl Strategy<Value = When> {
    prop_oneof![
        3 => Just(When::Now),
        5 => (-1..25i64).prop_map(When::Back),
        1 => (1..3i64).prop_map(When::Negative),
    ]
}

fn some_compare() -> impl Strategy<Value = Compare> {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let result = prop::sample::select(vec![Equal, Greater, Less, NotEqual]);
    let number = || prop_oneof![Just(0), 1..12i64];
    let target = prop_oneof![
        number().prop_map(CompareTarget::Version),
        number().prop_map(CompareTarget::Create),
        number().prop_map(CompareTarget::Mod),
        prop::sample::select(vec![0, 7, 8]).prop_map(CompareTarget::Lease),
        prop::sample::select(vec!["", "1"]).prop_map(|v| CompareTarget::Value(v.into())),
    ];
    (some_range(), result, target).prop_map(|(range, result, target)| Compare {
        range,
        result,
        target,
    })
}

/// Includes transactions that the API would refuse for writing a key twice.
pub(super) fn some_txn() -> impl Strategy<Value = TxnRequest> {
    let range = (some_range_request(), prop::sample::select(vec![0, 0, 0, -1, 2, 5, 9]));
    let range =
        range.prop_map(|(read, revision)| RequestOp::Range(RangeRequest { revision, ..read }));
    let leaf = prop_oneof![
        2 => range,
        4 => some_put().prop_map(RequestOp::Put),
        2 => some_delete().prop_map(RequestOp::DeleteRange),
    ];
    let txn = |op: BoxedStrategy<RequestOp>| {
        (vec(some_compare(), 0..3), vec(op.clone(), 0..4), vec(op, 0..4))
            .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
    };
    let op = leaf.prop_recursive(2, 12, 4, move |op| txn(op).prop_map(RequestOp::Txn));
    txn(op.boxed())
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => some_put().prop_map(Step::Put),
        4 => some_delete().prop_map(Step::Delete),
        1 => vec(some_key(), 0..4).prop_map(Step::DeleteKeys),
        6 => some_txn().prop_map(Step::Txn),
        6 => (some_range_request(), some_when(), 1..5usize).prop_map(|(r, w, n)| Step::Range(r, w, n)),
        2 => some_when().prop_map(Step::Compact),
        3 => (1..6usize).prop_map(Step::Reclaim),
        1 => any::<bool>().prop_map(|pruned| Step::Restart { pruned }),
    ]
}

/// The store, one that never reclaims or restarts, the model, and the content of a disk.
struct Run {
    store: Store,
    lazy: Store,
    model: Model,
    disk: Vec<Event>,
}

impl Run {
    fn new() -> Self {
        let (store, lazy, model) = (Store::new(), Store::new(), Model::new());
        Self { store, lazy, model, disk: Vec::new() }
    }

    fn revision(&self, when: When) -> Revision {
        match when {
            When::Now => 0,
            When::Back(by) => self.model.revision - by,
            When::Negative(by) => -by,
        }
    }

    /// Runs a request on all three; compares the answers and the reported writes.
    fn all<T: PartialEq + core::fmt::Debug>(
        &mut self,
        ask: impl Fn(&mut Store, &mut World) -> T,
        model: impl Fn(&mut Model) -> T,
    ) {
        let mut worlds = [World::default(), World::default()];
        worlds.iter_mut().for_each(|world| world.leases = LEASES.into());
        let [mine, other] = &mut worlds;
        let expected_from = self.model.writes.len();
        let before = self.model.clone();
        let expected = model(&mut self.model);
        assert_eq!(ask(&mut self.store, mine), expected);
        assert_eq!(ask(&mut self.lazy, other), expected);
        let mut seen = before;
        for world in &worlds {
            let told = world.wrote.iter().map(|(event, _)| (**event).clone());
            assert_eq!(told.collect::<Vec<_>>(), self.model.writes[expected_from..]);
        }
        for (event, replaced) in &worlds[0].wrote {
            let held = seen.at(event.key(), Revision::MAX).cloned();
            assert_eq!(replaced.as_deref().cloned(), held);
            seen.writes.push((**event).clone());
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(put) => self.all(|s, w| s.put(put, w), |m| m.put(put)),
            Step::Delete(delete) => {
                self.all(|s, w| s.delete_range(delete, w), |m| m.delete(delete));
            }
            Step::DeleteKeys(keys) => self.delete_keys(keys),
            Step::Txn(txn) => {
                self.all(|s, w| s.txn(txn, w), |m| m.txn(txn));
                if txn.is_read_only() {
                    self.all(|s, _| s.read_txn(txn), |m| m.txn(txn));
                }
            }
            Step::Range(read, when, slice) => self.range(read, self.revision(*when), *slice),
            Step::Compact(when) => {
                let revision = self.revision(*when);
                self.all(|s, _| s.compact(revision), |m| m.compact(revision));
            }
            Step::Reclaim(budget) => {
                self.store.reclaim(*budget);
            }
            Step::Restart { pruned } => self.restart(*pruned),
        }
    }

    fn delete_keys(&mut self, keys: &[Bytes]) {
        let model = |m: &mut Model| {
            let one = |m: &mut Model, key: &Bytes| {
                let range = KeyRange::key(key.clone());
                let op = RequestOp::DeleteRange(DeleteRangeRequest { range, prev_kv: false });
                m.at(key, Revision::MAX).map(|_| op)
            };
            // One transaction, so one revision.
            let mut success: Vec<RequestOp> = keys.iter().filter_map(|key| one(m, key)).collect();
            let mut seen = std::collections::BTreeSet::new();
            success.retain(|op| seen.insert(format!("{op:?}")));
            let deleted = success.len() as u64;
            m.txn(&TxnRequest { success, ..TxnRequest::default() }).unwrap();
            deleted
        };
        self.all(|s, w| s.delete_keys(keys, w), model);
    }

    fn range(&mut self, read: &RangeRequest, revision: Revision, slice: usize) {
        let read = RangeRequest { revision, ..read.clone() };
        self.all(|s, _| s.range(&read), |m| m.range(&read));
        let whole = self.model.range(&read);
        let Ok(mut scan) = Scan::begin(&self.store, &read) else {
            assert!(whole.is_err());
            return;
        };
        let budget = Budget { keys: slice, bytes: slice * 10 };
        let mut parts = Vec::new();
        while scan.step(&self.store, budget).unwrap() == Progress::More {
            parts.extend(scan.take());
        }
        parts.extend(scan.take());
        let mut response = scan.finish();
        parts.append(&mut response.kvs);
        response.kvs = parts;
        assert_eq!(Ok(response), whole);
    }

    fn restart(&mut self, pruned: bool) {
        self.disk.extend(self.store.take_events());
        if pruned {
            self.disk.retain(|event| self.store.holds(event.key(), event.mod_revision));
        }
        let disk = self.disk.iter().cloned();
        self.store = Store::restore(self.store.compacted(), disk).unwrap();
        assert!(self.store.take_events().is_empty());
        assert_eq!(self.store.reclaim(usize::MAX), Reclaimed::Everything);
    }

    /// Checks the invariants after every step.
    fn check(&self) {
        let Self { store, lazy, model, .. } = self;
        assert_eq!((store.revision(), store.compacted()), (model.revision, model.compacted));
        assert_eq!(store.held(), model.held(Revision::MAX));
        assert_eq!(lazy.held(), store.held());
        for revision in model.compacted.max(1)..=model.revision {
            let hash = store.hash_kv(revision).unwrap();
            assert_eq!(hash.hash, model.held(revision).digest, "at {revision}");
            assert_eq!(Ok(hash), lazy.hash_kv(revision));
        }
        let live = model.range(&RangeRequest::of(KeyRange::all())).unwrap().count;
        assert_eq!(store.live_keys(), live as u64);
        self.check_events();
    }

    fn check_events(&self) {
        let Self { store, model, .. } = self;
        let first = store.first_event_revision();
        assert!(first <= model.compacted.max(2));
        let events: Vec<Event> = store.events(0, usize::MAX).flatten().cloned().collect();
        let expected = model.writes.iter().filter(|w| w.mod_revision >= model.compacted);
        assert!(events.iter().map(|e| &**e).eq(expected));
        for event in &events {
            assert!(store.events_at(event.mod_revision).contains(event));
            let before = event.mod_revision - 1;
            let before = (before >= model.compacted).then(|| model.at(event.key(), before));
            assert_eq!(store.previous(event).map(|e| &**e), before.flatten());
        }
        for write in &model.writes {
            let needed = write.mod_revision >= model.compacted
                || model.at(write.key(), model.compacted).map(|w| w.mod_revision)
                    == Some(write.mod_revision);
            assert_eq!(store.holds(write.key(), write.mod_revision), needed, "{write:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_store_answers_as_the_model_whatever_happens_to_it(steps in vec(some_step(), 1..50)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
            run.check();
        }
        while run.store.reclaim(3) == Reclaimed::More {}
        run.check();
    }
}
