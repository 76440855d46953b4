//! A validator verifies its own disk as it verifies a peer.

use satrap_global_core::Ledger;

use crate::{CONFIG, realm};

#[test]
fn a_snapshot_gives_back_the_ledger_and_its_next_block() {
    let mut realm = realm();
    let empty = Ledger::restore(&realm.genesis, &realm.ledger.snapshot()).unwrap();
    assert_eq!((empty.height(), empty.last_time()), (0, realm.genesis.time));
    for value in ["1", "2"] {
        let publish = realm.publish(CONFIG, &[("a", value), ("b", "")]);
        realm.decide(&[publish]).unwrap();
    }
    let change = realm.add_validator("v4");
    realm.decide(&[change]).unwrap();
    let restored = Ledger::restore(&realm.genesis, &realm.ledger.snapshot()).unwrap();
    assert_eq!(restored.snapshot(), realm.ledger.snapshot());
    assert_eq!(restored.last(), realm.ledger.last());
    assert_eq!(restored.validators(), realm.ledger.validators());
    let next = realm.publish(CONFIG, &[("a", "3")]);
    realm.decide(&[next]).unwrap();
    let (block, commit) = realm.blocks.last().unwrap();
    let mut restored = restored;
    restored.apply(block, commit).unwrap();
    assert_eq!(restored.snapshot(), realm.ledger.snapshot());
}

#[test]
fn no_damage_to_a_snapshot_becomes_another_ledger() {
    let mut realm = realm();
    let publish = realm.publish(CONFIG, &[("a", "1"), ("b", "2")]);
    realm.decide(&[publish]).unwrap();
    let change = realm.add_validator("v4");
    realm.decide(&[change]).unwrap();
    let snapshot = realm.ledger.snapshot();
    for place in 0..snapshot.len() {
        for flip in [0x01, 0x80] {
            let mut damaged = snapshot.clone();
            damaged[place] ^= flip;
            // Some bytes are redundant; damage to them must not change the result.
            if let Ok(ledger) = Ledger::restore(&realm.genesis, &damaged) {
                assert_eq!(ledger.snapshot(), snapshot, "byte {place}");
            }
        }
    }
    for cut in [0, 1, snapshot.len() / 2, snapshot.len() - 1] {
        assert!(Ledger::restore(&realm.genesis, &snapshot[..cut]).is_err());
    }
    let longer = [&snapshot[..], &[0]].concat();
    assert!(Ledger::restore(&realm.genesis, &longer).is_err());
}
