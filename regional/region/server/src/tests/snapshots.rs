//! Members that save by themselves, and attempts that fail.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_proto::v1::{StatusRequest, control_client::ControlClient, status_reply::Tier};
use satrap_region_core::state_setup;
use satrap_ring_core::{Request, kv::PutRequest};
use satrap_ring_raft::{
    offline::{SnapshotFacts, read_snapshot},
    snapshots::{Draft, Made, Schedule, ScheduleState},
};

use super::cluster::{Behavior, REGION, Running, World, block_on, soon};
use crate::config::Config;

const EVERY: Duration = Duration::from_secs(1);

/// A ring whose first member saves into `dir`.
fn ring(world: &World, names: &[&str], keep: usize) -> (Vec<Config>, PathBuf) {
    let dir = world.dir.path().join("backup");
    let mut configs = world.ring(names);
    configs[0].snapshots = Some(Schedule { interval: EVERY, dir: dir.clone(), keep });
    (configs, dir)
}

async fn put(member: &Running, key: &str) -> i64 {
    let put = Request::Put(PutRequest::of(key.to_owned(), "value"));
    member.ring.ask(put).await.unwrap().unwrap().revision()
}

async fn until(
    member: &Running,
    what: &str,
    holds: impl Fn(&ScheduleState) -> bool,
) -> ScheduleState {
    let mut watched = member.snapshots.clone().unwrap();
    soon(what, watched.wait_for(holds)).await.unwrap().clone()
}

/// Waits for a snapshot that is newer than `after`, if there was one.
async fn until_made(member: &Running, after: Option<&Made>) -> Made {
    let after = after.map_or(0, |made| made.time_s);
    let is_newer = |made: &Made| made.time_s > after;
    let newer = |state: &ScheduleState| state.newest.as_ref().is_some_and(is_newer);
    until(member, "a snapshot", newer).await.newest.unwrap()
}

fn facts(world: &World, path: &Path) -> SnapshotFacts {
    let config = state_setup(&world.realm.lock().unwrap().genesis);
    read_snapshot(&mut File::open(path).unwrap(), &config).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

/// SNAPSHOT-1 to SNAPSHOT-3, when nothing goes wrong.
#[test]
fn a_member_saves_its_ring_and_keeps_the_newest() {
    let world = World::new(&[Behavior::Honest]);
    let (configs, dir) = ring(&world, &["m1"], 2);
    let member = Running::start(&configs[0]);
    let mut made = Vec::new();
    block_on(async {
        let mut last = until_made(&member, None).await;
        // Of another member, and of an operator.
        fs::write(dir.join("eu+m2+20261121T093549Z+r1.snapshot"), "another's").unwrap();
        fs::write(dir.join("eu+m1+before the upgrade.snapshot"), "by hand").unwrap();
        for n in 0..3 {
            let revision = put(&member, &format!("k{n}")).await;
            // The next may have begun before the put.
            while last.revision < revision {
                last = until_made(&member, Some(&last)).await;
            }
            let facts = facts(&world, &last.path);
            assert_eq!((facts.revision, facts.keys), (revision, n + 1));
            made.push(last.path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    });
    member.stop();
    let left = names(&dir);
    assert_eq!(left.len(), 4, "two of its own, two of others, and nothing half done: {left:?}");
    assert!(left.contains(made.last().unwrap()), "{left:?} without {made:?}");
    assert!(!left.contains(&made[0]), "{left:?} with {made:?}");
}

/// SNAPSHOT-2: a failure is reported, and the only snapshot is kept.
#[test]
fn a_failed_attempt_is_reported_and_costs_nothing() {
    let world = World::new(&[Behavior::Honest]);
    let (configs, dir) = ring(&world, &["m1"], 1);
    let member = Running::start(&configs[0]);
    block_on(until_made(&member, None));
    member.stop();
    let obstacle = dir.join(".eu+m1+partial");
    fs::create_dir(&obstacle).unwrap();
    let member = Running::start(&configs[0]);
    block_on(async {
        let failed = until(&member, "a failure", |state| state.error.is_some()).await;
        let path = failed.newest.clone().unwrap().path;
        assert_eq!(facts(&world, &path).revision, 1);
        assert!(failed.error.as_ref().unwrap().contains(".eu+m1+partial"), "{failed:?}");

        let operator = world.credentials(World::operator());
        let url = format!("https://{}", member.client_address);
        let rule = satrap_identity::mtls::PeerRule::Member(REGION.into());
        let channel = satrap_identity::mtls::connect_lazy(&url, &operator, rule).unwrap();
        let asked = ControlClient::new(channel).status(StatusRequest { local_only: true }).await;
        let Some(Tier::Region(status)) = asked.unwrap().into_inner().tier else { panic!() };
        assert_eq!(status.snapshots, Some(failed.to_wire()));

        fs::remove_dir(&obstacle).unwrap();
        let mended = until(&member, "a snapshot", |state| state.error.is_none()).await;
        assert_eq!(mended.newest.as_ref().unwrap().revision, 1);
        assert_ne!(mended.newest, failed.newest);
    });
    member.stop();
    assert_eq!(names(&dir).len(), 1);
}

/// SNAPSHOT-3: copies of an old state would push out those of a newer one.
#[test]
fn a_member_that_is_cut_off_makes_none() {
    let world = World::new(&[Behavior::Honest]);
    let (configs, dir) = ring(&world, &["m1", "m2", "m3"], 1);
    let mut members: Vec<_> = configs.iter().map(Running::start).collect();
    let before = block_on(async {
        put(&members[0], "k").await;
        let mut made = until_made(&members[0], None).await;
        while made.revision < 2 {
            made = until_made(&members[0], Some(&made)).await;
        }
        made
    });
    members.drain(1..).for_each(Running::crash);
    block_on(async {
        let failed = until(&members[0], "a failure", |state| state.error.is_some()).await;
        assert!(failed.error.unwrap().contains("cannot show that its state is the newest"));
    });
    members.remove(0).stop();
    assert_eq!(names(&dir).len(), 1);
    assert!(before.revision == 2);
}

#[test]
fn a_name_that_is_taken_is_not_taken_over() {
    let world = World::new(&[Behavior::Honest]);
    let (configs, dir) = ring(&world, &["m1"], 1);
    let member = Running::start(&configs[0]);
    let made = block_on(until_made(&member, None)).path;
    member.stop();
    let mut draft = Draft::create(dir.join("partial")).unwrap();
    let content = fs::read(&made).unwrap();
    draft.write(&content).unwrap();
    let config = state_setup(&world.realm.lock().unwrap().genesis);
    let taken = dir.join("taken");
    fs::write(&taken, "precious").unwrap();
    let refused = draft.verify(&config).unwrap().name(&taken).unwrap_err();
    assert!(refused.to_string().ends_with("exists; a snapshot is never overwritten"), "{refused}");
    assert_eq!(fs::read(&taken).unwrap(), b"precious");
    assert!(!dir.join("partial").exists());
}
