//! The runbooks about disks, followed to the letter: a live ring is brought into the state that a page
//! is about, its symptoms are looked for, and then the commands of the page itself are run. And what
//! operators see without a page, of a member that is cut off.
//!
//! `cli/tests/recovery.rs` repeats the commands of the pages about members and snapshots; it does not
//! read the pages.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

#[path = "runbooks/damage.rs"]
mod damage;
#[path = "runbooks/drill.rs"]
mod drill;
#[path = "runbooks/etcdctl.rs"]
mod etcdctl;
#[path = "runbooks/page.rs"]
mod page;
mod program;

use std::{fs, time::Duration};

use satrap_histories::{
    cluster::MEMBERS,
    net::{Node, Rule},
    shared::now_ns,
};

use self::{
    drill::{Drill, drill, until},
    page::{commands, metrics},
    program::{PROGRAM, alone},
};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const CORRUPT: &str = "etcdserver: corrupt cluster";
const NO_LEADER: &str = "etcdserver: no leader";
/// The member that things happen to.
const VICTIM: usize = 2;

/// Puts until one is refused for want of space.
fn put_until_refused(drill: &Drill, value: &str) {
    until("a put that is refused", || {
        (drill.etcdctl.put("big", value).err()? == NO_SPACE).then_some(())
    });
}

/// NOSPACE by the quota, and out of it by the page.
#[test]
fn a_full_quota_is_got_out_of_by_the_page() {
    let Some(_alone) = alone() else { return };
    drill(&PROGRAM, |drill| {
        drill.satrap(&["quota", "set", "--total", "--bytes", "256KiB", "--realm", "DIR"]);
        drill.etcdctl.put("small", "x").unwrap();
        put_until_refused(drill, &"x".repeat(20_000));
        until("the alarm", || {
            let raised = drill.etcdctl.alarms().ok()?;
            raised.iter().any(|(_, kind)| *kind == "NOSPACE").then_some(())
        });
        // Also a put that would fit: no write that grows the state is taken under the alarm.
        assert_eq!(drill.etcdctl.put("small", "y").unwrap_err(), NO_SPACE);
        let (full, quota, disk) = room(drill);
        assert!(
            (quota - 262_144.0).abs() < 1.0 && full > 0.8 * quota && disk > 0.0,
            "{full} {quota} {disk}"
        );
        assert_eq!(drill.etcdctl.get("small").unwrap().as_deref(), Some("x"));
        assert_eq!(drill.etcdctl.del("small"), Ok(1));
        for words in commands("disk-full") {
            let revisions = drill.etcdctl.status().unwrap().into_iter().map(|e| e.revision);
            let revision = revisions.max().unwrap().to_string();
            drill.follow(&words, &[("REVISION", &revision)]);
        }
        until("a put after the page", || drill.etcdctl.put("small", "z").ok());
        assert_eq!(drill.etcdctl.alarms().unwrap(), []);
        let (freed, ..) = room(drill);
        assert!(freed < 0.5 * full, "{freed} after {full}");
        drill.until_equal();
    });
}

/// The metrics that the page names, at one member: the size of the keyspace, the quota, and the size
/// of the state on disk.
fn room(drill: &Drill) -> (f64, f64, f64) {
    let names = metrics("disk-full");
    let [size, quota, disk] = &*names else { panic!("the page names {names:?}") };
    let [size, quota, disk] = [size, quota, disk].map(|name| drill.metric(VICTIM, name));
    (size, quota, disk)
}

/// NOSPACE by one member's disk, which goes when there is room again.
#[test]
fn a_full_disk_stops_writes_until_there_is_room() {
    let Some(_alone) = alone() else { return };
    drill(&PROGRAM, |drill| {
        drill.fill("before", 20);
        let id = drill.endpoint(VICTIM).unwrap().id;
        assert!(drill.nemesis.cluster.disks[VICTIM].fill().unwrap());
        until("the alarm of that member", || {
            drill.etcdctl.alarms().ok()?.contains(&(id, "NOSPACE")).then_some(())
        });
        assert_eq!(drill.etcdctl.put("more", "x").unwrap_err(), NO_SPACE);
        assert_eq!(drill.etcdctl.del("before/0"), Ok(1));
        assert_eq!(drill.etcdctl.get("before/1").unwrap().as_deref(), Some("value"));
        drill.nemesis.cluster.disks[VICTIM].free().unwrap();
        until("the end of the alarm", || drill.etcdctl.alarms().ok()?.is_empty().then_some(()));
        until("a put", || drill.etcdctl.put("more", "x").ok());
        drill.until_equal();
        assert!(drill.nemesis.cluster.is_running(VICTIM), "a full disk ends no member");
    });
}

