//! Rules of the edge that no other test breaks: one offer at a time (A4), and whom to ask when
//! servers lie or vanish (P1, P2).

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use satrap_certify::{BundleName, Interest, Replica};
use satrap_edge_core::{Acceptor, Effect, Ended, Event, Pull, Source};
use satrap_pressure::FullJitter;
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
fn a4_a_second_offer_is_not_queued_behind_the_first() {
    let (realm, mut edge, again) = in_flight();
    let _ = edge.step(realm.now, again);
}

#[test]
#[should_panic(expected = "BUG")]
fn a2_an_activation_that_nobody_ordered_is_not_recorded() {
    let (realm, mut edge, _) = in_flight();
    let _ = edge.step(realm.now, Event::Activated);
}

#[test]
fn a4_an_offer_that_could_not_be_stored_makes_room_for_the_next() {
    let (realm, mut edge, again) = in_flight();
    let effect = edge.step(realm.now, Event::StageFailed).unwrap();
    assert!(matches!(effect, Effect::Settled) && edge.is_idle());
    assert_eq!(edge.position().height, 0, "A2: what is not durable did not happen");
    assert!(matches!(edge.step(realm.now, again).unwrap(), Effect::Stage(_)));
}

#[test]
fn p1_p2_there_is_always_a_next_attempt_and_its_delay_is_bounded() {
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
