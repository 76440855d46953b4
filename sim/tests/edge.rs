//! Rules of the edge that no other test breaks: one offer at a time (ACCEPT-4), nothing in part (ACCEPT-6),
//! and the choice of a server when servers lie, vanish (PULL-1, PULL-2) or withhold (PULL-3).

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use satrap_certify::{BundleName, Interest, Replica, Timestamp};
use satrap_edge_core::{Acceptor, Due, Effect, Ended, Event, Failure, Follower, Pull, Source};
use satrap_pressure::{FullJitter, Seen};
use satrap_sim::SimRealm;

/// An acceptor with an offer in flight, and the event of the same offer once more.
fn in_flight() -> (SimRealm, Acceptor, Event) {
    let mut realm = SimRealm::new("edge", 4);
    let change = realm.publish("config/a", &[("k", "1")]);
    let update = realm.decide(&[change]).unwrap();
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let advance = relay.verify(&update, realm.now).unwrap();
    relay.advance(advance);
    let interest = Interest::Bundles(vec![BundleName::new("config/a").unwrap()]);
    let replica = Replica::genesis(&realm.genesis, interest);
    let mut edge = Acceptor::new(replica, BTreeMap::new(), BTreeSet::new());
    let update = Box::new(relay.answer(&edge.position()).unwrap().unwrap().update);
    let effect = edge.step(realm.now, Event::Offered(update.clone())).unwrap();
    assert!(matches!(effect, Effect::Stage(_)) && !edge.is_idle());
    (realm, edge, Event::Offered(update))
}

#[test]
#[should_panic(expected = "BUG")]
fn accept_4_a_second_offer_is_not_queued_behind_the_first() {
    let (realm, mut edge, again) = in_flight();
    let _ = edge.step(realm.now, again);
}

#[test]
#[should_panic(expected = "BUG")]
fn accept_2_an_activation_that_was_not_ordered_is_not_recorded() {
    let (realm, mut edge, _) = in_flight();
    let _ = edge.step(realm.now, Event::Activated);
}

#[test]
fn accept_4_an_offer_that_could_not_be_stored_makes_room_for_the_next() {
    let (realm, mut edge, again) = in_flight();
    let effect = edge.step(realm.now, Event::StageFailed).unwrap();
    assert!(matches!(effect, Effect::Wait) && edge.is_idle());
    assert_eq!(edge.position().height, 0, "ACCEPT-2: what is not durable did not happen");
    assert!(matches!(edge.step(realm.now, again).unwrap(), Effect::Stage(_)));
}

#[test]
fn pull_1_pull_2_there_is_always_a_next_attempt_and_its_delay_is_bounded() {
    let mut pull = Pull::new(&[Source::Home, Source::Home, Source::Fallback]);
    let mut now = Duration::from_secs(1_000);
    let mut asked = BTreeSet::new();
    for turn in 0..1_000_u64 {
        let random = turn.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let attempt = pull.next(now, random);
        assert!(attempt.delay.is_zero() || attempt.delay >= FullJitter::FLOOR, "turn {turn}");
        assert!(attempt.delay <= FullJitter::CAP, "turn {turn}");
        now += attempt.delay;
        asked.insert(attempt.server);
        let how = if turn % 3 == 0 { Ended::Lied } else { Ended::Lost };
        pull.ended(attempt.server, now, Duration::ZERO, how);
    }
    assert_eq!(asked.len(), 3, "all are asked in the end");
}

/// How a server answers: from the state it is at, which moves on in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// The newest state, always.
    Honest,
    /// The next old state, once per this time.
    Drip(Duration),
    /// As a drip, but ends each connection after this time, before it is left.
    Dropping(Duration, Duration),
    /// The newest heads, never their content.
    Withholding,
}

/// A realm that certifies once per heartbeat, and what a server could hold at every height.
struct Realm {
    sim: SimRealm,
    states: Vec<Replica>,
    heartbeat: Duration,
}

impl Realm {
    /// Runs for `heartbeats`; every tenth one publishes.
    fn new(heartbeats: u64) -> Self {
        let mut sim = SimRealm::new("drip", 4);
        let heartbeat = sim.genesis.policy.heartbeat;
        let mut states = vec![Replica::genesis(&sim.genesis, Interest::Everything)];
        for height in 1..=heartbeats {
            // Every block is one second later by itself.
            sim.now = sim.now.plus(heartbeat - Duration::from_secs(1));
            let text = height.to_string();
            let change = (height % 10 == 1).then(|| sim.publish("config/a", &[("k", &text)]));
            let update = sim.decide(change.as_slice()).unwrap();
            let mut next = states.last().unwrap().clone();
            let advance = next.verify(&update, sim.now).unwrap();
            next.advance(advance);
            states.push(next);
        }
        Self { sim, states, heartbeat }
    }

    /// The height that is certified at `now`, by the monotonic clock that began with the realm.
    fn height_at(&self, now: Duration) -> usize {
        let height = now.as_secs() / self.heartbeat.as_secs();
        usize::try_from(height).unwrap().min(self.states.len() - 1)
    }
}

