//! One of four validators is hostile: the other three keep deciding, and evidence remains.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_malachitebft_core_types::{NilOrVal, Round, SignedMessage, VoteType};
use satrap_certify::{BlockId, PublicKey, Timestamp, keys};
use satrap_global_core::Ledger;
use satrap_global_node::{
    malachite::{
        Frame,
        codec::{self, read_proposal_evidence},
        context::{Height, Proposal, Value, ValueId, Vote, Voter},
        signing::{bytes_of_proposal, bytes_of_vote},
    },
    store::ConflictKind,
};
use satrap_merkle::codec::Reader;

use crate::{
    realm::{START, address, genesis, key, name, publish},
    world::World,
};

const HOUR: Duration = Duration::from_secs(3_600);
const HONEST: [u8; 3] = [0, 1, 2];
const EVIL: u8 = 3;

/// Decides `count` changes among the honest.
fn decide(world: &mut World, first: u64, count: u64) {
    for n in first..first + count {
        world.submit(HONEST[n as usize % 3], publish(&world.genesis, n), n);
        assert!(world.run(Duration::from_secs(60), |w| w.answers.contains_key(&n)), "change {n}");
        assert!(world.answers[&n].is_ok(), "{:?}", world.answers[&n]);
    }
    assert_eq!((world.oracle.equivocations, world.oracle.disagreements), (0, 0));
}

fn sign_vote(world_realm: &satrap_certify::Realm, vote: Vote) -> Frame {
    let signature = keys::sign(&key(EVIL), &bytes_of_vote(world_realm, &vote));
    Frame::Vote(SignedMessage::new(vote, signature))
}

#[test]
fn an_equivocating_voter_is_convicted_by_both_signatures() {
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 1);
    let realm = world.genesis.realm().clone();
    let signer = realm.clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| match frame {
        Frame::Vote(vote) if vote.value.is_val() => {
            let other = Vote { value: NilOrVal::Nil, ..vote.message.clone() };
            vec![Frame::Vote(vote), sign_vote(&signer, other)]
        }
        frame => vec![frame],
    }));
    world.start_all();
    decide(&mut world, 0, 12);
    let evidence = world.store(0).evidence().unwrap();
    let votes: Vec<_> = evidence.iter().filter(|(_, c)| c.kind == ConflictKind::Vote).collect();
    assert!(!votes.is_empty());
    for (_, conflict) in votes {
        assert_eq!(conflict.offender, address(EVIL));
        let first = codec::vote(&mut Reader::new(&conflict.first)).unwrap();
        let second = codec::vote(&mut Reader::new(&conflict.second)).unwrap();
        assert_ne!(first.message, second.message);
        assert_eq!((first.height, first.round), (second.height, second.round));
        for vote in [first, second] {
            let bytes = bytes_of_vote(&realm, &vote);
            assert!(PublicKey::of(&key(EVIL)).verifies(&bytes, &vote.signature));
        }
    }
}

#[test]
fn a_leader_with_a_wrong_root_gets_no_votes_and_loses_the_lead() {
    // Leadership rotates every two heights, so the hostile one gets its turns.
    let mut world = World::new(genesis(4, 2, HOUR), 4, 2);
    let realm = world.genesis.realm().clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| match frame {
        Frame::Proposal(proposal) => {
            let mut block = proposal.value.block().clone();
            block.checkpoint.commitments.directory_root[0] ^= 1;
            let mut forged = proposal.message;
            forged.value = Value::new(&realm, block).unwrap();
            let signature = keys::sign(&key(EVIL), &bytes_of_proposal(&realm, &forged));
            vec![Frame::Proposal(SignedMessage::new(forged, signature))]
        }
        frame => vec![frame],
    }));
    world.start_all();
    decide(&mut world, 0, 24);
    let store = world.store(0);
    for height in 1..=world.height(0) {
        use satrap_global_node::store::Storage as _;
        let (block, commit) = store.decided(height).unwrap().unwrap();
        if block.checkpoint.proposer == address(EVIL) {
            panic!("height {height} was decided in round {} with a wrong root", commit.round);
        }
    }
}

/// A6: the leader of the next height follows from the name in the decided block.
#[test]
fn a_leader_that_names_another_proposer_gets_no_votes() {
    let mut world = World::new(genesis(4, 2, HOUR), 4, 7);
    let realm = world.genesis.realm().clone();
    let forged = Arc::new(Mutex::new(BTreeSet::new()));
    let sent = forged.clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| match frame {
        Frame::Proposal(proposal) if proposal.pol_round.is_nil() => {
            let mut block = proposal.value.block().clone();
            block.checkpoint.proposer = address(HONEST[0]);
            let mut renamed = proposal.message;
            renamed.value = Value::new(&realm, block).unwrap();
            sent.lock().unwrap().insert(renamed.value.value_id().block);
            let signature = keys::sign(&key(EVIL), &bytes_of_proposal(&realm, &renamed));
            vec![Frame::Proposal(SignedMessage::new(renamed, signature))]
        }
        frame => vec![frame],
    }));
    world.start_all();
    decide(&mut world, 0, 24);
    let forged = forged.lock().unwrap();
    assert!(!forged.is_empty());
    for height in 1..=world.height(0) {
        use satrap_global_node::store::Storage as _;
        let (block, _) = world.store(0).decided(height).unwrap().unwrap();
        let id = block.checkpoint.id(world.genesis.realm());
        assert!(!forged.contains(&id), "height {height} names a validator that did not lead");
    }
}

