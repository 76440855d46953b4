use futures::FutureExt as _;
use satrap_certify::{BundleName, Interest};
use satrap_sim::SimRealm;

use super::*;
use crate::server::limits::{EDGE_ANSWER_BYTES_MAX, POSITIONS, SCOPE_POSITIONS};

const BUNDLE: &str = "config/motd";

fn peer(id: &str) -> PeerIdentity {
    let id = id.parse::<SpiffeId>().unwrap();
    PeerIdentity { id: Arc::new(id), leaf_der: Vec::new().into(), public_key: [0; 32] }
}

fn edge() -> PeerIdentity {
    peer("spiffe://test/region/eu/edge/e1")
}

/// A relay with one published bundle, and where an edge begins.
fn world() -> (SimRealm, Replica, Position) {
    let mut realm = SimRealm::new("test", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    publish(&mut realm, &mut relay, "1");
    let bundles = Interest::Bundles(vec![BundleName::new(BUNDLE).unwrap()]);
    let position = Replica::genesis(&realm.genesis, bundles).position();
    (realm, relay, position)
}

fn publish(realm: &mut SimRealm, relay: &mut Replica, value: &str) {
    let change = realm.publish(BUNDLE, &[("a", value)]);
    let update = realm.decide(&[change]).unwrap();
    let advance = relay.verify(&update, realm.now).unwrap();
    relay.advance(advance);
}

async fn send(answers: &Answers, peer: &PeerIdentity, relay: &Replica, at: &Position) -> Sending {
    let update = relay.answer(at).unwrap().unwrap().update;
    answers.sending(peer, relay, at, update).await.unwrap()
}

fn first_byte(sending: &Sending) -> *const u8 {
    lock(&sending.slot.encoded).as_ref().unwrap().bytes.as_ptr()
}

#[tokio::test]
async fn followers_at_one_position_share_one_encoded_update() {
    let (mut realm, mut relay, position) = world();
    let answers = Answers::default();
    let one = send(&answers, &edge(), &relay, &position).await;
    let two = send(&answers, &peer("spiffe://test/operator/o"), &relay, &position).await;
    assert_eq!(first_byte(&one), first_byte(&two), "the same bytes in memory");
    // A made-up directory is no other question.
    let made_up = Position { directory_root: [7; 32], ..position.clone() };
    let three = send(&answers, &edge(), &relay, &made_up).await;
    assert_eq!(first_byte(&one), first_byte(&three));
    publish(&mut realm, &mut relay, "2");
    let newer = send(&answers, &edge(), &relay, &position).await;
    assert_ne!(first_byte(&one), first_byte(&newer), "of the newest height");
}

#[tokio::test]
async fn pieces_are_the_update() {
    let (_, relay, position) = world();
    let mut sending = send(&Answers::default(), &edge(), &relay, &position).await;
    let mut whole = Vec::new();
    while let Some(piece) = sending.next().unwrap() {
        whole.extend_from_slice(&piece.update);
        assert_eq!(
            piece.more,
            whole.len() < lock(&sending.slot.encoded).as_ref().unwrap().bytes.len()
        );
    }
    assert_eq!(whole, relay.answer(&position).unwrap().unwrap().update.to_canonical());
}

#[tokio::test]
async fn an_identity_that_takes_nothing_waits_for_itself_and_loses_what_it_was_given() {
    let (_, relay, position) = world();
    let answers = Answers::default();
    let (mut held, greedy) = (Vec::new(), edge());
    // Streams as many as it likes: they share one budget.
    let full = loop {
        let next = send(&answers, &greedy, &relay, &position);
        match tokio::task::unconstrained(next).now_or_never() {
            Some(sending) => held.push(sending),
            None => break held.len(),
        }
    };
    let update = relay.answer(&position).unwrap().unwrap().update;
    assert_eq!(full, EDGE_ANSWER_BYTES_MAX / size_at_most(&update));
    // Another follower is served meanwhile.
    send(&answers, &peer("spiffe://test/region/eu/edge/e2"), &relay, &position).await;
    // Nothing is dropped in time, everything afterwards.
    let since = held[0].slot.since;
    answers.drop_untaken(since + TAKE_WITHIN);
    assert!(held[0].next().unwrap().is_some());
    answers.drop_untaken(clock::monotonic() + TAKE_WITHIN + Duration::from_secs(1));
    assert!(held.iter_mut().all(|sending| sending.next().is_err()));
    let room = answers.room(edge().id.scope());
    assert_eq!(room.available_permits() + cached(&answers), SCOPE_BYTES_MAX);
    held.clear();
    send(&answers, &edge(), &relay, &position).await;
}

fn cached(answers: &Answers) -> usize {
    lock(&answers.0.cache).bytes
}

#[tokio::test]
async fn positions_are_charged_to_who_names_them() {
    let answers = Answers::default();
    let (greedy, other) = (edge(), peer("spiffe://test/region/eu/edge/e2"));
    for _ in 0..POSITIONS.burst {
        answers.charge_position(&greedy.id, true).unwrap();
    }
    let refused = answers.charge_position(&greedy.id, true).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    answers.charge_position(&other.id, true).unwrap();
    for _ in 0..REPORTS.burst {
        assert!(answers.may_report(&greedy.id, true));
    }
    assert!(!answers.may_report(&greedy.id, true) && answers.may_report(&other.id, true));
}

/// Each name that a foreign CA minted had a burst of its own.
#[tokio::test]
async fn positions_of_minted_names_are_charged_to_their_scope() {
    let answers = Answers::default();
    let named = |scope: &str, is_own: bool| {
        let names = 4 * SCOPE_POSITIONS.burst / POSITIONS.burst;
        let all = (0..names).flat_map(|n| {
            let minted = peer(&format!("spiffe://test/region/{scope}/edge/e{n}"));
            (0..POSITIONS.burst).map(move |_| minted.id.clone())
        });
        all.filter(|id| answers.charge_position(id, is_own).is_ok()).count()
    };
    let burst = SCOPE_POSITIONS.burst as usize;
    let taken = named("evil", false);
    assert!((burst..2 * burst).contains(&taken), "{taken} positions of one foreign CA");
    assert_eq!(named("eu", true), 4 * burst, "thousands of own edges may come at once");
    let mut more = (0..burst).map(|n| peer(&format!("spiffe://test/region/evil/edge/m{n}")));
    let refused = more.find_map(|minted| answers.charge_position(&minted.id, false).err());
    assert!(refused.unwrap().message().contains("region/evil names positions too often"));
    answers.charge_position(&peer("spiffe://test/region/us/edge/e").id, false).unwrap();
}

/// The first follower at a position encoded for all of them, and waited for its own room meanwhile:
/// a region that took nothing of what it was given kept all others from news.
#[tokio::test]
async fn a_scope_without_room_holds_up_no_other_at_the_same_position() {
    let (_, relay, position) = world();
    let answers = Answers::default();
    let room = answers.room(edge().id.scope());
    let taken = room.try_acquire_many_owned(u32::try_from(SCOPE_BYTES_MAX).unwrap()).unwrap();
    let greedy = edge();
    let mut waits = Box::pin(send(&answers, &greedy, &relay, &position));
    assert!(waits.as_mut().now_or_never().is_none(), "it waits for its own region");
    let other = peer("spiffe://test/region/us/edge/e1");
    let sent = send(&answers, &other, &relay, &position).now_or_never();
    let sent = sent.expect("it does not wait for the room of another region");
    drop(taken);
    assert_eq!(first_byte(&waits.await), first_byte(&sent), "they share what was encoded");
}
