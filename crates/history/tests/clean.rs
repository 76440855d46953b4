//! Correct stores are never accused, whatever chance does to answers, effects and watchers.

use satrap_history::{
    Outcome, Rule, Timeline, check,
    model::{Shape, generate},
};

const SEEDS: u64 = 200;

#[test]
fn two_hundred_clean_histories_raise_no_alarm() {
    let (mut operations, mut unknown, mut events) = (0, 0, 0);
    for seed in 0..SEEDS {
        let recording = generate(seed, &Shape::default(), None).recording;
        let found = check(&recording);
        assert!(found.is_empty(), "seed {seed}: {} false alarms, first {}", found.len(), found[0]);
        operations += recording.operations.len();
        let is_unknown = |outcome: &Outcome| *outcome == Outcome::Unknown;
        unknown += recording.operations.iter().filter(|o| is_unknown(&o.outcome)).count();
        events += recording.watches.iter().map(|w| w.events().count()).sum::<usize>();
    }
    println!("{SEEDS} histories, {operations} operations, {unknown} unknown, {events} events");
    assert!(unknown > 1_000 && operations > 200_000, "the histories were too easy");
}

/// Where a sixth of all outcomes is unknown, the searches still end.
#[test]
fn many_unknown_outcomes_do_not_exhaust_the_searches() {
    let shape = Shape { unknown_per_mille: 160, ..Shape::default() };
    for seed in 0..30 {
        let recording = generate(seed, &shape, None).recording;
        let found = check(&recording);
        assert!(found.is_empty(), "seed {seed}: {}", found[0]);
    }
}

/// Checker C reads short histories only, so it has its own.
#[test]
fn the_search_over_the_store_accepts_short_clean_histories() {
    let shape = Shape { operations: 500, keepers: 1, ..Shape::default() };
    for seed in 0..50 {
        let recording = generate(seed, &shape, None).recording;
        assert!(recording.operations.len() <= satrap_history::revisions::OPERATIONS_MAX);
        let found = check(&recording);
        assert!(found.is_empty(), "seed {seed}: {}", found[0]);
    }
}

/// The same seed is the same history, so that a report can be repeated.
#[test]
fn a_seed_is_a_history() {
    let [one, two] = [7, 7].map(|seed| generate(seed, &Shape::default(), None).recording);
    assert_eq!(one.operations, two.operations);
    assert_eq!(one.watches, two.watches);
}

/// HISTKV-2 and HISTKV-7 need no operations: a log speaks for itself.
#[test]
fn a_log_with_a_hole_is_reported() {
    let mut recording = generate(3, &Shape::default(), None).recording;
    for log in &mut recording.logs {
        log.entries.remove(&30);
    }
    let (_, found) = Timeline::merge(&recording.logs);
    assert!(found.iter().any(|violation| violation.rule == Rule::Dense), "{found:?}");
}
