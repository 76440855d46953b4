//! Proposals of every shape: a generator plays the hostile validators against the others, one of
//! four or five, or two of seven that share all they hear.
//!
//! A schedule is one height under attack. The hostile validators hear everything and send signed
//! proposals of every (round, claimed polka, time, named proposer), fresh or of a block that was
//! shown before, to any of the others, together with votes and certificates that help them. The
//! network delays every message at random; an honest validator is restarted now and then.
//!
//! # Properties
//!
//! - Every height is decided within [`patience`] of virtual time, by all honest validators.
//! - They agree, contradict themselves nowhere, and never stop.
//! - The time of a decided block lies in the window of clock precision and message delay around
//!   the span in which its height was decided (ADMIT-4), its proposer led a round up to the decided
//!   one, and an empty block of round 0 is a heartbeat (ADMIT-5).
//!
//! Each world also counts the attacks that were carried out, and fails below a minimum ([`Sent`]).
//!
//! `SHAPES_SCHEDULES` and `SHAPES_SEED` run more schedules, or one world again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use arc_malachitebft_core_types::{
    NilOrVal, PolkaSignature, Round, SignedMessage, Validator as _, VoteType,
};
use satrap_certify::{Block, Realm, Timestamp, keys};
use satrap_effort::count;
use satrap_global_core::Ledger;
use satrap_global_node::{
    malachite::{
        Frame, Timing,
        context::{
            Electorate, Height, PolkaCertificate, Proposal, SignedVote, Value, ValueId, Vote, Voter,
        },
        signing::{bytes_of_proposal, bytes_of_vote},
    },
    store::Storage as _,
};

use crate::{
    realm::{START, address, genesis, key, publish},
    world::{Rng, World},
};

/// Heights that one world decides under attack.
const HEIGHTS: u64 = 250;
/// About 12 ms of one core each.
const SCHEDULES: u64 = 15_000;
const HEARTBEAT: Duration = Duration::from_millis(400);
/// The hidden-lock rule of the core helps from round 10 on, and then each validator leads once.
const ROUNDS_UNTIL_HELP: u32 = 10;

/// The longest time an honest quorum may take for one height, whatever the others do: all rounds until each validator
/// has led once after the core's help, at their longest, with six message delays and one repetition in each, a
/// heartbeat, and a block from value sync for a validator that missed the end.
fn patience(validators: u32, delay_max: Duration) -> Duration {
    let timing = Timing::default();
    let round = |round| {
        [timing.propose, timing.prevote, timing.precommit]
            .map(|base| timing.grown(base, round))
            .iter()
            .sum::<Duration>()
            + 6 * delay_max
            + timing.rebroadcast
    };
    (0..=ROUNDS_UNTIL_HELP + validators).map(round).sum::<Duration>()
        + HEARTBEAT
        + Duration::from_secs(5)
}

/// How many attacks of each kind the hostile validators of a world sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    /// Proposals for the round in progress, which their sender leads.
    leading: u64,
    /// Proposals that claim a polka of an earlier round.
    claimed_polkas: u64,
    /// Proposed blocks of a time that no validator may accept yet or any more.
    untimely: u64,
    /// Prevotes and precommits.
    votes: u64,
    /// Certificates of a quorum of prevotes.
    certificates: u64,
}

// Fewest attacks in a hundred heights of a world; the weakest worlds measured had more than twice as many.
const LEADING_PER_HUNDRED: u64 = 20;
const CLAIMED_PER_HUNDRED: u64 = 30;
const UNTIMELY_PER_HUNDRED: u64 = 15;
const VOTES_PER_HUNDRED: u64 = 100;
/// Of all worlds together: a world whose validators seldom need a second round sees few.
const CERTIFICATES_PER_HUNDRED: u64 = 1;

impl Sent {
    fn add(&mut self, more: Self) {
        self.leading += more.leading;
        self.claimed_polkas += more.claimed_polkas;
        self.untimely += more.untimely;
        self.votes += more.votes;
        self.certificates += more.certificates;
    }

