//! Makes the gRPC call that a JSON request stands for.

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
use super::{GatewayBody, JSON, error, json, respond};
use crate::front::Link;
use crate::grpc::{Gone, PREFIX_BYTES, Requests, put_prefix, send_data};
use crate::limits::GATEWAY_ANSWER_BYTES_MAX;

/// A header with this prefix becomes metadata without it, as in etcd's gateway.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// Calls `method` with what a request holds.
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

async fn unary<B>(
    link: &Link,
    method: &MethodDescriptor,
    headers: &HeaderMap,
    mut body: JsonBody<B>,
) -> Result<Response<GatewayBody>, Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    let message = body.only(method.input()).await?;
    let mut call = Call::start(link, method, headers).await?;
    call.send(message).await?;
    call.end_requests()?;
    body.sent();
    let mut answers = call.answers().await?;
    let message = answers.next().await?.ok_or_else(|| Status::internal("no answer"))?;
    // The status comes last, and may still be an error.
    if answers.next().await?.is_some() {
        return Err(Status::internal("more than one answer"));
    }
    Ok(respond(StatusCode::OK, JSON, json::write(method.output(), message)?))
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
    let message = body.only(method.input()).await?;
    let mut call = Call::start(link, method, headers).await?;
    call.send(message).await?;
    call.end_requests()?;
    body.sent();
    let answers = call.answers().await?;
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
    // A service may want to see a request before it answers at all.
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

/// Turns answers into lines as they come, while requests are still being sent.
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
    let kind = method.output();
    let state = State { sending, answers, ended: false };
    let lines = stream::unfold(state, move |mut state| {
        let kind = kind.clone();
        async move {
            if state.ended {
                return None;
            }
            let line = match next_line(&mut state.sending, &mut state.answers, kind).await {
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
    kind: MessageDescriptor,
) -> Result<Option<Bytes>, Status> {
    loop {
        tokio::select! {
            answer = answers.next() => {
                return answer?.map(|answer| json::write_line(kind, answer)).transpose();
            }
            Some(sent) = OptionFuture::from(sending.as_mut()) => {
                *sending = None;
                sent?;
            }
        }
    }
}

/// A call under way.
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

    async fn send(&mut self, message: Bytes) -> Result<(), Status> {
        send(&mut self.requests, message).await
    }

    fn end_requests(&mut self) -> Result<(), Status> {
        self.requests.send_data(Bytes::new(), true).map_err(|_| lost())
    }

    async fn answers(self) -> Result<Answers, Status> {
        Answers::new(self.response.await)
    }
}

async fn send(requests: &mut SendStream<Bytes>, message: Bytes) -> Result<(), Status> {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    put_prefix(&mut frame, message.len());
    frame.extend_from_slice(&message);
    drop(message);
    // If the service has answered already, its answer says more than this error.
    send_data(requests, frame.freeze()).await.or(Ok(()))
}

/// Sends the messages of a body that is a sequence of them, as they come.
async fn send_all<B>(
    mut requests: SendStream<Bytes>,
    kind: MessageDescriptor,
    mut body: JsonBody<B>,
) -> Result<(), Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(message) = body.next(&kind).await? {
        send(&mut requests, message).await?;
    }
    // As above.
    let _answered = requests.send_data(Bytes::new(), true);
    Ok(())
}

/// The answers of a call, and at their end its status.
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

/// What a request's headers mean to the service.
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
        // A name that HTTP/2 or gRPC reserve is not metadata.
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

/// What HTTP/2 does not allow in a request.
const CONNECTION_HEADERS: [&str; 6] =
    ["connection", "host", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

fn lost() -> Status {
    Status::unavailable("the gateway lost its connection to the service")
}
