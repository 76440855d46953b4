//! V20 to V26, and LEDGER-1 to LEDGER-3: what validators check about a block before they vote for it.

use std::time::Duration;

use satrap_certify::{Address, Block, Checkpoint, SignedChange, Timestamp};
use satrap_global_core::Ledger;
use satrap_sim::SimRealm;

use crate::{CONFIG, realm};

/// A realm at height 2, and a valid block for height 3 with two changes.
fn proposal() -> (SimRealm, Block) {
    let mut realm = realm();
    for value in ["1", "2"] {
        let change = realm.publish(CONFIG, &[("a", value)]);
        realm.decide(&[change]).unwrap();
    }
    let changes = [realm.publish(CONFIG, &[("a", "3")]), realm.add_validator("v4")];
    let block = build(&realm, &changes);
    assert_eq!(block.changes.len(), 2);
    realm.ledger.validate(&block).unwrap();
    (realm, block)
}

fn build(realm: &SimRealm, changes: &[SignedChange]) -> Block {
    let proposer = realm.ledger.validators().addresses()[0];
    realm.ledger.build(proposer, realm.now.plus(Duration::from_secs(1)), changes)
}

/// The rule that refuses `block` after `alter`.
fn rule(realm: &SimRealm, block: &Block, alter: impl FnOnce(&mut Block)) -> &'static str {
    let mut altered = block.clone();
    alter(&mut altered);
    realm.ledger.validate(&altered).unwrap_err().rule()
}

#[test]
fn v20_a_block_is_for_the_next_height() {
    let (realm, block) = proposal();
    for height in [1, 2, 4, u64::MAX] {
        assert_eq!(rule(&realm, &block, |b| b.checkpoint.height = height), "V20");
    }
}

#[test]
fn v21_a_block_names_its_predecessor() {
    let (realm, block) = proposal();
    assert_eq!(rule(&realm, &block, |b| b.checkpoint.last_block = None), "V21");
    let alter = |f: fn(&mut satrap_certify::BlockId)| {
        rule(&realm, &block, |b| f(b.checkpoint.last_block.as_mut().unwrap()))
    };
    assert_eq!(alter(|id| id.hash[0] ^= 1), "V21");
    assert_eq!(alter(|id| id.data_hash[0] ^= 1), "V21");
}

#[test]
fn v22_time_moves_forward() {
    let (realm, block) = proposal();
    let last = realm.ledger.last_time();
    for time in [Timestamp(0), Timestamp(last.0 - 1), last] {
        assert_eq!(rule(&realm, &block, |b| b.checkpoint.time = time), "V22");
    }
    // At the limit: a nanosecond later is later.
    let proposer = block.checkpoint.proposer;
    let next = realm.ledger.build(proposer, Timestamp(last.0 + 1), &block.changes);
    realm.ledger.validate(&next).unwrap();
    // The first block is after the genesis.
    let fresh = crate::realm();
    let first =
        fresh.ledger.build(fresh.ledger.validators().addresses()[0], fresh.genesis.time, []);
    assert_eq!(fresh.ledger.validate(&first).unwrap_err().rule(), "V22");
}

#[test]
fn v23_the_proposer_is_a_validator() {
    let (realm, block) = proposal();
    assert_eq!(rule(&realm, &block, |b| b.checkpoint.proposer = Address([7; 20])), "V23");
    // One that this very block admits is not one yet.
    let v4 = satrap_sim::realm::validator("validity", "v4").public.address();
    assert_eq!(rule(&realm, &block, |b| b.checkpoint.proposer = v4), "V23");
}

#[test]
fn v24_every_field_of_the_header_is_derived_again() {
    let (realm, block) = proposal();
    let alterations: [fn(&mut Checkpoint); 8] = [
        |c| c.data_hash[0] ^= 1,
        |c| c.validators_hash[0] ^= 1,
        |c| c.next_validators_hash = c.validators_hash,
        |c| c.commitments.directory_root[0] ^= 1,
        |c| c.commitments.directory_size += 1,
        |c| c.commitments.history_root[0] ^= 1,
        |c| c.commitments.history_size -= 1,
        |c| c.commitments.governance_root[0] ^= 1,
    ];
    for (i, alter) in alterations.into_iter().enumerate() {
        assert_eq!(rule(&realm, &block, |b| alter(&mut b.checkpoint)), "V24", "field {i}");
    }
    // Changes and header belong together: none missing, none added, none in another order.
    assert_eq!(rule(&realm, &block, |b| drop(b.changes.pop())), "V24");
    assert_eq!(rule(&realm, &block, |b| b.changes.swap(0, 1)), "V24");
    let other = realm.publish("config/other", &[("a", "1")]);
    assert_eq!(rule(&realm, &block, |b| b.changes.push(other)), "V24");
    // A change that does not apply is named by its own rule.
    assert_eq!(rule(&realm, &block, |b| b.changes[0].approvals.clear()), "V3");
    assert_eq!(rule(&realm, &block, |b| b.changes.push(b.changes[0].clone())), "V4");
}