    /// Whether one world had enough of each kind in `heights` heights, by the minima above.
    fn suffices(&self, heights: u64) -> bool {
        let Self { leading, claimed_polkas, untimely, votes, certificates: _ } = *self;
        let per_hundred = |count: u64| count * 100 / heights;
        per_hundred(leading) >= LEADING_PER_HUNDRED
            && per_hundred(claimed_polkas) >= CLAIMED_PER_HUNDRED
            && per_hundred(untimely) >= UNTIMELY_PER_HUNDRED
            && per_hundred(votes) >= VOTES_PER_HUNDRED
    }
}

/// The hostile validators, and what they know of the height in progress.
struct Hostile {
    /// How many validators are honest; those after them are hostile.
    honest: u8,
    validators: u8,
    sent: Sent,
    realm: Realm,
    height: u64,
    ledger: Ledger,
    electorate: Electorate,
    /// Blocks of this height that exist, its own and those of others.
    blocks: Vec<Value>,
    prevotes: BTreeMap<(u32, ValueId), BTreeMap<Voter, SignedVote>>,
    /// The block they last proposed, which they mostly vote for.
    favorite: Option<(u32, ValueId)>,
}

impl Hostile {
    fn new(world: &World, honest: u8) -> Self {
        let engine = world.nodes[0].engine.as_ref().expect("node 0 runs between two schedules");
        let ledger = engine.ledger().clone();
        let height = ledger.height() + 1;
        let proposer = ledger.last().map(|(checkpoint, _)| checkpoint.proposer);
        let rotation = world.genesis.policy.leader_rotation_heights;
        let electorate = Electorate::new(ledger.validators(), height, proposer.as_ref(), rotation);
        let realm = world.genesis.realm().clone();
        let (blocks, prevotes, favorite) = (Vec::new(), BTreeMap::new(), None);
        let validators = u8::try_from(world.nodes.len()).unwrap();
        Self {
            honest,
            validators,
            sent: Sent::default(),
            realm,
            height,
            ledger,
            electorate,
            blocks,
            prevotes,
            favorite,
        }
    }

