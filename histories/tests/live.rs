//! Live rings under faults: what their clients saw is what one member that never fails would have
//! shown them. All of it wants root, and rings of the program that this build makes.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod program;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use satrap_histories::{
    Trouble,
    cluster::Store,
    failover::{measure, percentile},
    fencing::experiment,
    nemesis::Nemesis,
    resource::Guard,
    run::{OPERATIONS_MIN, Options, many, start},
    satrap::Satrap,
    session::Dialer,
    shared::Shared,
    summary::Summary,
};

use self::program::{PROGRAM, alone};

/// The runs that every change is judged by: together they meet every fault several times, and 12 met
/// a leader that went on in its term after a crash. The binary makes any others.
const SEEDS: [u64; 20] = {
    let mut seeds = [0; 20];
    let mut at = 0;
    while at < seeds.len() {
        at += 1;
        seeds[at - 1] = at as u64;
    }
    seeds
};
/// As many as there are processors to be expected; what is late because there are fewer is not wrong.
const RINGS_AT_ONCE: usize = 2;
const ROUNDS: usize = 7;
const ELECTION_MS: u32 = 250;
/// One while nothing else happens, one while the resource dies, one while the ring's leader does, and
/// one while all of the ring does.
const HOLDERS_STOPPED: usize = 4;
const LEADERS_KILLED: usize = 8;

fn ring() -> Box<dyn Store> {
    Box::new(Satrap::new(&PROGRAM, ELECTION_MS).unwrap())
}

/// What is wrong with a run.
fn judge(seed: u64, made: Result<Summary, Trouble>) -> Option<String> {
    let summary = match made {
        Ok(summary) => summary,
        Err(trouble) => return Some(format!("seed {seed}: {trouble}")),
    };
    println!("{summary}");
    assert!(summary.completed >= OPERATIONS_MIN);
    let first: Vec<_> = summary.violations.iter().take(5).map(ToString::to_string).collect();
    (!first.is_empty()).then(|| format!("seed {seed}:\n{}", first.join("\n")))
}

/// 000-63, 000-67, 000-68, 000-76
#[test]
fn histories_under_faults_are_those_of_a_store_that_never_fails() {
    let _alone = alone();
    let wrong = Mutex::new(Vec::new());
    let make = |seed| Ok((ring(), Options { seed, rounds: ROUNDS }));
    many(&SEEDS, RINGS_AT_ONCE, make, |seed, made| {
        wrong.lock().unwrap().extend(judge(seed, made));
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// 000-56, 000-61, 000-64
#[test]
fn a_stopped_holder_does_harm_only_where_nobody_looks_at_its_token() {
    let _alone = alone();
    let own = Path::new(env!("CARGO_BIN_EXE_satrap-histories"));
    let guarded = experiment(ring(), own, Guard::Tokens, HOLDERS_STOPPED).unwrap();
    assert!(guarded.violations.is_empty(), "{guarded:?}");
    assert_eq!(guarded.late, [false; HOLDERS_STOPPED], "{guarded:?}");
    let unguarded = experiment(ring(), own, Guard::Nothing, HOLDERS_STOPPED).unwrap();
    assert_eq!(unguarded.late, [true; HOLDERS_STOPPED], "{unguarded:?}");
    assert!(unguarded.violations.len() >= HOLDERS_STOPPED, "{unguarded:?}");
}

#[test]
fn writes_go_on_soon_after_a_leader_died() {
    let _alone = alone();
    let times = measure(ring(), LEADERS_KILLED).unwrap();
    println!("p50 {:?}, all {times:?}", percentile(&times, 50));
    // Two rounds of an election, and a machine that does other things too.
    assert!(percentile(&times, 100) < Duration::from_secs(6), "{times:?}");
}

/// It may have sent entries that its own disk never got: in the same term it would give their
/// places in the log to others, and members would differ for good.
#[test]
fn a_leader_that_restarts_leads_in_a_later_term_only() {
    let _alone = alone();
    let term = |nemesis: &Nemesis, slot| {
        let status = nemesis.admin.status(&nemesis.cluster.client_url(slot)).unwrap();
        status.raft_term
    };
    let ring = ring();
    // A thread of its own, because it moves into the namespace of the clients.
    let terms = thread::scope(|scope| {
        let run = scope.spawn(|| {
            let dialer = Dialer::new(ring.credentials()).unwrap();
            let mut nemesis = start(ring, &Arc::new(Shared::new(dialer)), 1).unwrap();
            let leader = nemesis.leader().unwrap();
            let before = term(&nemesis, leader);
            assert!(nemesis.cluster.kill(leader).unwrap());
            nemesis.cluster.run(leader).unwrap();
            nemesis.heal().unwrap();
            (before, term(&nemesis, leader))
        });
        run.join().unwrap()
    });
    assert!(terms.1 > terms.0, "before the restart and after: {terms:?}");
}
