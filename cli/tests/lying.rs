//! A server that swallows a change and says that it was decided is not believed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use satrap_certify::{
    Action, BundleName, Change, GovernanceAct, Operator, PublicKey, Retire, SignedChange,
};
use satrap_identity::mtls::{
    CredentialFiles, Credentials, Limits, Listener, PeerRule, server_builder,
};
use satrap_merkle::BundleTree;
use satrap_operator::{Kind, client::Client};
use satrap_proto::fault;
use satrap_proto::v1::{
    GovernanceReply, GovernanceRequest, LightBlockReply, LightBlocksRequest, StatusReply,
    StatusRequest, SubmitReply, SubmitRequest, ValidatorStatus,
    control_server::{self, ControlServer},
    status_reply::Tier,
};
use satrap_runtime::{TaskGroup, ports::Reserved};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use self::realm::{BUNDLE, TestRealm, plan};

const MADE_UP_HEIGHT: u64 = 77;

/// Takes every change, keeps it to itself, and claims a decision, or fails as it was set to.
#[derive(Clone, Default)]
struct Liar {
    asked: Arc<AtomicUsize>,
    fails: Arc<OnceLock<Status>>,
}

#[tonic::async_trait]
impl control_server::Control for Liar {
    type LightBlocksStream = Pin<Box<dyn Stream<Item = Result<LightBlockReply, Status>> + Send>>;

    async fn submit(&self, _: Request<SubmitRequest>) -> Result<Response<SubmitReply>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(status) = self.fails.get() {
            return Err(status.clone());
        }
        let block_hash = vec![7; 32].into();
        Ok(Response::new(SubmitReply { height: MADE_UP_HEIGHT, block_hash, version: 1 }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let status = ValidatorStatus { height: MADE_UP_HEIGHT, ..ValidatorStatus::default() };
        Ok(Response::new(StatusReply { tier: Some(Tier::Validator(status)) }))
    }

    async fn light_blocks(
        &self,
        _: Request<LightBlocksRequest>,
    ) -> Result<Response<Self::LightBlocksStream>, Status> {
        Err(Status::unimplemented("it has no blocks"))
    }

    async fn governance(
        &self,
        _: Request<GovernanceRequest>,
    ) -> Result<Response<GovernanceReply>, Status> {
        Err(Status::unimplemented("it has no governance state"))
    }
}

/// A realm of one honest validator, and a liar with that validator's credentials.
struct World {
    realm: TestRealm,
    liar: Liar,
    liar_url: String,
    group: TaskGroup,
}

impl World {
    async fn start() -> Self {
        let realm = TestRealm::start(plan(1, &[], 0));
        let dir = &realm.files.validators[0].dir;
        let credentials = Credentials::load(CredentialFiles {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            trust: dir.join("trust.pem"),
        })
        .unwrap();
        let (group, liar) = (TaskGroup::new(), Liar::default());
        let any = ([127, 0, 0, 1], 0).into();
        let listener = Listener::bind(any, credentials, PeerRule::Operator, Limits::EDGES);
        let listener = listener.await.unwrap();
        let liar_url = format!("https://{}", listener.local_address().unwrap());
        let server = server_builder(&Limits::EDGES).add_service(ControlServer::new(liar.clone()));
        let stop = group.shutdown().requested();
        group.spawn("liar", server.serve_with_incoming_shutdown(listener, stop));
        let world = Self { realm, liar, liar_url, group };
        world.realm.read(&world.realm.client(world.realm.validator_urls())).await;
        world
    }

    /// Asks the liar first.
    fn client(&self) -> Client {
        let liar = [self.liar_url.clone()].into_iter();
        self.realm.client(liar.chain(self.realm.validator_urls()).collect())
    }

    fn govern(&self, version: u64, act: GovernanceAct) -> SignedChange {
        self.sign(Action::Govern(version, act))
    }

    fn retire(&self, expect_version: u64) -> SignedChange {
        let bundle = BundleName::new(BUNDLE).unwrap();
        self.sign(Action::Retire(Retire { bundle, expect_version }))
    }

    fn sign(&self, action: Action) -> SignedChange {
        let change = Change::new(self.realm.genesis.realm(), action);
        let mut signed = SignedChange::unsigned(change);
        self.realm.keys.iter().for_each(|key| signed.approve(key));
        signed
    }