/// A leader that is cut off says that it has none, and sends the watches away that require one.
#[test]
fn a_member_that_is_cut_off_says_so() {
    let Some(_alone) = alone() else { return };
    drill(&PROGRAM, |drill| {
        drill.fill("before", 5);
        let cut = drill.nemesis.await_leader().unwrap();
        let url = drill.nemesis.cluster.client_url(cut);
        let watch = drill.etcdctl.watch_at(&url, "k");
        for other in (0..MEMBERS).filter(|slot| *slot != cut) {
            let (one, other) = (Node::Member(cut), Node::Member(other));
            drill.nemesis.cluster.network.set_both(one, other, Rule::Cut).unwrap();
        }
        until("no leader there", || (drill.endpoint(cut)?.leader == 0).then_some(()));
        let end = watch.end();
        assert!(end.contains(NO_LEADER), "{end}");
        let other = (cut + 1) % MEMBERS;
        until("another leader", || (drill.endpoint(other)?.leader != 0).then_some(()));
        let elsewhere = drill.nemesis.cluster.client_url(other);
        until("a put", || drill.etcdctl.put_at(&elsewhere, "k", "v").ok());
        drill.nemesis.cluster.network.heal().unwrap();
        until("a leader", || (drill.endpoint(cut)?.leader != 0).then_some(()));
        // Its peers connect to it again before it can confirm a read with them.
        let read = until("a read there", || drill.etcdctl.get_at(&url, "k").ok());
        assert_eq!(read.as_deref(), Some("v"));
        drill.until_equal();
    });
}

/// 000-69: a slow disk costs only those whose member it is, and is got rid of by the page.
#[test]
fn a_slow_disk_costs_only_those_who_ask_its_member() {
    let Some(_alone) = alone() else { return };
    let ten_puts = |drill: &Drill, slot: usize| {
        let (url, begun) = (drill.nemesis.cluster.client_url(slot), now_ns());
        for number in 0..10 {
            let key = format!("timed/{number}");
            until("a put", || drill.etcdctl.put_at(&url, &key, "value").ok());
        }
        Duration::from_nanos(now_ns() - begun)
    };
    drill(&PROGRAM, |drill| {
        drill.fill("before", 5);
        let leader = drill.nemesis.await_leader().unwrap();
        drill.nemesis.cluster.disks[leader].limit(5).unwrap();
        let with_slow_leader = ten_puts(drill, (leader + 1) % MEMBERS);
        drill.nemesis.cluster.disks[leader].limit(0).unwrap();
        drill.until_equal();

        // On a busy machine another member may lead by now.
        let leader = drill.nemesis.await_leader().unwrap();
        let (slow, other) = ((leader + 1) % MEMBERS, (leader + 2) % MEMBERS);
        let before = syncs(drill);
        drill.nemesis.cluster.disks[slow].limit(5).unwrap();
        let with_slow_follower = ten_puts(drill, other);
        let there = ten_puts(drill, slow);
        let means = means(&before, &syncs(drill));
        for (slot, mean) in means.iter().enumerate().filter(|(slot, _)| *slot != slow) {
            assert!(means[slow] > 3.0 * mean, "slot {slow} is the slow one, not {slot}: {means:?}");
        }
        look(drill, "slow-disk");
        replace(drill, slow, "slow-disk", |drill| {
            drill.nemesis.cluster.disks[slow].limit(0).unwrap();
        });
        let replaced = ten_puts(drill, slow);
        println!(
            "ten puts: {with_slow_leader:?} with a slow leader, {with_slow_follower:?} with a slow \
             follower, {there:?} there, {replaced:?} after it was replaced"
        );
        for fast in [with_slow_leader, with_slow_follower, replaced] {
            assert!(there > 3 * fast, "{fast:?}, but {there:?} at the slow member");
        }
    });
}

/// The sum and the count of the metric that the page names, at each member.
fn syncs(drill: &Drill) -> Vec<(f64, f64)> {
    let [name] = &*metrics("slow-disk") else { panic!("the page names one metric") };
    let of = |slot| ["sum", "count"].map(|part| drill.metric(slot, &format!("{name}_{part}")));
    (0..MEMBERS).map(of).map(|[sum, count]| (sum, count)).collect()
}