#[test]
fn v26_a_decided_block_needs_a_commit_of_its_set() {
    let (mut realm, block) = proposal();
    let before = realm.ledger.snapshot();
    let full = realm.commit(&block, realm.quorum());
    let mut refuse = |alter: &dyn Fn(&mut satrap_certify::Commit)| {
        let mut commit = full.clone();
        alter(&mut commit);
        let refusal = realm.ledger.apply(&block, &commit).unwrap_err();
        assert_eq!(refusal.rule(), "V26", "{refusal}");
        assert_eq!(realm.ledger.snapshot(), before, "LEDGER-2: a refused block leaves no trace");
    };
    refuse(&|c| c.signatures[0] = None);
    refuse(&|c| c.signatures[0] = c.signatures[1]);
    refuse(&|c| c.signatures[2].as_mut().unwrap()[0] ^= 1);
    refuse(&|c| c.signatures.push(None));
    refuse(&|c| c.round = 1);
    // LEDGER-2: nor does a commit make an invalid block valid.
    let mut wrong = block.clone();
    wrong.checkpoint.commitments.directory_root[0] ^= 1;
    let commit = realm.commit(&wrong, 4);
    assert_eq!(realm.ledger.apply(&wrong, &commit).unwrap_err().rule(), "V24");
    assert_eq!(realm.ledger.snapshot(), before);
    realm.ledger.apply(&block, &full).unwrap();
}

#[test]
fn ledger_1_what_is_built_validates_whatever_is_pending() {
    let mut realm = realm();
    let mut applied = 0;
    for round in 0..32_u32 {
        // Good ones and bad ones, in an order and a mixture that differs every round.
        let candidates = [
            realm.publish(CONFIG, &[("a", &round.to_string())]),
            realm.publish(CONFIG, &[("b", &round.to_string())]),
            realm.publish("config/other", &[("a", &round.to_string()), ("b", "")]),
            realm.publish("nowhere", &[("a", "1")]),
            realm.publish("pki/roots", &[("a", "not a certificate")]),
            realm.add_validator("v4"),
            realm.remove_validator("v4"),
            SignedChange::unsigned(realm.publish(CONFIG, &[("c", "1")]).change),
        ];
        let pending: Vec<_> = (0..candidates.len())
            .map(|i| &candidates[(i * 5 + round as usize) % candidates.len()])
            .collect();
        let pending = &pending[..(round as usize % pending.len()) + 1];
        realm.now = realm.now.plus(Duration::from_secs(1));
        let proposers = realm.ledger.validators().addresses();
        let proposer = proposers[round as usize % proposers.len()];
        let block = realm.ledger.build(proposer, realm.now, pending.iter().copied());
        realm.ledger.validate(&block).unwrap();
        // And it is the only header for these changes: building again gives the same block.
        assert_eq!(realm.ledger.build(proposer, realm.now, &block.changes), block);
        applied += block.changes.len();
        let commit = realm.commit(&block, realm.quorum());
        realm.ledger.apply(&block, &commit).unwrap();
        realm.blocks.push((block, commit));
    }
    assert!(applied > 32, "{applied} changes were good");

    // LEDGER-3: the same blocks give the same ledger.
    let mut follower = Ledger::genesis(&realm.genesis);
    for (block, commit) in &realm.blocks {
        follower.apply(block, commit).unwrap();
    }
    assert_eq!(follower.snapshot(), realm.ledger.snapshot());
    let next = |ledger: &Ledger| {
        ledger.build(ledger.validators().addresses()[0], realm.now.plus(Duration::from_secs(1)), [])
    };
    assert_eq!(next(&follower), next(&realm.ledger));
}