#[test]
fn a_leader_that_shows_each_validator_another_block_is_convicted() {
    // The second block is timely, or withheld from the core because it is not.
    for later in [Duration::from_nanos(1), Duration::from_secs(10)] {
        convict(later);
    }
}

fn convict(later: Duration) {
    let mut world = World::new(genesis(4, 2, HOUR), 4, 3);
    let realm = world.genesis.realm().clone();
    let signer = realm.clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| match frame {
        Frame::Proposal(proposal) if proposal.pol_round.is_nil() => {
            let mut block = proposal.value.block().clone();
            block.checkpoint.time = block.checkpoint.time.plus(later);
            let mut other = proposal.message.clone();
            other.value = Value::new(&signer, block).unwrap();
            let signature = keys::sign(&key(EVIL), &bytes_of_proposal(&signer, &other));
            vec![Frame::Proposal(proposal), Frame::Proposal(SignedMessage::new(other, signature))]
        }
        frame => vec![frame],
    }));
    world.start_all();
    decide(&mut world, 0, 24);
    let evidence: Vec<_> =
        HONEST.iter().flat_map(|n| world.store(*n).evidence().unwrap()).collect();
    let found: Vec<_> = evidence.iter().filter(|(_, c)| c.kind == ConflictKind::Proposal).collect();
    assert!(!found.is_empty());
    for (_, conflict) in found {
        let mut seen = Vec::new();
        for message in [&conflict.first, &conflict.second] {
            let (bytes, signer, signature) = read_proposal_evidence(&realm, message).unwrap();
            assert_eq!(signer, address(EVIL));
            assert!(PublicKey::of(&key(EVIL)).verifies(&bytes, &signature));
            seen.push(bytes);
        }
        assert_ne!(seen[0], seen[1]);
    }
}

#[test]
fn a_silent_member_costs_nothing_but_its_vote() {
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 4);
    world.nodes[EVIL as usize].corrupt = Some(Box::new(|_, _, _| Vec::new()));
    world.start_all();
    decide(&mut world, 0, 20);
}

#[test]
fn a_flood_of_junk_is_cut_off_and_the_others_go_on() {
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 5);
    let realm = world.genesis.realm().clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(|_, _, _| Vec::new()));
    world.nodes[EVIL as usize].flood = Some(Box::new(move |rng, height| {
        let mut frames = Vec::new();
        for _ in 0..50 {
            let id = ValueId {
                block: BlockId { hash: [rng.next() as u8; 32], data_hash: [1; 32] },
                time: Timestamp(rng.next() >> 2),
            };
            let voter = Voter(address(u8::try_from(rng.below(4)).unwrap()));
            let vote = Vote {
                vote_type: VoteType::Precommit,
                height: Height(height + rng.below(4)),
                round: Round::new(u32::try_from(rng.below(1_000)).unwrap()),
                value: NilOrVal::Val(id),
                voter,
            };
            // In its own name with a good signature, in its own name with a bad one, and in the
            // names of others.
            frames.push(sign_vote(&realm, vote.clone()));
            frames.push(Frame::Vote(SignedMessage::new(vote, [rng.next() as u8; 64])));
            frames.push(Frame::Status(u64::MAX - rng.below(5)));
        }
        frames
    }));
    world.start_all();
    let before = world.now;
    decide(&mut world, 0, 30);
    // An undisturbed quorum decides a change in about 50 ms of virtual time.
    assert!(world.now - before < Duration::from_secs(12), "{:?}", world.now - before);
    let cut_off: u64 = HONEST.iter().map(|n| world.nodes[*n as usize].disconnects).sum();
    assert!(cut_off > 0, "nobody disconnected {}", name(EVIL));
}

