//! Rings of whole members: elections, crashes, compaction, strangers.

use std::{fs, time::Duration};

use openraft::raft::VoteRequest;
use satrap_identity::{
    mtls::{self, PeerRule},
    pki::Role,
};
use satrap_proto::v1::{RingFrame, ring_client::RingClient};
use satrap_region_core::CertifiedReplica;
use satrap_ring_api::{limits::RequestLimits, listener::EtcdConfig};
use satrap_ring_raft::{
    MemberName,
    frames::{self, ANY_INSTANCE, Kind, Sender, Welcome},
    types::{Types, Vote},
};
use satrap_runtime::{Failure, Fault, TaskGroup};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use tonic::Code;

use super::{
    cluster::{Behavior, Running, WAIT, World, block_on, leader, soon},
    realm::{HEARTBEAT, Realm, tampered},
};
use crate::{
    config::Config,
    refusals::Refusals,
    run::{Placement, RunError, start},
    source::SourceSet,
    upstream::{Adoption, Upstream, UpstreamError},
};

fn start_all(configs: &[Config]) -> Vec<Running> {
    configs.iter().map(Running::start).collect()
}

/// Until every member knows the disks of all: from then on, another disk under the same name is refused.
pub async fn identified(members: &[Running]) {
    let unknown = |member: &Running| {
        let nodes = member.ring.nodes();
        nodes.is_empty() || nodes.iter().any(|(_, node)| node.instance == ANY_INSTANCE)
    };
    let known = async {
        while members.iter().any(unknown) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("every disk in the membership", known).await;
}

pub async fn all_reach(members: &[Running], height: u64) {
    for member in members {
        member.wait_for_height(height).await;
    }
}

#[test]
fn a_ring_survives_its_leader_and_a_straggler_catches_up_by_snapshot() {
    let world = World::new(&[Behavior::Honest, Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let mut members = start_all(&configs);
    let killed = block_on(async {
        leader(&members).await;
        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"1"));
        all_reach(&members, height).await;
        leader(&members).await
    });
    let dead = members.remove(killed);
    let (dead_name, dead_log) = (dead.name.clone(), dead.ring.status().log_index);
    dead.crash();

    block_on(async {
        let next = leader(&members).await;
        for n in 0..20_u8 {
            let height = world.decide(|realm| realm.publish("pki/trust", "a", &[n]));
            all_reach(&members, height).await;
        }
        let purged = members[next].ring.until_status(|status| status.purged_index > dead_log);
        assert!(soon("a purge", purged).await);
    });

    let config = configs.iter().find(|config| config.name.as_str() == dead_name.as_str());
    let back = Running::start(config.unwrap());
    let height = world.realm.lock().unwrap().height();
    block_on(async {
        back.wait_for_height(height).await;
        assert!(back.ring.until_status(|status| status.snapshot_index > dead_log).await);
        assert!(back.ring.status().log_index > dead_log);
        let installed = figure(&back.ring.metrics(), "satrap_ring_snapshots_installed_total");
        assert!(installed.is_some_and(|installed| installed >= 1.0));
    });
    members.push(back);

    // Everything again, from disk alone.
    for member in members {
        member.stop();
    }
    for member in start_all(&configs) {
        assert_eq!(
            CertifiedReplica::of(&member.ring.extensions()).replica().height(),
            height,
            "{}",
            member.name
        );
        member.crash();
    }
}

#[test]
fn a_leader_that_stops_hands_over_first() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let mut members =
        configs.iter().map(Running::start_with_production_threads).collect::<Vec<_>>();
    let leading = block_on(leader(&members));
    let old = members.remove(leading);
    let (name, term) = (old.name.clone(), old.ring.status().term);
    old.stop();
    // The old leader waited for this before it closed its listener.
    let heir = members.iter().map(|member| member.ring.status()).find(|status| {
        status.leader.as_ref().is_some_and(|leader| *leader != name) && status.term > term
    });
    assert!(heir.is_some(), "a member leads already");
    let height = world.decide(Realm::heartbeat);
    block_on(all_reach(&members, height));
    for member in members {
        member.stop();
    }
}

