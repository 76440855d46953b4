//! Prints the costs of the key-value store: `cargo run --release -p satrap-ring-core --example
//! kv_figures [KEYS] [VALUE_BYTES]`.
//!
//! The constant for the overhead of a version comes from here.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use satrap_merkle::codec::{Canonical, Reader, Writer};
use satrap_ring_core::kv::{
    Budget, Decode, KeyRange, KeyValue, Ownership, Progress, PutRequest, RangeRequest, Reclaimed,
    Scan, Store,
};

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse().expect("a number"));
    let keys: u64 = args.next().unwrap_or(1_000_000);
    let value_bytes = args.next().unwrap_or(256);
    println!("{keys} keys of 28 bytes, values of {value_bytes} bytes");
    let value = vec![b'v'; value_bytes as usize];

    let empty = resident_bytes();
    let mut store = Store::new();
    let order: Vec<u64> = (0..keys).map(|n| scattered(n, keys)).collect();
    let puts = |store: &mut Store| {
        let mut sum = Duration::ZERO;
        for some in order.chunks(1_000) {
            let put = |&n| PutRequest::of(key(n), value.clone());
            let puts: Vec<PutRequest> = some.iter().map(put).collect();
            sum += timed(|| {
                for put in &puts {
                    store.put(put, &mut ()).expect("a plain put");
                }
            });
        }
        sum
    };
    let per_put = |took: Duration| format!("{:.2} us each", took.as_secs_f64() * 1e6 / keys as f64);
    println!("put, new keys, scattered:     {}", per_put(puts(&mut store)));
    drop(store.take_events());
    let grown = resident_bytes().saturating_sub(empty + keys * 8);
    println!(
        "resident: {} bytes for each key, {} of them not key or value",
        grown / keys,
        (grown / keys).saturating_sub(28 + value_bytes)
    );
    println!("put, present keys, scattered: {}", per_put(puts(&mut store)));
    drop(store.take_events());
    compaction(&mut store);
    println!("put, present keys, compacted: {}", per_put(puts(&mut store)));
    let encoded = PutRequest::of(key(1), value.clone()).to_canonical();
    codec(keys, &encoded, per_put);
    let disk = store.take_events();
    compaction(&mut store);
    reads(&store, &order);
    restart(&store, disk);
}

fn codec(keys: u64, encoded: &[u8], per_put: impl Fn(Duration) -> String) {
    let buffer = bytes::Bytes::copy_from_slice(encoded);
    let shared = timed(|| {
        for _ in 0..keys {
            let mut r = Reader::new(&buffer);
            black_box(PutRequest::decode_with(&mut r, Ownership::Shared(&buffer)))
                .expect("what was encoded");
        }
    });
    let copied = timed(|| {
        for _ in 0..keys {
            black_box(PutRequest::from_canonical(encoded)).expect("what was encoded");
        }
    });
    println!("decode a put: shared {}, copied {}", per_put(shared), per_put(copied));
}

fn compaction(store: &mut Store) {
    let took = timed(|| {
        store.compact(store.revision()).expect("not compacted yet");
    });
    println!("compact: {took:?} until reads are refused");
    let (mut slices, mut longest, mut sum) = (0, Duration::ZERO, Duration::ZERO);
    let mut state = Reclaimed::More;
    while state == Reclaimed::More {
        let took = timed(|| state = store.reclaim(1_000));
        (slices, longest, sum) = (slices + 1, longest.max(took), sum + took);
    }
    println!("reclaim: {sum:?} in {slices} slices, the longest {longest:?}");
}

fn reads(store: &Store, order: &[u64]) {
    let got = timed(|| {
        for &n in order {
            let request = RangeRequest::of(KeyRange::key(key(n)));
            black_box(store.range(&request)).expect("now can be read");
        }
    });
    println!("range of one key: {:.2} us", got.as_secs_f64() * 1e6 / order.len() as f64);
    let all = RangeRequest::of(KeyRange::all());
    println!("range of all: {:?}", timed(|| drop(store.range(&all))));
    let count = RangeRequest { count_only: true, ..all.clone() };
    println!("count of all: {:?}", timed(|| drop(store.range(&count))));
    let mut scan = Scan::begin(store, &all).expect("now can be read");
    let (mut slices, mut longest) = (0, Duration::ZERO);
    let mut progress = Progress::More;
    while progress == Progress::More {
        let budget = Budget { keys: 1_000, bytes: usize::MAX };
        let took = timed(|| progress = scan.step(store, budget).expect("not compacted"));
        (slices, longest) = (slices + 1, longest.max(took));
    }
    println!("range of all in {slices} slices, the longest {longest:?}");
    println!("hash: {:?}", timed(|| drop(store.hash_kv(0))));
}

fn restart(store: &Store, disk: Vec<Arc<KeyValue>>) {
    let mut w = Writer::default();
    for event in disk.iter().filter(|e| store.holds(e.key(), e.mod_revision)) {
        event.encode(&mut w);
    }
    drop(disk);
    let bytes = w.finish();
    let mut decoded = Vec::new();
    let took = timed(|| {
        let mut r = Reader::new(&bytes);
        while r.remaining() > 0 {
            decoded.push(Arc::new(KeyValue::decode(&mut r).expect("what was encoded")));
        }
    });
    println!("decode {} versions: {took:?}", decoded.len());
    let mut restored = Store::new();
    let took = timed(|| {
        restored = Store::restore(store.compacted(), decoded).expect("what a store held");
    });
    assert_eq!(restored.held(), store.held());
    println!("restore: {took:?}, equal digest");
}

/// Visits all of `0..keys`, neighbors far apart.
fn scattered(n: u64, keys: u64) -> u64 {
    (n * 7_919_999) % keys
}

fn key(n: u64) -> Vec<u8> {
    format!("/figures/{n:019}").into_bytes()
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    pages * 4096
}

#[expect(clippy::disallowed_methods, reason = "it measures time and prints it")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
