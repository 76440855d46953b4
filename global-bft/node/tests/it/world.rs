//! Many engines in one thread: virtual time, a seeded network, disks that survive crashes.
//!
//! Nothing is mocked but the wire and the clock: engines, ledgers, signatures and redb are the real
//! ones (redb on memory that outlives the "process"). Frames go through their wire encoding.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use redb::{Database, backends::InMemoryBackend};
use satrap_certify::{BlockId, Genesis, PublicKey, SignedChange, keys};
use satrap_global_node::{
    guard::{Guard, Place, Step},
    malachite::{
        Engine, EngineEffect, EngineInput, Frame, Now, Setup, SignRequest, TimerId, Timing,
        signing::{bytes_of_proposal, bytes_of_vote, place_of_proposal, place_of_vote},
    },
    mempool::{Receipt, Refusal},
    store::{Storage as _, Store},
};
use satrap_proto::v1::MeshFrame;

use crate::{
    disk::{Fuse, FusedStore, MemorySlots, forget_log},
    realm::{START, address, key, name},
};

const TICK: Duration = Duration::from_millis(250);

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Changes what a Byzantine node sends: the frame its honest engine would send to one peer becomes
/// any number of frames.
pub type Corruption = Box<dyn FnMut(&mut Rng, u8, Frame) -> Vec<Frame>>;
/// The frames that a Byzantine node sends to all others at every tick.
pub type Flood = Box<dyn FnMut(&mut Rng, u64) -> Vec<Frame>>;

/// The signer of a node. It outlives crashes of the node, and answers what an earlier life requested.
#[derive(Clone, Copy)]
pub struct Signing {
    /// It answers after this time,
    pub delay: Duration,
    /// and up to so much later.
    pub spread: Duration,
    /// It answers nothing before this time; requests are repeated until then.
    pub fails_until: Duration,
    /// Signatures that it made.
    pub made: u64,
}

pub struct Node {
    pub engine: Option<Engine>,
    pub database: Arc<Database>,
    slots: Arc<Mutex<[Vec<u8>; 2]>>,
    fuse: Fuse,
    /// Never writes the log, and loses the guard at each start: the negative control.
    pub amnesia: bool,
    /// Loses the log at each start, as an old disk image would.
    pub loses_log: bool,
    /// Loses the last-sign file at each start.
    pub loses_guard: bool,
    pub corrupt: Option<Corruption>,
    pub flood: Option<Flood>,
    pub connected: bool,
    pub signing: Signing,
    /// How far this node's wall clock is ahead of the slowest one.
    pub clock_ahead: Duration,
    /// The frames others sent to it, if it is played by the test instead of an engine.
    pub heard: Option<Vec<Frame>>,
    /// Incremented at each start; what belongs to an earlier life is dropped.
    life: u64,
    timers: BTreeMap<TimerId, u64>,
    pub replayed: u64,
    pub disconnects: u64,
}

enum Event {
    Deliver { to: u8, from: u8, frame: MeshFrame },
    Timer { node: u8, life: u64, timer: TimerId, token: u64 },
    Tick { node: u8, life: u64 },
    Signed { node: u8, request: SignRequest },
    Restart { node: u8 },
}

/// The messages that were signed, and those that left a node.
#[derive(Default)]
pub struct Oracle {
    said: BTreeMap<(u8, Place), Vec<u8>>,
    signed: BTreeMap<(u8, Place), Vec<u8>>,
    /// Signatures for a place whose signer had signed another message for it before, sent or not.
    pub contradictory_signatures: u64,
    pub messages: u64,
    pub equivocations: u64,
    pub disagreements: u64,
    pub decided: BTreeMap<u64, BlockId>,
    /// When an honest node first decided each height.
    pub decided_at: BTreeMap<u64, Duration>,
}