#[test]
fn a_forged_update_is_refused_by_name_and_never_enters_the_log() {
    let mut world = World::new(&[Behavior::TampersUpdates]);
    let config = world.ring(&["m1"]).remove(0);
    let member = Running::start(&config);
    let member = vec![member];
    let ring = member[0].ring.clone();
    // Once the first entries of the new ring are applied, nothing but a proposal adds to the log.
    assert!(block_on(ring.until_status(|status| status.applied_index >= 1)));
    let before = ring.status().log_index;
    // A second follower on the same ring, so that the test holds its counters.
    let refusals = Refusals::default();
    let credentials = world.credentials(World::member("m1"));
    let upstream =
        Upstream::new(ring.clone(), SourceSet::default(), credentials, HEARTBEAT, refusals.clone());
    let realm = world.realm.get_mut().unwrap();
    realm.publish("pki/trust", "a", b"good");
    let update =
        realm.update_for(&CertifiedReplica::of(&ring.extensions()).replica().position()).unwrap();
    let mut seen = 0;
    block_on(async {
        let forged = tampered(update.clone());
        let Err(UpstreamError::Refused(rejection)) = upstream.adopt(forged, &mut seen).await else {
            panic!("a tampered value was not refused");
        };
        assert_eq!(rejection.rule(), "B4");
        assert_eq!(refusals.counts().into_iter().collect::<Vec<_>>(), [("B4", 1)]);
        assert_eq!(ring.status().log_index, before, "nothing was proposed");
        let adopted = upstream.adopt(update.clone(), &mut seen).await.unwrap();
        assert_eq!(adopted, Adoption::Adopted(1));
        assert_eq!(upstream.adopt(update, &mut seen).await.unwrap(), Adoption::NothingNew);
        assert!(ring.status().log_index > before);
    });
    drop((upstream, ring));
    member.into_iter().for_each(Running::stop);
}

#[test]
fn a_lying_validator_is_left_for_an_honest_one() {
    let world = World::new(&[Behavior::TampersUpdates, Behavior::Honest]);
    let members = start_all(&world.ring(&["m1"]));
    let height = world.decide(|realm| realm.publish("pki/trust", "a", b"good"));
    block_on(all_reach(&members, height));
    let extensions = members[0].ring.extensions();
    let content =
        CertifiedReplica::of(&extensions).replica().heads().values().next().unwrap().clone();
    assert_eq!(content.version, 1);
    members.into_iter().for_each(Running::stop);
}

/// Longer than one frame, one inline verification and one batch.
#[test]
fn an_update_of_many_frames_reaches_every_member() {
    let world = World::new(&[Behavior::Honest]);
    for key in ["a", "b", "c", "d", "e"] {
        world.decide(|realm| realm.publish("pki/trust", key, &[7; 250_000]));
    }
    let height = world.decide(Realm::heartbeat);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let members = start_all(&configs);
    block_on(async {
        all_reach(&members, height).await;
        let one_entry = members[0].ring.until_status(|status| status.applied_index >= 2);
        assert!(soon("an adoption", one_entry).await);
        for member in &members {
            let extensions = member.ring.extensions();
            let head = CertifiedReplica::of(&extensions).replica().heads().values().next().unwrap();
            assert!(head.bytes > 2 * satrap_ring_raft::limits::RING_CHUNK_BYTES as u64);
        }
    });
    members.into_iter().for_each(Running::stop);
}

#[test]
fn a_silent_validator_is_left() {
    let world = World::new(&[Behavior::SendsNothing]);
    let members = start_all(&world.ring(&["m1"]));
    // It is the only one, so being left shows as being followed again.
    let mut streams = world.streams_opened.subscribe();
    block_on(soon("a second stream", streams.wait_for(|opened| *opened >= 2))).unwrap();
    members.into_iter().for_each(Running::stop);
}

