//! Makes the gRPC call of a JSON request on the gateway's own connection, and converts its answers to JSON as they
//! arrive.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use prost_reflect::{MessageDescriptor, MethodDescriptor};
use tonic::Status;

use super::body::JsonBody;
use super::link::Link;
use super::{GatewayBody, JSON, error, json, respond};
use crate::grpc::{Gone, PREFIX_BYTES, Requests, put_prefix, send_data};
use crate::limits::GATEWAY_ANSWER_BYTES_MAX;

/// A header with this prefix becomes metadata without it, as in etcd's gateway.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// Calls `method` with the headers and messages of a JSON request.
pub(super) async fn call<B>(
    link: &Link,
    method: MethodDescriptor,
    headers: &HeaderMap,
    body: JsonBody<B>,
) -> Response<GatewayBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    let answered = match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => unary(link, &method, headers, body).await,
        (false, true) => one_to_many(link, &method, headers, body).await,
        (true, _) => many_to_many(link, &method, headers, body).await,
    };
    answered.unwrap_or_else(|status| error(&status))
}

/// Makes a call with the only message of `body`.
async fn ask<B>(
    link: &Link,
    method: &MethodDescriptor,
    headers: &HeaderMap,
    body: &mut JsonBody<B>,
) -> Result<Answers, Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    let message = body.only(method.input()).await?;
    let Call { mut requests, response } = Call::start(link, method, headers).await?;
    send(&mut requests, message).await?;
    requests.send_data(Bytes::new(), true).map_err(|_| lost())?;
    body.sent();
    Answers::new(response.await)
}

async fn unary<B>(
    link: &Link,
    method: &MethodDescriptor,
    headers: &HeaderMap,
    mut body: JsonBody<B>,
) -> Result<Response<GatewayBody>, Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut answers = ask(link, method, headers, &mut body).await?;
    let message = answers.next().await?;
    let message = message.ok_or_else(|| Status::internal("BUG: the service sent no answer"))?;
    // The status follows the answer, and may be an error.
    if answers.next().await?.is_some() {
        return Err(Status::internal("BUG: the service sent more than one answer to a unary call"));
    }
    Ok(respond(StatusCode::OK, JSON, json::encode(method.output(), message)?))
}

async fn one_to_many<B>(
    link: &Link,
    method: &MethodDescriptor,
    headers: &HeaderMap,
    mut body: JsonBody<B>,
) -> Result<Response<GatewayBody>, Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    let answers = ask(link, method, headers, &mut body).await?;
    Ok(lines(method, None, answers))
}

async fn many_to_many<B>(
    link: &Link,
    method: &MethodDescriptor,
    headers: &HeaderMap,
    body: JsonBody<B>,
) -> Result<Response<GatewayBody>, Status>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    let Call { requests, response } = Call::start(link, method, headers).await?;
    let mut sending = send_all(requests, method.input(), body).boxed();
    // A service may answer only after it has seen a request, so requests are sent while the gateway waits.
    let mut response = pin!(response);
    let (response, sending) = tokio::select! {
        response = &mut response => (response, Some(sending)),
        sent = &mut sending => {
            sent?;
            (response.await, None)
        }
    };
    Ok(lines(method, sending, Answers::new(response)?))
}

type Sending = BoxFuture<'static, Result<(), Status>>;

