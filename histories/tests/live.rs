//! Live rings under faults: what their clients saw is what one member that never fails would have
//! shown them. All of it needs root, and rings of the program that this build
//! makes. A quick run leaves it out.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod program;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use satrap_histories::{
    RunError,
    answers::OPERATIONS_MIN,
    cluster::Store,
    failover::{measure, percentile},
    fencing::experiment,
    nemesis::{Nemesis, answered},
    resource::Guard,
    run::{Options, WATCHERS, WATCHERS_MANY, many, start},
    satrap::Satrap,
    session::Dialer,
    shared::Shared,
    summary::Summary,
};

use self::program::{PROGRAM, alone};

/// The runs that every change is judged by: together they meet every fault several times, and 12 met
/// a leader that went on in its term after a crash. The binary makes any others.
const SEEDS: [u64; 12] = {
    let mut seeds = [0; 12];
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
/// The run that has hundreds of watchers.
const MANY_WATCHERS: u64 = 1;
const ELECTION_MS: u32 = 250;
/// Two while nothing else happens, two while the resource dies, two while the ring's leader does, and
/// two while all of the ring does.
const HOLDERS_STOPPED: usize = 8;
const LEADERS_KILLED: usize = 8;
/// Each of three members is as likely as the others to lead next.
const RESTARTS_MAX: usize = 30;

fn ring() -> Box<dyn Store> {
    Box::new(Satrap::new(&PROGRAM, ELECTION_MS).unwrap())
}

/// The fault of a run, if it has one.
fn judge(seed: u64, made: Result<Summary, RunError>) -> Option<String> {
    let summary = match made {
        Ok(summary) => summary,
        Err(error) => return Some(format!("seed {seed}: {error}")),
    };
    println!("{summary}");
    assert!(summary.answers.completed() >= OPERATIONS_MIN);
    let first: Vec<_> = summary.violations.iter().take(5).map(ToString::to_string).collect();
    (!first.is_empty()).then(|| format!("seed {seed}:\n{}", first.join("\n")))
}

/// 000-63, 000-67, 000-68, 000-76
#[test]
fn histories_under_faults_are_those_of_a_store_that_never_fails() {
    let Some(_alone) = alone() else { return };
    let wrong = Mutex::new(Vec::new());
    let watchers = |seed| if seed == MANY_WATCHERS { WATCHERS_MANY } else { WATCHERS };
    let make = |seed| {
        let options = Options { seed, rounds: ROUNDS, watchers: watchers(seed) };
        Ok((ring(), options))
    };
    many(&SEEDS, RINGS_AT_ONCE, make, |seed, made| {
        wrong.lock().unwrap().extend(judge(seed, made));
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// 000-56, 000-61, 000-64
#[test]
fn a_paused_holder_does_harm_only_where_its_token_is_not_checked() {
    let Some(_alone) = alone() else { return };
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
    let Some(_alone) = alone() else { return };
    let times = measure(ring(), LEADERS_KILLED).unwrap();
    println!("p50 {:?}, all {times:?}", percentile(&times, 50));
    // One election. A machine that does other things too may split a vote now and then, so only the
    // longest time has room for several.
    assert!(percentile(&times, 50) < Duration::from_secs(2), "{times:?}");
    assert!(percentile(&times, 100) < Duration::from_secs(6), "{times:?}");
}

/// It may have sent entries that its own disk never got: in the same term it would give their
/// places in the log to others, and members would differ for good. Leaders are restarted until one
/// of them leads again, because only that one could have gone on in its old term.
#[test]
fn a_leader_that_restarts_leads_in_a_later_term_only() {
    let Some(_alone) = alone() else { return };
    let term = |nemesis: &Nemesis, slot| {
        let url = nemesis.cluster.client_url(slot);
        answered("say its term", || nemesis.admin.status(&url)).unwrap().raft_term
    };
    let ring = ring();
    // A thread of its own, because it moves into the namespace of the clients.
    let led_again = thread::scope(|scope| {
        let run = scope.spawn(|| {
            let dialer = Dialer::new(ring.credentials()).unwrap();
            let mut nemesis = start(ring, &Arc::new(Shared::new(dialer)), 1).unwrap();
            (0..RESTARTS_MAX).any(|restart| {
                let leader = nemesis.await_leader().unwrap();
                let before = term(&nemesis, leader);
                nemesis.kill(leader).unwrap();
                nemesis.cluster.run(leader).unwrap();
                nemesis.heal().unwrap();
                let after = term(&nemesis, leader);
                assert!(after > before, "restart {restart}: term {before}, then {after}");
                let leads = nemesis.leader() == Some(leader);
                println!("restart {restart}: term {before}, then {after}, leads: {leads}");
                leads
            })
        });
        run.join().unwrap()
    });
    assert!(led_again, "none of {RESTARTS_MAX} leaders led again after its restart");
}
