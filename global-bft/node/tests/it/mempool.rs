//! The pool against the ledger: who is answered what, also around a retirement.

use std::{sync::Arc, time::Duration};

use satrap_certify::{
    Action, BundleName, Commit, Genesis, Key, Publish, Retire, SignedChange, keys,
};
use satrap_global_core::Ledger;
use satrap_global_node::mempool::{Mempool, Refusal};
use satrap_merkle::BundleTree;

use crate::realm::{address, genesis, govern, key, signed};

const NAME: &str = "test/a";

fn publish(genesis: &Genesis, expect_version: u64, values: [&str; 2]) -> SignedChange {
    let [from, to] = values.map(|value| {
        let mut tree = BundleTree::default();
        if !value.is_empty() {
            tree.insert(&Key::new(b"key").unwrap(), Arc::from(value.as_bytes()));
        }
        tree
    });
    let bundle = BundleName::new(NAME).unwrap();
    signed(genesis, Action::Publish(Publish::between(bundle, expect_version, &from, &to)))
}

fn retire(genesis: &Genesis, expect_version: u64) -> SignedChange {
    let bundle = BundleName::new(NAME).unwrap();
    signed(genesis, Action::Retire(Retire { bundle, expect_version }))
}

/// Decides what waits, and returns the version of each answer in order of tickets, or the rule.
fn decide(pool: &mut Mempool, ledger: &mut Ledger) -> Vec<(u64, Result<u64, String>)> {
    let time = ledger.last_time().plus(Duration::from_secs(1));
    let block = ledger.build(address(0), time, pool.changes());
    let mut commit = Commit { round: 0, signatures: vec![None] };
    let bytes = commit.sign_bytes(ledger.realm(), &block.checkpoint);
    commit.signatures[0] = Some(keys::sign(&key(0), &bytes));
    ledger.apply(&block, &commit).unwrap();
    let id = ledger.last().unwrap().1;
    let mut answers: Vec<_> = pool
        .settle(ledger, &block, id)
        .into_iter()
        .map(|(ticket, answer)| {
            let rule = |e: Refusal| e.to_string().split(':').next().unwrap_or_default().to_owned();
            (ticket, answer.map(|receipt| receipt.version).map_err(rule))
        })
        .collect();
    answers.sort();
    answers
}

#[test]
fn a_receipt_names_the_version_that_was_made_also_after_a_retirement() {
    let genesis = genesis(1, 100, Duration::from_secs(1));
    let (mut pool, mut ledger) = (Mempool::default(), Ledger::genesis(&genesis));
    let submit = |pool: &mut Mempool, ledger: &Ledger, change, ticket| {
        pool.submit(ledger, change, ticket, Duration::ZERO).unwrap()
    };
    for version in 0..3 {
        let values = [["", "1"], ["1", "2"], ["2", "3"]][version as usize];
        submit(&mut pool, &ledger, publish(&genesis, version, values), version);
        assert_eq!(decide(&mut pool, &mut ledger), [(version, Ok(version + 1))]);
    }
    // Two wait for version 3: one is decided, the other gets the reason why it never can be.
    submit(&mut pool, &ledger, retire(&genesis, 3), 10);
    submit(&mut pool, &ledger, publish(&genesis, 3, ["3", "4"]), 11);
    assert_eq!(decide(&mut pool, &mut ledger), [(10, Ok(0)), (11, Err("V4".into()))]);
    assert!(pool.is_empty());
    // The retirement was version 4.
    submit(&mut pool, &ledger, publish(&genesis, 4, ["", "5"]), 12);
    assert_eq!(decide(&mut pool, &mut ledger), [(12, Ok(5))]);
}

/// A change of a version that this validator has not reached may be right; one of a version that is past
/// is wrong, also where a bundle is gone or the rule that comes first is another.
#[test]
fn a_change_of_a_later_version_is_no_verdict() {
    let genesis = genesis(1, 100, Duration::from_secs(1));
    let (mut pool, mut ledger) = (Mempool::default(), Ledger::genesis(&genesis));
    let unapproved = |mut change: SignedChange| {
        change.approvals.clear();
        change
    };
    let foreign = |mut change: SignedChange| {
        change.change.genesis_hash = [9; 32];
        change
    };
    let is_behind = |ledger: &Ledger, change| {
        let answer = Mempool::default().submit(ledger, change, 1, Duration::ZERO);
        match answer.unwrap_err() {
            Refusal::Behind(why) => Some(why.rule()),
            Refusal::Rejected(_) | Refusal::Full { .. } => None,
        }
    };
    let next = || publish(&genesis, 1, ["1", "2"]);
    assert_eq!(is_behind(&ledger, next()), Some("V4"));
    assert_eq!(is_behind(&ledger, unapproved(next())), Some("V3"), "its signer may be new");
    assert_eq!(is_behind(&ledger, foreign(next())), None);
    assert_eq!(is_behind(&ledger, retire(&genesis, 1)), Some("V4"));
    assert_eq!(is_behind(&ledger, govern(&genesis, 1, Vec::new())), Some("V11"));

    let first = publish(&genesis, 0, ["", "1"]);
    pool.submit(&ledger, first.clone(), 0, Duration::ZERO).unwrap();
    decide(&mut pool, &mut ledger);
    assert_eq!(is_behind(&ledger, first), None, "decided before");
    assert_eq!(is_behind(&ledger, publish(&genesis, 2, ["2", "3"])), Some("V4"));
    pool.submit(&ledger, retire(&genesis, 1), 0, Duration::ZERO).unwrap();
    decide(&mut pool, &mut ledger);
    assert_eq!(is_behind(&ledger, retire(&genesis, 1)), None, "retired before");
    assert_eq!(is_behind(&ledger, retire(&genesis, 3)), Some("V4"), "of a bundle made again since");
}
