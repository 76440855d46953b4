//! The recipes of the client crate on a ring of three real members, whose leader is killed meanwhile:
//! fenced locks, an election with a thousand contenders, and a mirror that follows through
//! compaction, deaths of leaders and a forced recovery, which begins another epoch.
//!
//! Each recipe by itself, down to the requests it sends, is in `crates/client/tests/recipes`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;
mod realm;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use satrap_client::{
    Error, FencingToken, Terms,
    election::{campaign, leader},
    guard::Guard,
    lock::fenced_lock,
    mirror::{Change, Mirror, Range},
    role::{Candidate, Leadership},
};
use satrap_operator::client::etcd::EtcdClient;
use satrap_proto::{
    etcdserverpb::{
        CompactionRequest, LeaseRevokeRequest, RangeRequest, StatusRequest, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    },
    mvccpb::KeyValue,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use self::realm::ring::{LOOK, Ring};

/// For the ring to elect, or for one step of a recipe.
const WITHIN: Duration = Duration::from_secs(60);
const LEADERS_KILLED: usize = 3;

/// A client of all members.
async fn connect(client: &EtcdClient) -> satrap_client::Ring {
    let mut members = Vec::new();
    for url in &client.endpoints {
        loop {
            if let Ok(channel) = client.connect(url).await {
                members.push(satrap_client::Ring::over(channel));
                break;
            }
            sleep(LOOK).await;
        }
    }
    satrap_client::Ring::of(members)
}

/// The member that leads.
async fn leading(ring: &Ring) -> usize {
    let found = async {
        loop {
            for (index, url) in ring.client.endpoints.iter().enumerate() {
                let Ok(channel) = ring.client.connect(url).await else { continue };
                let status = MaintenanceClient::new(channel).status(StatusRequest {}).await;
                let Ok(status) = status.map(tonic::Response::into_inner) else { continue };
                if status.leader != 0 && status.leader == status.header.unwrap().member_id {
                    return index;
                }
            }
            sleep(LOOK).await;
        }
    };
    timeout(WITHIN, found).await.expect("the ring elects a leader")
}

/// Kills the leader, waits until the others take a write, and starts it again.
async fn kill_leader(ring: &mut Ring) {
    let leader = leading(ring).await;
    ring.kill([leader]).await;
    timeout(WITHIN, ring.put("after", "the leader")).await.expect("the others go on");
    ring.realm.processes[leader].restart();
}

/// The state that contenders for a lock share.
#[derive(Default)]
struct Locked {
    /// The holder, as long as it works.
    holder: Mutex<Option<Leadership>>,
    guard: Mutex<Guard>,
    granted: Mutex<Vec<FencingToken>>,
    stop: AtomicBool,
}

/// Takes the lock and gives it back, over and over.
async fn contend(ring: satrap_client::Ring, name: String, locked: Arc<Locked>) {
    let candidate = Candidate { role: "billing".into(), name, terms: Terms::of(2) };
    while !locked.stop.load(Ordering::Relaxed) {
        // A leader that dies may take the answer along; the next attempt waits for the lease.
        let Ok(held) = fenced_lock(&ring, &candidate).await else { continue };
        let (token, leadership) = (held.token(), held.leadership());
        {
            let mut holder = locked.holder.lock().unwrap();
            if !leadership.is_current() {
                continue;
            }
            let other = holder.as_ref().is_some_and(Leadership::is_current);
            assert!(!other, "two hold the lock");
            locked.guard.lock().unwrap().admit(token).expect("a newer token than all before");
            locked.granted.lock().unwrap().push(token);
            *holder = Some(leadership);
        }
        sleep(LOOK).await;
        *locked.holder.lock().unwrap() = None;
        // If the request is lost, the role ends with its time to live.
        let _ = held.release().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fenced_locks_are_held_by_one_while_leaders_die() {
    let mut ring = Ring::start().await;
    let locked = Arc::new(Locked::default());
    let mut contenders = JoinSet::new();
    for number in 0..4 {
        let client = connect(&ring.client).await;
        contenders.spawn(contend(client, format!("c{number}"), locked.clone()));
    }
    let granted = || locked.granted.lock().unwrap().len();
    for death in 0..=LEADERS_KILLED {
        let wanted = granted() + 5;
        let grants = async {
            while granted() < wanted {
                sleep(LOOK).await;
            }
        };
        timeout(WITHIN, grants).await.unwrap_or_else(|_| panic!("after {death} deaths"));
        if death < LEADERS_KILLED {
            kill_leader(&mut ring).await;
        }
    }
    locked.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = contenders.join_next().await {
        ended.unwrap();
    }
    let granted = locked.granted.lock().unwrap();
    assert!(granted.is_sorted_by(|a, b| a < b), "{granted:?}");
}

const CONTENDERS: usize = 1_000;
/// Streams of one connection are bounded, and each contender has one.
const PER_CONNECTION: usize = 50;
/// Contenders that hear that they lead; each of the killed leaders may take a few answers along.
const ELECTED_MIN: usize = CONTENDERS * 9 / 10;

/// 001-44: each end of a leader brings the next in the order of arrival, and wakes no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_contenders_lead_in_turn_while_members_die() {
    let mut ring = Ring::start().await;
    let mut contenders = JoinSet::new();
    for connection in 0..CONTENDERS / PER_CONNECTION {
        let client = connect(&ring.client).await;
        for number in 0..PER_CONNECTION {
            let (client, value) = (client.clone(), format!("{connection}/{number}"));
            contenders.spawn(async move {
                let elected = campaign(&client, "boss", value, Terms::of(600)).await?;
                Ok::<_, Error>((elected.created(), elected.lease(), elected.waited()))
            });
        }
    }
    let entered = async {
        while count(&ring, "boss/").await != Some(CONTENDERS as i64) {
            sleep(LOOK).await;
        }
    };
    timeout(4 * WITHIN, entered).await.expect("all contenders enter");
    let client = connect(&ring.client).await;
    let (mut led, mut elected, mut woken, mut last) = (0, 0, 0, 0);
    while led < CONTENDERS {
        // The ring says who leads, also if the answer to that contender was lost with a member.
        let shown = async {
            loop {
                match leader(&client, "boss").await {
                    Ok(shown) => return shown.expect("a contender is left"),
                    Err(_) => sleep(LOOK).await,
                }
            }
        };
        let shown = timeout(WITHIN, shown).await.expect("the ring names a leader");
        assert!(shown.created > last, "not in the order of arrival");
        let ended = timeout(WITHIN, contenders.join_next()).await;
        match ended.expect("the next one is woken").unwrap().unwrap() {
            Ok((created, lease, waited)) => {
                assert_eq!((created, lease), (shown.created, shown.lease), "one leads at a time");
                elected += 1;
                woken += waited.notifications as usize;
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        (led, last) = (led + 1, shown.created);
        revoke(&ring, shown.lease).await;
        if led % (CONTENDERS / 3) == 0 {
            kill_leader(&mut ring).await;
        }
    }
    println!("{elected} contenders heard that they lead, after {woken} notifications");
    assert!(elected >= ELECTED_MIN, "{elected} of {CONTENDERS} contenders heard that they lead");
    assert!(woken < CONTENDERS, "{woken} notifications for {CONTENDERS} contenders");
    assert!(woken >= ELECTED_MIN, "{woken} notifications for {elected} contenders that lead");
}

async fn count(ring: &Ring, prefix: &str) -> Option<i64> {
    let Range { key, end: range_end } = Range::prefix(prefix.to_owned());
    let request = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
    let channel = ring.client.any().await.ok()?;
    Some(KvClient::new(channel).range(request).await.ok()?.into_inner().count)
}

/// Ends a lease, which may be asked for twice.
async fn revoke(ring: &Ring, id: i64) {
    let revoked = async {
        loop {
            let Ok(channel) = ring.client.any().await else { continue };
            match LeaseClient::new(channel).lease_revoke(LeaseRevokeRequest { id }).await {
                Ok(_) => return,
                Err(status) if status.code() == tonic::Code::NotFound => return,
                Err(_) => sleep(LOOK).await,
            }
        }
    };
    timeout(WITHIN, revoked).await.expect("the lease ends");
}

/// The keys under `k/`, as a linearizable read shows them.
async fn keys(ring: &Ring) -> Vec<KeyValue> {
    let Range { key, end: range_end } = Range::prefix("k/");
    let request = RangeRequest { key, range_end, ..RangeRequest::default() };
    loop {
        if let Ok(channel) = ring.client.any().await
            && let Ok(found) = KvClient::new(channel).range(request.clone()).await
        {
            return found.into_inner().kvs;
        }
        sleep(LOOK).await;
    }
}

/// The same keys with their values and revisions.
async fn truth(ring: &Ring) -> BTreeMap<Bytes, (Bytes, i64)> {
    let kvs = keys(ring).await.into_iter();
    kvs.map(|kv| (kv.key, (kv.value, kv.mod_revision))).collect()
}

/// How many writes the same keys have had, none of which is ever deleted.
async fn writes(ring: &Ring) -> usize {
    let versions: i64 = keys(ring).await.iter().map(|kv| kv.version).sum();
    versions.try_into().unwrap()
}

/// A mirror that a task of its own follows the ring with, which may not resync.
struct Following {
    task: JoinSet<(Mirror, usize)>,
    from: i64,
    moved: watch::Receiver<i64>,
    last: watch::Sender<i64>,
}

impl Following {
    fn start(mut mirror: Mirror) -> Self {
        let (last, mut until) = watch::channel(i64::MAX);
        let from = mirror.revision();
        let (moves, moved) = watch::channel(from);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut events = 0;
            while mirror.revision() < *until.borrow_and_update() {
                tokio::select! {
                    change = mirror.next() => match change.unwrap() {
                        Change::Events(count) => events += count,
                        resynced => panic!("the ring had all history: {resynced:?}"),
                    },
                    known = until.changed() => known.unwrap(),
                }
                assert!(mirror.revision() >= *moves.borrow(), "MIRROR-2");
                moves.send_replace(mirror.revision());
            }
            (mirror, events)
        });
        Self { task, from, moved, last }
    }

    /// Waits until the mirror is past the revision at which it started.
    async fn until_it_moves(&mut self) {
        let moved = self.moved.wait_for(|revision| *revision > self.from);
        timeout(WITHIN, moved).await.expect("it follows").unwrap();
    }

    /// Waits until the mirror has everything up to `last`; returns it and how many events it took.
    async fn stop_at(mut self, last: i64) -> (Mirror, usize) {
        self.last.send_replace(last);
        let ended = timeout(WITHIN, self.task.join_next()).await.expect("it follows");
        ended.expect("it has one task").unwrap()
    }
}

fn copy(mirror: &Mirror) -> BTreeMap<Bytes, (Bytes, i64)> {
    let held = mirror.content().iter();
    held.map(|(key, held)| (key.clone(), (held.value.clone(), held.mod_revision))).collect()
}

async fn compact(ring: &Ring, revision: i64) {
    let request = CompactionRequest { revision, physical: false };
    let channel = ring.client.any().await.unwrap();
    KvClient::new(channel).compact(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_follows_through_deaths_of_leaders_and_a_new_epoch() {
    let mut ring = Ring::start().await;
    for number in 0..200 {
        ring.put(&format!("k/{number:03}"), "old").await;
    }
    let client = connect(&ring.client).await;
    let mut mirror = Mirror::open(&client, Range::prefix("k/")).await.unwrap();
    assert_eq!(copy(&mirror), truth(&ring).await);
    let stale = (mirror.content().clone(), (mirror.epoch(), mirror.revision()));

    // It follows while leaders die, and misses no event.
    for death in 0..LEADERS_KILLED {
        let written = writes(&ring).await;
        let mut following = Following::start(mirror);
        for number in 0..20 {
            ring.put(&format!("k/{number:03}"), &format!("after {death} deaths")).await;
        }
        following.until_it_moves().await;
        kill_leader(&mut ring).await;
        let last = ring.put("k/last", &death.to_string()).await;
        let events;
        (mirror, events) = following.stop_at(last).await;
        assert_eq!(copy(&mirror), truth(&ring).await);
        assert_eq!(events, writes(&ring).await - written, "an event for each write");
    }

    // A copy that is behind compaction gets the 21 keys that differ, and no others.
    compact(&ring, mirror.revision()).await;
    let compacted = ring.put("compacted", "").await;
    for member in 0..3 {
        // A member that has yet to apply the compaction would rightly send the events instead.
        timeout(WITHIN, ring.until_held(member, compacted)).await.expect("it applies");
    }
    let mut behind = Mirror::resume(&client, Range::prefix("k/"), stale.0, stale.1);
    let change = timeout(WITHIN, behind.next()).await.expect("it compares").unwrap();
    assert_eq!(change, Change::Resynced { received: 21, forgotten: 0 });
    assert_eq!(copy(&behind), copy(&mirror));

    // A forced recovery cuts the history: the survivor lacks what the copy has already.
    let configs: Vec<_> = (0..3).map(|member| ring.config(member)).collect();
    let epoch = mirror.epoch();
    ring.until_held(0, mirror.revision()).await;
    ring.kill([0]).await;
    let lost = timeout(WITHIN, ring.put("k/lost", "with the majority")).await.unwrap();
    timeout(WITHIN, mirror.follow_to(lost)).await.expect("it follows").unwrap();
    ring.kill([1, 2]).await;
    let key = ring.realm.files.operators[0].operator_key.display().to_string();
    let recover = ["recover", "apply", "--config", &configs[0], "--trust", "a", "--lost", "b,c"];
    let because = ["--reason", "test", "--operator-key", &key];
    let recovered = [&recover[..], &because[..]].concat();
    let dir = ring.dir().to_owned();
    let recovered: Vec<String> = recovered.iter().map(|word| (*word).to_owned()).collect();
    let run = move || {
        let words: Vec<&str> = recovered.iter().map(String::as_str).collect();
        common::satrap(&dir, &words).succeeds()
    };
    tokio::task::spawn_blocking(run).await.unwrap();
    ring.realm.processes[0].restart();
    let after = timeout(WITHIN, ring.put("k/after", "the recovery")).await.unwrap();
    let resyncs = AtomicUsize::new(0);
    let followed = async {
        while mirror.epoch() == epoch || mirror.revision() < after {
            if let Change::Resynced { .. } = mirror.next().await.unwrap() {
                resyncs.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    timeout(WITHIN, followed).await.expect("it follows into the new epoch");
    assert!(mirror.epoch() > epoch);
    assert!(resyncs.into_inner() > 0, "the copy was compared with the ring");
    assert_eq!(copy(&mirror), truth(&ring).await);
    assert!(!mirror.content().contains_key(&b"k/lost"[..]), "it forgets what the ring lost");
}
