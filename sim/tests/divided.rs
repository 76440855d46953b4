//! Answers in parts: far behind in validator sets, and more content than one update holds.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use satrap_certify::{
    BundleName, Interest, Memory, Rejection, Replica, Snapshot, Timestamp, Update,
    limits::{EDGE_UPDATE_BYTES_MAX, STEPS_MAX, VALUE_BYTES_MAX},
};
use satrap_merkle::codec::Canonical as _;
use satrap_region_core::CertifiedReplica;
use satrap_sim::SimRealm;

fn names(names: &[&str]) -> Interest {
    Interest::Bundles(names.iter().map(|name| BundleName::new(name).unwrap()).collect())
}

fn take(replica: &mut Replica, update: &Update, now: Timestamp) -> Result<(), Rejection> {
    let advance = replica.verify(update, now)?;
    replica.advance(advance);
    Ok(())
}

/// Decides `changes` and lets `relay` follow.
fn decide(realm: &mut SimRealm, relay: &mut Replica, changes: &[satrap_certify::SignedChange]) {
    let update = realm.decide(changes).unwrap();
    take(relay, &update, realm.now).unwrap();
}

/// Everything a server at `relay` sends a follower at `replica`, one update after the other.
fn catch_up(relay: &Replica, replica: &mut Replica, now: Timestamp) -> Vec<Update> {
    let mut position = replica.position();
    let mut updates = Vec::new();
    while let Some(answer) = relay.answer(&position).unwrap() {
        take(replica, &answer.update, now).unwrap();
        // The server's idea of its follower's position is the follower's own.
        assert_eq!(answer.leads_to, replica.position());
        position = answer.leads_to;
        updates.push(answer.update);
    }
    assert!(replica.is_complete());
    assert_eq!(replica.height(), relay.height());
    updates
}

