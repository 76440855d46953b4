use std::collections::BTreeMap;

use super::*;

type Content = BTreeMap<Vec<u8>, i64>;

fn set(content: &Content) -> Keyset {
    let mut set = Keyset::new();
    for (key, revision) in content {
        set.add(key, *revision);
    }
    set
}

struct Cost {
    rounds: usize,
    summaries: usize,
    entries: usize,
    nodes: usize,
    puts: usize,
}

/// Lets both sides talk, applies the verdicts to the mirror, and compares.
fn reconcile(source: &Content, mirror: &Content) -> Cost {
    let mut cost = Cost { rounds: 0, summaries: 0, entries: 0, nodes: 0, puts: 0 };
    let mut result = mirror.clone();
    let keys: Vec<_> = source.keys().collect();
    let mirrored: Vec<_> = mirror.keys().collect();
    let mut judge = Source::new(set(source));
    let side = Mirror::new(set(mirror));
    let mut answer = side.start();
    loop {
        cost.rounds += 1;
        cost.summaries += answer.summaries.len();
        cost.entries += answer.lists.iter().map(|(_, entries)| entries.len()).sum::<usize>();
        let verdict = judge.judge(answer).unwrap();
        cost.nodes += verdict.descend.len() + verdict.list.len() + verdict.clear.len();
        cost.puts += verdict.put.len();
        assert!(verdict.descend.len() + verdict.list.len() <= NODES_MAX);
        let instructions = side.follow(&verdict);
        for place in instructions.forget {
            result.remove(mirrored[place]).expect("forgotten once");
        }
        for place in verdict.put {
            result.insert(keys[place].clone(), source[keys[place]]);
        }
        match instructions.answer {
            Some(next) => answer = next,
            None => break assert!(verdict.done),
        }
    }
    assert_eq!(result, *source);
    cost
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn content(keys: u64) -> Content {
    (0..keys).map(|n| (format!("/registry/pods/{n}").into_bytes(), 2 + n as i64)).collect()
}

/// Puts, deletes and inserts at random.
fn change(content: &Content, changes: u64, state: &mut u64) -> Content {
    let mut changed = content.clone();
    for _ in 0..changes {
        let n = next(state) % (content.len() as u64 + 10);
        let key = format!("/registry/pods/{n}").into_bytes();
        match next(state) % 3 {
            0 => _ = changed.remove(&key),
            1 => _ = changed.insert(key, 1_000_000 + next(state) as i64),
            _ => _ = changed.insert(format!("/new/{}", next(state)).into_bytes(), 7),
        }
    }
    changed
}

/// KEYSET-1.
#[test]
fn a_mirror_becomes_its_source() {
    let mut state = 1;
    for keys in [0, 1, 10, 24, 25, 300, 5_000] {
        for changes in [0, 1, 3, 40, 2_000] {
            let old = content(keys);
            let new = change(&old, changes, &mut state);
            reconcile(&new, &old);
        }
        reconcile(&content(keys), &Content::new());
        reconcile(&Content::new(), &content(keys));
    }
}

/// KEYSET-2: what is sent depends on the difference and hardly on the size.
#[test]
fn the_cost_is_that_of_the_difference() {
    let mut state = 7;
    let old = content(200_000);
    let same = reconcile(&old, &old);
    assert_eq!((same.rounds, same.summaries, same.puts), (1, 256, 0));
    for changes in [1, 10, 100] {
        let new = change(&old, changes, &mut state);
        let cost = reconcile(&new, &old);
        let changes = changes as usize;
        assert!(cost.rounds <= 5, "{}", cost.rounds);
        assert!(cost.summaries <= 256 + changes * 3 * 16, "{}", cost.summaries);
        assert!(cost.entries <= changes * LIST_MAX, "{}", cost.entries);
        assert!(cost.puts <= changes);
        assert!(cost.nodes <= changes * 4);
    }
}

/// KEYSET-3: a mirror of something else entirely is brought over in bounded steps.
#[test]
fn a_total_difference_takes_bounded_steps() {
    let old: Content = (0..20_000).map(|n| (format!("old/{n}").into_bytes(), n)).collect();
    let cost = reconcile(&content(20_000), &old);
    assert_eq!(cost.puts, 20_000);
}

/// A mirror that answers what it was not asked is refused, and nothing panics.
#[test]
fn an_answer_that_matches_no_question_is_refused() {
    let old = content(2_000);
    let new = change(&old, 50, &mut 3);
    let start = Mirror::new(set(&old)).start();
    let fresh = || Source::new(set(&new));
    let deep = Node::new(0, 7).unwrap();
    let mut strange = start.clone();
    strange.summaries[0].node = deep;
    assert_eq!(fresh().judge(strange), Err(UnexpectedAnswer));
    let mut twice = start.clone();
    twice.summaries.push(start.summaries[0].clone());
    assert_eq!(fresh().judge(twice), Err(UnexpectedAnswer));
    let mut unasked = start.clone();
    unasked.lists.push((deep, Vec::new()));
    assert_eq!(fresh().judge(unasked), Err(UnexpectedAnswer));
    let mut source = fresh();
    let verdict = source.judge(start.clone()).unwrap();
    assert!(!verdict.done);
    assert_eq!(source.judge(start), Err(UnexpectedAnswer));
    let mut source = fresh();
    let verdict = source.judge(Mirror::new(set(&old)).start()).unwrap();
    let mut answer = Mirror::new(set(&old)).follow(&verdict).answer.unwrap();
    answer.lists.iter_mut().for_each(|(_, entries)| entries.reverse());
    assert_eq!(source.judge(answer), Err(UnexpectedAnswer));
    assert_eq!(Node::new(1, 0), None);
    assert_eq!(Node::new(0, 17), None);
}

/// A hostile source makes a mirror do no more than look at its own keys.
#[test]
fn a_mirror_survives_any_verdict() {
    let mirror = Mirror::new(set(&content(100)));
    let nodes: Vec<_> = (0..=16).map(|level| Node::new(0, level).unwrap()).collect();
    let verdict = Verdict {
        descend: nodes.clone(),
        list: nodes.clone(),
        clear: nodes,
        gone: vec![[0; 16]; 3],
        put: vec![usize::MAX],
        done: true,
    };
    assert_eq!(mirror.follow(&verdict).forget.len(), 100);
}
