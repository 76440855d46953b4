//! Signers that fail for a while or answer late: their validator misses votes, follows the others,
//! never contradicts itself, and never stops.

use std::time::Duration;

use arc_malachitebft_core_consensus::Input;
use arc_malachitebft_core_types::{NilOrVal, Round, SignedMessage, Timeout, VoteType};
use satrap_certify::{PublicKey, keys};
use satrap_global_node::{
    guard::{Guard, Place, SlotFile, Step},
    malachite::{
        Engine, EngineEffect, EngineInput, Frame, Now, Setup, SignRequest, Timing,
        codec::{self, Blocks},
        context::{Height, SignedVote, ValueId, Vote, Voter},
        signing::bytes_of_vote,
    },
    store::{Storage as _, Store},
};

use crate::{
    realm::{START, address, genesis, key, publish},
    world::World,
};

const HOUR: Duration = Duration::from_secs(3_600);
const OTHERS: [u8; 3] = [0, 1, 2];
/// The node with the bad signer.
const SLOW: u8 = 3;

/// Decides the changes `from..to`, which are submitted to the others.
fn decide(world: &mut World, from: u64, to: u64) {
    for n in from..to {
        let at = OTHERS[usize::try_from(n).unwrap() % OTHERS.len()];
        world.submit(at, publish(&world.genesis, n), n);
        assert!(world.run(Duration::from_secs(60), |w| w.answers.contains_key(&n)), "change {n}");
        assert!(world.answers[&n].is_ok(), "{:?}", world.answers[&n]);
    }
}

fn is_sound(world: &World) {
    let oracle = &world.oracle;
    assert_eq!((oracle.equivocations, oracle.disagreements), (0, 0));
    assert_eq!(oracle.contradictory_signatures, 0);
    assert_eq!(world.crashes, 0, "a signer stops no process");
    let blamed: u64 = world.nodes.iter().map(|node| node.disconnects).sum();
    assert_eq!(blamed, 0, "a missing signature is no fault of a peer");
}

/// Whether `SLOW` sent any message for `height`.
fn spoke(world: &World, height: u64) -> bool {
    let steps = [Step::Propose, Step::Prevote, Step::Precommit];
    (0..40).any(|round| steps.iter().any(|step| world.has_said(SLOW, height, round, *step)))
}

/// Whether the commit of `height` holds a signature of `SLOW`.
fn signed(world: &World, height: u64) -> bool {
    let (block, commit) = world.store(0).decided(height).unwrap().unwrap();
    let set = world.store(0).set(&block.checkpoint.validators_hash).unwrap().unwrap();
    commit.signatures[set.index_of(&address(SLOW)).unwrap()].is_some()
}

#[test]
fn a_signer_that_fails_for_seconds_costs_its_votes_and_nothing_else() {
    // Leadership rotates, so the node with the bad signer has to propose, too.
    let mut world = World::new(genesis(4, 2, HOUR), 4, 21);
    world.start_all();
    decide(&mut world, 0, 8);
    assert!(world.run(Duration::from_secs(10), |w| w.all_at(&[0, 1, 2, 3], 8)));
    let (first, until) = (world.height(0) + 2, world.now + Duration::from_secs(20));
    world.nodes[SLOW as usize].signing.fails_until = until;
    let mut n = 8;
    while world.now + Duration::from_secs(1) < until {
        decide(&mut world, n, n + 1);
        n += 1;
    }
    let last = world.height(0);
    assert!(last > first + 5, "the others went on: {first} to {last}");
    assert!(world.run(Duration::from_secs(1), |w| w.height(SLOW) >= last), "it follows");
    for height in first..=last {
        assert!(!spoke(&world, height) && !signed(&world, height), "height {height}");
    }
    world.run(until.saturating_sub(world.now) + Duration::from_secs(1), |_| false);
    decide(&mut world, n, n + 12);
    let votes_again = (last + 2..=world.height(0)).filter(|height| spoke(&world, *height)).count();
    assert!(votes_again >= 10, "it votes again: {votes_again}");
    is_sound(&world);
}

#[test]
fn a_signature_that_comes_after_its_height_is_not_sent() {
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 22);
    world.nodes[SLOW as usize].signing.delay = Duration::from_secs(30);
    world.start_all();
    decide(&mut world, 0, 20);
    let top = world.height(0);
    assert!(world.run(Duration::from_secs(20), |w| w.height(SLOW) >= top), "it follows");
    assert!(world.run(Duration::from_secs(120), |w| {
        // A prevote and a precommit of each height, at the least.
        w.nodes[SLOW as usize].signing.made >= 2 * (top - 1)
    }));
    for height in 1..=top {
        assert!(!spoke(&world, height), "height {height}");
    }
    is_sound(&world);
}

