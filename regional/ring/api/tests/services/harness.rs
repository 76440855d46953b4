//! One member and clients that call its services without a socket between.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use satrap_proto::etcdserverpb::{
    auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
    lease_client::LeaseClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use satrap_proto::v3electionpb::election_client::ElectionClient;
use satrap_proto::v3lockpb::lock_client::LockClient;
use satrap_ring_api::api::Api;
use satrap_ring_api::backend::Backend;
use satrap_ring_api::front::Security;
use satrap_ring_api::peer::{Credentials, Peer};
use satrap_ring_api::services::{self, PasswordCost, Settings};
use satrap_ring_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_ring_core::kv::request::PutRequest;
use satrap_ring_core::{Caller, Request};
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Interceptor, Routes};
use tonic::transport::Channel;
use tower::Service;

use crate::common::served::Served;
use crate::common::solo::{self, Levers};

/// The cheapest there is; what it costs is not what is tested.
const CHEAP: PasswordCost = PasswordCost { memory_kib: 8, rounds: 1 };

pub struct Member {
    pub backend: Backend,
    pub levers: Arc<Levers>,
    api: Arc<Api>,
    routes: Routes,
}

impl Member {
    pub fn start() -> Self {
        let levers = Arc::new(Levers::default());
        let (backend, _thread) = solo::start_with(levers.clone());
        let settings = Settings { password_cost: CHEAP, ..Settings::default() };
        let api = Arc::new(Api::new(backend.clone()));
        let routes = services::routes(&api, settings);
        Self { backend, levers, api, routes }
    }

    /// A client without a name.
    pub fn anyone(&self) -> Client {
        self.client(None, None)
    }

    /// A client with a token.
    pub fn with_token(&self, token: &str) -> Client {
        self.client(Some(token), None)
    }

    /// A client with a certificate.
    pub fn with_certificate(&self, common_name: &str) -> Client {
        self.client(None, Some(common_name))
    }

    fn client(&self, token: Option<&str>, common_name: Option<&str>) -> Client {
        let peer = Peer { common_name: common_name.map(Into::into) };
        Client(Wire { routes: self.routes.clone(), peer, token: token.map(str::to_owned) })
    }

    /// Writes a key as a user that may.
    pub async fn put(&self, key: &str, value: &str, lease: i64) {
        let caller = self.backend.inspect(|keyspace| keyspace.auth().caller_of_user("root"));
        let put = PutRequest { lease, ..PutRequest::of(key.to_owned(), value.to_owned()) };
        self.apply(caller, Request::Put(put)).await;
    }

    pub async fn apply(&self, caller: Caller, request: Request) {
        let applied = self.backend.propose(caller, request).await.expect("the ring is there");
        applied.reply.expect("the request is right");
    }

    /// Raises CORRUPT for this member.
    pub async fn corrupt(&self) {
        let member = self.backend.identity().member_id;
        let alarm = AlarmMember { kind: AlarmKind::Corrupt, member };
        self.apply(Caller::default(), Request::Alarm(AlarmRequest::Activate(alarm))).await;
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        self.backend.inspect(|keyspace| {
            let held = keyspace.store().get(key.as_bytes())?;
            Some(String::from_utf8(held.value().to_vec()).unwrap())
        })
    }

    /// Keys with a prefix, in order.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        use satrap_ring_core::kv::request::{KeyRange, RangeRequest};
        let range = RangeRequest::of(KeyRange::prefix(prefix.to_owned()));
        self.backend.inspect(|keyspace| {
            let found = keyspace.store().range(&range).unwrap();
            found.kvs.iter().map(|kv| String::from_utf8(kv.key().to_vec()).unwrap()).collect()
        })
    }

    /// Waits until a question about the state is answered with yes.
    pub async fn until(&self, holds: impl Fn() -> bool) {
        let mut applied = self.backend.applied();
        while !holds() {
            applied.changed().await.expect("the ring is there");
        }
    }
}

/// The clients of all services, as one user, without a socket unless `W` is one.
#[derive(Clone)]
pub struct Client<W = Wire>(W);

macro_rules! clients {
    ($($name:ident: $client:ident),+) => {
        impl<W> Client<W>
        where
            W: GrpcService<Body> + Clone,
            W::Error: Into<StdError>,
            W::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
            <W::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
        {
            $(pub fn $name(&self) -> $client<W> {
                $client::new(self.0.clone())
            })+
        }
    };
}

clients!(
    auth: AuthClient,
    cluster: ClusterClient,
    elections: ElectionClient,
    kv: KvClient,
    leases: LeaseClient,
    locks: LockClient,
    maintenance: MaintenanceClient,
    watch: WatchClient
);

/// A client on the other end of a socket.
pub type Remote = Client<InterceptedService<Channel, Token>>;

/// Adds a token to every request.
#[derive(Clone)]
pub struct Token(Option<String>);

impl Interceptor for Token {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        Ok(request)
    }
}

/// A member that listens on this host.
pub struct Listening {
    channel: Channel,
    _served: Served,
}

impl Listening {
    pub async fn of(member: &Member) -> Self {
        let (api, routes) = (member.api.clone(), member.routes.clone());
        let served = Served::with(api, routes, Security::Plaintext).await;
        Self { channel: served.channel().await, _served: served }
    }

    pub fn client(&self, token: Option<&str>) -> Remote {
        let token = Token(token.map(str::to_owned));
        Client(InterceptedService::new(self.channel.clone(), token))
    }
}

/// Stands where the connection would be: adds what the client sends and what the front knows.
#[derive(Clone)]
pub struct Wire {
    routes: Routes,
    peer: Peer,
    token: Option<String>,
}

impl Wire {
    fn headers(&self) -> http::HeaderMap {
        let token = self.token.iter().map(|token| {
            (http::HeaderName::from_static("token"), http::HeaderValue::from_str(token).unwrap())
        });
        token.collect()
    }
}

impl Service<http::Request<Body>> for Wire {
    type Response = <Routes as Service<http::Request<Body>>>::Response;
    type Error = <Routes as Service<http::Request<Body>>>::Error;
    type Future = <Routes as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let headers = self.headers();
        request.headers_mut().extend(headers);
        let credentials = Credentials::new(&self.peer, request.headers());
        request.extensions_mut().insert(credentials);
        Service::call(&mut self.routes, request)
    }
}

/// A wait that takes longer than this has failed.
const HANG: Duration = Duration::from_secs(60);

/// Runs a test on one thread.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = satrap_runtime::runtime::current_thread().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(HANG, test).await.expect("the test hangs");
    });
}
