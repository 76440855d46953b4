//! Just under a third of the validators is hostile, one of four or two of seven: the others keep
//! deciding, and evidence remains. Each attack counts the bad messages that it sent, and what it met.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_malachitebft_core_types::{NilOrVal, Round, SignedMessage, VoteType};
use satrap_certify::{Address, Block, BlockId, Genesis, PublicKey, Realm, Timestamp, keys};
use satrap_global_core::Ledger;
use satrap_global_node::{
    malachite::{
        Frame,
        codec::{self, read_proposal_evidence},
        context::{Height, Proposal, Value, ValueId, Vote, Voter},
        signing::{bytes_of_proposal, bytes_of_vote},
    },
    store::{ConflictKind, Storage as _},
};
use satrap_merkle::codec::Reader;

use crate::{
    realm::{START, address, genesis, key, publish},
    world::{Corruption, Flood, World},
};

const HOUR: Duration = Duration::from_secs(3_600);
/// A set of validators of which the last `hostile` are.
#[derive(Clone, Copy, Debug)]
struct Shape {
    validators: u8,
    hostile: u8,
}

/// The smallest sets that bear one and two hostile validators.
const SHAPES: [Shape; 2] =
    [Shape { validators: 4, hostile: 1 }, Shape { validators: 7, hostile: 2 }];

/// Bad messages that were sent, by height and round.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<BTreeMap<(u64, u32), u64>>>);

impl Sent {
    fn count(&self, height: Height, round: Round) {
        let place = (height.0, round.as_u32().unwrap());
        *self.0.lock().unwrap().entry(place).or_default() += 1;
    }

    fn places(&self) -> Vec<(u64, u32)> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    /// Bad messages were sent in `heights` heights that were decided, and not in their round.
    fn were_all_rejected(&self, world: &World, heights: usize) {
        let sent = self.places();
        let decided = sent.iter().filter(|(height, _)| *height <= world.height(0));
        let decided: Vec<_> = decided.collect();
        let attacked: BTreeSet<_> = decided.iter().map(|(height, _)| *height).collect();
        assert!(attacked.len() >= heights, "attacked heights: {attacked:?}");
        for (height, round) in decided {
            let (_, commit) = world.store(0).decided(*height).unwrap().unwrap();
            assert_ne!(commit.round, *round, "height {height} was decided in an attacked round");
        }
    }
}

impl Shape {
    fn world(self, rotation: u64, seed: u64) -> World {
        World::new(genesis(self.validators, rotation, HOUR), self.validators, seed)
    }

    fn honest(self) -> std::ops::Range<u8> {
        0..self.validators - self.hostile
    }

    fn evil(self) -> std::ops::Range<u8> {
        self.validators - self.hostile..self.validators
    }

    fn is_evil(self, voter: Address) -> bool {
        self.evil().any(|n| address(n) == voter)
    }

    /// Heights in which leadership, which rotates every two of them, goes round three times.
    fn turns(self) -> u64 {
        6 * u64::from(self.validators)
    }

    /// Gives each hostile validator its own corruption.
    fn corrupt(self, world: &mut World, corruption: impl Fn(u8) -> Corruption) {
        for n in self.evil() {
            world.nodes[n as usize].corrupt = Some(corruption(n));
        }
    }

    /// Decides `count` changes that are submitted to the honest.
    fn decide(self, world: &mut World, first: u64, count: u64) {
        for n in first..first + count {
            let to = u8::try_from(n % u64::from(self.honest().end)).unwrap();
            world.submit(to, publish(&world.genesis, n), n);
            let is_answered = |w: &World| w.answers.contains_key(&n);
            assert!(world.run(Duration::from_secs(60), is_answered), "{self:?}: change {n}");
            assert!(world.answers[&n].is_ok(), "{self:?}: {:?}", world.answers[&n]);
        }
        let oracle = &world.oracle;
        assert_eq!((oracle.equivocations, oracle.disagreements), (0, 0), "{self:?}");
    }

    fn disconnects(self, world: &World) -> u64 {
        self.honest().map(|n| world.nodes[n as usize].disconnects).sum()
    }
}

fn sign_proposal(by: u8, realm: &Realm, proposal: Proposal) -> Frame {
    let signature = keys::sign(&key(by), &bytes_of_proposal(realm, &proposal));
    Frame::Proposal(SignedMessage::new(proposal, signature))
}

fn sign_vote(by: u8, realm: &Realm, vote: Vote) -> Frame {
    let signature = keys::sign(&key(by), &bytes_of_vote(realm, &vote));
    Frame::Vote(SignedMessage::new(vote, signature))
}