/// The outcome for an edge.
struct Outcome {
    /// The oldest state it had once it had begun, in heartbeats.
    oldest: u64,
    asked: BTreeSet<usize>,
    version: u64,
}

/// Follows `servers`, the last of which is of another region, from the first third of the realm on.
/// The decisions are those of the agent's loop, on a clock that jumps.
fn follow(realm: &Realm, servers: &[Server]) -> Outcome {
    let mut sources = vec![Source::Home; servers.len()];
    *sources.last_mut().unwrap() = Source::Fallback;
    let interest = Interest::Bundles(vec![BundleName::new("config/a").unwrap()]);
    let replica = Replica::genesis(&realm.sim.genesis, interest);
    let mut edge = Acceptor::new(replica, BTreeMap::new(), BTreeSet::new());
    let wall = |now: Duration| realm.sim.genesis.time.plus(now);
    let end = realm.heartbeat * u32::try_from(realm.states.len() - 1).unwrap();
    let begin = end / 3;
    let mut follower = Follower::new(&sources, realm.heartbeat, begin, 0);
    let (mut now, mut outcome) = (begin, Outcome { oldest: 0, asked: BTreeSet::new(), version: 0 });
    // Drips begin with what was new when the edge came up.
    let mut drip = realm.height_at(begin);
    let mut started = begin;
    while now < end {
        let patience = follower.patience(now);
        let Some(followed) = follower.server() else {
            now += patience;
            let Due::Open(server) = follower.due(now, 0) else { panic!("no server was followed") };
            outcome.asked.insert(server);
            started = now;
            continue;
        };
        let server = servers[followed];
        let (wait, state) = match server {
            Server::Honest | Server::Withholding => {
                (realm.heartbeat, realm.height_at(now + realm.heartbeat))
            }
            Server::Drip(pace) | Server::Dropping(pace, _) => (pace, drip + 1),
        };
        if matches!(server, Server::Dropping(_, after) if now + wait > started + after) {
            now = started + realm.heartbeat;
            follower.ended(now, 0, Failure::Lost);
            continue;
        }
        now += wait.min(patience);
        outcome.version = edge.active().values().map(|a| a.version).max().unwrap_or(0);
        if wait >= patience || now >= end {
            assert!(matches!(follower.due(now, 0), Due::Leave(_)));
            continue;
        }
        if !matches!(server, Server::Honest | Server::Withholding) {
            drip = state;
        }
        let answer = realm.states[state].answer(&edge.position()).unwrap();
        if let Some(mut answer) = answer {
            if server == Server::Withholding {
                answer.update.contents.clear();
            }
            // A server that has nothing more to say that is new repeats itself: refused (C13).
            match edge.step(wall(now), Event::Offered(Box::new(answer.update))) {
                Ok(effect) => drop(settle(&mut edge, effect, wall(now))),
                Err(_) => {
                    follower.ended(now, 0, Failure::Lied);
                    continue;
                }
            }
        }
        let replica = edge.replica();
        let age = wall(now).since(replica.certified_time());
        follower.observe(now, Seen { age, complete: replica.is_complete() });
        if replica.height() > 0 {
            outcome.oldest = outcome.oldest.max(age.as_secs() / realm.heartbeat.as_secs());
        }
    }
    outcome
}

fn settle(edge: &mut Acceptor, mut effect: Effect, now: Timestamp) -> usize {
    let mut activated = 0;
    loop {
        let event = match effect {
            Effect::Wait => return activated,
            Effect::Stage(_) => Event::Staged,
            Effect::Activate(..) => {
                activated += 1;
                Event::Activated
            }
        };
        effect = edge.step(now, event).unwrap();
    }
}

#[test]
fn pull_3_a_region_that_holds_back_is_left_for_another_one() {
    let realm = Realm::new(300);
    let beats = |tenths: u32| realm.heartbeat * tenths / 10;
    let newest = realm.states.last().unwrap().heads().values().next().unwrap().version;
    for home in [
        // The silence timer would bear with every one of these for ever.
        Server::Drip(beats(24)),
        Server::Drip(beats(11)),
        Server::Drip(beats(15)),
        Server::Dropping(beats(11), beats(23)),
        Server::Withholding,
    ] {
        let outcome = follow(&realm, &[home, home, home, Server::Honest]);
        assert_eq!(outcome.asked.len(), 4, "{home:?}: all are asked, also another region");
        // Each home member may take its patience once more before the other region is asked.
        assert!(outcome.oldest <= 4 * 3, "{home:?}: {} heartbeats behind", outcome.oldest);
        assert!(outcome.version >= newest - 1, "{home:?}: version {}", outcome.version);
    }
    // One honest member is enough, and nothing is asked of another region then.
    let outcome = follow(&realm, &[Server::Drip(beats(24)), Server::Honest, Server::Honest]);
    assert_eq!(outcome.asked, BTreeSet::from([0, 1]));
}
