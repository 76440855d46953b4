//! The runbooks about disks, followed to the letter: a live ring is brought into the state that a page
//! is about, its symptoms are looked for, and then the commands of the page itself are run.
//!
//! The pages about members and snapshots are followed in `cli/tests/recovery.rs`.

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

use satrap_histories::shared::now_ns;

use self::{
    drill::{Drill, drill, until},
    page::commands,
    program::{PROGRAM, alone},
};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const CORRUPT: &str = "etcdserver: corrupt cluster";
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
    let _alone = alone();
    drill(&PROGRAM, |drill| {
        drill.satrap(&["quota", "set", "--total", "--bytes", "256KiB", "--realm", "DIR"]);
        drill.etcdctl.put("small", "x").unwrap();
        put_until_refused(drill, &"x".repeat(20_000));
        until("the alarm", || {
            let raised = drill.etcdctl.alarms().ok()?;
            raised.iter().any(|(_, kind)| *kind == "NOSPACE").then_some(())
        });
        // Also what would fit: nobody grows until an operator has looked.
        assert_eq!(drill.etcdctl.put("small", "y").unwrap_err(), NO_SPACE);
        assert_eq!(drill.etcdctl.get("small").unwrap().as_deref(), Some("x"));
        assert_eq!(drill.etcdctl.del("small"), Ok(1));
        for words in commands("disk-full") {
            let revisions = drill.etcdctl.status().unwrap().into_iter().map(|e| e.revision);
            let revision = revisions.max().unwrap().to_string();
            drill.follow(&words, &[("REVISION", &revision)]);
        }
        until("a put after the page", || drill.etcdctl.put("small", "z").ok());
        assert_eq!(drill.etcdctl.alarms().unwrap(), []);
        drill.until_equal();
    });
}

/// NOSPACE by one member's disk, which goes when there is room again.
#[test]
fn a_full_disk_stops_writes_until_there_is_room() {
    let _alone = alone();
    drill(&PROGRAM, |drill| {
        drill.fill("before", 20);
        let id = drill.endpoint(VICTIM).unwrap().id;
        drill.nemesis.cluster.expect_exit(VICTIM);
        assert!(drill.nemesis.cluster.disks[VICTIM].fill().unwrap());
        until("the alarm of that member", || {
            drill.etcdctl.alarms().ok()?.contains(&(id, "NOSPACE")).then_some(())
        });
        assert_eq!(drill.etcdctl.put("more", "x").unwrap_err(), NO_SPACE);
        assert_eq!(drill.etcdctl.del("before/0"), Ok(1));
        assert_eq!(drill.etcdctl.get("before/1").unwrap().as_deref(), Some("value"));
        drill.nemesis.cluster.disks[VICTIM].free().unwrap();
        // It goes on by itself if it did not stop.
        drill.nemesis.cluster.run(VICTIM).unwrap();
        until("the end of the alarm", || drill.etcdctl.alarms().ok()?.is_empty().then_some(()));
        until("a put", || drill.etcdctl.put("more", "x").ok());
        drill.until_equal();
    });
}

/// 000-69: a slow leader is found and relieved.
#[test]
fn a_slow_disk_is_relieved_of_leadership() {
    let _alone = alone();
    let ten_puts = |drill: &Drill| {
        let begun = now_ns();
        drill.fill("timed", 10);
        Duration::from_nanos(now_ns() - begun)
    };
    drill(&PROGRAM, |drill| {
        drill.fill("before", 5);
        let leader = drill.nemesis.leader().unwrap();
        drill.nemesis.cluster.disks[leader].limit(5).unwrap();
        let slow = ten_puts(drill);
        let other = drill.endpoint((leader + 1) % 3).unwrap().id;
        for words in commands("slow-disk") {
            let shown = drill.follow(&words, &[("MEMBER_ID", &format!("{other:x}"))]);
            if words[1] == "status" {
                assert!(shown.contains(&format!("m{leader}")), "{shown}");
            }
        }
        until("the new leader", || (drill.endpoint(leader)?.leader == other).then_some(()));
        let relieved = ten_puts(drill);
        println!("ten puts: {slow:?} with a slow leader, {relieved:?} with another");
        assert!(slow > 3 * relieved, "{slow:?}, then {relieved:?}");
        drill.nemesis.cluster.disks[leader].limit(0).unwrap();
        drill.until_equal();
    });
}

/// What the page says to do with the member that is corrupt, once it is stopped.
fn replace(drill: &mut Drill) {
    drill.nemesis.cluster.kill(VICTIM).unwrap();
    drill.set_aside(VICTIM);
    let name = format!("m{VICTIM}");
    // The first is for finding out which.
    for words in commands("corrupt-member").into_iter().skip(1) {
        drill.follow(&words, &[("c", &name)]);
    }
    drill.nemesis.cluster.run(VICTIM).unwrap();
    drill.until_votes(VICTIM);
    until("a put", || drill.etcdctl.put("after", "x").ok());
    drill.until_equal();
    assert_eq!(drill.etcdctl.alarms().unwrap(), []);
    assert_eq!(drill.etcdctl.get("before/3").unwrap().as_deref(), Some("value"));
}

/// What broke etcd 3.5.0: an entry is applied once more after a restart.
#[test]
fn a_member_whose_state_differs_is_found_and_replaced() {
    let _alone = alone();
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
        assert_eq!(drill.etcdctl.get("before/3").unwrap_err(), CORRUPT);
        drill.follow(&commands("corrupt-member")[0], &[]);
        let hashes = drill.etcdctl.hashes().unwrap();
        let of = |member: u64| hashes.iter().find(|(id, ..)| *id == member).unwrap().1;
        let others: Vec<_> = hashes.iter().filter(|(other, ..)| *other != id).collect();
        assert_eq!(others[0].1, others[1].1, "{hashes:x?}");
        assert_ne!(of(id), others[0].1, "{hashes:x?}");
        replace(drill);
    });
}

/// Bits that rot while the member is down.
#[test]
fn a_member_with_rotten_bytes_stops_and_is_replaced() {
    let _alone = alone();
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
        assert!(said.contains("does not have its digest"), "{said}");
        // The others never noticed.
        assert_eq!(drill.etcdctl.get("rots").unwrap().as_deref(), Some(MARKER));
        replace(drill);
        assert_eq!(drill.etcdctl.get("rots").unwrap().as_deref(), Some(MARKER));
    });
}