    fn hear(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            match frame {
                Frame::Proposal(p) if p.height.0 == self.height => self.keep(p.message.value),
                Frame::Vote(v) if v.height.0 == self.height => self.note(v),
                _ => {}
            }
        }
    }

    fn keep(&mut self, value: Value) {
        if !self.blocks.contains(&value) {
            self.blocks.push(value);
        }
    }

    fn note(&mut self, vote: SignedVote) {
        if let (VoteType::Prevote, NilOrVal::Val(id)) = (vote.vote_type, vote.value) {
            let round = vote.round.as_u32().unwrap();
            self.prevotes.entry((round, id)).or_default().insert(vote.voter, vote);
        }
    }

    fn act(&mut self, world: &mut World, rounds: (u32, u32)) {
        let hostile = u32::from(self.validators - self.honest);
        // A draw only where there is a choice.
        let other = if hostile > 1 { below(&mut world.rng, hostile) } else { 0 };
        let me = self.honest + u8::try_from(other).unwrap();
        match world.rng.below(8) {
            0..=2 => self.propose(world, me, rounds),
            3..=5 => self.vote(world, me, rounds),
            6 => self.certify(world, me),
            _ => {}
        }
    }

    /// A proposal of any shape for a round that validator `number` leads.
    fn propose(&mut self, world: &mut World, number: u8, (min, max): (u32, u32)) {
        let me = Voter(address(number));
        let led: Vec<_> = (min..=max + 9)
            .filter(|r| *self.electorate.proposer(Round::new(*r)).address() == me)
            .collect();
        // The round in progress above all, else any that is in reach.
        let current = led.iter().find(|r| **r >= max).copied();
        let Some(round) = (match world.rng.below(2) {
            0 => current,
            _ => pick(&mut world.rng, &led),
        }) else {
            return;
        };
        let pol_round = match world.rng.below(2) {
            1 if round > 0 => Round::new(below(&mut world.rng, round)),
            _ => Round::Nil,
        };
        let known = pick(&mut world.rng, &self.blocks);
        let value = known.filter(|_| world.rng.below(3) > 0);
        let value = value.unwrap_or_else(|| self.block(world, number));
        self.keep(value.clone());
        if world.rng.below(4) > 0 {
            self.favorite = Some((round, value.value_id()));
        }
        self.sent.leading += u64::from((min..=max).contains(&round));
        self.sent.claimed_polkas += u64::from(pol_round != Round::Nil);
        self.sent.untimely += u64::from(is_untimely(value.block().checkpoint.time, world));
        let height = Height(self.height);
        let proposal =
            Proposal { height, round: Round::new(round), pol_round, value, proposer: me };
        let signature = keys::sign(&key(number), &bytes_of_proposal(&self.realm, &proposal));
        self.send(world, number, &Frame::Proposal(SignedMessage::new(proposal, signature)));
    }

    /// A block of any time that names any proposer.
    fn block(&self, world: &mut World, me: u8) -> Value {
        const MS: u64 = 1_000_000;
        let now = START.plus(world.now).0;
        let time = match world.rng.below(10) {
            0 => now + 60 * 86_400_000 * MS,
            1 => now + 10_000 * MS,
            2 => now + 900 * MS,
            3 => now + world.rng.below(700 * MS),
            4 => now - world.rng.below(3_500 * MS),
            5 => 0,
            _ => now,
        };
        let time = Timestamp(time).max(self.ledger.last_time().plus(Duration::from_millis(1)));
        let proposer = match world.rng.below(4) {
            0 => address(below(&mut world.rng, u32::from(self.validators)) as u8),
            _ => address(me),
        };
        let changes = match world.rng.below(8) {
            0 => vec![publish(&world.genesis, world.rng.next())],
            _ => Vec::new(),
        };
        let mut block: Block = self.ledger.build(proposer, time, &changes);
        if world.rng.below(12) == 0 {
            block.checkpoint.commitments.directory_root[0] ^= 1;
        }
        Value::new(&self.realm, block).unwrap()
    }

    fn vote(&mut self, world: &mut World, me: u8, (min, max): (u32, u32)) {
        let voter = Voter(address(me));
        let any = pick(&mut world.rng, &self.blocks).map(|value| value.value_id());
        let (round, id) = match (self.favorite, world.rng.below(5)) {
            (Some((round, id)), 0..=2) => (round, Some(id)),
            (_, 3) => (min + below(&mut world.rng, max - min + 2), None),
            _ => (min + below(&mut world.rng, max - min + 2), any),
        };
        let both = [VoteType::Prevote, VoteType::Precommit];
        let types = match world.rng.below(3) {
            0 => &both[..1],
            1 => &both[1..],
            _ => &both[..],
        };
        for vote_type in types.iter().copied() {
            let value = id.map_or(NilOrVal::Nil, NilOrVal::Val);
            let (height, round) = (Height(self.height), Round::new(round));
            let vote = Vote { vote_type, height, round, value, voter };
            let signature = keys::sign(&key(me), &bytes_of_vote(&self.realm, &vote));
            let vote = SignedMessage::new(vote, signature);
            self.note(vote.clone());
            self.sent.votes += 1;
            self.send(world, me, &Frame::Vote(vote));
        }
    }

    /// A certificate from the prevotes that were heard, mostly one that is complete.
    fn certify(&mut self, world: &mut World, me: u8) {
        let quorum = self.ledger.validators().len() * 2 / 3 + 1;
        let least = if world.rng.below(20) == 0 { 1 } else { quorum };
        let held = self.prevotes.iter().filter(|(_, votes)| votes.len() >= least);
        let held: Vec<_> = held.map(|(of, votes)| (*of, votes.clone())).collect();
        let Some(((round, value_id), votes)) = pick(&mut world.rng, &held) else { return };
        self.sent.certificates += u64::from(votes.len() >= quorum);
        let signatures = votes
            .into_iter()
            .map(|(address, vote)| PolkaSignature { address, signature: vote.signature });
        let certificate = PolkaCertificate {
            height: Height(self.height),
            round: Round::new(round),
            value_id,
            polka_signatures: signatures.collect(),
        };
        self.send(world, me, &Frame::Polka(certificate));
    }

    /// To all honest validators, or to some, each after its own delay.
    fn send(&self, world: &mut World, me: u8, frame: &Frame) {
        let all = world.rng.below(2) == 0;
        for to in 0..self.honest {
            if all || world.rng.below(2) == 0 {
                let delay = Duration::from_micros(world.rng.below(world.delay_ms_max * 1_000));
                world.inject(me, to, frame, delay);
            }
        }
    }
}