    async fn stop(self) {
        self.group.shutdown().request();
        self.group.run(Duration::from_secs(10)).await.unwrap();
    }
}

fn content(value: &str) -> BundleTree {
    let mut tree = BundleTree::default();
    let key = satrap_certify::Key::new(b"greeting.txt").unwrap();
    tree.insert(&key, value.as_bytes().into());
    tree
}

#[tokio::test]
async fn a_swallowed_publish_goes_to_the_next_server() {
    let world = World::start().await;
    let client = world.client();
    let change = world.realm.publish(0, &BundleTree::default(), &content("hello"));
    let decided = client.submit(&change).await.unwrap();
    assert_eq!(world.liar.asked.load(Ordering::SeqCst), 1, "the liar was asked first");
    assert_eq!((decided.version, &decided.by), (1, &client.endpoints[1]));
    assert!(decided.height > 0 && decided.height != MADE_UP_HEIGHT, "{decided:?}");
    assert_eq!(world.realm.read(&client).await, (1, content("hello")));

    // With no other server to ask, the error says who claimed what.
    let only_liar = world.realm.client(vec![world.liar_url.clone()]);
    let next = world.realm.publish(1, &content("hello"), &content("bye"));
    let submitted = only_liar.submit_within(&next, Duration::from_secs(8), &|_| {}).await;
    let error = submitted.unwrap_err();
    assert_eq!(error.kind, Kind::Undecided);
    let claim = format!("{}: it says that height {MADE_UP_HEIGHT} decided", world.liar_url);
    assert!(error.message.contains(&claim), "{error}");
    world.stop().await;
}

#[tokio::test]
async fn a_swallowed_revocation_goes_to_the_next_server() {
    let world = World::start().await;
    let client = world.client();
    let mallory =
        PublicKey(ed25519_dalek::SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes());
    let principal = satrap_certify::Label::new("mallory").unwrap();
    let operator = Operator { public: mallory, principal };
    let honest = world.realm.client(world.realm.validator_urls());
    let authorize = world.govern(0, GovernanceAct::AuthorizeOperator(operator));
    honest.submit(&authorize).await.unwrap();
    assert!(honest.governance().await.unwrap().operators.contains_key(&mallory));

    let revoke = world.govern(1, GovernanceAct::RevokeOperator(mallory));
    client.submit(&revoke).await.unwrap();
    let governance = honest.governance().await.unwrap();
    assert!(!governance.operators.contains_key(&mallory), "the revocation was swallowed");
    assert_eq!(governance.version, 2);
    world.stop().await;
}

#[tokio::test]
async fn a_refusal_does_not_speak_for_a_server_that_may_have_the_change() {
    let world = World::start().await;
    world.liar.fails.set(Status::unavailable("it went away")).unwrap();
    let patience = Duration::from_secs(8);
    let stale = world.realm.publish(7, &BundleTree::default(), &content("hello"));

    let error = world.client().submit_within(&stale, patience, &|_| {}).await.unwrap_err();
    assert_eq!(error.kind, Kind::Undecided, "{error}");
    for reason in ["it went away", "refused by rule V4"] {
        assert!(error.message.contains(reason), "{reason}: {error}");
    }
    // Where no server can have it, the refusal is the answer.
    let honest = world.realm.client(world.realm.validator_urls());
    let error = honest.submit_within(&stale, patience, &|_| {}).await.unwrap_err();
    assert_eq!((error.kind, error.rule.as_deref()), (Kind::Refused, Some("V4")), "{error}");
    world.stop().await;
}

/// A publisher whose last version is certified sends the next one at once, and the first server that it
/// asks may not hold that version yet.
#[tokio::test]
async fn a_server_that_is_behind_does_not_speak_for_the_others() {
    let world = World::start().await;
    world.liar.fails.set(fault::behind("V4", "it is at version 0")).unwrap();
    let client = world.client();
    let change = world.realm.publish(0, &BundleTree::default(), &content("hello"));
    let decided = client.submit(&change).await.unwrap();
    assert_eq!(
        world.liar.asked.load(Ordering::SeqCst),
        1,
        "the one that is behind was asked first"
    );
    assert_eq!((decided.version, &decided.by), (1, &client.endpoints[1]));

    // If all of them are behind, the change expects a version that never was.
    let early = world.realm.publish(7, &BundleTree::default(), &content("bye"));
    let error = client.submit(&early).await.unwrap_err();
    assert_eq!((error.kind, error.rule.as_deref()), (Kind::Refused, Some("V4")), "{error}");
    assert!(error.message.contains("is at version 1, the change expects 7"), "{error}");
    // One that is behind does not speak for one that cannot be asked.
    let unreachable = Reserved::any(1).unwrap();
    let unreachable = format!("https://{}", unreachable.addresses()[0]);
    let client = world.realm.client(vec![world.liar_url.clone(), unreachable]);
    let error = client.submit(&early).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert!(error.message.contains("it is at version 0"), "{error}");
    world.stop().await;
}

#[tokio::test]
async fn a_change_that_was_overtaken_is_not_said_to_be_refused_or_decided() {
    let world = World::start().await;
    let client = world.realm.client(world.realm.validator_urls());
    let first = world.realm.publish(0, &BundleTree::default(), &content("hello"));
    client.submit(&first).await.unwrap();
    assert!(client.submit(&first).await.unwrap().before);
    let second = world.realm.publish(1, &content("hello"), &content("bye"));
    client.submit(&second).await.unwrap();

    let error = client.submit(&first).await.unwrap_err();
    assert_eq!(error.kind, Kind::Undecided, "{error}");
    assert!(error.message.contains("the bundle has moved on to version 2"), "{error}");

    // A retirement by another change is none of a version that never was.
    client.submit(&world.retire(2)).await.unwrap();
    assert!(client.submit(&world.retire(2)).await.unwrap().before);
    let error = client.submit(&world.retire(9)).await.unwrap_err();
    assert_eq!((error.kind, error.rule.as_deref()), (Kind::Refused, Some("V4")), "{error}");
    world.stop().await;
}
