//! The JSON gateway: serves gRPC methods as JSON over HTTP, at etcd's paths `/v3/...` (also `/v3beta/...`) and at `/v1/...`
//! for `satrap.v1`, and health probes and metrics.
//!
//! A JSON request is converted to its gRPC call, which passes the same checks and limits as any other call, and the
//! response is converted back. So the gateway decides notation only, and JSON clients can do nothing that gRPC clients
//! cannot.
//!
//! # Deliberately absent
//!
//! The CORS header by which etcd allows web pages of every origin to call it. An operator that wants this puts a proxy
//! in front that names the origins.

mod body;
mod call;
mod json;
pub(crate) mod link;
mod paths;
pub(crate) mod probes;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

use crate::api::Api;
use crate::backend::Unavailable;
use crate::grpc::{Gone, Reservation};
use crate::limits::{GATEWAY_BODY_PER_MESSAGE, GATEWAY_CALLS_MAX, GATEWAY_CONNECTION_CALLS_MAX};
use crate::status::unavailable;
use body::JsonBody;
use link::Link;

/// The body of the gateway's responses. An error closes the connection, because the status was sent before.
pub type GatewayBody = UnsyncBoxBody<Bytes, Gone>;

/// Answers HTTP requests that are not gRPC. Clones serve the same client connection.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    own: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    api: Arc<Api>,
    link: Link,
    methods: DescriptorPool,
    calls: Arc<Semaphore>,
}

impl Gateway {
    /// A gateway that calls services over `link`.
    ///
    /// # Panics
    ///
    /// If the descriptors that were compiled in are damaged.
    #[must_use]
    pub fn new(api: Arc<Api>, link: Link) -> Self {
        let methods = DescriptorPool::decode(satrap_proto::DESCRIPTORS)
            .expect("the build script wrote the descriptors");
        let calls = permits(GATEWAY_CALLS_MAX);
        let shared = Arc::new(Shared { api, link, methods, calls });
        Self { shared, own: permits(GATEWAY_CONNECTION_CALLS_MAX) }
    }

    /// The same gateway for another client connection.
    #[must_use]
    pub fn connection(&self) -> Self {
        Self { shared: self.shared.clone(), own: permits(GATEWAY_CONNECTION_CALLS_MAX) }
    }

    /// Answers one request, whose memory `reservation` counts.
    pub async fn handle<B>(
        &self,
        request: Request<B>,
        reservation: Reservation,
    ) -> Response<GatewayBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Send,
    {
        let path = request.uri().path();
        if let Some(name) = paths::grpc_method(path) {
            if request.method() != Method::POST {
                return error(&Status::unimplemented("Method Not Allowed"));
            }
            let Some(method) = self.method(name) else {
                return error(&Status::not_found("Not Found"));
            };
            let Some(permits) = self.permits() else {
                return refused();
            };
            let (head, body) = request.into_parts();
            let body = JsonBody::new(body, self.body_bytes_max(), reservation.sibling());
            let response = call::call(&self.shared.link, method, &head.headers, body).await;
            return response.map(|body| hold(body, (permits, reservation)));
        }
        if paths::is_call_path(path) {
            return error(&Status::not_found("Not Found"));
        }
        let api = &self.shared.api;
        probes::answer(api, request.method(), request.uri(), || probes::metrics(api)).await
    }

    /// The permits of one more call; `None` over a bound. A call over the bound of the gateway's own connection would
    /// wait until others end, and one client must not cause that for all others.
    fn permits(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let take = |calls: &Arc<Semaphore>| calls.clone().try_acquire_owned().ok();
        Some([take(&self.own)?, take(&self.shared.calls)?])
    }

    /// The size of a JSON body. The message in it is limited as any other.
    fn body_bytes_max(&self) -> usize {
        GATEWAY_BODY_PER_MESSAGE * self.shared.api.requests.message_bytes_max()
    }

    fn method(&self, name: &str) -> Option<MethodDescriptor> {
        let (service, method) = name.split_once('/')?;
        let service = self.shared.methods.get_service_by_name(service)?;
        service.methods().find(|found| found.name() == method)
    }
}

fn permits(count: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count as usize))
}

/// The refusal of a request over a bound.
pub(crate) fn refused() -> Response<GatewayBody> {
    error(&unavailable(Unavailable::TooManyRequests))
}

/// The same body, which drops `held` when it ends.
fn hold(body: GatewayBody, held: impl Send + 'static) -> GatewayBody {
    let hold = move |frame| {
        let _ = &held;
        frame
    };
    body.map_frame(hold).boxed_unsync()
}

/// The response of a call that failed before its first message.
fn error(status: &Status) -> Response<GatewayBody> {
    respond(http_status(status.code()), JSON, json::error(status))
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<GatewayBody> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// As etcd's gateway maps them.
fn http_status(code: Code) -> StatusCode {
    let number = match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    };
    StatusCode::from_u16(number).expect("BUG: an HTTP status is out of range")
}
