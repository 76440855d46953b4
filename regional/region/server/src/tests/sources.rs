//! Regions that follow something else than validators.

use std::time::Duration;

use satrap_certify::Update;
use satrap_identity::pki::Role;
use satrap_region_core::CertifiedReplica;
use satrap_runtime::Shutdown;

use super::{
    cluster::{Behavior, REGION, Running, World, block_on},
    realm::{CHAIN, HEARTBEAT},
};
use crate::{
    config::Endpoint,
    refusals::Refusals,
    source::{Source, SourceSet},
    upstream::{Adoption, Upstream},
};

/// A ring that reaches no validator follows a member of another ring, and serves what it took.
#[test]
fn a_region_follows_a_member_of_another_ring() {
    let world = World::new(&[Behavior::Honest]);
    let relay = Running::start(&world.ring(&["m1"])[0]);
    let mut cut_off = world.ring(&["m2"]).remove(0);
    // A port where nothing listens.
    let nowhere = Endpoint { url: "https://127.0.0.1:1".into(), ..cut_off.validators[0].clone() };
    cut_off.validators = vec![nowhere];
    let member = Running::start(&cut_off);
    let url = format!("https://{}", relay.client_address);
    let role = Role::Member { region: REGION.into(), name: "m1".into() };
    let sources = SourceSet::relays(vec![Source::new(CHAIN, role, &url).unwrap()]);
    let credentials = world.credentials(World::member("m2"));
    let heartbeat = Duration::from_secs(10);
    let refusals = Refusals::default();
    let upstream =
        Upstream::new(member.ring.clone(), sources, credentials, heartbeat, refusals.clone());
    let height = world.decide(|realm| realm.publish("pki/trust", "a", b"good"));
    block_on(async {
        let shutdown = Shutdown::default();
        tokio::select! {
            ended = upstream.run(shutdown) => panic!("the upstream ended: {ended:?}"),
            () = member.wait_for_height(height) => {}
        }
    });
    assert!(refusals.counts().is_empty());
    for member in [relay, member] {
        member.stop();
    }
}

/// A source that was first with a checkpoint and held its content back made the region drop the answer
/// of another one, which had the content, as old. The region then waited until it left both.
#[test]
fn content_that_the_faster_source_holds_back_is_asked_of_the_other() {
    let mut world = World::new(&[Behavior::Honest]);
    let member = Running::start(&world.ring(&["m1"])[0]);
    let ring = member.ring.clone();
    // Until then the member does not lead.
    assert!(block_on(ring.until_status(|status| status.applied_index >= 1)));
    let (none, credentials) = (SourceSet::default(), world.credentials(World::member("m1")));
    let upstream = Upstream::new(ring.clone(), none, credentials, HEARTBEAT, Refusals::default());
    // Decided, and not sent to the member by its own source.
    let realm = world.realm.get_mut().unwrap();
    realm.publish("pki/trust", "a", b"good");
    let next = || {
        let extensions = ring.extensions();
        realm.update_for(&CertifiedReplica::of(&extensions).replica().position()).unwrap()
    };
    let whole = next();
    let held_back = Update { contents: Vec::new(), ..whole.clone() };
    let (mut faster, mut other) = (0, 0);
    block_on(async {
        upstream.adopt(held_back, &mut faster).await.unwrap();
        let answer = upstream.adopt(whole.clone(), &mut other).await.unwrap();
        assert_eq!(answer, Adoption::Overtaken, "it must go on from where the region is");
        other = faster;
        assert_eq!(upstream.adopt(next(), &mut other).await.unwrap(), Adoption::Adopted(1));
        let mut late = 0;
        let answer = upstream.adopt(whole, &mut late).await.unwrap();
        assert_eq!(answer, Adoption::NothingNew, "the region has all of it");
    });
    drop((upstream, ring));
    member.stop();
}