/// Whether a block of this time is further from the present than precision and delay of round 0 allow.
fn is_untimely(time: Timestamp, world: &World) -> bool {
    let timing = Timing::default();
    let now = START.plus(world.now);
    time > now.plus(2 * timing.clock_precision)
        || time.plus(timing.clock_precision + timing.message_delay) < now
}

fn pick<T: Clone>(rng: &mut Rng, of: &[T]) -> Option<T> {
    let n = rng.below(of.len().max(1) as u64);
    of.get(usize::try_from(n).unwrap()).cloned()
}

fn below(rng: &mut Rng, n: u32) -> u32 {
    u32::try_from(rng.below(u64::from(n))).unwrap()
}

/// The rounds in which honest validators are, of those that decide `height`.
fn rounds(world: &World, height: u64) -> (u32, u32) {
    let engines = world.nodes.iter().filter_map(|n| n.engine.as_ref());
    let at: Vec<_> = engines.filter(|e| e.height() == height).map(|e| e.round()).collect();
    (at.iter().min().copied().unwrap_or(0), at.iter().max().copied().unwrap_or(0))
}

/// One height under attack; returns what was sent, or what went wrong.
fn schedule(world: &mut World, honest: &[u8]) -> Result<Sent, String> {
    let mut hostile = Hostile::new(world, u8::try_from(honest.len()).unwrap());
    let (height, last_time) = (hostile.height, hostile.ledger.last_time());
    let began = world.now;
    let validators = u32::from(hostile.validators);
    let end = began + patience(validators, Duration::from_millis(world.delay_ms_max));
    let mut restart = (world.rng.below(20) == 0).then(|| world.rng.below(600));
    let mut reached = 0;
    while !world.all_at(honest, height) {
        let (min, max) = rounds(world, height);
        reached = reached.max(max);
        hostile.act(world, (min, max));
        let slice = Duration::from_millis(1 + world.rng.below(100));
        world.run(slice, |w| w.all_at(honest, height));
        for node in &mut world.nodes[honest.len()..] {
            hostile.hear(node.heard.replace(Vec::new()).unwrap_or_default());
        }
        if restart.is_some_and(|ms| world.now >= began + Duration::from_millis(ms)) {
            restart = None;
            let n = pick(&mut world.rng, honest).unwrap();
            world.nodes[n as usize].engine = None;
            world.start(n);
        }
        if world.now > end {
            let heights: Vec<_> = honest.iter().map(|n| world.height(*n)).collect();
            return Err(format!("stalled: at {heights:?} in rounds {min} to {max}"));
        }
    }
    if (world.oracle.equivocations, world.oracle.disagreements) != (0, 0) {
        return Err("honest validators contradict themselves or each other".into());
    }
    judge(world, &hostile, (began, reached)).map_err(|why| {
        format!("{why}; the last block is of {last_time}, the clock says {}", START.plus(world.now))
    })?;
    Ok(hostile.sent)
}

