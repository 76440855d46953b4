//! A member that listens on this host, and clients of every kind.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use satrap_ring_api::api::Api;
use satrap_ring_api::backend::{Backend, MemberIdentity, RingEnd};
use satrap_ring_api::front::Security;
use satrap_ring_api::{grpc, introspect, services};
use satrap_ring_core::AppliedState;
use satrap_runtime::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use crate::common::served::Served;
use crate::common::solo;

pub struct Member {
    pub backend: Backend,
    pub address: SocketAddr,
    served: Served,
    tasks: JoinSet<()>,
}

impl Member {
    pub async fn start() -> Self {
        Self::serve(solo::start().0, Security::Plaintext).await
    }

    /// A member whose ring never answers, unless the test does.
    pub async fn stalled(queue_calls_max: usize) -> (Self, RingEnd) {
        let identity = MemberIdentity { cluster_id: 1, member_id: 2, name: "stalled".to_owned() };
        let state = Arc::<RwLock<AppliedState>>::default();
        let (backend, ring) = Backend::new(identity, state, queue_calls_max);
        (Self::serve(backend, Security::Plaintext).await, ring)
    }

    pub async fn serve(backend: Backend, security: Security) -> Self {
        let api = Api::new(backend);
        Self::serve_with(api, security).await
    }

    pub async fn serve_with(api: Api, security: Security) -> Self {
        let backend = api.backend.clone();
        let api = Arc::new(api);
        let routes = services::routes(&api, services::Settings::default());
        let routes = introspect::add(routes, &Shutdown::default());
        let served = Served::with(api, routes, security).await;
        Self { backend, address: served.address, served, tasks: JoinSet::new() }
    }

    pub async fn channel(&self) -> Channel {
        self.served.channel().await
    }

    /// An HTTP/2 client that can do what a generated one would not.
    pub async fn raw(&mut self) -> Raw {
        let (raw, connection) = Raw::over(TcpStream::connect(self.address).await.unwrap()).await;
        self.tasks.spawn(connection);
        raw
    }

    /// A client with this window for each answer.
    pub async fn raw_with_window(&mut self, bytes: u32) -> Raw {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let (raw, connection) = Raw::with_window(tcp, bytes).await;
        self.tasks.spawn(connection);
        raw
    }

    /// A client that reads its socket while the sender says so, and whose socket holds little else.
    pub async fn raw_that_may_stop_reading(&mut self) -> (Raw, watch::Sender<bool>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let tcp = socket.connect(self.address).await.unwrap();
        let (mut from_member, mut to_member) = tcp.into_split();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (reads, mut may_read) = watch::channel(true);
        let writing = async move { drop(tokio::io::copy(&mut from_client, &mut to_member).await) };
        let reading = async move {
            let mut bytes = vec![0; 64 * 1024];
            while may_read.wait_for(|may| *may).await.is_ok() {
                let read = tokio::select! {
                    biased;
                    _ = may_read.changed() => continue,
                    read = from_member.read(&mut bytes) => read.unwrap_or(0),
                };
                if read == 0 || to_client.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
        };
        // When the member has cut the connection, the client notices by either.
        self.tasks.spawn(async move {
            tokio::select! {
                () = writing => {}
                () = reading => {}
            }
        });
        let (raw, connection) = Raw::with_window(near, 1 << 20).await;
        self.tasks.spawn(connection);
        (raw, reads)
    }

    /// Sends one HTTP/1.1 request and reads the answer to its end.
    pub async fn http(&self, request: &str, body: &str) -> Http {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.write_all(body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        Http::parse(&String::from_utf8(answer).unwrap())
    }

    pub async fn stop(mut self) {
        self.served.stop().await;
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

pub struct Http {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

impl Http {
    fn parse(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let chunked = field("transfer-encoding:") == "chunked";
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Self { status, content_type: field("content-type:"), body }
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap();
    }
    whole
}

pub struct Raw(SendRequest<Bytes>);

impl Raw {
    /// A client, and what carries it.
    pub async fn over(tcp: TcpStream) -> (Self, impl Future<Output = ()> + use<>) {
        Self::with_window(tcp, 65_535).await
    }

    /// A client with this window for each answer, and what carries it.
    pub async fn with_window<T>(io: T, bytes: u32) -> (Self, impl Future<Output = ()> + use<T>)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let mut builder = h2::client::Builder::new();
        // Its own bounds are not what is tested.
        builder.data_frame_budget(usize::MAX).initial_connection_window_size(1 << 30);
        let (link, connection) = builder.initial_window_size(bytes).handshake(io).await.unwrap();
        (Self(link), async { drop(connection.await) })
    }

    /// Makes a unary call with exactly these bytes as its body, prefix included.
    pub async fn call(&mut self, path: &str, metadata: &[(&str, &str)], body: Bytes) -> Outcome {
        let mut call = self.begin(path, metadata).await;
        call.requests.send_data(body, true).unwrap();
        call.outcome().await
    }

    /// Begins a call that has said nothing yet.
    pub async fn begin(&mut self, path: &str, metadata: &[(&str, &str)]) -> Begun {
        self.try_begin(path, metadata).await.expect("the connection is there")
    }

    /// The same; `None` if the connection has ended.
    pub async fn try_begin(&mut self, path: &str, metadata: &[(&str, &str)]) -> Option<Begun> {
        let mut request = Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let mut link = self.0.clone().ready().await.ok()?;
        let (response, requests) = link.send_request(request, false).ok()?;
        Some(Begun { response, requests })
    }

    /// Opens a stream with these bytes as the start of its body, without a turn for another task.
    pub fn open(&mut self, path: &str, body: Bytes) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let (response, mut stream) = self.0.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(body, false).unwrap();
        (response, stream)
    }

    /// Begins a request of the JSON gateway with the start of its body.
    pub async fn json(&mut self, path: &str, body: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("http://test{path}")).body(()).unwrap();
        let mut link = self.0.clone().ready().await.unwrap();
        let (response, mut stream) = link.send_request(request, false).unwrap();
        stream.send_data(body.to_owned().into(), false).unwrap();
        (response, stream)
    }

    /// Makes a unary call with this message.
    pub async fn ask(&mut self, path: &str, message: &impl prost::Message) -> Outcome {
        self.call(path, &[], grpc::frame(message)).await
    }

    pub async fn streams_max(&mut self) -> usize {
        self.0 = self.0.clone().ready().await.unwrap();
        self.0.current_max_send_streams()
    }
}

/// A call whose messages the test sends as it likes.
pub struct Begun {
    response: ResponseFuture,
    pub requests: SendStream<Bytes>,
}

impl Begun {
    /// The stream once the member has begun to answer.
    pub async fn started(self) -> (SendStream<Bytes>, RecvStream) {
        (self.requests, self.response.await.unwrap().into_body())
    }

    /// The result of the call; one message at most.
    pub async fn outcome(self) -> Outcome {
        let (head, mut body) = self.response.await.unwrap().into_parts();
        if head.headers.contains_key("grpc-status") {
            return Err(status(&head.headers));
        }
        let mut message = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            message.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        match status(&trailers) {
            ok if ok.code() == tonic::Code::Ok => Ok(message.freeze().slice(5..)),
            error => Err(error),
        }
    }
}

pub type Outcome = Result<Bytes, Status>;

fn status(headers: &HeaderMap) -> Status {
    Status::from_header_map(headers).unwrap()
}
