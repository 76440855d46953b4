//! A realm on disk and a service that tells callers who they are.

#![allow(dead_code, reason = "each test file uses a part")]

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use satrap_identity::mtls::{
    ConnectError, CredentialFiles, Credentials, Limits, Listener, PeerIdentity, PeerRule, connect,
    server_builder,
};
use satrap_identity::pki::{Authority, Leaf};
use satrap_runtime::{TaskGroup, clock, files, runtime};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, uri::PathAndQuery};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

pub const HOUR: Duration = Duration::from_secs(3_600);

/// A CA that is half a day old, so that a test can issue leaves that have expired since.
pub fn authority(scope: &str) -> Authority {
    let yesterday_ns = clock::now() - 12 * HOUR.as_nanos() as u64;
    Authority::create(scope.parse().unwrap(), yesterday_ns, 24 * HOUR).unwrap()
}

pub fn leaf(authority: &Authority, id: &str) -> Leaf {
    authority.issue(&id.parse().unwrap(), clock::now(), HOUR).unwrap()
}

pub fn bundle(authorities: &[&Authority]) -> String {
    authorities.iter().map(|authority| authority.certificate_pem()).collect()
}

/// The credential files of one process.
pub struct Home(TempDir);

impl Home {
    pub fn new(leaf: &Leaf, trust: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.install(leaf, trust);
        home
    }

    pub fn install(&self, leaf: &Leaf, trust: &str) {
        let files = self.files();
        files::write(&files.certificate, leaf.certificate_pem.as_bytes()).unwrap();
        files::write_secret(&files.key, leaf.key_pem.as_bytes()).unwrap();
        files::write(&files.trust, trust.as_bytes()).unwrap();
    }

    pub fn files(&self) -> CredentialFiles {
        let path = |name: &str| Path::join(self.0.path(), name);
        CredentialFiles {
            certificate: path("leaf.pem"),
            key: path("leaf.key"),
            trust: path("trust.pem"),
        }
    }

    pub fn credentials(&self) -> Credentials {
        Credentials::load(self.files()).unwrap()
    }
}

pub fn credentials(leaf: &Leaf, trust: &str) -> Credentials {
    Home::new(leaf, trust).credentials()
}

/// A running server; `ticks` feeds its streams.
pub struct Server {
    pub url: String,
    pub address: std::net::SocketAddr,
    pub ticks: watch::Sender<u32>,
}

pub async fn serve(
    group: &TaskGroup,
    home: &Credentials,
    rule: PeerRule,
    limits: Limits,
) -> Server {
    let any_port = ([127, 0, 0, 1], 0).into();
    let listener = Listener::bind(any_port, home.clone(), rule, limits.clone()).await.unwrap();
    let address = listener.local_address().unwrap();
    let (ticks, receiver) = watch::channel(0);
    let server = server_builder(&limits).serve_with_incoming_shutdown(
        Who { ticks: receiver },
        listener,
        group.shutdown().requested(),
    );
    group.spawn("server", server);
    Server { url: format!("https://{address}"), address, ticks }
}

/// Runs `test` on one thread beside a group that must not have failed meanwhile.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(TaskGroup) -> F) {
    runtime::current_thread().unwrap().block_on(async {
        let group = TaskGroup::new();
        tokio::time::timeout(Duration::from_secs(60), test(group.clone())).await.unwrap();
        group.shutdown().request();
        group.run(Duration::from_secs(10)).await.unwrap();
    });
}

#[derive(Clone)]
struct Who {
    ticks: watch::Receiver<u32>,
}

type Ticks = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

impl tower::Service<Request<Body>> for Who {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ticks = self.ticks.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok(if request.uri().path() == "/Who" {
                let answer = service_fn(|request: tonic::Request<String>| {
                    let peer = request.extensions().get::<PeerIdentity>().unwrap();
                    let answer = format!("{} {:02x?}", peer.id, peer.public_key);
                    std::future::ready(Ok(tonic::Response::new(answer)))
                });
                grpc.unary(answer, request).await
            } else {
                let answer = service_fn(move |_: tonic::Request<String>| {
                    let ticks = WatchStream::new(ticks.clone()).map(|tick| Ok(tick.to_string()));
                    std::future::ready(Ok(tonic::Response::new(Box::pin(ticks) as Ticks)))
                });
                grpc.server_streaming(answer, request).await
            })
        })
    }
}

async fn ready(channel: Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    Ok(grpc)
}

/// Asks the server for the name under which it knows this client.
pub async fn who(channel: Channel) -> Result<String, Status> {
    let codec = ProstCodec::<String, String>::default();
    let path = PathAndQuery::from_static("/Who");
    let request = tonic::Request::new(String::new());
    Ok(ready(channel).await?.unary(request, path, codec).await?.into_inner())
}

/// A stream of the server's ticks.
pub async fn ticks(channel: Channel) -> Result<Streaming<String>, Status> {
    let codec = ProstCodec::<String, String>::default();
    let path = PathAndQuery::from_static("/Ticks");
    let request = tonic::Request::new(String::new());
    Ok(ready(channel).await?.server_streaming(request, path, codec).await?.into_inner())
}

/// Connects anew and asks; `Err` is what the client sees.
pub async fn ask(url: &str, home: &Credentials, rule: PeerRule) -> Result<String, String> {
    match connect(url, home, rule).await {
        Ok(channel) => who(channel).await.map_err(|status| format!("{status:?}")),
        Err(error @ (ConnectError::Unreachable { .. } | ConnectError::Untrusted { .. })) => {
            Err(error.to_string())
        }
        Err(error) => panic!("{error}"),
    }
}