/// A response with one line of JSON per answer, as they arrive, while requests are still being sent.
fn lines(
    method: &MethodDescriptor,
    sending: Option<Sending>,
    answers: Answers,
) -> Response<GatewayBody> {
    struct State {
        sending: Option<Sending>,
        answers: Answers,
        ended: bool,
    }
    let descriptor = method.output();
    let state = State { sending, answers, ended: false };
    let lines = stream::unfold(state, move |mut state| {
        let descriptor = descriptor.clone();
        async move {
            if state.ended {
                return None;
            }
            let line = match next_line(&mut state.sending, &mut state.answers, descriptor).await {
                Ok(line) => line?,
                Err(status) => {
                    state.ended = true;
                    json::error_line(&status)
                }
            };
            Some((Ok::<_, Gone>(Frame::data(line)), state))
        }
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

async fn next_line(
    sending: &mut Option<Sending>,
    answers: &mut Answers,
    descriptor: MessageDescriptor,
) -> Result<Option<Bytes>, Status> {
    loop {
        tokio::select! {
            answer = answers.next() => {
                return answer?.map(|answer| json::encode_line(descriptor, answer)).transpose();
            }
            Some(sent) = OptionFuture::from(sending.as_mut()) => {
                *sending = None;
                sent?;
            }
        }
    }
}

/// A call that was started.
struct Call {
    requests: SendStream<Bytes>,
    response: ResponseFuture,
}

impl Call {
    async fn start(
        link: &Link,
        method: &MethodDescriptor,
        headers: &HeaderMap,
    ) -> Result<Self, Status> {
        let service = method.parent_service().full_name().to_owned();
        let uri = format!("http://gateway/{service}/{}", method.name());
        let mut request = Request::post(uri).body(()).map_err(|_| lost())?;
        *request.headers_mut() = metadata(headers);
        let mut link = link.ready().await.map_err(|Gone| lost())?;
        let (response, requests) = link.send_request(request, false).map_err(|_| lost())?;
        Ok(Self { requests, response })
    }
}

async fn send(requests: &mut SendStream<Bytes>, message: Bytes) -> Result<(), Status> {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    put_prefix(&mut frame, message.len());
    frame.extend_from_slice(&message);
    drop(message);
    // Not an error of its own: if the service has ended the call, its status says why.
    send_data(requests, frame.freeze()).await.or(Ok(()))
}

/// Sends the messages of a body as they arrive.
async fn send_all<B>(
    mut requests: SendStream<Bytes>,
    descriptor: MessageDescriptor,
    mut body: JsonBody<B>,
) -> Result<(), Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(message) = body.next(&descriptor).await? {
        send(&mut requests, message).await?;
    }
    // As in `send`, the service's status says why.
    let _ended = requests.send_data(Bytes::new(), true);
    Ok(())
}

/// The answers of a call, followed by its status.
struct Answers(Requests);

impl Answers {
    fn new(response: Result<Response<RecvStream>, h2::Error>) -> Result<Self, Status> {
        let (head, body) = response.map_err(|_| lost())?.into_parts();
        check(&head.headers)?;
        Ok(Self(Requests::new(&head.headers, body, GATEWAY_ANSWER_BYTES_MAX)))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(answer) = self.0.next().await? {
            return Ok(Some(answer));
        }
        let trailers = self.0.trailers().await.map_err(|_| lost())?;
        check(&trailers.unwrap_or_default())?;
        Ok(None)
    }
}

/// Fails if these headers end a call with an error.
fn check(headers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ => Ok(()),
    }
}

/// The gRPC metadata for the headers of a JSON request.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    metadata.insert(header::TE, HeaderValue::from_static("trailers"));
    for name in [header::AUTHORIZATION, HeaderName::from_static("grpc-timeout")] {
        if let Some(value) = headers.get(&name) {
            metadata.insert(name, value.clone());
        }
    }
    for (name, value) in headers {
        let name = name.as_str().strip_prefix(METADATA_PREFIX);
        // gRPC reserves these names.
        let name = name.filter(|name| !name.starts_with("grpc-"));
        if let Some(Ok(name)) = name.map(HeaderName::try_from)
            && !metadata.contains_key(&name)
            && !CONNECTION_HEADERS.contains(&name.as_str())
        {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

/// Headers that HTTP/2 does not allow in a request.
const CONNECTION_HEADERS: [&str; 6] =
    ["connection", "host", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

fn lost() -> Status {
    Status::unavailable("the gateway lost its connection to the service; try again")
}