#[test]
fn an_equivocating_voter_is_convicted_by_both_signatures() {
    for shape in SHAPES {
        let mut world = shape.world(1_000, 1);
        let (realm, sent) = (world.genesis.realm().clone(), Sent::default());
        shape.corrupt(&mut world, |evil| {
            let (realm, sent) = (realm.clone(), sent.clone());
            Box::new(move |_, _, frame| match frame {
                Frame::Vote(vote) if vote.value.is_val() => {
                    sent.count(vote.height, vote.round);
                    let other = Vote { value: NilOrVal::Nil, ..vote.message.clone() };
                    vec![Frame::Vote(vote), sign_vote(evil, &realm, other)]
                }
                frame => vec![frame],
            })
        });
        world.start_all();
        shape.decide(&mut world, 0, 12);
        assert!(sent.places().len() >= 10, "{:?}", sent.places());
        let evidence = world.store(0).evidence().unwrap();
        let votes: Vec<_> = evidence.iter().filter(|(_, c)| c.kind == ConflictKind::Vote).collect();
        let convicted: BTreeSet<_> = votes.iter().map(|(_, conflict)| conflict.offender).collect();
        assert_eq!(convicted, shape.evil().map(address).collect(), "all of the hostile");
        for (_, conflict) in votes {
            let first = codec::vote(&mut Reader::new(&conflict.first)).unwrap();
            let second = codec::vote(&mut Reader::new(&conflict.second)).unwrap();
            assert_ne!(first.message, second.message);
            assert_eq!((first.height, first.round), (second.height, second.round));
            let evil = shape.evil().find(|n| address(*n) == conflict.offender).unwrap();
            for vote in [first, second] {
                let bytes = bytes_of_vote(&realm, &vote);
                assert!(PublicKey::of(&key(evil)).verifies(&bytes, &vote.signature));
            }
        }
    }
}

/// Each hostile leader sends `forge` of its fresh blocks instead; counts the rounds in which it does.
fn forge_proposals(
    shape: Shape,
    world: &mut World,
    forge: impl Fn(&Realm, &mut Block) + Clone + 'static,
) -> Sent {
    let (realm, sent) = (world.genesis.realm().clone(), Sent::default());
    shape.corrupt(world, |evil| {
        let (realm, sent, forge) = (realm.clone(), sent.clone(), forge.clone());
        Box::new(move |_, _, frame| match frame {
            Frame::Proposal(proposal)
                if proposal.pol_round.is_nil() && proposal.proposer.0 == address(evil) =>
            {
                sent.count(proposal.height, proposal.round);
                let mut block = proposal.value.block().clone();
                forge(&realm, &mut block);
                let mut forged = proposal.message;
                forged.value = Value::new(&realm, block).unwrap();
                vec![sign_proposal(evil, &realm, forged)]
            }
            frame => vec![frame],
        })
    });
    sent
}

#[test]
fn a_leader_with_a_wrong_root_gets_no_votes_and_loses_the_lead() {
    for shape in SHAPES {
        // Leadership rotates every two heights, so the hostile get their turns.
        let mut world = shape.world(2, 2);
        let sent = forge_proposals(shape, &mut world, |_, block| {
            block.checkpoint.commitments.directory_root[0] ^= 1;
        });
        world.start_all();
        shape.decide(&mut world, 0, shape.turns());
        sent.were_all_rejected(&world, 2);
        for height in 1..=world.height(0) {
            let (block, _) = world.store(0).decided(height).unwrap().unwrap();
            assert!(!shape.is_evil(block.checkpoint.proposer), "{shape:?}: height {height}");
        }
    }
}

/// ADMIT-6: the leader of the next height follows from the name in the decided block.
#[test]
fn a_leader_that_names_another_proposer_gets_no_votes() {
    for shape in SHAPES {
        let mut world = shape.world(2, 7);
        let sent = forge_proposals(shape, &mut world, |_, block| {
            block.checkpoint.proposer = address(0);
        });
        world.start_all();
        shape.decide(&mut world, 0, shape.turns());
        sent.were_all_rejected(&world, 2);
    }
}

#[test]
fn a_proposal_from_another_time_gets_no_votes() {
    for shape in SHAPES {
        let mut world = shape.world(2, 6);
        let sent = forge_proposals(shape, &mut world, |_, block| {
            // Ten seconds ahead: twenty times the clock precision.
            block.checkpoint.time = block.checkpoint.time.plus(Duration::from_secs(10));
        });
        world.start_all();
        shape.decide(&mut world, 0, shape.turns());
        sent.were_all_rejected(&world, 2);
        for height in 1..=world.height(0) {
            let (block, _) = world.store(0).decided(height).unwrap().unwrap();
            assert!(block.checkpoint.time <= START.plus(world.now), "{shape:?}: height {height}");
        }
    }
}

