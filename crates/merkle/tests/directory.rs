//! Directory proofs as a follower uses them: what is shown, what is absent, what is left open.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};
use satrap_merkle::{
    ProofError,
    codec::{Canonical, DecodeError},
    directory::{Directory, DirectoryProof, Presence, ProvenLeaves},
};

/// A leaf is its name, a colon and some content.
fn leaf(name: &str, content: u8) -> Vec<u8> {
    format!("{name}:{content}").into_bytes()
}

fn name_of(leaf: &[u8]) -> Result<String, DecodeError> {
    let text = std::str::from_utf8(leaf).map_err(|_| DecodeError::Invalid("leaf"))?;
    let (name, _) = text.split_once(':').ok_or(DecodeError::Invalid("leaf"))?;
    Ok(name.to_owned())
}

fn directory(names: &BTreeSet<String>) -> Directory {
    Directory::new(names.iter().rev().map(|name| (name.clone(), leaf(name, 1))).collect())
}

fn check(directory: &Directory, proof: &DirectoryProof) -> Result<ProvenLeaves, ProofError> {
    proof.verify(&directory.root(), directory.size(), name_of)
}

fn any_names(max: usize) -> impl Strategy<Value = BTreeSet<String>> {
    prop::collection::btree_set("[abc]{1,3}", 0..max)
}

