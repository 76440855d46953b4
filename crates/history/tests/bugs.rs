//! The checkers are checked: each kind of wrong store is reported, by the rule it breaks.

use std::collections::BTreeMap;

use satrap_history::{
    Rule, check,
    model::{Bug, Shape, generate},
};

const SEEDS: u64 = 100;

/// The rules of which at least one must be reported.
fn rules(bug: Bug) -> &'static [Rule] {
    match bug {
        Bug::LostAck => &[Rule::Acknowledged, Rule::Dense],
        Bug::StaleRead => &[Rule::RealTime],
        Bug::StaleBody | Bug::WrongAnswerBefore => &[Rule::ReadsState],
        Bug::WrongBranch => &[Rule::ReadsState, Rule::Acknowledged, Rule::Atomic],
        Bug::GuardIgnored => &[Rule::Acknowledged, Rule::Atomic],
        Bug::GuardRefuses => &[Rule::ReadsState],
        Bug::SequenceRegresses => &[Rule::SequenceGrows],
        Bug::AppliedTwice => &[Rule::AtMostOnce],
        Bug::PhantomWrite | Bug::AppliedRefusal => &[Rule::NoPhantom],
        Bug::DuplicateRevision => &[Rule::Dense, Rule::Acknowledged],
        Bug::RevisionGap => &[Rule::Dense],
        Bug::TornTxn => &[Rule::Atomic, Rule::Acknowledged],
        // The first half of a split range of deletes looks like deletes that no client asked for.
        Bug::SplitTxn => &[Rule::Atomic, Rule::Acknowledged, Rule::ReadsState],
        Bug::MemberDiverges | Bug::DigestDiffers => &[Rule::MembersAgree],
        Bug::CompactionLosesKey => &[Rule::ReadsState],
        Bug::CompactedServed => &[Rule::Compaction],
        Bug::WatchSkips | Bug::WatchSilentCompaction => {
            &[Rule::WatchReliable, Rule::WatchResumable]
        }
        Bug::WatchSkipsFirst => &[Rule::WatchResumable],
        Bug::WatchRepeats => &[Rule::WatchUnique, Rule::WatchOrdered],
        Bug::WatchReorders => &[Rule::WatchOrdered],
        Bug::WatchSplits => &[Rule::WatchAtomic],
        Bug::WatchEarlyProgress => &[Rule::WatchBookmarkable],
        Bug::WatchWrongBefore => &[Rule::WatchBefore],
        Bug::WatchWrongCreate => &[Rule::WatchCreate],
        Bug::WatchFilterLeaks => &[Rule::WatchFilter],
        Bug::WatchEarlyFuture => &[Rule::WatchFuture],
        Bug::WatchBareCancel => &[Rule::WatchCancel],
        Bug::WatchStalls => &[Rule::WatchLive],
        Bug::LeaseEarly => &[Rule::LeaseEarly],
        Bug::LeaseRevived => &[Rule::LeaseRevived],
        Bug::LeaseImmortal => &[Rule::LeaseLate],
        Bug::TokenRegresses | Bug::TokenRepeats => &[Rule::TokenIncreases],
        Bug::Unguarded => &[Rule::ResourceRegressed],
    }
}

/// Over a hundred seeds each: how often the bug struck, and how often which rule reported it.
#[test]
fn every_seeded_bug_is_caught_by_its_rule_on_every_seed() {
    let seeds = satrap_effort::count("histories for each bug", SEEDS / 4, SEEDS);
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let excused_max = match bug {
            // An unanswered renewal may explain a lease that lives on.
            Bug::LeaseImmortal => seeds.div_ceil(10),
            // An unanswered revocation may explain a lease that ends early.
            Bug::LeaseEarly => seeds.div_ceil(50),
            _ => 0,
        };
        let (mut fired, mut caught) = (0, 0);
        let mut uncaught = Vec::new();
        let mut by_rule: BTreeMap<Rule, u32> = BTreeMap::new();
        for seed in 0..seeds {
            let shape = Shape { operations: 1_000, ..Shape::default() };
            let generated = generate(seed, &shape, Some(bug));
            if !generated.fired {
                continue;
            }
            fired += 1;
            let mut reported: Vec<Rule> =
                check(&generated.recording).into_iter().map(|violation| violation.rule).collect();
            reported.sort_unstable();
            reported.dedup();
            if rules(bug).iter().any(|rule| reported.contains(rule)) {
                caught += 1;
            } else {
                uncaught.push(format!("{bug:?} on seed {seed}: {reported:?}"));
            }
            for rule in reported {
                *by_rule.entry(rule).or_default() += 1;
            }
        }
        if uncaught.len() as u64 > excused_max {
            missed.append(&mut uncaught);
        }
        println!("{bug:?}: struck {fired}, caught {caught}, reports {by_rule:?}");
        if fired < seeds / 2 {
            missed.push(format!("{bug:?} struck on only {fired} seeds"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Checkers B and C see the history alone or nearly so; what they report, replay reports as well.
#[test]
fn the_searches_agree_with_replay() {
    let shape = Shape { operations: 500, keepers: 1, ..Shape::default() };
    let store_bugs = &Bug::ALL[..14];
    let mut caught: BTreeMap<(Bug, Rule), u32> = BTreeMap::new();
    for bug in store_bugs {
        for seed in 0..30 {
            let generated = generate(seed, &shape, Some(*bug));
            let rules: Vec<_> = check(&generated.recording).into_iter().map(|v| v.rule).collect();
            assert!(!rules.contains(&Rule::Exhausted), "{bug:?} on seed {seed}");
            let searched = [Rule::KeyOrder, Rule::StoreOrder];
            let by_replay = rules.iter().any(|rule| !searched.contains(rule));
            assert!(rules.is_empty() || by_replay, "{bug:?} on seed {seed}: only {rules:?}");
            for rule in searched.into_iter().filter(|rule| rules.contains(rule)) {
                *caught.entry((*bug, rule)).or_default() += 1;
            }
        }
    }
    for ((bug, rule), count) in &caught {
        println!("{bug:?}: {rule:?} {count} of 30");
    }
    let by_keys = caught.iter().filter(|((_, rule), _)| *rule == Rule::KeyOrder).count();
    assert!(by_keys >= 5, "checker B caught only {by_keys} kinds: {caught:?}");
    assert!(caught.keys().any(|(bug, rule)| (*bug, *rule) == (Bug::StaleRead, Rule::StoreOrder)));
    let stale = caught.get(&(Bug::StaleRead, Rule::KeyOrder)).unwrap();
    assert!(*stale >= 25, "of 30 stale reads checker B caught {stale}");
}

/// A report names the operations.
#[test]
fn a_report_names_the_operation() {
    let generated = generate(1, &Shape::default(), Some(Bug::StaleRead));
    assert!(generated.fired);
    let found = check(&generated.recording);
    let report = found.iter().find(|v| v.rule == Rule::RealTime).unwrap();
    assert!(report.what.starts_with('#') && report.what.contains("client"), "{report}");
}