#[test]
fn a_leader_that_shows_each_validator_another_block_is_convicted() {
    for shape in SHAPES {
        // The second block is timely, or withheld from the core because it is not.
        for later in [Duration::from_nanos(1), Duration::from_secs(10)] {
            convict(shape, later);
        }
    }
}

fn convict(shape: Shape, later: Duration) {
    let mut world = shape.world(2, 3);
    let (realm, sent) = (world.genesis.realm().clone(), Sent::default());
    shape.corrupt(&mut world, |evil| {
        let (realm, sent) = (realm.clone(), sent.clone());
        Box::new(move |_, _, frame| match frame {
            Frame::Proposal(proposal)
                if proposal.pol_round.is_nil() && proposal.proposer.0 == address(evil) =>
            {
                sent.count(proposal.height, proposal.round);
                let mut block = proposal.value.block().clone();
                block.checkpoint.time = block.checkpoint.time.plus(later);
                let mut other = proposal.message.clone();
                other.value = Value::new(&realm, block).unwrap();
                vec![Frame::Proposal(proposal), sign_proposal(evil, &realm, other)]
            }
            frame => vec![frame],
        })
    });
    world.start_all();
    shape.decide(&mut world, 0, shape.turns());
    assert!(sent.places().len() >= 2, "{shape:?}: {:?}", sent.places());
    let evidence: Vec<_> =
        shape.honest().flat_map(|n| world.store(n).evidence().unwrap()).collect();
    let found: Vec<_> = evidence.iter().filter(|(_, c)| c.kind == ConflictKind::Proposal).collect();
    assert!(!found.is_empty(), "{shape:?}");
    for (_, conflict) in found {
        let mut seen = Vec::new();
        for message in [&conflict.first, &conflict.second] {
            let (bytes, signer, signature) = read_proposal_evidence(&realm, message).unwrap();
            let evil = shape.evil().find(|n| address(*n) == signer).expect("an honest one");
            assert!(PublicKey::of(&key(evil)).verifies(&bytes, &signature));
            seen.push(bytes);
        }
        assert_ne!(seen[0], seen[1]);
    }
}

#[test]
fn silent_members_cost_nothing_but_their_votes() {
    for shape in SHAPES {
        let mut world = shape.world(1_000, 4);
        shape.corrupt(&mut world, |_| Box::new(|_, _, _| Vec::new()));
        world.start_all();
        shape.decide(&mut world, 0, 20);
        for height in 1..=world.height(0) {
            let (_, commit) = world.store(0).decided(height).unwrap().unwrap();
            let signed = commit.signatures.iter().filter(|s| s.is_some()).count();
            assert!(signed <= usize::from(shape.honest().end), "{shape:?}: the silent voted");
        }
    }
}

#[test]
fn a_flood_of_junk_is_cut_off_and_the_others_go_on() {
    for shape in SHAPES {
        let mut world = shape.world(1_000, 5);
        shape.corrupt(&mut world, |_| Box::new(|_, _, _| Vec::new()));
        for evil in shape.evil() {
            let flood = junk(shape, evil, world.genesis.realm().clone());
            world.nodes[evil as usize].flood = Some(flood);
        }
        world.start_all();
        let before = world.now;
        shape.decide(&mut world, 0, 30);
        // An undisturbed quorum decides a change in about 50 ms of virtual time.
        assert!(world.now - before < Duration::from_secs(12), "{:?}", world.now - before);
        assert!(shape.disconnects(&world) > 0, "{shape:?}: no hostile validator was cut off");
    }
}

fn junk(shape: Shape, evil: u8, realm: Realm) -> Flood {
    Box::new(move |rng, height| {
        let mut frames = Vec::new();
        for _ in 0..50 {
            let id = ValueId {
                block: BlockId { hash: [rng.next() as u8; 32], data_hash: [1; 32] },
                time: Timestamp(rng.next() >> 2),
            };
            let voter = rng.below(u64::from(shape.validators));
            let vote = Vote {
                vote_type: VoteType::Precommit,
                height: Height(height + rng.below(4)),
                round: Round::new(u32::try_from(rng.below(1_000)).unwrap()),
                value: NilOrVal::Val(id),
                voter: Voter(address(u8::try_from(voter).unwrap())),
            };
            // In its own name with a good signature, in its own name with a bad one, and in the
            // names of others.
            frames.push(sign_vote(evil, &realm, vote.clone()));
            frames.push(Frame::Vote(SignedMessage::new(vote, [rng.next() as u8; 64])));
            frames.push(Frame::Status(u64::MAX - rng.below(5)));
        }
        frames
    })
}