pub struct World {
    pub genesis: Genesis,
    pub rng: Rng,
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub oracle: Oracle,
    pub answers: BTreeMap<u64, Result<Receipt, Refusal>>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    /// Crash each node within this many operations, as long as there is budget.
    pub crash_within: u64,
    pub crash_budget: u64,
    pub crashes: u64,
    /// Messages lost, in percent.
    pub loss_percent: u64,
    pub delay_ms_max: u64,
}

impl World {
    pub fn new(genesis: Genesis, nodes: u8, seed: u64) -> Self {
        let mut world = Self {
            genesis,
            rng: Rng(seed),
            now: Duration::from_secs(1),
            nodes: Vec::new(),
            oracle: Oracle::default(),
            answers: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            crash_within: 0,
            crash_budget: 0,
            crashes: 0,
            loss_percent: 0,
            delay_ms_max: 20,
        };
        for _ in 0..nodes {
            let backend = InMemoryBackend::new();
            world.nodes.push(Node {
                engine: None,
                database: Arc::new(Database::builder().create_with_backend(backend).unwrap()),
                slots: Arc::default(),
                fuse: Fuse(Arc::new(AtomicI64::new(i64::MAX))),
                amnesia: false,
                loses_log: false,
                loses_guard: false,
                corrupt: None,
                flood: None,
                connected: true,
                signing: Signing {
                    delay: Duration::from_micros(50),
                    spread: Duration::ZERO,
                    fails_until: Duration::ZERO,
                    made: 0,
                },
                clock_ahead: Duration::ZERO,
                heard: None,
                life: 0,
                timers: BTreeMap::new(),
                replayed: 0,
                disconnects: 0,
            });
        }
        world
    }

    pub fn start_all(&mut self) {
        for n in 0..self.nodes.len() {
            self.start(u8::try_from(n).unwrap());
        }
    }

    pub fn now_of(&self, n: u8) -> Now {
        let wall = START.plus(self.now).plus(self.nodes[n as usize].clock_ahead);
        Now { monotonic: self.now, wall }
    }

    pub fn store(&self, n: u8) -> Store {
        Store::adopt(self.nodes[n as usize].database.clone(), self.genesis.realm()).unwrap()
    }

    pub fn start(&mut self, n: u8) {
        let now = self.now_of(n);
        let limit = match self.crash_within {
            0 => i64::MAX,
            within if self.crash_budget > 0 => i64::try_from(self.rng.below(within)).unwrap(),
            _ => i64::MAX,
        };
        let store = self.store(n);
        let node = &mut self.nodes[n as usize];
        node.life += 1;
        node.timers.clear();
        node.fuse.0.store(limit, Ordering::Relaxed);
        if node.amnesia || node.loses_guard {
            node.slots = Arc::default();
        }
        if node.loses_log {
            forget_log(&node.database);
        }
        let slots = MemorySlots { slots: node.slots.clone(), fuse: node.fuse.clone() };
        node.replayed += store.logged().unwrap().len() as u64;
        let store = FusedStore { store, fuse: node.fuse.clone(), amnesia: node.amnesia };
        let setup = Setup {
            genesis: self.genesis.clone(),
            public: PublicKey::of(&key(n)),
            guard: Guard::load(Box::new(slots)).unwrap(),
            store: Box::new(store),
            timing: Timing::default(),
        };
        match Engine::start(setup, now) {
            Ok((engine, effects)) => {
                let life = node.life;
                node.engine = Some(engine);
                self.after(TICK, Event::Tick { node: n, life });
                self.perform(n, effects);
            }
            Err(error) => self.crash(n, &error.to_string()),
        }
    }