/// Sends one vote request as `role` and returns how it ended.
async fn vote_as(
    world: &World,
    to: &Running,
    role: Role,
    frame: Vec<u8>,
) -> Result<(), tonic::Status> {
    let url = format!("https://{}", to.peer_address);
    let credentials = world.credentials(role);
    let channel = mtls::connect_lazy(&url, &credentials, PeerRule::AnyMember).unwrap();
    let mut ring = RingClient::new(channel);
    let asked = ring.vote(RingFrame { payload: frame.into(), more: false });
    tokio::time::timeout(WAIT, asked).await.unwrap().map(|_| ())
}

#[test]
fn strangers_and_impostors_are_refused_on_the_ring() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    // Alone, so the ring is not founded and no other member speaks.
    let m1 = Running::start(&configs[0]);
    let own = Sender { ring: configs[0].ring_setup().ring, instance: [2; 16], since: 0 };
    let vote = |name: &str| {
        let name = MemberName::new(name).unwrap();
        VoteRequest::<Types>::new(Vote::new(7, name), None)
    };
    let frame =
        |sender: &Sender, name: &str| frames::pack(sender, &ANY_INSTANCE, Kind::Vote, &vote(name));
    block_on(async {
        let code =
            async |role, frame| vote_as(&world, &m1, role, frame).await.map_err(|s| s.code());
        let good = frame(&own, "m2");
        let m2 = || World::member("m2");
        for stranger in [
            World::edge("e1"),
            World::operator(),
            Role::Member { region: "us".into(), name: "m2".into() },
        ] {
            assert!(code(stranger, good.clone()).await.is_err(), "no handshake");
        }
        let outsider = code(World::member("m9"), good.clone()).await;
        assert_eq!(outsider, Err(Code::PermissionDenied), "not of this ring");
        let elsewhere = frame(&Sender { ring: [0; 32], ..own }, "m2");
        assert_eq!(code(m2(), elsewhere).await, Err(Code::InvalidArgument), "another ring");
        assert_eq!(code(m2(), frame(&own, "m3")).await, Err(Code::PermissionDenied), "as m3");
        assert_eq!(code(m2(), good.clone()).await, Ok(()));
    });
    m1.stop();
}

#[test]
fn a_namesake_with_another_disk_is_refused_also_after_a_restart() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let mut members = start_all(&configs);
    block_on(identified(&members));
    let disk_of_another =
        Sender { ring: configs[0].ring_setup().ring, instance: [3; 16], since: 0 };
    let vote = VoteRequest::<Types>::new(Vote::new(70, MemberName::new("m2").unwrap()), None);
    let frame = frames::pack(&disk_of_another, &ANY_INSTANCE, Kind::Vote, &vote);
    let refused = async |m1: &Running| {
        let refused = vote_as(&world, m1, World::member("m2"), frame.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("lost its disk"), "{refused}");
    };
    block_on(refused(&members[0]));
    // The log says which member a name means.
    members.drain(..).for_each(Running::crash);
    let m1 = Running::start(&configs[0]);
    block_on(refused(&m1));
    m1.stop();
}

