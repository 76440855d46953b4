//! Prints the costs of leases: `cargo run --profile production -p satrap-ring-core --example
//! lease_figures [LEASES]`.
//!
//! The figures in `docs/performance.md` come from here.

use std::fs;
use std::time::{Duration, Instant};

use satrap_ring_core::{
    Batch, Caller, Command, Keyspace, Proposal, Request, RingTime,
    keyspace::Changes,
    kv::{PutRequest, Store},
};

/// Proposals in one batch.
const BATCH: i64 = 1_000;
const TTL_S: i64 = 60;

fn main() {
    let leases = std::env::args().nth(1).map_or(1_000_000, |arg| arg.parse().expect("a number"));
    println!("{leases} leases, batches of {BATCH}");
    let mut keyspace = Keyspace::new();
    let empty = resident_bytes();
    let each = |what: &str, took: Duration| {
        println!("{what:34} {:.2} us each", took.as_secs_f64() * 1e6 / leases as f64);
    };
    let grant = |id| Request::LeaseGrant { id: scattered(id), ttl_s: TTL_S };
    each("grant:", apply(&mut keyspace, 0, leases, grant));
    let granted = resident_bytes().saturating_sub(empty);
    println!("resident: {} bytes for each lease", granted / leases as u64);
    checkpoints(&mut keyspace, leases);
    let renew = |id| Request::LeaseRenew { id: scattered(id) };
    each("renew:", apply(&mut keyspace, 20_000, leases, renew));
    each("renew, other order:", apply(&mut keyspace, 40_000, leases, |id| renew(leases + 1 - id)));
    let put = |id| {
        let put = PutRequest::of(format!("service/{id:012}"), "address");
        Request::Put(PutRequest { lease: scattered(id), ..put })
    };
    each("put a key by each lease:", apply(&mut keyspace, 40_000, leases, put));
    checkpoints(&mut keyspace, leases);
    expiry(&mut keyspace);
}

/// Applies one request for each lease; decoding is not counted, hashing and indexing is.
fn apply(
    keyspace: &mut Keyspace,
    time: u64,
    leases: i64,
    request: impl Fn(i64) -> Request,
) -> Duration {
    let mut sum = Duration::ZERO;
    for first in (1..=leases).step_by(BATCH as usize) {
        let proposal = |id| Proposal { caller: Caller::default(), request: request(id) };
        let proposals = (first..=leases.min(first + BATCH - 1)).map(proposal).collect();
        let batch = Batch { time: RingTime(time), proposals };
        sum += timed(|| assert!(keyspace.apply(&batch).iter().all(Result::is_ok)));
    }
    sum
}

fn checkpoints(keyspace: &mut Keyspace, leases: i64) {
    let mut pages = Changes::default();
    let took = timed(|| pages = keyspace.take_changes());
    let bytes: usize = pages.pages.values().map(Vec::len).sum();
    println!("all pages: {} of {bytes} bytes in {took:?}", pages.pages.len());
    let mut copy = None;
    let took = timed(|| {
        let events = pages.events.iter().cloned();
        copy = Some(Keyspace::restore(&pages.pages, events).expect("what was saved"));
    });
    drop(copy);
    println!("restore, with {} events: {took:?}", pages.events.len());
    let mut copy = None;
    let took = timed(|| {
        copy = Some(Store::restore(-1, pages.events.iter().cloned()).expect("what was saved"));
    });
    drop(copy);
    println!("  of which the store: {took:?}");
    let one = Request::LeaseRenew { id: scattered(leases) };
    let proposals = vec![Proposal { caller: Caller::default(), request: one }];
    let batch = Batch { time: keyspace.now().after(1), proposals };
    let entry = Command::Batch(batch.clone()).encode();
    keyspace.apply(&batch);
    let mut after = Default::default();
    let took = timed(|| after = keyspace.take_changes());
    let bytes: usize = after.pages.values().map(Vec::len).sum();
    println!("pages after one renewal ({} bytes of log): {bytes} bytes in {took:?}", entry.len());
}

/// All leases are due at once, as after an outage in which no client could renew.
fn expiry(keyspace: &mut Keyspace) {
    let batch = Batch { time: RingTime(10_000_000), proposals: vec![] };
    let (mut batches, mut longest, mut sum) = (0, Duration::ZERO, Duration::ZERO);
    while !keyspace.leases().is_empty() {
        let took = timed(|| {
            keyspace.apply(&batch);
        });
        (batches, longest, sum) = (batches + 1, longest.max(took), sum + took);
    }
    println!("expiry of all with their keys: {sum:?} in {batches} batches, longest {longest:?}");
}

/// Spreads ids as clients that choose at random do.
fn scattered(id: i64) -> i64 {
    (id.wrapping_mul(0x5851_F42D_4C95_7F2D) & i64::MAX).max(1)
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = status.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4_096
}

#[expect(clippy::disallowed_methods, reason = "a figure is measured, not decided")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