    /// Pulls the plug. Only a power cut may stop an honest node.
    pub fn crash(&mut self, n: u8, why: &str) {
        assert!(why.contains("power cut"), "node {n} stopped at {:?}: {why}", self.now);
        self.nodes[n as usize].engine = None;
        self.crashes += 1;
        self.crash_budget = self.crash_budget.saturating_sub(1);
        let pause = Duration::from_millis(5 + self.rng.below(200));
        self.after(pause, Event::Restart { node: n });
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    pub fn submit(&mut self, n: u8, change: SignedChange, ticket: u64) {
        self.input(n, EngineInput::Submit(change, ticket));
    }

    pub fn input(&mut self, n: u8, input: EngineInput) {
        let now = self.now_of(n);
        let Some(engine) = &mut self.nodes[n as usize].engine else { return };
        match engine.step(now, input) {
            Ok(effects) => self.perform(n, effects),
            Err(error) => self.crash(n, &error.to_string()),
        }
    }

    fn perform(&mut self, n: u8, effects: Vec<EngineEffect>) {
        let mut cancelled = BTreeSet::new();
        for effect in effects {
            match effect {
                EngineEffect::Broadcast(frame) => {
                    // A crash between two sends: the rest is lost.
                    if self.nodes[n as usize].fuse.burn().is_err() {
                        return self.crash(n, "power cut");
                    }
                    for to in 0..u8::try_from(self.nodes.len()).unwrap() {
                        if to != n {
                            self.send(n, to, &frame);
                        }
                    }
                }
                EngineEffect::Send(to, frame) => {
                    let to = to.as_str()[1..].parse().unwrap();
                    self.send(n, to, &frame);
                }
                EngineEffect::Disconnect(_) => self.nodes[n as usize].disconnects += 1,
                EngineEffect::Schedule(timer, delay) => {
                    let token = self.sequence;
                    let node = &mut self.nodes[n as usize];
                    node.timers.insert(timer, token);
                    let life = node.life;
                    self.after(delay, Event::Timer { node: n, life, timer, token });
                }
                EngineEffect::Cancel(timer) => {
                    cancelled.insert(timer);
                    self.nodes[n as usize].timers.remove(&timer);
                }
                EngineEffect::CancelAll => self.nodes[n as usize].timers.clear(),
                EngineEffect::Sign(request) => {
                    if self.nodes[n as usize].fuse.burn().is_err() {
                        return self.crash(n, "power cut");
                    }
                    let Signing { delay, spread, fails_until, .. } = self.nodes[n as usize].signing;
                    let spread = self.rng.below(u64::try_from(spread.as_micros()).unwrap() + 1);
                    let delay = fails_until.saturating_sub(self.now) + delay;
                    let delay = delay + Duration::from_micros(spread);
                    self.after(delay, Event::Signed { node: n, request });
                }
                EngineEffect::Decided(height) => self.decided(n, height),
                EngineEffect::Answer((ticket, answer)) => {
                    let previous = self.answers.insert(ticket, answer);
                    assert!(previous.is_none(), "ticket {ticket} was answered twice");
                }
            }
        }
    }

    fn decided(&mut self, n: u8, height: u64) {
        if self.nodes[n as usize].corrupt.is_some() {
            return;
        }
        let store = self.store(n);
        let (block, _) = store.decided(height).unwrap().unwrap();
        let id = block.checkpoint.id(self.genesis.realm());
        self.oracle.decided_at.entry(height).or_insert(self.now);
        if *self.oracle.decided.entry(height).or_insert(id) != id {
            self.oracle.disagreements += 1;
        }
    }

    fn send(&mut self, from: u8, to: u8, frame: &Frame) {
        let frames = match &mut self.nodes[from as usize].corrupt {
            Some(corrupt) => corrupt(&mut self.rng, to, frame.clone()),
            None => {
                self.witness(from, frame);
                vec![frame.clone()]
            }
        };
        for frame in frames {
            self.transmit(from, to, &frame);
        }
    }

    fn transmit(&mut self, from: u8, to: u8, frame: &Frame) {
        if let Some(heard) = &mut self.nodes[to as usize].heard {
            heard.push(frame.clone());
            return;
        }
        let (a, b) = (&self.nodes[from as usize], &self.nodes[to as usize]);
        if !a.connected || !b.connected || self.rng.below(100) < self.loss_percent {
            return;
        }
        let delay = Duration::from_micros(500 + self.rng.below(self.delay_ms_max * 1_000));
        self.after(delay, Event::Deliver { to, from, frame: frame.to_wire() });
    }

    /// Delivers a frame in the name of `from` after `delay`.
    pub fn inject(&mut self, from: u8, to: u8, frame: &Frame, delay: Duration) {
        self.after(delay, Event::Deliver { to, from, frame: frame.to_wire() });
    }

    /// Honest nodes only.
    fn witness(&mut self, from: u8, frame: &Frame) {
        let realm = self.genesis.realm();
        let (place, bytes) = match frame {
            Frame::Vote(v) if v.voter.0 == address(from) => {
                (place_of_vote(v), bytes_of_vote(realm, v))
            }
            Frame::Proposal(p) if p.proposer.0 == address(from) => {
                (place_of_proposal(p), bytes_of_proposal(realm, p))
            }
            _ => return,
        };
        self.oracle.messages += 1;
        let said = self.oracle.said.entry((from, place)).or_insert_with(|| bytes.clone());
        if *said != bytes {
            self.oracle.equivocations += 1;
        }
    }

    /// Whether node `n` ever sent a message for `step` of (`height`, `round`).
    pub fn has_said(&self, n: u8, height: u64, round: u32, step: Step) -> bool {
        self.oracle.said.contains_key(&(n, Place { height, round, step }))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { to, from, frame } => {
                let frame = Frame::from_wire(self.genesis.realm(), frame);
                let frame = frame.expect("frames that do not decode end the stream elsewhere");
                self.input(to, EngineInput::Frame(name(from), frame));
            }
            Event::Timer { node, life, timer, token } => {
                let n = &mut self.nodes[node as usize];
                if n.life == life && n.timers.get(&timer) == Some(&token) {
                    n.timers.remove(&timer);
                    self.input(node, EngineInput::Timer(timer));
                }
            }
            Event::Tick { node, life } => {
                let n = &mut self.nodes[node as usize];
                let Some(engine) = n.engine.as_ref().filter(|_| n.life == life) else { return };
                let height = engine.height();
                let flood = n.flood.as_mut().map(|flood| flood(&mut self.rng, height));
                for frame in flood.unwrap_or_default() {
                    for to in 0..u8::try_from(self.nodes.len()).unwrap() {
                        if to != node {
                            self.transmit(node, to, &frame);
                        }
                    }
                }
                self.after(TICK, Event::Tick { node, life });
                self.input(node, EngineInput::Tick);
            }
            Event::Signed { node, request } => self.sign(node, request),
            Event::Restart { node } => self.start(node),
        }
    }

    /// The signer signs what was requested, and answers the life of the node that runs now.
    fn sign(&mut self, n: u8, SignRequest { place, bytes }: SignRequest) {
        let signature = keys::sign(&key(n), &bytes);
        self.nodes[n as usize].signing.made += 1;
        let first = self.oracle.signed.entry((n, place)).or_insert_with(|| bytes.clone());
        self.oracle.contradictory_signatures += u64::from(*first != bytes);
        self.input(n, EngineInput::Signed(place, signature));
    }

    /// Runs until `done`, at most for `span` of virtual time; returns whether it was reached.
    pub fn run(&mut self, span: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + span;
        while !done(self) {
            let Some(((at, sequence), event)) = self.queue.pop_first() else { return false };
            if at > end {
                self.queue.insert((at, sequence), event);
                self.now = end;
                return done(self);
            }
            self.now = at;
            self.handle(event);
        }
        true
    }

    pub fn height(&self, n: u8) -> u64 {
        self.nodes[n as usize].engine.as_ref().map_or(0, |e| e.ledger().height())
    }

    /// Whether all of `nodes` have decided `height`.
    pub fn all_at(&self, nodes: &[u8], height: u64) -> bool {
        nodes.iter().all(|n| self.height(*n) >= height)
    }
}
