//! Edges and operators ask a member, and get what their roles allow.

use std::time::Duration;

use satrap_certify::{BundleName, Interest, Replica, Report, SignedReport, Timestamp};
use satrap_identity::{
    charges::SUBMIT_REFUSED_BYTES,
    mtls::{self, Credentials, PeerRule},
    pki::Role,
    signer::sign,
};
use satrap_proto::fault::Fault;
use satrap_proto::v1::{
    FaultKind, GovernanceRequest, LightBlocksRequest, RegionStatus, StatusRequest, SubmitRequest,
    control_client::ControlClient, status_reply::Tier,
};
use satrap_runtime::{clock, ports::Reserved};
use satrap_sync::client::{FollowError, UpdateStream};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    cluster::{Behavior, REGION, Running, VERDICT, WAIT, World, block_on, soon},
    realm::{Realm, label},
};
use crate::{
    config::{Config, Endpoint},
    limits::SUBMIT_RATE,
};

fn channel(member: &Running, credentials: &Credentials) -> Channel {
    let url = format!("https://{}", member.client_address);
    mtls::connect_lazy(&url, credentials, PeerRule::Member(REGION.into())).unwrap()
}

fn edge_replica(world: &World) -> Replica {
    let bundles = Interest::Bundles(vec![BundleName::new("pki/trust").unwrap()]);
    Replica::genesis(&world.realm.lock().unwrap().genesis, bundles)
}

pub struct Edge {
    replica: Replica,
    updates: UpdateStream,
}

impl Edge {
    pub async fn follow(
        world: &World,
        member: &Running,
        credentials: &Credentials,
    ) -> Result<Self, FollowError> {
        let replica = edge_replica(world);
        let channel = channel(member, credentials);
        let updates = UpdateStream::on(channel, &replica.position(), WAIT).await?;
        Ok(Self { replica, updates })
    }

    /// Takes updates until `height`, verifying each as an edge does.
    pub async fn wait_for_height(&mut self, height: u64) {
        while self.replica.height() < height {
            let update = self.updates.next(WAIT).await.unwrap();
            let advance = self.replica.verify(&update, Timestamp(clock::now())).unwrap();
            self.replica.advance(advance);
        }
    }

    async fn report(&self, world: &World, as_edge: &str, credentials: &Credentials) {
        let now = Timestamp(clock::now());
        self.report_at(now, world, as_edge, credentials).await;
    }

    async fn report_at(
        &self,
        time: Timestamp,
        world: &World,
        as_edge: &str,
        credentials: &Credentials,
    ) {
        let identity = credentials.current();
        let report = Report {
            genesis_hash: *world.realm.lock().unwrap().genesis.realm().genesis_hash(),
            region: label(REGION),
            edge: label(as_edge),
            time,
            started: Timestamp(1),
            height: self.replica.height(),
            certified_time: self.replica.certified_time(),
            running: Vec::new(),
            failed: Vec::new(),
            refusals: Vec::new(),
        };
        let signature = sign(&*identity.signer, &report.signed_bytes()).await.unwrap();
        let signed = SignedReport { report, certificate: identity.leaf_der.to_vec(), signature };
        self.updates.report(&signed);
    }
}

async fn status_of(member: &Running, credentials: &Credentials) -> RegionStatus {
    let mut control = ControlClient::new(channel(member, credentials));
    let reply = control.status(StatusRequest { local_only: false }).await.unwrap();
    match reply.into_inner().tier.unwrap() {
        Tier::Region(status) => status,
        Tier::Validator(_) => panic!("a member is no validator"),
    }
}

/// E1
#[test]
fn a_validator_that_sends_no_updates_is_left_and_counted() {
    let world = World::new(&[Behavior::SendsNoise]);
    let member = Running::start(&world.ring(&["m1"]).remove(0));
    let operator = world.credentials(World::operator());
    // It is the only one, so being left shows as being followed again.
    let mut streams = world.streams_opened.subscribe();
    block_on(async {
        soon("a second stream", streams.wait_for(|opened| *opened >= 2)).await.unwrap();
        assert!(status_of(&member, &operator).await.refusals["E1"] >= 1);
    });
    member.stop();
}

