//! The client over real mTLS: what it makes of an honest source, of one that misbehaves at every
//! step of an update, and of one that is not the source that was named.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use satrap_certify::{
    BundleName, Interest, Position, Rejection, Replica,
    limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX},
};
use satrap_identity::{
    mtls::{
        ConnectError, CredentialFiles, Credentials, Limits, Listener, PeerIdentity, PeerRule,
        server_builder,
    },
    pki::{Authority, Scope},
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{
    FollowReply, FollowRequest,
    follow_request::Body as Asked,
    sync_client::SyncClient,
    sync_server::{Sync as Serve, SyncServer},
};
use satrap_runtime::{TaskGroup, clock, files, runtime};
use satrap_sim::SimRealm;
use satrap_sync::{
    client::{FollowError, Source, UpdateStream},
    pieces::{ENVELOPE_BYTES, PIECE_BYTES, pieces},
    server::{FollowService, Followers, limits::POSITIONS},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming, body::Body, codegen::http, service::Routes,
};
use tonic_prost::ProstCodec;

const HOUR: Duration = Duration::from_secs(3_600);
/// Of everything that must happen.
const WAIT: Duration = Duration::from_secs(60);
/// Of everything that must not.
const BRIEF: Duration = Duration::from_millis(200);
const BUNDLE: &str = "config/motd";
const VALIDATOR: &str = "spiffe://test/validator/v1";
const MEMBER: &str = "spiffe://test/region/us/member/m1";

/// One CA per scope, trusted by all.
struct Realm {
    dir: tempfile::TempDir,
    authorities: Vec<Authority>,
}

impl Realm {
    fn new() -> Self {
        let create = |scope: &str| {
            let scope: Scope = scope.parse().unwrap();
            Authority::create(scope, clock::now(), HOUR).unwrap()
        };
        let scopes =
            ["spiffe://test/validator", "spiffe://test/region/us", "spiffe://test/region/eu"];
        Self {
            dir: tempfile::tempdir().unwrap(),
            authorities: scopes.map(create).into_iter().collect(),
        }
    }

    fn credentials(&self, id: &str) -> Credentials {
        let mut issued = self
            .authorities
            .iter()
            .filter_map(|authority| authority.issue(&id.parse().unwrap(), clock::now(), HOUR).ok());
        let leaf = issued.next().unwrap();
        let trust: String = self.authorities.iter().map(Authority::certificate_pem).collect();
        let path = |end: &str| self.dir.path().join(format!("{}.{end}", id.replace('/', "_")));
        let files =
            CredentialFiles { certificate: path("pem"), key: path("key"), trust: path("trust") };
        files::write(&files.certificate, leaf.certificate_pem.as_bytes()).unwrap();
        files::write_secret(&files.key, leaf.key_pem.as_bytes()).unwrap();
        files::write(&files.trust, trust.as_bytes()).unwrap();
        Credentials::load(files).unwrap()
    }
}

/// Runs `test` beside a group that must not have failed meanwhile.
fn run<F: Future<Output = ()>>(test: impl FnOnce(TaskGroup, Realm) -> F) {
    runtime::current_thread().unwrap().block_on(async {
        let group = TaskGroup::new();
        tokio::time::timeout(2 * WAIT, test(group.clone(), Realm::new())).await.unwrap();
        group.shutdown().request();
        group.run(Duration::from_secs(10)).await.unwrap();
    });
}

/// Serves `routes` as `id`, and returns the address.
async fn serve(group: &TaskGroup, realm: &Realm, id: &str, routes: Routes) -> SocketAddr {
    let any_port = ([127, 0, 0, 1], 0).into();
    let (credentials, rule) = (realm.credentials(id), PeerRule::AnyMember);
    let listener = Listener::bind(any_port, credentials, rule, Limits::EDGES).await.unwrap();
    let address = listener.local_address().unwrap();
    let stopped = group.shutdown().requested();
    let server = server_builder(&Limits::EDGES).add_routes(routes);
    group.spawn("source", server.serve_with_incoming_shutdown(listener, stopped));
    address
}

fn source(address: SocketAddr, rule: PeerRule) -> Source {
    Source { url: format!("https://{address}"), rule }
}

/// A source that sends on its one stream what the test says.
struct Script {
    replies: Mutex<Option<mpsc::Receiver<Result<FollowReply, Status>>>>,
    asked: mpsc::Sender<FollowRequest>,
}

#[tonic::async_trait]
impl Serve for Script {
    type FollowStream = ReceiverStream<Result<FollowReply, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let replies = self.replies.lock().unwrap().take();
        let replies = replies.ok_or_else(|| Status::unavailable("one stream only"))?;
        let first = request.into_inner().message().await?.unwrap();
        self.asked.send(first).await.unwrap();
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

/// A follower of a [`Script`], and the script's pen.
struct Scripted {
    updates: UpdateStream,
    say: mpsc::Sender<Result<FollowReply, Status>>,
}

impl Scripted {
    async fn new(group: &TaskGroup, realm: &Realm, position: &Position) -> Self {
        let (say, replies) = mpsc::channel(1);
        let (asked, mut first) = mpsc::channel(1);
        let script = Script { replies: Mutex::new(Some(replies)), asked };
        let routes = Routes::new(SyncServer::new(script));
        let address = serve(group, realm, VALIDATOR, routes).await;
        let source = source(address, PeerRule::AnyValidator);
        let follower = realm.credentials("spiffe://test/region/eu/member/m1");
        let updates = UpdateStream::open(&source, &follower, position, WAIT).await.unwrap();
        let Some(Asked::Position(said)) = first.recv().await.unwrap().body else {
            panic!("the position comes first")
        };
        assert_eq!(Position::from_canonical(&said).unwrap(), *position);
        Self { updates, say }
    }

    async fn say(&self, update: &[u8], more: bool) {
        let update = update.to_vec().into();
        self.say.send(Ok(FollowReply { update, more })).await.unwrap();
    }

    async fn next(&mut self) -> Result<satrap_certify::Update, FollowError> {
        self.updates.next(WAIT).await
    }
}

/// A realm with content of some pieces, and the answer to a follower of it at the genesis.
fn published() -> (SimRealm, Position, satrap_certify::Update) {
    let mut realm = SimRealm::new("test", 4);
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let change = realm.publish(BUNDLE, &[("a", &"x".repeat(3 * PIECE_BYTES))]);
    let update = realm.decide(&[change]).unwrap();
    let advance = relay.verify(&update, realm.now).unwrap();
    relay.advance(advance);
    let interest = Interest::Bundles(vec![BundleName::new(BUNDLE).unwrap()]);
    let position = Replica::genesis(&realm.genesis, interest).position();
    let update = relay.answer(&position).unwrap().unwrap().update;
    (realm, position, update)
}

#[test]
fn an_update_survives_a_silence_between_its_pieces() {
    run(async |group, realm| {
        let (_, position, update) = published();
        let mut scripted = Scripted::new(&group, &realm, &position).await;
        let messages: Vec<_> = pieces(update.to_canonical().into()).collect();
        assert!(messages.len() > 3, "the update has several pieces");
        for (index, piece) in messages.iter().enumerate() {
            scripted.say(&piece.update, piece.more).await;
            if index + 1 < messages.len() {
                let silent = scripted.updates.next(BRIEF).await.unwrap_err();
                assert!(matches!(silent, FollowError::Silent(BRIEF)), "{silent}");
            }
        }
        // It is long, so another thread decodes it; a follower that asks again meanwhile gets it.
        let first_poll = scripted.next().now_or_never();
        assert!(first_poll.is_none(), "it has to be received");
        assert_eq!(scripted.next().await.unwrap(), update);
        scripted.say(&update.to_canonical()[..9], true).await;
        drop(scripted.say);
        let cut = scripted.updates.next(WAIT).await.unwrap_err();
        assert!(matches!(cut, FollowError::Cut(9)), "{cut}");
    });
}

#[test]
fn every_end_of_a_stream_has_its_error() {
    run(async |group, realm| {
        let (_, position, _) = published();
        let Scripted { mut updates, say } = Scripted::new(&group, &realm, &position).await;
        drop(say);
        let closed = updates.next(WAIT).await.unwrap_err();
        assert!(matches!(closed, FollowError::Closed), "{closed}");

        let mut scripted = Scripted::new(&group, &realm, &position).await;
        scripted.say(b"the first of many", true).await;
        scripted.say.send(Err(Status::unavailable("stopping; ask another"))).await.unwrap();
        let ended = scripted.next().await.unwrap_err();
        assert_eq!(ended.to_string(), "the source ended the stream: stopping; ask another");
        assert!(!ended.is_misbehavior());
        let FollowError::Ended(status) = ended else { panic!("{ended}") };
        assert_eq!(status.code(), Code::Unavailable);
    });
}

#[test]
fn what_is_longer_than_the_interest_allows_is_refused_before_it_is_held() {
    run(async |group, realm| {
        let (sim, bundles, _) = published();
        let everything = Replica::genesis(&sim.genesis, Interest::Everything).position();
        let piece = vec![7; PIECE_BYTES];
        for (position, bytes_max) in
            [(&bundles, EDGE_UPDATE_BYTES_MAX), (&everything, UPDATE_BYTES_MAX)]
        {
            let mut scripted = Scripted::new(&group, &realm, position).await;
            let endless = async {
                // A source that goes on for ever: it ends when the follower hangs up.
                while scripted
                    .say
                    .send(Ok(FollowReply { update: piece.clone().into(), more: true }))
                    .await
                    .is_ok()
                {}
            };
            let too_long = tokio::select! {
                too_long = scripted.updates.next(WAIT) => too_long.unwrap_err(),
                () = endless => panic!("the source was not read to the limit"),
            };
            assert!(
                matches!(too_long, FollowError::TooLong(max) if max == bytes_max),
                "{too_long}"
            );
            assert!(too_long.is_misbehavior());
        }
        let mut scripted = Scripted::new(&group, &realm, &bundles).await;
        scripted.say(&[7; PIECE_BYTES + ENVELOPE_BYTES], true).await;
        let too_long = scripted.next().await.unwrap_err();
        let message_max = PIECE_BYTES + ENVELOPE_BYTES;
        assert!(matches!(too_long, FollowError::TooLong(max) if max == message_max), "{too_long}");
    });
}

#[test]
fn a_source_that_drips_is_as_silent_as_one_that_is_silent() {
    run(async |group, realm| {
        let (_, position, _) = published();
        let mut scripted = Scripted::new(&group, &realm, &position).await;
        let drip = async {
            loop {
                scripted
                    .say
                    .send(Ok(FollowReply { update: vec![7].into(), more: true }))
                    .await
                    .unwrap();
                tokio::time::sleep(BRIEF / 10).await;
            }
        };
        let silent = tokio::select! {
            silent = scripted.updates.next(3 * BRIEF) => silent.unwrap_err(),
            () = drip => unreachable!("it never ends"),
        };
        assert!(matches!(silent, FollowError::Silent(_)), "{silent}");
        assert!(!silent.is_misbehavior());
        // A patience that is used up takes not even what is there.
        let silent = scripted.updates.next(Duration::ZERO).await.unwrap_err();
        assert!(matches!(silent, FollowError::Silent(Duration::ZERO)), "{silent}");
    });
}

#[test]
fn bytes_that_are_no_update_are_misbehavior() {
    run(async |group, realm| {
        let (_, position, update) = published();
        let whole = update.to_canonical();
        for (bytes, more) in [(&b"noise"[..], false), (&whole[..40], false), (b"", false)] {
            let mut scripted = Scripted::new(&group, &realm, &position).await;
            scripted.say(bytes, more).await;
            let wrong = scripted.next().await.unwrap_err();
            assert!(matches!(wrong, FollowError::NotAnUpdate(_)), "{wrong}");
            assert!(wrong.is_misbehavior());
        }
        // A long one is decoded on another thread.
        let mut scripted = Scripted::new(&group, &realm, &position).await;
        for FollowReply { update, .. } in pieces(whole.into()) {
            scripted.say(&update, true).await;
        }
        scripted.say(b"x", false).await;
        let wrong = scripted.next().await.unwrap_err();
        assert!(matches!(wrong, FollowError::NotAnUpdate(_)), "{wrong}");

        let mut scripted = Scripted::new(&group, &realm, &position).await;
        scripted.say(b"", true).await;
        let wrong = scripted.next().await.unwrap_err();
        assert!(matches!(wrong, FollowError::Protocol(_)), "{wrong}");

        let address = serve(&group, &realm, VALIDATOR, Routes::new(OtherProtocol)).await;
        let follower = realm.credentials("spiffe://test/region/eu/member/m1");
        let source = source(address, PeerRule::AnyValidator);
        let mut updates = UpdateStream::open(&source, &follower, &position, WAIT).await.unwrap();
        let wrong = updates.next(WAIT).await.unwrap_err();
        assert!(matches!(wrong, FollowError::Protocol(_)), "{wrong}");
    });
}

/// Sends numbers where the sync protocol has replies.
#[derive(Clone)]
struct OtherProtocol;

impl tonic::server::NamedService for OtherProtocol {
    const NAME: &'static str = "satrap.v1.Sync";
}

impl tower::Service<http::Request<Body>> for OtherProtocol {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<u64, FollowRequest>::default());
            let numbers = tower::service_fn(|_: Request<Streaming<FollowRequest>>| {
                let numbers = futures::stream::iter([Ok(7)]).chain(futures::stream::pending());
                std::future::ready(Ok(Response::new(numbers)))
            });
            Ok(grpc.streaming(numbers, request).await)
        })
    }
}