#[test]
fn a_member_that_lost_its_disk_neither_founds_nor_votes() {
    let world = World::new(&[Behavior::Honest]);
    let configs = world.ring(&["m1", "m2", "m3"]);
    let mut members = start_all(&configs);
    let height = world.decide(Realm::heartbeat);
    block_on(all_reach(&members, height));
    // `m1` is the founder.
    members.remove(0).crash();
    fs::remove_dir_all(world.data_dir("m1")).unwrap();
    let empty = Running::start(&configs[0]);
    block_on(async {
        let height = world.decide(Realm::heartbeat);
        all_reach(&members, height).await;
        let hello = frames::pack(
            &Sender { ring: configs[0].ring_setup().ring, instance: [9; 16], since: 0 },
            &ANY_INSTANCE,
            Kind::Hello,
            &(),
        );
        let credentials = world.credentials(World::member("m1"));
        let url = format!("https://{}", members[0].peer_address);
        let channel = mtls::connect_lazy(&url, &credentials, PeerRule::AnyMember).unwrap();
        let reply = RingClient::new(channel)
            .pre_vote(RingFrame { payload: hello.into(), more: false })
            .await;
        assert_eq!(reply.unwrap_err().code(), Code::FailedPrecondition, "not even a welcome");
        let status = empty.ring.status();
        assert_eq!((status.term, status.log_index), (0, 0), "no vote, no log");
    });
    empty.stop();
    members.into_iter().for_each(Running::stop);
}

/// The process ends with the true reason, also while another task holds a handle of the ring.
#[test]
fn a_member_whose_disk_fails_stops_at_once_and_says_why() {
    const DRAIN: Duration = Duration::from_secs(10);
    let world = World::new(&[Behavior::Honest]);
    let config = world.ring(&["m1"]).remove(0);
    block_on(async {
        let group = TaskGroup::new();
        let member = start(config, &group, Placement::OwnThread).await.unwrap();
        let founded = member.ring.until_status(|status| status.applied_index >= 1);
        assert!(soon("the first entries", founded).await);
        fs::remove_file(world.data_dir("m1").join("state.redb")).unwrap();
        world.decide(Realm::heartbeat);
        let stopping = group.shutdown().requested();
        soon("the next checkpoint", stopping).await;
        let began = Instant::now();
        let why = group.run(DRAIN).await.unwrap_err().to_string();
        assert!(why.starts_with("task `checkpoints` failed: cannot open state.redb"), "{why}");
        assert!(began.elapsed() < DRAIN / 2, "{:?}", began.elapsed());
        drop(member);
    });
}

/// The figure of this name; labels belong to the name.
fn figure(metrics: &str, name: &str) -> Option<f64> {
    let lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    lines.filter(|(found, _)| *found == name).find_map(|(_, figure)| figure.parse().ok())
}

/// Waits for what nothing tells of.
fn until(what: &str, holds: impl Fn() -> bool) {
    block_on(soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }));
}

#[test]
fn a_member_counts_for_its_operators() {
    let world = World::new(&[Behavior::Honest]);
    let members = start_all(&world.ring(&["m1", "m2", "m3"]));
    let height = world.decide(Realm::heartbeat);
    let leading = block_on(async {
        all_reach(&members, height).await;
        leader(&members).await
    });
    for (place, member) in members.iter().enumerate() {
        let metrics = member.ring.metrics();
        let at_least_one = [
            "etcd_disk_wal_fsync_duration_seconds_count",
            "etcd_server_leader_changes_seen_total",
            "etcd_server_proposals_committed_total",
            "etcd_server_quota_backend_bytes",
            "satrap_ring_log_index",
            "satrap_ring_term",
        ];
        for name in at_least_one {
            assert!(
                figure(&metrics, name).is_some_and(|figure| figure >= 1.0),
                "{name}: {metrics}"
            );
        }
        assert_eq!(figure(&metrics, "etcd_server_proposals_failed_total"), Some(0.0));
        let other = &members[(place + 1) % members.len()].name;
        let lag = figure(&metrics, &format!("satrap_ring_lag_entries{{member=\"{other}\"}}"));
        assert_eq!(lag.is_some(), place == leading, "{metrics}");
        let peer = if place == leading { other } else { &members[leading].name };
        for name in [
            format!("etcd_network_peer_sent_bytes_total{{To=\"{peer}\"}}"),
            format!("etcd_network_peer_received_bytes_total{{From=\"{peer}\"}}"),
        ] {
            assert!(
                figure(&metrics, &name).is_some_and(|bytes| bytes > 100.0),
                "{name}: {metrics}"
            );
        }
        if place == leading {
            let name = format!("etcd_network_peer_round_trip_time_seconds_count{{To=\"{peer}\"}}");
            let heard = || figure(&member.ring.metrics(), &name).is_some_and(|count| count >= 1.0);
            until("an answer to a heartbeat", heard);
        }
    }
    // One goes away: messages to it fail.
    let mut members = members;
    let gone = members.remove((leading + 1) % members.len());
    let name = format!("etcd_network_peer_sent_failures_total{{To=\"{}\"}}", gone.name);
    gone.stop();
    let failed = || {
        let mut counts = members.iter().filter_map(|m| figure(&m.ring.metrics(), &name));
        counts.any(|count| count >= 1.0)
    };
    until("a message that failed", failed);
    members.into_iter().for_each(Running::stop);
}