#[test]
fn an_edge_follows_reports_and_shows_up_in_the_status_of_every_member() {
    let world = World::new(&[Behavior::Honest]);
    let members: Vec<_> = world
        .ring(&["m1", "m2", "m3"])
        .iter()
        .map(Running::start_with_production_threads)
        .collect();
    let credentials = world.credentials(World::edge("e1"));
    let operator = world.credentials(World::operator());
    block_on(async {
        let mut edge = Edge::follow(&world, &members[1], &credentials).await.unwrap();
        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"1"));
        edge.wait_for_height(height).await;
        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"2"));
        edge.wait_for_height(height).await;
        edge.report(&world, "e1", &credentials).await;
        // A further update on the same stream: by then the report before it was taken.
        let height = world.decide(Realm::heartbeat);
        edge.wait_for_height(height).await;
        for member in &members {
            member.wait_for_height(height).await;
        }

        let status = status_of(&members[0], &operator).await;
        assert_eq!(status.connected_edges, ["e1"]);
        assert_eq!(status.reports.len(), 1);
        assert_eq!(status.height, height);
        assert_eq!(status.bundles[0].version, 2);
        assert!(status.upstream_connected, "the leader has a stream");
        assert!(!status.leader.is_empty());
        assert!(status.members.iter().all(|member| member.reachable));

        // With a clock that is an hour ahead: the report is refused, and the edge gets updates.
        let ahead = Timestamp(clock::now()).plus(Duration::from_secs(3_600));
        edge.report_at(ahead, &world, "e1", &credentials).await;
        let height = world.decide(Realm::heartbeat);
        edge.wait_for_height(height).await;
        let later = status_of(&members[0], &operator).await;
        assert_eq!((later.refusals["R2"], later.reports), (1, status.reports));

        // In the name of another edge: refused by rule, and the stream ends.
        edge.report(&world, "e2", &credentials).await;
        let refused = edge.updates.next(WAIT).await.unwrap_err();
        let FollowError::Ended(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(Fault::of(&refused).rule(), Some("R1"), "{refused}");
        assert_eq!(status_of(&members[0], &operator).await.refusals["R1"], 1);
    });
    members.into_iter().for_each(Running::stop);
}

#[test]
fn roles_decide_what_may_be_asked() {
    let world = World::new(&[Behavior::Honest]);
    let member = Running::start(&world.ring(&["m1"])[0]);
    block_on(async {
        let edge = world.credentials(World::edge("e1"));
        let neighbor = world.credentials(Role::Edge { region: "us".into(), name: "e1".into() });
        let validator = world.credentials(Role::Validator { name: "v1".into() });
        let denied = |status: Status| assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        let mut control = ControlClient::new(channel(&member, &edge));
        denied(control.status(StatusRequest::default()).await.unwrap_err());
        denied(control.submit(SubmitRequest::default()).await.unwrap_err());
        denied(control.governance(GovernanceRequest {}).await.unwrap_err());
        denied(control.light_blocks(LightBlocksRequest::default()).await.err().unwrap());

        let height = world.decide(|realm| realm.publish("pki/trust", "a", b"1"));
        let mut fallen_back = Edge::follow(&world, &member, &neighbor).await.unwrap();
        fallen_back.wait_for_height(height).await;
        assert!(Edge::follow(&world, &member, &validator).await.is_err(), "no handshake");

        let operator = world.credentials(World::operator());
        let mut control = ControlClient::new(channel(&member, &operator));
        let blocks = control.light_blocks(LightBlocksRequest::default()).await.err().unwrap();
        assert_eq!(blocks.code(), Code::Unimplemented);

        let mut health = HealthClient::new(channel(&member, &operator));
        let answer = health.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        let stranger = HealthCheckRequest { service: "satrap.v1.Control".to_owned() };
        let mut statuses = health.watch(stranger).await.unwrap().into_inner();
        let status = statuses.message().await.unwrap().unwrap();
        assert_eq!(status.status(), ServingStatus::ServiceUnknown);
    });
    member.stop();
}

/// A validator that refuses connections for as long as its port is reserved.
fn dead_validator() -> (Reserved, Endpoint) {
    let reserved = Reserved::any(1).unwrap();
    let url = format!("https://{}", reserved.addresses()[0]);
    (reserved, Endpoint { name: label("v9"), url })
}

/// How a member with this configuration refuses a change.
fn refusal(world: &World, config: &Config) -> Status {
    let member = Running::start(config);
    let refused = block_on(async {
        let operator = world.credentials(World::operator());
        let mut control = ControlClient::new(channel(&member, &operator));
        control.submit(SubmitRequest::default()).await.unwrap_err()
    });
    member.stop();
    refused
}

#[test]
fn a_verdict_passes_through_and_a_dead_validator_does_not_matter() {
    let world = World::new(&[Behavior::Honest]);
    let mut config = world.ring(&["m1"]).remove(0);
    let (_reserved, dead) = dead_validator();
    config.validators.insert(0, dead);
    let member = Running::start(&config);
    block_on(async {
        let operator = world.credentials(World::operator());
        let mut control = ControlClient::new(channel(&member, &operator));
        let refused = control.submit(SubmitRequest::default()).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, VERDICT));
        let governance = control.governance(GovernanceRequest {}).await.unwrap().into_inner();
        assert_eq!((&governance.governance[..], governance.height), (&[7][..], 3));
    });
    member.stop();
}

