//! The pool against the ledger: who is answered what, also around a retirement.

use std::{sync::Arc, time::Duration};

use satrap_certify::{
    Action, BundleName, Commit, Genesis, Key, Publish, Retire, SignedChange, keys,
};
use satrap_global_core::Ledger;
use satrap_global_node::mempool::Mempool;
use satrap_merkle::BundleTree;

use crate::realm::{address, genesis, key, signed};

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
            let rule = |e: satrap_global_node::mempool::Refusal| {
                e.to_string().split(':').next().unwrap_or_default().to_owned()
            };
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