/// A hostile leader first shows its block, dated two months ahead, as a proposal of a later round
/// that claims a polka, and then as a fresh one. The core would lend the verdict on the first to
/// the second, and after such a block no other could be decided for two months.
#[test]
fn a_decoy_with_a_claimed_polka_makes_no_untimely_block_count() {
    for shape in SHAPES {
        let mut world = shape.world(2, 7);
        let (realm, sent) = (world.genesis.realm().clone(), Sent::default());
        shape.corrupt(&mut world, |evil| {
            let (realm, sent) = (realm.clone(), sent.clone());
            Box::new(move |_, _, frame| match frame {
                Frame::Proposal(proposal) if proposal.proposer.0 == address(evil) => {
                    sent.count(proposal.height, proposal.round);
                    let mut block = proposal.value.block().clone();
                    block.checkpoint.time = block.checkpoint.time.plus(60 * 24 * HOUR);
                    let mut fresh = proposal.message;
                    fresh.value = Value::new(&realm, block).unwrap();
                    let mut decoy = fresh.clone();
                    decoy.pol_round = Round::new(fresh.round.as_u32().unwrap() + 1);
                    // The next round that it leads.
                    let round = fresh.round.as_u32().unwrap() + u32::from(shape.validators);
                    decoy.round = Round::new(round);
                    let frames = [decoy, fresh];
                    frames.into_iter().map(|p| sign_proposal(evil, &realm, p)).collect()
                }
                frame => vec![frame],
            })
        });
        world.start_all();
        shape.decide(&mut world, 0, shape.turns());
        sent.were_all_rejected(&world, 2);
    }
}

/// The hostile do not vote, so a height is decided in round 0 only if all of the honest look at its
/// proposal, also when it arrives while they finish the height before.
#[test]
fn a_peer_cannot_use_up_the_room_for_proposals_of_the_next_height() {
    for shape in SHAPES {
        let mut world = shape.world(1_000, 8);
        world.delay_ms_max = 60;
        let (realm, sent) = (world.genesis.realm().clone(), Sent::default());
        let ledger = Ledger::genesis(&world.genesis);
        shape.corrupt(&mut world, |evil| {
            let block = ledger.build(address(evil), START.plus(HOUR), &[]);
            let (realm, sent) = (realm.clone(), sent.clone());
            Box::new(move |_, _, frame| {
                let Frame::Vote(vote) = frame else { return Vec::new() };
                let proposal = |round| {
                    let (height, round) = (Height(vote.height.0 + 1), Round::new(round));
                    sent.count(height, round);
                    let mut block = block.clone();
                    block.checkpoint.height = height.0;
                    let last = BlockId { hash: [1; 32], data_hash: [2; 32] };
                    block.checkpoint.last_block = Some(last);
                    let value = Value::new(&realm, block).unwrap();
                    let proposer = Voter(address(evil));
                    let pol_round = Round::Nil;
                    let proposal = Proposal { height, round, pol_round, value, proposer };
                    sign_proposal(evil, &realm, proposal)
                };
                (0..10).map(proposal).collect()
            })
        });
        world.start_all();
        shape.decide(&mut world, 0, 30);
        assert!(sent.places().len() >= 200, "{}", sent.places().len());
        for height in 2..=world.height(0) {
            let (_, commit) = world.store(0).decided(height).unwrap().unwrap();
            assert_eq!(commit.round, 0, "{shape:?}: height {height}");
        }
    }
}

/// A change of another realm is refused whatever the height, so no honest peer relays it.
#[test]
fn changes_that_are_wrong_at_any_height_cut_a_peer_off_and_those_a_block_behind_do_not() {
    for shape in SHAPES {
        let other = genesis(shape.validators, 999, HOUR);
        let disconnects = |relayed: fn(&Genesis, u64) -> Frame, of: &Genesis| {
            let mut world = shape.world(1_000, 9);
            world.start_all();
            shape.decide(&mut world, 0, 5);
            for evil in shape.evil() {
                let of = of.clone();
                world.nodes[evil as usize].flood = Some(Box::new(move |rng, _| {
                    (0..30).map(|_| relayed(&of, rng.next())).collect()
                }));
            }
            world.run(Duration::from_secs(2), |_| false);
            shape.disconnects(&world)
        };
        assert!(disconnects(|of, n| Frame::Change(publish(of, n)), &other) > 0, "{shape:?}");
        let own = genesis(shape.validators, 1_000, HOUR);
        // Bundles 0 to 4 have a version already: another one would have to be expected.
        let behind = disconnects(|of, n| Frame::Change(publish(of, n % 5)), &own);
        assert_eq!(behind, 0, "{shape:?}");
    }
}