/// The mean of each member since `before`.
fn means(before: &[(f64, f64)], now: &[(f64, f64)]) -> Vec<f64> {
    let mean = |(before, now): (&(f64, f64), &(f64, f64))| {
        (now.0 - before.0) / (now.1 - before.1).max(1.0)
    };
    before.iter().zip(now).map(mean).collect()
}

/// Follows what a page says before it names the member to be replaced.
fn look(drill: &Drill, page: &str) {
    let steps = commands(page);
    steps.iter().take_while(|words| !is_replacement(words)).for_each(|words| {
        drill.follow(words, &[]);
    });
}

/// Stops a member and follows the rest of a page, whose operator has `mended` what the member stood on
/// before it starts empty.
fn replace(drill: &mut Drill, slot: usize, page: &str, mended: impl FnOnce(&Drill)) {
    drill.nemesis.cluster.kill(slot).unwrap();
    drill.set_aside(slot);
    let steps = commands(page);
    for words in steps.iter().skip_while(|words| !is_replacement(words)) {
        drill.follow(words, &[("c", &format!("m{slot}"))]);
    }
    mended(drill);
    drill.nemesis.cluster.run(slot).unwrap();
    drill.until_votes(slot);
    until("a put", || drill.etcdctl.put("after", "x").ok());
    drill.until_equal();
    assert_eq!(drill.etcdctl.alarms().unwrap(), []);
    assert_eq!(drill.etcdctl.get("before/3").unwrap().as_deref(), Some("value"));
}

fn is_replacement(words: &[String]) -> bool {
    words.starts_with(&["satrap", "member", "replace"].map(str::to_owned))
}

/// The fault of etcd 3.5.0: an entry is applied once more after a restart.
#[test]
fn a_member_whose_state_differs_is_found_and_replaced() {
    let Some(_alone) = alone() else { return };
    drill(&PROGRAM, |drill| {
        drill.fill("before", 20);
        let id = drill.endpoint(VICTIM).unwrap().id;
        drill.nemesis.cluster.kill(VICTIM).unwrap();
        damage::apply_once_more(&drill.configs[VICTIM]);
        drill.nemesis.cluster.run(VICTIM).unwrap();
        let raised = until("the alarm", || {
            // Digests are taken every so many entries.
            let _ = drill.etcdctl.put("load", "x");
            drill.etcdctl.alarms().ok().filter(|raised| !raised.is_empty())
        });
        assert_eq!(raised, [(id, "CORRUPT")]);
        assert_eq!(drill.etcdctl.put("k", "v").unwrap_err(), CORRUPT);
        let at = |slot| drill.etcdctl.get_at(&drill.nemesis.cluster.client_url(slot), "before/3");
        assert_eq!(at(VICTIM).unwrap_err(), CORRUPT);
        assert_eq!(at((VICTIM + 1) % MEMBERS).unwrap().as_deref(), Some("value"));
        look(drill, "corrupt-member");
        let hashes = drill.etcdctl.hashes().unwrap();
        let of = |member: u64| hashes.iter().find(|(id, ..)| *id == member).unwrap().1;
        let others: Vec<_> = hashes.iter().filter(|(other, ..)| *other != id).collect();
        assert_eq!(others[0].1, others[1].1, "{hashes:x?}");
        assert_ne!(of(id), others[0].1, "{hashes:x?}");
        replace(drill, VICTIM, "corrupt-member", |_| ());
    });
}

/// Bits that rot while the member is down.
#[test]
fn a_member_with_rotten_bytes_stops_and_is_replaced() {
    let Some(_alone) = alone() else { return };
    const MARKER: &str = "these bytes will rot";
    drill(&PROGRAM, |drill| {
        drill.fill("before", 20);
        drill.etcdctl.put("rots", MARKER).unwrap();
        let state = drill.data(VICTIM).join("state.redb");
        let holds = || damage::count(&fs::read(&state).ok()?, MARKER.as_bytes()).checked_sub(1);
        until("the key in the state on disk", holds);
        drill.nemesis.cluster.kill(VICTIM).unwrap();
        drill.nemesis.cluster.expect_exit(VICTIM);
        damage::rot(&state, MARKER.as_bytes());
        drill.nemesis.cluster.run(VICTIM).unwrap();
        let said = drill.until_ended(VICTIM);
        assert!(said.contains("does not match its digest"), "{said}");
        // The others never noticed.
        assert_eq!(drill.etcdctl.get("rots").unwrap().as_deref(), Some(MARKER));
        replace(drill, VICTIM, "corrupt-member", |_| ());
        assert_eq!(drill.etcdctl.get("rots").unwrap().as_deref(), Some(MARKER));
    });
}