#[test]
fn a_validator_that_did_not_look_does_not_speak_for_one_that_failed() {
    for (honesty, code, words) in [
        (Behavior::MempoolFull, Code::ResourceExhausted, "the mempool is full"),
        (Behavior::ForbidsRegion, Code::PermissionDenied, "not from this region"),
    ] {
        let world = World::new(&[honesty]);
        let mut config = world.ring(&["m1"]).remove(0);
        let refused = refusal(&world, &config);
        assert_eq!((refused.code(), refused.message()), (code, words));
        // One that failed may have taken the change, so the caller must not read that none did.
        let (_reserved, dead) = dead_validator();
        config.validators.insert(0, dead);
        let refused = refusal(&world, &config);
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains(words), "{refused:?}");
    }
}

/// A publisher whose last version is certified sends the next one at once.
#[test]
fn a_validator_that_is_behind_does_not_speak_for_the_others() {
    let submit = |behaviors: &[Behavior], dead: Option<Endpoint>| {
        let world = World::new(behaviors);
        let mut config = world.ring(&["m1"]).remove(0);
        config.validators.extend(dead);
        refusal(&world, &config)
    };
    let judged = submit(&[Behavior::IsBehind, Behavior::Honest], None);
    assert_eq!((judged.code(), judged.message()), (Code::FailedPrecondition, VERDICT));
    let not_asked = submit(&[Behavior::IsBehind, Behavior::MempoolFull, Behavior::Honest], None);
    assert_eq!(not_asked.message(), VERDICT, "one that did not look does not speak for it either");
    let unlooked = submit(&[Behavior::IsBehind, Behavior::MempoolFull], None);
    assert_eq!(Fault::of(&unlooked).kind(), FaultKind::Limited, "{unlooked:?}");
    let all_behind = submit(&[Behavior::IsBehind, Behavior::IsBehind], None);
    assert_eq!(Fault::of(&all_behind), Fault::behind("V4"), "{all_behind:?}");
    let (_reserved, dead) = dead_validator();
    let one_may_have_it = submit(&[Behavior::IsBehind], Some(dead));
    assert_eq!(Fault::of(&one_may_have_it).kind(), FaultKind::Undecided, "{one_may_have_it:?}");
}

/// CHARGE-2: validators charge a refused change to the region, so its author pays the region's member, also
/// where another validator did not answer.
#[test]
fn a_caller_pays_for_what_validators_that_are_behind_judged() {
    let world = World::new(&[Behavior::IsBehind]);
    let mut config = world.ring(&["m1"]).remove(0);
    let (_reserved, dead) = dead_validator();
    config.validators.push(dead);
    let member = Running::start(&config);
    let begun = clock::monotonic();
    block_on(async {
        let operator = world.credentials(World::operator());
        let mut control = ControlClient::new(channel(&member, &operator));
        for tries in 0.. {
            let refused = control.submit(SubmitRequest::default()).await.unwrap_err();
            match Fault::of(&refused).kind() {
                FaultKind::Limited => break,
                kind => assert_eq!(kind, FaultKind::Undecided, "{refused:?}"),
            }
            let seconds = (clock::monotonic() - begun).as_secs() + 1;
            let budget = u64::from(SUBMIT_RATE.burst) + u64::from(SUBMIT_RATE.per_s) * seconds;
            let paid = budget / SUBMIT_REFUSED_BYTES as u64;
            assert!(tries <= paid, "{tries} tries in {seconds} s, {paid} are paid for");
        }
    });
    member.stop();
}

#[test]
fn a_region_cut_off_from_validators_serves_and_says_how_old_it_is() {
    let mut world = World::new(&[Behavior::Honest]);
    let config = world.ring(&["m1"]).remove(0);
    let member = Running::start(&config);
    let height = world.decide(|realm| realm.publish("pki/trust", "a", b"1"));
    block_on(member.wait_for_height(height));
    member.stop();
    // The validators are gone when it comes back.
    world.stop_validators();
    let member = Running::start(&config);
    let (edge, operator) =
        (world.credentials(World::edge("e1")), world.credentials(World::operator()));
    block_on(async {
        let mut edge = Edge::follow(&world, &member, &edge).await.unwrap();
        edge.wait_for_height(height).await;
        let status = status_of(&member, &operator).await;
        assert!(!status.upstream_connected);
        assert_eq!(status.height, height);
        assert!(status.age_ms > 0);
    });
    member.stop();
}
