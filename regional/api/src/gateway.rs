//! The JSON gateway: etcd's `/v3/...` paths, by their old name `/v3beta/...` too, `/v1/...` for what etcd has not, and what probes and
//! monitoring ask over plain HTTP.
//!
//! A JSON request is turned into the gRPC call it stands for, which then takes the way every other
//! call takes; the answer is turned back. So the gateway decides nothing but notation, and there is
//! nothing that JSON clients could do and others could not.
//!
//! # Deliberately absent
//!
//! The header by which etcd lets every web page call it from a browser. Whoever wants that puts a
//! server in front that says which pages.

mod body;
mod call;
mod json;
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
use crate::front::{Link, Place};
use crate::grpc::Gone;
use crate::limits::{GATEWAY_BODY_PER_MESSAGE, GATEWAY_CALLS_MAX, GATEWAY_CONNECTION_CALLS_MAX};
use crate::status::unavailable;
use body::JsonBody;

/// What the gateway answers with. An error cuts the connection, because the status is already out.
pub type GatewayBody = UnsyncBoxBody<Bytes, Gone>;

/// Answers HTTP requests that are not gRPC. Clones are for the same connection of a client.
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
    /// Calls what `link` leads to.
    ///
    /// # Panics
    ///
    /// If the descriptors that were compiled in are damaged.
    #[must_use]
    pub fn new(api: Arc<Api>, link: Link) -> Self {
        let methods = DescriptorPool::decode(satrap_proto::DESCRIPTORS)
            .expect("the build script wrote the descriptors");
        let calls = places(GATEWAY_CALLS_MAX);
        let shared = Arc::new(Shared { api, link, methods, calls });
        Self { shared, own: places(GATEWAY_CONNECTION_CALLS_MAX) }
    }

    /// For the requests of another connection.
    #[must_use]
    pub fn connection(&self) -> Self {
        Self { shared: self.shared.clone(), own: places(GATEWAY_CONNECTION_CALLS_MAX) }
    }

    /// Answers one request, which counts for `place`.
    pub async fn handle<B>(&self, request: Request<B>, place: Place) -> Response<GatewayBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Send,
    {
        let path = request.uri().path();
        if let Some(name) = paths::grpc_name(path) {
            if request.method() != Method::POST {
                return error(&Status::unimplemented("Method Not Allowed"));
            }
            let Some(method) = self.method(name) else {
                return error(&Status::not_found("Not Found"));
            };
            let Some(seats) = self.seats() else {
                return refused();
            };
            let (head, body) = request.into_parts();
            let body = JsonBody::new(body, self.body_bytes_max(), place.beside());
            let response = call::call(&self.shared.link, method, &head.headers, body).await;
            return response.map(|body| hold(body, (seats, place)));
        }
        if paths::is_of_calls(path) {
            return error(&Status::not_found("Not Found"));
        }
        let api = &self.shared.api;
        probes::answer(api, request.method(), request.uri(), || probes::metrics(api)).await
    }

    /// For one more call. Over the bound of the gateway's own connection it would wait for others to end,
    /// and one client must not bring all others to that.
    fn seats(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let take = |calls: &Arc<Semaphore>| calls.clone().try_acquire_owned().ok();
        Some([take(&self.own)?, take(&self.shared.calls)?])
    }

    /// Of a body; the message in it is then judged as any other.
    fn body_bytes_max(&self) -> usize {
        GATEWAY_BODY_PER_MESSAGE * self.shared.api.requests.message_bytes_max()
    }

    fn method(&self, name: &str) -> Option<MethodDescriptor> {
        let (service, method) = name.split_once('/')?;
        let service = self.shared.methods.get_service_by_name(service)?;
        service.methods().find(|found| found.name() == method)
    }
}

fn places(count: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count as usize))
}

/// One request too many.
pub(crate) fn refused() -> Response<GatewayBody> {
    error(&unavailable(Unavailable::TooManyRequests))
}

/// A body that holds something until it ends.
fn hold(body: GatewayBody, held: impl Send + 'static) -> GatewayBody {
    let hold = move |frame| {
        let _ = &held;
        frame
    };
    body.map_frame(hold).boxed_unsync()
}

/// A call that failed before it had an answer.
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
    StatusCode::from_u16(number).expect("all of the above are statuses")
}