#[test]
fn what_a_member_counts_is_where_etcds_figures_are() {
    let world = World::new(&[Behavior::Honest]);
    let mut config = world.ring(&["m1"]).remove(0);
    let listen = "127.0.0.1:0".parse().unwrap();
    config.etcd = Some(EtcdConfig {
        listen,
        urls: Vec::new(),
        tls: None,
        metrics_listen: Some(listen),
        requests: RequestLimits::default(),
        watch_progress_interval: Duration::from_mins(10),
    });
    let member = Running::start(&config);
    let etcd = member.etcd.unwrap();
    let ask = |address, path: &'static str| {
        block_on(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            let ask = format!("GET {path} HTTP/1.1\r\nhost: m1\r\nconnection: close\r\n\r\n");
            client.write_all(ask.as_bytes()).await.unwrap();
            let mut answer = String::new();
            soon("an answer", client.read_to_string(&mut answer)).await.unwrap();
            answer
        })
    };
    for address in [etcd.clients, etcd.metrics.unwrap()] {
        let answer = ask(address, "/metrics");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for name in ["etcd_server_has_leader", "etcd_disk_wal_fsync_duration_seconds_count"] {
            assert!(figure(&answer, name).is_some(), "{name}: {answer}");
        }
        assert!(ask(address, "/livez").starts_with("HTTP/1.1 200"));
    }
    // Monitoring reads; it does not ask for keys.
    let answer = ask(etcd.metrics.unwrap(), "/v3/kv/range");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    member.stop();
}

/// A process without that listener would look alive to its supervisor.
#[test]
fn a_member_ends_with_its_client_listener() {
    let world = World::new(&[Behavior::Honest]);
    let mut config = world.ring(&["m1"]).remove(0);
    config.etcd = Some(EtcdConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        urls: Vec::new(),
        tls: None,
        metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
        requests: RequestLimits::default(),
        // The watch loop adds this to the present time and panics. No config file can set it.
        watch_progress_interval: Duration::MAX,
    });
    let group = TaskGroup::new();
    let ended = block_on(async {
        let _member = start(config, &group, Placement::OwnThread).await.unwrap();
        soon("the end of the member", group.clone().run(WAIT)).await.unwrap_err()
    });
    let Failure::Failed { name, error } = &ended else { panic!("{ended}") };
    assert_eq!(&**name, "etcd");
    assert!(error.contains("because the watch loop ended unexpectedly"), "{error}");
    assert_eq!(RunError::from(ended).fault(), Fault::Machine, "its exit code is 70");
}

/// Both sides of the greeting, as the founder uses it.
#[test]
fn a_welcome_says_whether_there_is_a_ring() {
    let sender = Sender { ring: [1; 32], instance: [2; 16], since: 0 };
    for founded in [false, true] {
        let welcome = Welcome { founded, founders: [3; 32] };
        let bytes = frames::pack(&sender, &ANY_INSTANCE, Kind::Hello, &welcome);
        let (_, rest) = frames::open(&sender, Kind::Hello, &bytes).unwrap();
        assert_eq!(frames::body::<Welcome>(rest).unwrap(), welcome);
    }
}
