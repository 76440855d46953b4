//! First starts of rings of whole members: without one of them, and with configurations that differ.

use std::time::Duration;

use satrap_ring_raft::founding::survey;

use super::{
    cluster::{Behavior, Running, World, block_on, leader, soon},
    realm::{Realm, label},
    ring::{all_reach, identified},
};

/// FOUNDING-1, FOUNDING-3 of `founding`
#[test]
fn a_ring_forms_without_a_first_member_that_does_not_come() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let mut members = configs[1..].iter().map(Running::start).collect::<Vec<_>>();
    block_on(async {
        leader(&members).await;
        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"1"));
        all_reach(&members, height).await;
    });
    members.push(Running::start(&configs[0]));
    block_on(async {
        let height = world.decide(Realm::heartbeat);
        all_reach(&members, height).await;
        identified(&members).await;
    });
    for member in members {
        member.stop();
    }
}

/// FOUNDING-2 of `founding`
#[test]
fn members_with_other_first_members_do_not_found_a_ring() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let mut other = configs[2].clone();
    other.peer_urls.insert(label("m1"), "https://127.0.0.1:1".into());
    let (m2, m3) = (Running::start(&configs[1]), Running::start(&other));
    let differs = async {
        while !survey(&m2.ring).await.missing.iter().any(|why| why.contains("other `members`")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(m2.ring.nodes().is_empty());
        assert!(m3.ring.nodes().is_empty());
    };
    block_on(soon("a greeting", differs));
    let mut members = vec![m2, Running::start(&configs[0])];
    block_on(leader(&members));
    members.push(m3);
    for member in members {
        member.stop();
    }
}