/// A tier without rules of its own.
#[derive(Clone)]
struct Anyone(mpsc::Sender<Vec<u8>>);

impl Followers for Anyone {
    type View = Replica;
    type Guard = ();

    fn replica(view: &Replica) -> &Replica {
        view
    }

    fn admit(&self, _: &PeerIdentity) -> Result<(), Status> {
        Ok(())
    }

    fn may_ask(&self, _: &PeerIdentity, _: &Interest) -> Result<(), Status> {
        Ok(())
    }

    fn report(&self, _: &PeerIdentity, bytes: &[u8]) -> Result<(), Rejection> {
        self.0.try_send(bytes.to_vec()).unwrap();
        Ok(())
    }
}

/// A member follows a member of another region just as it follows a validator.
#[test]
fn any_server_of_the_protocol_is_a_source_and_must_be_the_one_that_was_named() {
    run(async |group, realm| {
        let mut sim = SimRealm::new("test", 4);
        let relay = Replica::genesis(&sim.genesis, Interest::Everything);
        let (views, served) = watch::channel(Arc::new(relay.clone()));
        let service = FollowService::new(served, Anyone(mpsc::channel(1).0), &group);
        let routes = Routes::new(SyncServer::new(service));
        let address = serve(&group, &realm, MEMBER, routes).await;

        let follower = realm.credentials("spiffe://test/region/eu/member/m1");
        let mut replica = Replica::genesis(&sim.genesis, Interest::Everything);
        for stranger in [PeerRule::AnyValidator, PeerRule::Member("eu".to_owned())] {
            let source = source(address, stranger);
            let opened = UpdateStream::open(&source, &follower, &replica.position(), WAIT).await;
            let error = opened.unwrap_err();
            let untrusted = matches!(error, FollowError::Connect(ConnectError::Untrusted { .. }));
            assert!(untrusted, "{error}");
        }
        let source = source(address, PeerRule::Member("us".to_owned()));
        let opened = UpdateStream::open(&source, &follower, &replica.position(), WAIT).await;
        let mut updates = opened.unwrap();
        for (height, value) in [(1, "small".to_owned()), (2, "x".repeat(3 * PIECE_BYTES))] {
            let change = sim.publish(BUNDLE, &[("a", &value)]);
            let update = sim.decide(&[change]).unwrap();
            let mut newer = Replica::clone(&views.borrow());
            let advance = newer.verify(&update, sim.now).unwrap();
            newer.advance(advance);
            views.send_replace(Arc::new(newer));
            let update = updates.next(WAIT).await.unwrap();
            let advance = replica.verify(&update, sim.now).unwrap();
            replica.advance(advance);
            assert_eq!(replica.height(), height);
        }
        // From an earlier position, the same again.
        updates.go_on_from(&relay.position()).unwrap();
        let again = updates.next(WAIT).await.unwrap();
        assert!(relay.verify(&again, sim.now).is_ok());
        // Requests that the connection has not taken are bounded.
        let full = (0..5).map(|_| updates.go_on_from(&relay.position())).find_map(Result::err);
        assert!(matches!(full, Some(FollowError::Unread)), "{full:?}");
    });
}