proptest! {
    #[test]
    fn what_was_asked_is_answered_and_nothing_false_is_said(
        names in any_names(30), asked in any_names(10), others in any_names(10)
    ) {
        let directory = directory(&names);
        let proof = directory.prove(&asked.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert_eq!(DirectoryProof::from_canonical(&proof.to_canonical()), Ok(proof.clone()));
        let proven = check(&directory, &proof).unwrap();
        for name in asked.iter().chain(&others) {
            match proven.lookup(name) {
                Presence::Present(bytes) => {
                    prop_assert!(names.contains(name));
                    prop_assert_eq!(bytes, leaf(name, 1));
                }
                Presence::Absent => prop_assert!(!names.contains(name)),
                Presence::Unproven => prop_assert!(!asked.contains(name)),
            }
        }
    }

    #[test]
    fn a_proof_of_all_leaves_nothing_open(names in any_names(30), others in any_names(10)) {
        let directory = directory(&names);
        let proven = check(&directory, &directory.prove_all()).unwrap();
        prop_assert!(proven.is_complete());
        let shown: Vec<_> = proven.leaves().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(shown, names.iter().map(|name| leaf(name, 1)).collect::<Vec<_>>());
        for name in &others {
            prop_assert_eq!(proven.lookup(name) == Presence::Absent, !names.contains(name));
        }
    }

    #[test]
    fn another_directory_or_an_altered_proof_is_refused(
        names in any_names(30), asked in any_names(5),
        at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let honest = directory(&names);
        let proof = honest.prove(&asked.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert!(proof.verify(&[9; 32], honest.size(), name_of).is_err());
        prop_assert!(proof.verify(&honest.root(), honest.size() + 1, name_of).is_err());
        let mut bytes = proof.to_canonical();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(forged) = DirectoryProof::from_canonical(&bytes) {
            prop_assert!(check(&honest, &forged).is_err());
        }
    }

    #[test]
    fn decoders_survive_anything(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(proof) = DirectoryProof::from_canonical(&bytes) {
            prop_assert!(proof.verify(&[0; 32], 1, name_of).is_err());
        }
    }
}

#[test]
fn absence_needs_adjacent_neighbors() {
    let directory = directory(&["b", "d", "f", "h"].map(String::from).into());
    let lookups = |asked: &[&str]| -> BTreeMap<&str, Presence<'static>> {
        let proven = check(&directory, &directory.prove(asked)).unwrap();
        let said = ["a", "c", "e", "g", "i"].map(|name| match proven.lookup(name) {
            Presence::Present(_) => panic!("{name} is not there"),
            Presence::Absent => (name, Presence::Absent),
            Presence::Unproven => (name, Presence::Unproven),
        });
        said.into()
    };
    let absent = |asked: &[&str]| -> Vec<_> {
        let said = lookups(asked);
        said.into_iter().filter(|(_, p)| *p == Presence::Absent).map(|(name, _)| name).collect()
    };
    assert_eq!(absent(&["a"]), ["a"]);
    assert_eq!(absent(&["c"]), ["a", "c"]);
    assert_eq!(absent(&["d"]), [""; 0]);
    assert_eq!(absent(&["e"]), ["e"]);
    assert_eq!(absent(&["d", "h"]), ["i"]);
    assert_eq!(absent(&["i"]), ["i"]);
    assert_eq!(absent(&["c", "g"]), ["a", "c", "e", "g", "i"]);
}

#[test]
fn an_empty_directory_has_no_name() {
    let empty = Directory::new(Vec::new());
    let proven = check(&empty, &empty.prove(&["a"])).unwrap();
    assert_eq!(proven.lookup("a"), Presence::Absent);
    assert!(proven.is_complete());
    // Nothing can be hidden behind the claim that there is nothing.
    let full = directory(&["a"].map(String::from).into());
    assert!(empty.prove_all().verify(&full.root(), 1, name_of).is_err());
    assert!(empty.prove_all().verify(&full.root(), 0, name_of).is_err());
}

#[test]
fn names_come_from_proven_bytes_and_must_be_in_order() {
    let disordered = Directory::new(vec![
        ("a".into(), leaf("z", 1)),
        ("b".into(), leaf("y", 1)),
        ("c".into(), b"no name".to_vec()),
    ]);
    let order = ProofError::Shape("leaves are not in ascending order of their names");
    assert_eq!(check(&disordered, &disordered.prove(&["a", "b"])), Err(order));
    let unreadable = ProofError::Leaf(DecodeError::Invalid("leaf"));
    assert_eq!(check(&disordered, &disordered.prove_all()), Err(unreadable));
}

#[test]
fn a_full_directory_can_be_shown_whole_and_in_part() {
    let names: BTreeSet<_> = (0..4096).map(|i| format!("bundle/{i:04}")).collect();
    let directory = directory(&names);
    let proven = check(&directory, &directory.prove_all()).unwrap();
    assert!(proven.is_complete());
    let few: Vec<_> = names.iter().step_by(64).map(String::as_str).collect();
    let proof = directory.prove(&few);
    assert!(proof.to_canonical().len() < 32 * 1024);
    let proven = check(&directory, &proof).unwrap();
    assert!(few.iter().all(|name| matches!(proven.lookup(name), Presence::Present(_))));
    // More than fit a scattered proof: the answer is the whole directory.
    let many: Vec<_> = names.iter().step_by(8).map(String::as_str).collect();
    assert!(check(&directory, &directory.prove(&many)).unwrap().is_complete());
}

#[test]
#[should_panic(expected = "4097 directory leaves")]
fn a_directory_that_no_follower_could_verify_is_never_made() {
    let names: BTreeSet<_> = (0..4097).map(|i| i.to_string()).collect();
    let _ = directory(&names);
}

#[test]
#[should_panic(expected = "a name repeats")]
fn a_name_has_one_leaf() {
    let _ = Directory::new(vec![("a".into(), leaf("a", 1)), ("a".into(), leaf("a", 2))]);
}

#[test]
#[should_panic(expected = "a directory leaf of 1025 bytes")]
fn a_leaf_longer_than_followers_accept_is_never_certified() {
    let longest = Directory::new(vec![("a".into(), vec![b'x'; 1024])]);
    let proof = longest.prove_all();
    assert_eq!(DirectoryProof::from_canonical(&proof.to_canonical()), Ok(proof));
    let _ = Directory::new(vec![("a".into(), vec![b'x'; 1025])]);
}