/// A realm whose validators all changed, one at a time, `changes` times, and its relay.
fn restless(changes: usize) -> (SimRealm, Replica) {
    let mut realm = SimRealm::new("restless", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let publish = realm.publish("config/routing", &[("a", "1")]);
    decide(&mut realm, &mut relay, &[publish]);
    for n in 0..changes / 2 {
        let add = realm.add_validator(&format!("v{}", n + 4));
        decide(&mut realm, &mut relay, &[add]);
        let remove = realm.remove_validator(&format!("v{n}"));
        decide(&mut realm, &mut relay, &[remove]);
    }
    let publish = realm.publish("config/routing", &[("a", "2")]);
    decide(&mut realm, &mut relay, &[publish]);
    (realm, relay)
}

#[test]
fn hundreds_of_set_changes_can_be_followed_restored_and_skipped() {
    let (realm, relay) = restless(600);
    // A relay gets every one of them.
    let mut other = Replica::genesis(&realm.genesis, Interest::Everything);
    let updates = catch_up(&relay, &mut other, realm.now);
    assert!(updates.len() > 600 / STEPS_MAX, "{}", updates.len());
    assert!(updates.iter().all(|update| update.steps.len() <= STEPS_MAX));
    // An edge skips as far as a third of the set it knows vouches for.
    let mut edge = Replica::genesis(&realm.genesis, names(&["config/routing"]));
    let updates = catch_up(&relay, &mut edge, realm.now);
    let steps: usize = updates.iter().map(|update| update.steps.len()).sum();
    assert!(steps < 350, "{steps} steps over 600 changes");
    // The snapshots of both lead there again.
    for (replica, interest) in [(&other, Interest::Everything), (&edge, names(&["config/routing"]))]
    {
        let disk = replica.snapshot().unwrap().to_canonical();
        let snapshot = Snapshot::from_canonical(&disk).unwrap();
        let restored = Replica::restore(&realm.genesis, interest, &snapshot).unwrap();
        assert_eq!(restored.position(), replica.position());
        assert_eq!(restored.snapshot(), replica.snapshot());
    }
}

#[test]
fn a_relay_takes_no_step_that_leaves_a_change_of_the_set_out() {
    let (mut realm, mut relay) = restless(2);
    let mut victim = Replica::genesis(&realm.genesis, Interest::Everything);
    let whole = relay.answer(&victim.position()).unwrap().unwrap().update;
    // One lying validator leaves the set changes out: an edge could take that, a relay must not.
    let mut lie = whole.clone();
    let last = lie.steps.pop().unwrap();
    let sets = vec![realm.ledger.validators().clone()];
    lie.steps = vec![satrap_certify::Step { sets, ..last }];
    assert_eq!(victim.verify(&lie, realm.now).map(drop).unwrap_err().rule(), "C12");
    take(&mut victim, &whole, realm.now).unwrap();
    let snapshot = victim.snapshot().unwrap();
    let restored = Replica::restore(&realm.genesis, Interest::Everything, &snapshot).unwrap();
    // It serves edges that know the first set only.
    let mut edge = Replica::genesis(&realm.genesis, names(&["config/routing"]));
    catch_up(&restored, &mut edge, realm.now);
    decide(&mut realm, &mut relay, &[]);
}

#[test]
fn a_fresh_edge_gets_more_content_than_one_update_holds() {
    let mut realm = SimRealm::new("large", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let value = "x".repeat(VALUE_BYTES_MAX);
    let bundles = ["config/a", "config/b", "config/c", "config/d"];
    for bundle in bundles {
        let mut entries: Vec<(String, &str)> = Vec::new();
        for n in 0..15 {
            entries.push((format!("{n:02}"), &value));
            if n % 2 == 1 || n == 14 {
                let entries: Vec<_> = entries.iter().map(|(k, v)| (k.as_str(), *v)).collect();
                let publish = realm.publish(bundle, &entries);
                decide(&mut realm, &mut relay, &[publish]);
            }
        }
    }
    let mut edge = Replica::genesis(&realm.genesis, names(&bundles));
    let mut position = edge.position();
    let mut parts = 0;
    while let Some(answer) = relay.answer(&position).unwrap() {
        assert!(!edge.is_complete() || parts == 0);
        assert!(answer.update.to_canonical().len() <= EDGE_UPDATE_BYTES_MAX);
        take(&mut edge, &answer.update, realm.now).unwrap();
        // The same part again brings nothing.
        let again = edge.verify(&answer.update, realm.now).map(drop).unwrap_err().rule();
        assert!(["C2", "C13", "B6"].contains(&again), "{again}");
        position = answer.leads_to;
        parts += 1;
        if parts == 1 {
            // A newer version in the middle does not begin it all anew.
            let publish = realm.publish("config/a", &[("00", "small")]);
            decide(&mut realm, &mut relay, &[publish]);
        }
    }
    assert!(edge.is_complete());
    assert_eq!(parts, 4, "four bundles; the small change of one came with the next");
    assert_eq!(edge.position(), Replica::position(&edge));
    // A server that leaves content out never makes the edge complete.
    let mut fresh = Replica::genesis(&realm.genesis, names(&bundles));
    let mut update = relay.answer(&fresh.position()).unwrap().unwrap().update;
    update.contents.clear();
    take(&mut fresh, &update, realm.now).unwrap();
    assert_eq!(fresh.withheld().unwrap().rule(), "B5");
}

#[test]
fn a_member_that_restarts_in_the_middle_holds_what_the_others_hold() {
    let (mut realm, mut relay) = restless(300);
    let publish = realm.publish("config/motd", &[("a", "1")]);
    decide(&mut realm, &mut relay, &[publish]);
    let mut member = CertifiedReplica::genesis(&realm.genesis);
    let mut position = member.replica().position();
    let mut served = Vec::new();
    while let Some(answer) = relay.answer(&position).unwrap() {
        member.adopt(&answer.update, realm.now).unwrap();
        served.push(member.served().height());
        let restarted = CertifiedReplica::restore(&realm.genesis, &member.snapshot()).unwrap();
        assert_eq!(restarted.replica().position(), member.replica().position());
        assert_eq!(restarted.served().height(), member.served().height());
        member = restarted;
        position = answer.leads_to;
    }
    assert!(served.len() > 2 && served[..served.len() - 1].iter().all(|height| *height == 0));
    assert_eq!(member.served().height(), relay.height(), "served once it is complete");
}

#[test]
fn an_edge_goes_on_from_its_memory_whatever_it_wants_now() {
    let mut realm = SimRealm::new("memory", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    for version in ["1", "2", "3"] {
        let changes = ["config/a", "config/b"].map(|name| realm.publish(name, &[("k", version)]));
        decide(&mut realm, &mut relay, &changes);
    }
    let mut edge = Replica::genesis(&realm.genesis, names(&["config/a"]));
    catch_up(&relay, &mut edge, realm.now);
    let bytes = edge.memory().to_canonical();
    let memory = Memory::from_canonical(&bytes).unwrap();
    assert_eq!(memory, edge.memory());
    // It wants something else now, has no content, and was off for longer than the trusting period.
    realm.now = realm.now.plus(realm.genesis.policy.trusting_period * 2);
    let interest = names(&["config/a", "config/b"]);
    let resume = |memory: Memory| {
        Replica::resume(&realm.genesis, interest.clone(), memory, Default::default()).unwrap()
    };
    let mut resumed = resume(memory.clone());
    assert_eq!(resumed.height(), edge.height());
    assert!(!resumed.is_complete(), "the heads may be old");
    // A server at the same height has what is missing, without any newer checkpoint.
    let answer = relay.answer(&resumed.position()).unwrap().unwrap();
    assert!(answer.update.steps.is_empty());
    take(&mut resumed, &answer.update, realm.now).unwrap();
    assert!(resumed.is_complete());
    assert_eq!(resumed.heads().len(), 2);
    // Another realm's memory is refused by name.
    let foreign = Memory { genesis_hash: [9; 32], ..memory };
    let refused = Replica::resume(&realm.genesis, interest.clone(), foreign, Default::default());
    assert_eq!(refused.unwrap_err().rule(), "C1");
}
