//! Four validators in one process, on loopback, with real mTLS, real files and real clocks: they decide, restart, serve
//! followers and operators, and refuse wrong names and keys.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use satrap_certify::{Genesis, Interest, Label, PublicKey, Replica, SignatureBytes, Timestamp};
use satrap_global_node::{Addresses, Config, malachite::Timing, start, start_with};
use satrap_identity::{
    mtls::{self, CredentialFiles, Credentials, PeerRule},
    pki::{Authority, Role, Scope, SpiffeId},
    signer::{Signer, SignerError, SoftSigner},
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::fault::Fault;
use satrap_proto::v1::{
    GovernanceRequest, LightBlocksRequest, MeshFrame, StatusRequest, SubmitRequest,
    ValidatorStatus, control_client::ControlClient, mesh_client::MeshClient, status_reply::Tier,
};
use satrap_runtime::{TaskGroup, clock, files, runtime};
use satrap_sync::client::UpdateStream;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::realm::{genesis, key, name, publish};

const HOUR: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(60);
const CHAIN: &str = "test";

/// A realm on disk: one directory per process, credentials for all.
struct Realm {
    genesis: Genesis,
    dir: tempfile::TempDir,
    validators: Authority,
    operators: Authority,
}

struct Node {
    group: TaskGroup,
    listens: Addresses,
}

impl Realm {
    fn new() -> Self {
        let now = clock::now();
        let chain = CHAIN.to_owned();
        let validators = Scope::Validators { chain: chain.clone() };
        Self {
            // Heartbeats every second, from the first start on.
            genesis: genesis_now(),
            dir: tempfile::tempdir().unwrap(),
            validators: Authority::create(validators, now, 24 * HOUR).unwrap(),
            operators: Authority::create(Scope::Operators { chain }, now, 24 * HOUR).unwrap(),
        }
    }

    fn credentials(&self, who: &str, role: Role) -> CredentialFiles {
        let dir = self.dir.path().join(who);
        std::fs::create_dir_all(&dir).unwrap();
        let authority = match role {
            Role::Validator { .. } => &self.validators,
            _ => &self.operators,
        };
        let id = SpiffeId::new(CHAIN, role).unwrap();
        let leaf = authority.issue(&id, clock::now(), HOUR).unwrap();
        let trust = [self.validators.certificate_pem(), self.operators.certificate_pem()].concat();
        let paths = CredentialFiles {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            trust: dir.join("trust.pem"),
        };
        files::write(&paths.certificate, leaf.certificate_pem.as_bytes()).unwrap();
        files::write_secret(&paths.key, leaf.key_pem.as_bytes()).unwrap();
        files::write(&paths.trust, trust.as_bytes()).unwrap();
        paths
    }

    fn data_dir(&self, n: u8) -> PathBuf {
        self.dir.path().join(name(n).as_str()).join("data")
    }

    /// Starts validator `n`, which dials those of `others` that run. The URLs in the genesis lead
    /// nowhere, so each pair has one connection and uses both of its directions.
    async fn start(&self, n: u8, others: &[(u8, SocketAddr)]) -> Node {
        let group = TaskGroup::new();
        let listens = start(self.config(n, others), &group).await.unwrap();
        Node { group, listens }
    }

    fn config(&self, n: u8, others: &[(u8, SocketAddr)]) -> Config {
        let role = Role::Validator { name: name(n).to_string() };
        let credentials = self.credentials(name(n).as_str(), role);
        let signing_key = self.dir.path().join(name(n).as_str()).join("signing.key");
        files::write_secret(&signing_key, hex::encode(key(n).to_bytes()).as_bytes()).unwrap();
        Config {
            genesis: self.genesis.clone(),
            name: name(n),
            data_dir: self.data_dir(n),
            listen: "127.0.0.1:0".parse().unwrap(),
            mesh_listen: "127.0.0.1:0".parse().unwrap(),
            signing_key,
            credentials,
            peer_urls: others.iter().map(|(n, at)| (name(*n), url(at))).collect(),
            timing: Timing::default(),
        }
    }

    async fn connect(&self, node: &Node, credentials: &Credentials) -> Channel {
        mtls::connect(&url(&node.listens.clients), credentials, PeerRule::AnyValidator)
            .await
            .unwrap()
    }
}

/// A genesis a moment ago, so that block times are after it.
fn genesis_now() -> Genesis {
    let template = genesis(4, 100, Duration::from_secs(1));
    let time = Timestamp(clock::now() - 1_000_000_000);
    let chain = satrap_certify::ChainId::new(CHAIN).unwrap();
    Genesis::new(&chain, time, template.policy, template.governance).unwrap()
}

fn url(address: &SocketAddr) -> String {
    format!("https://{address}")
}

/// Follows a validator until its replica has verified `height`.
async fn follow(realm: &Realm, channel: Channel, height: u64) -> Replica {
    let mut replica = Replica::genesis(&realm.genesis, Interest::Everything);
    let mut updates = UpdateStream::on(channel, &replica.position(), PATIENCE).await.unwrap();
    while replica.height() < height {
        let update = updates.next(PATIENCE).await.unwrap();
        let advance = replica.verify(&update, Timestamp(clock::now())).unwrap();
        replica.advance(advance);
    }
    replica
}

async fn status(channel: Channel) -> ValidatorStatus {
    let request = StatusRequest { local_only: true };
    let reply = ControlClient::new(channel).status(request).await.unwrap().into_inner();
    match reply.tier {
        Some(Tier::Validator(status)) => status,
        other => panic!("{other:?}"),
    }
}

async fn submit(realm: &Realm, channel: Channel, n: u64) -> Result<u64, tonic::Status> {
    let change = publish(&realm.genesis, n).to_canonical().into();
    let mut client = ControlClient::new(channel);
    let reply = tokio::time::timeout(PATIENCE, client.submit(SubmitRequest { change })).await;
    Ok(reply.expect("decided in time")?.into_inner().height)
}

async fn stop(node: Node) {
    node.group.shutdown().request();
    node.group.run(Duration::from_secs(10)).await.unwrap();
}

#[test]
fn four_validators_decide_over_mtls_and_one_of_them_restarts() {
    runtime::multi_thread("test", 2).unwrap().block_on(async {
        let realm = Realm::new();
        let role = Role::Operator { name: "alice".into() };
        let alice = Credentials::load(realm.credentials("alice", role)).unwrap();
        let mut nodes = Vec::new();
        for n in 0..4 {
            let running: Vec<_> =
                nodes.iter().map(|(n, node): &(u8, Node)| (*n, node.listens.mesh)).collect();
            nodes.push((n, realm.start(n, &running).await));
        }
        let mut decided = 0;
        for (n, node) in &nodes {
            let channel = realm.connect(node, &alice).await;
            decided = submit(&realm, channel, u64::from(*n)).await.unwrap();
        }
        // All of them serve the same verified state.
        let mut roots = Vec::new();
        for (_, node) in &nodes {
            let channel = realm.connect(node, &alice).await;
            let replica = tokio::time::timeout(PATIENCE, follow(&realm, channel, decided)).await;
            let heads = replica.unwrap().heads().clone();
            roots.push(heads.into_iter().map(|(n, h)| (n, h.root)).collect::<Vec<_>>());
        }
        assert_eq!(roots[0].len(), 4);
        assert!(roots.iter().all(|r| *r == roots[0]));
        rules_are_named(&realm, &nodes[1].1, &alice).await;
        health_and_services_are_shown(realm.connect(&nodes[1].1, &alice).await).await;
        what_was_decided_is_served(&realm, &nodes[2].1, &alice, decided).await;

        // One stops: three go on. It restarts and catches up.
        let (_, gone) = nodes.pop().unwrap();
        stop(gone).await;
        let channel = realm.connect(&nodes[0].1, &alice).await;
        let height = submit(&realm, channel, 100).await.unwrap();
        let running: Vec<_> = nodes.iter().map(|(n, node)| (*n, node.listens.mesh)).collect();
        let back = realm.start(3, &running).await;
        let channel = realm.connect(&back, &alice).await;
        tokio::time::timeout(PATIENCE, follow(&realm, channel, height)).await.unwrap();
        nodes.push((3, back));
        for (_, node) in nodes {
            stop(node).await;
        }
    });
}

/// A key whose device can be taken away.
struct Removable(SoftSigner, AtomicBool);

#[async_trait::async_trait]
impl Signer for Removable {
    fn public(&self) -> PublicKey {
        self.0.public()
    }

    async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError> {
        if self.1.load(Ordering::Relaxed) {
            return self.0.sign(message).await;
        }
        Err(SignerError::Unavailable("no device in the slot".into()))
    }
}

/// Asks for the status of a validator until `done` of it.
async fn status_with(channel: &Channel, done: impl Fn(&ValidatorStatus) -> bool) {
    let asked = async {
        while !done(&status(channel.clone()).await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("the status shows it in time");
}

/// The signer of one validator fails from its start on: it starts and follows, its status says why it
/// does not vote, and it votes as soon as the signer answers.
#[test]
fn a_validator_whose_signer_fails_follows_and_says_so() {
    runtime::multi_thread("test", 2).unwrap().block_on(async {
        let realm = Realm::new();
        let role = Role::Operator { name: "alice".into() };
        let alice = Credentials::load(realm.credentials("alice", role)).unwrap();
        let mut nodes: Vec<(u8, Node)> = Vec::new();
        let signer = Arc::new(Removable(SoftSigner::new(key(3)), AtomicBool::new(false)));
        for n in 0..4 {
            let running: Vec<_> = nodes.iter().map(|(n, node)| (*n, node.listens.mesh)).collect();
            let node = match n {
                3 => {
                    let (group, config) = (TaskGroup::new(), realm.config(n, &running));
                    let listens = start_with(config, signer.clone(), &group).await.unwrap();
                    Node { group, listens }
                }
                n => realm.start(n, &running).await,
            };
            nodes.push((n, node));
        }
        let (first, last) = (&nodes[0].1, &nodes[3].1);
        let channel = realm.connect(first, &alice).await;
        let decided = submit(&realm, channel.clone(), 0).await.unwrap();
        let failing = realm.connect(last, &alice).await;
        status_with(&failing, |s| s.height > decided && !s.signer_failure.is_empty()).await;
        let shown = status(failing.clone()).await;
        assert_eq!(shown.signer_failure, "the signer is unavailable: no device in the slot");
        let votes = |s: &ValidatorStatus| {
            s.validators.iter().any(|v| v.name == name(3).as_str() && v.signed_last)
        };
        assert!(!votes(&status(channel.clone()).await), "it casts no votes");
        signer.1.store(true, Ordering::Relaxed);
        status_with(&failing, |s| s.signer_failure.is_empty()).await;
        status_with(&channel, votes).await;
        for (_, node) in nodes {
            stop(node).await;
        }
    });
}

async fn join(channel: Channel) -> Result<(), tonic::Status> {
    let (_frames, stream) = tokio::sync::mpsc::channel::<MeshFrame>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    MeshClient::new(channel).exchange(stream).await.map(|_| ())
}

/// gRPC health and reflection.
async fn health_and_services_are_shown(channel: Channel) {
    let mut health = HealthClient::new(channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let stranger = HealthCheckRequest { service: "satrap.v1.Nope".to_owned() };
    let mut statuses = health.watch(stranger).await.unwrap().into_inner();
    let status = statuses.message().await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::ServiceUnknown);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection.server_reflection_info(tokio_stream::iter([list])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["satrap.v1.Control", "satrap.v1.Sync", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|found| found == "satrap.v1.Mesh"), "{names:?}");
}

async fn rules_are_named(realm: &Realm, node: &Node, alice: &Credentials) {
    let channel = realm.connect(node, alice).await;
    let error = submit(realm, channel.clone(), 0).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(Fault::of(&error).rule(), Some("V4"), "{error}");
    // The mesh has its own listener, which admits no operator, and is not served on the other.
    let mesh = mtls::connect(&url(&node.listens.mesh), alice, PeerRule::AnyValidator).await;
    assert!(join(mesh.unwrap()).await.is_err(), "the listener cuts the connection");
    assert_eq!(join(channel.clone()).await.unwrap_err().code(), Code::Unimplemented);
    let v3 = realm.credentials("v3", Role::Validator { name: "v3".into() });
    let v3 = Credentials::load(v3).unwrap();
    let mesh = mtls::connect(&url(&node.listens.mesh), &v3, PeerRule::AnyValidator).await.unwrap();
    let request = StatusRequest { local_only: true };
    let error = ControlClient::new(mesh).status(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let garbage = SubmitRequest { change: vec![1, 2, 3].into() };
    let error = ControlClient::new(channel).submit(garbage).await.unwrap_err();
    assert_eq!(Fault::of(&error).rule(), Some("E1"), "{error}");
}

async fn what_was_decided_is_served(realm: &Realm, node: &Node, alice: &Credentials, to: u64) {
    let channel = realm.connect(node, alice).await;
    let status = status(channel.clone()).await;
    assert_eq!(status.name, name(2).as_str());
    assert!(status.height >= to && status.in_set);
    assert_eq!(status.validators.len(), 4);
    assert!(status.validators.iter().all(|v| v.connected), "{:?}", status.validators);
    assert!(status.validators.iter().filter(|v| v.signed_last).count() >= 3);
    assert_eq!(status.validators.iter().filter(|v| v.proposed_last).count(), 1);
    assert_eq!(status.bundles.len(), 4);
    let mut control = ControlClient::new(channel).max_decoding_message_size(1 << 21);
    let reply = control.governance(GovernanceRequest {}).await.unwrap().into_inner();
    let mut governance = satrap_certify::Governance::from_canonical(&reply.governance).unwrap();
    // Publishes since then are accounted for; nothing else has changed.
    assert_ne!(std::mem::take(&mut governance.accounts), [0; 32]);
    assert_eq!(governance, realm.genesis.governance);
    let request = LightBlocksRequest { from_height: 1, to_height: to };
    let mut blocks = control.light_blocks(request).await.unwrap().into_inner();
    let mut height = 0;
    while let Some(block) = blocks.message().await.unwrap() {
        height += 1;
        assert_eq!(block.height, height);
        let commit = satrap_certify::Commit::from_canonical(&block.commit).unwrap();
        let decided = satrap_certify::Block::from_canonical(&block.block).unwrap();
        let set = realm.genesis.validators();
        commit.verify(realm.genesis.realm(), &decided.checkpoint, set).unwrap();
        assert!(!block.light_block.is_empty());
    }
    assert_eq!(height, to);
}

#[test]
fn a_process_with_the_wrong_name_or_key_does_not_start() {
    runtime::multi_thread("test", 1).unwrap().block_on(async {
        let realm = Realm::new();
        let credentials = realm.credentials("v0", Role::Validator { name: "v0".into() });
        let signing_key = realm.dir.path().join("signing.key");
        files::write_secret(&signing_key, b"not a key").unwrap();
        let config = Config {
            genesis: realm.genesis.clone(),
            name: Label::new("v0").unwrap(),
            data_dir: realm.data_dir(0),
            listen: "127.0.0.1:0".parse().unwrap(),
            mesh_listen: "127.0.0.1:0".parse().unwrap(),
            signing_key,
            credentials,
            peer_urls: Default::default(),
            timing: Timing::default(),
        };
        let config = Arc::new(config);
        let group = TaskGroup::new();
        let error = start(Config::clone(&config), &group).await.unwrap_err().to_string();
        assert!(error.contains("`signing_key`") && error.contains("signing.key"), "{error}");
        assert!(error.contains("it holds no signing key"), "{error}");
        assert!(error.contains("name a file with 64 hex digits"), "{error}");
        let other = Config { name: Label::new("v1").unwrap(), ..Config::clone(&config) };
        let error = start(other, &group).await.unwrap_err().to_string();
        assert!(error.contains("`tls.cert`"), "{error}");
        let told = "is for spiffe://test/validator/v0, this configuration for \
                    spiffe://test/validator/v1";
        assert!(error.contains(told), "{error}");
    });
}