/// Whether the decided block may have been decided.
fn judge(
    world: &World,
    hostile: &Hostile,
    (began, reached): (Duration, u32),
) -> Result<(), String> {
    let timing = Timing::default();
    let (block, commit) = world.store(0).decided(hostile.height).unwrap().unwrap();
    let (time, proposer) = (block.checkpoint.time, block.checkpoint.proposer);
    let decided = START.plus(world.oracle.decided_at[&hostile.height]);
    // The clocks of honest validators are up to one precision ahead of this world's.
    if time > decided.plus(2 * timing.clock_precision) {
        return Err(format!("a block of {time} was decided at {decided}"));
    }
    let delay = timing.grown(timing.message_delay, reached.max(commit.round));
    if time.plus(timing.clock_precision + delay) < START.plus(began) {
        return Err(format!("a block of {time} was decided for a height that began at {began:?}"));
    }
    let led = |r| hostile.electorate.proposer(Round::new(r)).address().0 == proposer;
    if !(0..=commit.round).any(led) {
        return Err(format!("{proposer} led no round up to {}", commit.round));
    }
    let due = hostile.ledger.last_time().plus(HEARTBEAT);
    if commit.round == 0 && block.changes.is_empty() && time < due {
        return Err(format!("an empty block of {time}; the heartbeat was due at {due}"));
    }
    Ok(())
}

/// Runs one world, and returns the attacks; the error says what went wrong, or that they were too few.
fn run(seed: u64, heights: u64) -> Result<Sent, String> {
    let (validators, hostile) = match seed % 12 {
        2 => (7, 2),
        5 | 8 | 11 => (5, 1),
        _ => (4, 1),
    };
    let mut world = World::new(genesis(validators, 1, HEARTBEAT), validators, seed);
    world.delay_ms_max = pick(&mut world.rng, &[5, 20, 50, 100, 200, 400]).unwrap();
    let honest: Vec<u8> = (0..validators - hostile).collect();
    let precision_ns = u64::try_from(Timing::default().clock_precision.as_nanos()).unwrap();
    for n in &honest {
        let ahead = Duration::from_nanos(world.rng.below(precision_ns));
        world.nodes[*n as usize].clock_ahead = ahead;
        world.start(*n);
    }
    for node in &mut world.nodes[honest.len()..] {
        node.heard = Some(Vec::new());
    }
    let mut sent = Sent::default();
    for n in 0..heights {
        let more = schedule(&mut world, &honest).map_err(|why| {
            format!("schedule {n} of seed {seed} ({validators} validators): {why}")
        })?;
        sent.add(more);
    }
    println!("seed {seed}, {validators} validators, {hostile} hostile: {sent:?}");
    match sent.suffices(heights) {
        true => Ok(sent),
        false => Err(format!("the attack of seed {seed} was too weak: {sent:?}")),
    }
}

#[expect(clippy::disallowed_methods, reason = "a longer run is asked for from the command line")]
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().unwrap())
}

#[test]
fn no_shape_of_a_proposal_stops_or_splits_the_realm() {
    let first = setting("SHAPES_SEED").unwrap_or(0);
    let schedules = setting("SHAPES_SCHEDULES");
    let schedules =
        schedules.unwrap_or_else(|| count("schedules of proposals", SCHEDULES / 5, SCHEDULES));
    let worlds: BTreeSet<_> = (first..first + schedules.div_ceil(HEIGHTS)).collect();
    let shares = [0, 1].map(|thread| {
        let seeds: Vec<_> = worlds.iter().copied().filter(|seed| seed % 2 == thread).collect();
        std::thread::spawn(move || {
            seeds.into_iter().try_fold(Sent::default(), |mut all, seed| {
                let sent = run(seed, HEIGHTS).map_err(|why| {
                    format!(
                        "{why}\nSHAPES_SEED={seed} SHAPES_SCHEDULES=1 cargo test -p \
                         satrap-global-node --test it shapes"
                    )
                })?;
                all.add(sent);
                Ok::<_, String>(all)
            })
        })
    });
    let mut all = Sent::default();
    for share in shares {
        match share.join().expect("a world panicked; its message names the node") {
            Ok(sent) => all.add(sent),
            Err(why) => panic!("{why}"),
        }
    }
    // One world alone may see none.
    let heights = HEIGHTS * worlds.len() as u64;
    let enough = all.certificates * 100 / heights >= CERTIFICATES_PER_HUNDRED;
    assert!(enough || worlds.len() == 1, "too few certificates: {all:?}");
}
