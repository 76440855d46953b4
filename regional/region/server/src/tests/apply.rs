//! A compromised leader: every member refuses an invalid update or a forged recovery record when it
//! applies the entry.

use satrap_certify::{Interest, Replica, Timestamp, Update, limits::STEPS_MAX};
use satrap_identity::mtls::{self, PeerRule};
use satrap_merkle::codec::{Canonical as _, Writer};
use satrap_proto::v1::{StatusRequest, control_client::ControlClient, status_reply::Tier};
use satrap_region_core::{Adopt, CertifiedReplica, state_setup};
use satrap_ring_core::{
    AppliedState, Command, Entry, Extension as _, Outcome, Refusal, Request, RingTime,
    recovery::{RecoveryKind, RecoveryRecord},
};
use satrap_ring_raft::Reply;
use satrap_runtime::clock;

use super::{
    cluster::{Behavior, REGION, Running, World, block_on, leader, soon},
    realm::{Realm, tampered},
    ring::{all_reach, identified},
};

fn entry(adopt: &Adopt) -> Entry {
    Entry::Command(Command::decode(&adopt.command().into()))
}

/// CERTIFIED-2 of the replica: an update that was tampered with, and one that the replica already
/// has.
#[test]
fn an_update_that_does_not_verify_changes_nothing() {
    let mut realm = Realm::new();
    let genesis = Replica::genesis(&realm.genesis, Interest::Everything);
    realm.publish("pki/trust", "a", b"good");
    let update = realm.update_for(&genesis.position()).unwrap();
    let now = Timestamp(clock::now());
    // Existing Raft logs contain this encoding, so it must not change.
    let command = Adopt { now, update: update.clone() }.command();
    assert_eq!(command, [vec![0], now.to_canonical(), update.to_canonical()].concat());
    let mut state = AppliedState::new(&state_setup(&realm.genesis));
    let altered = Adopt { now, update: tampered(update.clone()) };
    let refused = state.apply(entry(&altered));
    assert!(matches!(&refused, Outcome::Rejected(why) if why.rule == "B4"), "{refused:?}");
    assert_eq!(CertifiedReplica::of(state.extensions()).replica().height(), 0);
    assert!(state.take_changes().extensions.is_empty());
    let good = Adopt { now, update };
    assert_eq!(state.apply(entry(&good)), Outcome::Extension(1));
    let pages: Vec<_> = state.take_changes().extensions.iter().map(|(page, _)| *page).collect();
    assert_eq!(
        pages,
        ["region"],
        "existing data directories store the replica under this page name"
    );
    assert!(
        matches!(state.apply(entry(&good)), Outcome::Rejected(_)),
        "the replica already has this update"
    );
}

/// A snapshot with nothing but steps claimed the height that they lead to, so a leader could take a
/// member's edges back to an old complete state.
#[test]
fn steps_without_their_state_make_no_snapshot_newer() {
    let mut realm = Realm::new();
    let mut held = CertifiedReplica::genesis(&realm.genesis);
    let mut steps = Vec::new();
    realm.publish("pki/trust", "a", b"good");
    while steps.len() < STEPS_MAX {
        steps.extend(realm.replica().newest().cloned());
        realm.heartbeat();
    }
    let height = steps.last().unwrap().checkpoint.height;
    let update = realm.update_for(&held.replica().position()).unwrap();
    held.adopt(&update, Timestamp(clock::now())).unwrap();
    let genesis_hash = *realm.genesis.realm().genesis_hash();
    let alone = Update { genesis_hash, steps, history: None, heads: None, contents: Vec::new() };
    let mut page = Writer::tagged("satrap/region/v2");
    page.option::<Update>(None);
    page.list(&[alone]);
    let offered = CertifiedReplica::restore(&realm.genesis, &page.finish()).unwrap();
    assert_eq!((offered.replica().height(), offered.served().height()), (height, 0));
    assert_eq!((offered.version(), held.version()), (0, height + 1));
}

fn forged_recovery() -> RecoveryRecord {
    RecoveryRecord {
        kind: RecoveryKind::Forced,
        epoch: 77,
        kept: 1,
        leap: 1 << 40,
        time: RingTime(0),
        trusted: vec!["m1".into()],
        lost: vec!["m2".into(), "m3".into()],
        reason: "forged by the leader".into(),
        signature: vec![7; 64],
    }
}

async fn recovery_count(world: &World, member: &Running) -> usize {
    let operator = world.credentials(World::operator());
    let url = format!("https://{}", member.client_address);
    let rule = PeerRule::Member(REGION.into());
    let channel = mtls::connect_lazy(&url, &operator, rule).unwrap();
    let asked = ControlClient::new(channel).status(StatusRequest { local_only: true }).await;
    let Some(Tier::Region(status)) = asked.unwrap().into_inner().tier else { panic!() };
    status.recoveries.len()
}

/// RECOVERY-1 of `satrap_ring_core::recovery`
#[test]
fn a_forged_recovery_and_an_invalid_update_are_refused_by_every_member() {
    let world = World::new(&[Behavior::Honest]);
    let members: Vec<_> = world.ring(&["m1", "m2", "m3"]).iter().map(Running::start).collect();
    block_on(async {
        let leads = leader(&members).await;
        identified(&members).await;
        let asked = members[leads].ring.ask(Request::Recovery(forged_recovery())).await.unwrap();
        assert_eq!(asked, Err(Refusal::PermissionDenied));
        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"good"));
        all_reach(&members, height).await;
        // The ADOPT tag and two bytes that are no update. `propose` bypasses the checks that an
        // honest leader makes.
        let noise = members[leads].ring.propose(&[0, 1, 2]).await;
        assert!(matches!(noise, Ok(Reply::Refused { .. })), "{noise:?}");
        let index = members[leads].ring.status().applied_index;
        for member in &members {
            let applied = member.ring.until_status(|status| status.applied_index >= index);
            assert!(soon("the entry to be applied on every member", applied).await);
            let epoch = member.ring.read(|keyspace| keyspace.epoch());
            assert_eq!((epoch, recovery_count(&world, member).await), (0, 0), "{}", member.name);
        }
    });
    members.into_iter().for_each(Running::stop);
}