/// The hostile leader first shows its block, dated two months ahead, as a proposal of a later round
/// that claims a polka, and then as a fresh one. The core would lend the verdict on the first to
/// the second, and after such a block no other could be decided for two months.
#[test]
fn a_decoy_with_a_claimed_polka_makes_no_untimely_block_count() {
    let mut world = World::new(genesis(4, 2, HOUR), 4, 7);
    let realm = world.genesis.realm().clone();
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = seen.clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| match frame {
        Frame::Proposal(proposal) => {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut block = proposal.value.block().clone();
            block.checkpoint.time = block.checkpoint.time.plus(60 * 24 * HOUR);
            let mut fresh = proposal.message;
            fresh.value = Value::new(&realm, block).unwrap();
            let mut decoy = fresh.clone();
            decoy.pol_round = Round::new(fresh.round.as_u32().unwrap() + 1);
            decoy.round = Round::new(fresh.round.as_u32().unwrap() + 4);
            let sign = |proposal| {
                let signature = keys::sign(&key(EVIL), &bytes_of_proposal(&realm, &proposal));
                Frame::Proposal(SignedMessage::new(proposal, signature))
            };
            vec![sign(decoy), sign(fresh)]
        }
        frame => vec![frame],
    }));
    world.start_all();
    decide(&mut world, 0, 24);
    assert!(seen.load(std::sync::atomic::Ordering::Relaxed) > 0, "the hostile one never led");
}

#[test]
fn a_proposal_from_another_time_gets_no_votes() {
    let mut world = World::new(genesis(4, 2, HOUR), 4, 6);
    let realm = world.genesis.realm().clone();
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| match frame {
        Frame::Proposal(proposal) => {
            let mut block = proposal.value.block().clone();
            // Ten seconds ahead: twenty times the clock precision.
            block.checkpoint.time = block.checkpoint.time.plus(Duration::from_secs(10));
            let mut early = proposal.message;
            early.value = Value::new(&realm, block).unwrap();
            let signature = keys::sign(&key(EVIL), &bytes_of_proposal(&realm, &early));
            vec![Frame::Proposal(SignedMessage::new(early, signature))]
        }
        frame => vec![frame],
    }));
    world.start_all();
    decide(&mut world, 0, 16);
    for height in 1..=world.height(0) {
        use satrap_global_node::store::Storage as _;
        let (block, _) = world.store(0).decided(height).unwrap().unwrap();
        assert!(block.checkpoint.time <= START.plus(world.now), "height {height}");
    }
}

/// The hostile validator does not vote, so a height is decided in round 0 only if all three honest
/// ones look at its proposal, also when it arrives while they finish the height before.
#[test]
fn a_peer_cannot_use_up_the_room_for_proposals_of_the_next_height() {
    use satrap_global_node::store::Storage as _;
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 8);
    world.delay_ms_max = 60;
    let realm = world.genesis.realm().clone();
    let block = Ledger::genesis(&world.genesis).build(address(EVIL), START.plus(HOUR), &[]);
    world.nodes[EVIL as usize].corrupt = Some(Box::new(move |_, _, frame| {
        let Frame::Vote(vote) = frame else { return Vec::new() };
        let proposal = |round| {
            let mut block = block.clone();
            block.checkpoint.height = vote.height.0 + 1;
            block.checkpoint.last_block = Some(BlockId { hash: [1; 32], data_hash: [2; 32] });
            let (height, round) = (Height(vote.height.0 + 1), Round::new(round));
            let (value, proposer) = (Value::new(&realm, block).unwrap(), Voter(address(EVIL)));
            let proposal = Proposal { height, round, pol_round: Round::Nil, value, proposer };
            let signature = keys::sign(&key(EVIL), &bytes_of_proposal(&realm, &proposal));
            Frame::Proposal(SignedMessage::new(proposal, signature))
        };
        (0..10).map(proposal).collect()
    }));
    world.start_all();
    decide(&mut world, 0, 30);
    for height in 2..=world.height(0) {
        let (_, commit) = world.store(0).decided(height).unwrap().unwrap();
        assert_eq!(commit.round, 0, "height {height}");
    }
}

/// A change of another realm is refused whatever the height, so no honest peer relays it.
#[test]
fn changes_that_are_wrong_at_any_height_cut_a_peer_off_and_those_a_block_behind_do_not() {
    let other = genesis(4, 999, HOUR);
    let disconnects = |relayed: Box<dyn Fn(u64) -> Frame>| {
        let mut world = World::new(genesis(4, 1_000, HOUR), 4, 9);
        world.start_all();
        decide(&mut world, 0, 5);
        world.nodes[EVIL as usize].flood =
            Some(Box::new(move |rng, _| (0..30).map(|_| relayed(rng.next())).collect()));
        world.run(Duration::from_secs(2), |_| false);
        HONEST.iter().map(|n| world.nodes[*n as usize].disconnects).sum::<u64>()
    };
    assert!(disconnects(Box::new(move |n| Frame::Change(publish(&other, n)))) > 0);
    let own = genesis(4, 1_000, HOUR);
    // Bundles 0 to 4 have a version already: another one would have to be expected.
    assert_eq!(disconnects(Box::new(move |n| Frame::Change(publish(&own, n % 5)))), 0);
}