#[test]
fn a_realm_whose_signers_fail_waits_and_goes_on() {
    let mut world = World::new(genesis(4, 1_000, HOUR), 4, 23);
    world.start_all();
    decide(&mut world, 0, 4);
    let until = world.now + Duration::from_secs(15);
    for n in [0, 1, SLOW] {
        world.nodes[n as usize].signing.fails_until = until;
    }
    let before = world.oracle.decided.len();
    world.submit(0, publish(&world.genesis, 4), 4);
    world.run(Duration::from_secs(14), |_| false);
    assert!(world.oracle.decided.len() <= before + 1, "a quarter of the power decides nothing");
    assert!(world.run(Duration::from_secs(120), |w| w.answers.contains_key(&4)), "they vote again");
    decide(&mut world, 5, 10);
    is_sound(&world);
}

/// The entries of these tests name no blocks.
struct NoBlocks;

impl Blocks for NoBlocks {
    fn note(&mut self, _: ValueId) -> bool {
        unreachable!("no entry names a block")
    }
}

const NOW: Now = Now { monotonic: Duration::from_secs(1), wall: START };
const PREVOTE: Place = Place { height: 1, round: 0, step: Step::Prevote };

/// The prevote for nil that `SLOW` derives when the propose timer of round 0 fires.
fn prevote() -> SignedVote {
    let vote = Vote {
        vote_type: VoteType::Prevote,
        height: Height(1),
        round: Round::new(0),
        value: NilOrVal::Nil,
        voter: Voter(address(SLOW)),
    };
    let signature = keys::sign(&key(SLOW), &bytes_to_sign(&vote));
    SignedMessage::new(vote, signature)
}

fn bytes_to_sign(vote: &Vote) -> Vec<u8> {
    bytes_of_vote(genesis(4, 1_000, HOUR).realm(), vote)
}

fn logged(input: &Input<satrap_global_node::malachite::context::Ctx>) -> Vec<u8> {
    codec::log_entry(input, &mut NoBlocks).expect("such inputs are logged")
}

fn timeout() -> Vec<u8> {
    logged(&Input::TimeoutElapsed(Timeout::propose(Round::new(0))))
}

/// Starts an engine of `SLOW` on a log.
fn start(log: &[Vec<u8>]) -> (Engine, Vec<EngineEffect>) {
    let (genesis, dir) = (genesis(4, 1_000, HOUR), tempfile::tempdir().unwrap());
    let mut store = Store::open(&dir.path().join("db"), genesis.realm()).unwrap();
    store.log(log).unwrap();
    let slots = SlotFile::open(&dir.path().join("last-sign")).unwrap();
    let setup = Setup {
        genesis,
        public: PublicKey::of(&key(SLOW)),
        guard: Guard::load(Box::new(slots)).unwrap(),
        store: Box::new(store),
        timing: Timing::default(),
    };
    Engine::start(setup, NOW).unwrap()
}

fn requests(effects: &[EngineEffect]) -> Vec<&SignRequest> {
    let mut found = Vec::new();
    for effect in effects {
        if let EngineEffect::Sign(request) = effect {
            found.push(request);
        }
    }
    found
}

fn votes(effects: &[EngineEffect]) -> Vec<&SignedVote> {
    let mut found = Vec::new();
    for effect in effects {
        if let EngineEffect::Broadcast(Frame::Vote(vote)) = effect {
            found.push(vote);
        }
    }
    found
}

/// Logs of releases before signing was asynchronous hold votes with their signatures and no requests.
#[test]
fn a_log_that_names_no_requests_is_replayed() {
    let (_, effects) = start(&[timeout(), logged(&Input::Vote(prevote()))]);
    assert_eq!(votes(&effects), [&prevote()], "it is sent again");
    assert!(requests(&effects).is_empty(), "it is signed already: {effects:?}");
}

#[test]
fn a_request_without_a_signature_is_made_again_after_a_restart() {
    let bytes = bytes_to_sign(&prevote());
    let requested = codec::requested_entry(PREVOTE, &codec::digest(&bytes));
    let (mut engine, effects) = start(&[timeout(), requested]);
    assert!(votes(&effects).is_empty());
    assert_eq!(requests(&effects), [&SignRequest { place: PREVOTE, bytes }]);
    let effects = engine.step(NOW, EngineInput::Signed(PREVOTE, [7; 64])).unwrap();
    assert!(votes(&effects).is_empty(), "the signature does not verify");
    let signed = EngineInput::Signed(PREVOTE, prevote().signature);
    assert_eq!(votes(&engine.step(NOW, signed).unwrap()), [&prevote()]);
    let again = EngineInput::Signed(PREVOTE, prevote().signature);
    assert!(votes(&engine.step(NOW, again).unwrap()).is_empty(), "it was sent once");
}

/// The signer may still answer what was requested before the restart, so nothing else is requested.
#[test]
fn a_logged_request_for_another_message_makes_the_validator_abstain() {
    let requested = codec::requested_entry(PREVOTE, &[9; 32]);
    let (mut engine, effects) = start(&[timeout(), requested]);
    assert!(votes(&effects).is_empty() && requests(&effects).is_empty(), "{effects:?}");
    let signed = EngineInput::Signed(PREVOTE, prevote().signature);
    assert!(votes(&engine.step(NOW, signed).unwrap()).is_empty());
}