/// A position that does not decode was charged to nothing, and each wrote a line of its own into the log.
#[test]
fn noise_is_charged_like_positions() {
    run(async |group, realm| {
        let sim = SimRealm::new("test", 4);
        let relay = Replica::genesis(&sim.genesis, Interest::Everything);
        let (_views, served) = watch::channel(Arc::new(relay));
        let service = FollowService::new(served, Anyone(mpsc::channel(1).0), &group);
        let address = serve(&group, &realm, MEMBER, Routes::new(SyncServer::new(service))).await;
        let follower = realm.credentials("spiffe://test/region/eu/member/m1");
        let source = source(address, PeerRule::Member("us".to_owned()));
        let channel = source.connect(&follower).await.unwrap();
        let mut looked_at = 0;
        for n in 0..4 * POSITIONS.burst {
            let noise = Asked::Position(n.to_be_bytes().to_vec().into());
            let noise = futures::stream::iter([FollowRequest { body: Some(noise) }]);
            let ended = match SyncClient::new(channel.clone()).follow(noise).await {
                Ok(replies) => replies.into_inner().message().await.unwrap_err(),
                Err(ended) => ended,
            };
            looked_at += u32::from(ended.code() == Code::InvalidArgument);
        }
        let burst = POSITIONS.burst;
        assert!((burst..2 * burst).contains(&looked_at), "{looked_at} were decoded and logged");
    });
}
