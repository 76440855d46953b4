//! The guard in front of a service.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use satrap_client::FencingToken;
use satrap_client::guard::{DurableGuard, Fenced, Guard, GuardLayer, MissingToken, Remember};
use tokio::sync::oneshot;
use tonic::{Code, Status};
use tower::{Layer, Service, ServiceExt, service_fn};

fn token(counter: u32) -> FencingToken {
    FencingToken { epoch: 1, counter }
}

fn request(counter: Option<u32>, content_type: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    request.headers_mut().insert("content-type", content_type.parse().unwrap());
    if let Some(counter) = counter {
        token(counter).attach(request.headers_mut());
    }
    request
}

/// Answers with the token that it was let in under.
async fn under(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let fenced = request.extensions().get::<Fenced<()>>();
    let text = fenced.map_or("none".to_owned(), |fenced| fenced.token().to_string());
    Ok(Response::new(Full::from(text)))
}

async fn text(response: Response<tonic::body::Body>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// 000-14, 001-47: stale requests are refused in the words of either protocol.
#[tokio::test]
async fn stale_requests_are_refused_in_both_protocols() {
    let layer = GuardLayer::new(Guard::new(), MissingToken::Refuse);
    let service = layer.layer(service_fn(under));
    for (counter, answer) in [(33, "1-33"), (34, "1-34")] {
        let response = service.clone().oneshot(request(Some(counter), "text/plain")).await.unwrap();
        assert_eq!(text(response).await, answer);
    }
    let stale = "stale fencing token 1-33: 1-34 has been seen, so the role has a newer holder";
    let response = service.clone().oneshot(request(Some(33), "application/json")).await.unwrap();
    assert_eq!(response.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(text(response).await, format!("{stale}\n"));
    let response = service.clone().oneshot(request(Some(33), "application/grpc")).await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, stale));

    let response = service.clone().oneshot(request(None, "application/json")).await.unwrap();
    assert_eq!(response.status(), StatusCode::PRECONDITION_FAILED);
    assert!(text(response).await.contains("satrap-fencing-token"));
    let mut odd = request(None, "application/json");
    odd.headers_mut().insert("satrap-fencing-token", "34".parse().unwrap());
    let response = service.clone().oneshot(odd).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);

    let open = GuardLayer::new(Guard::since(token(34)), MissingToken::Pass);
    let response = open.layer(service_fn(under)).oneshot(request(None, "a/b")).await.unwrap();
    assert_eq!(text(response).await, "none");
}

/// GUARD-3: a write of the former holder that is under way ends before the next holder's first begins,
/// and a later one is refused meanwhile.
#[tokio::test]
async fn a_new_holder_waits_for_what_the_former_began() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let (go, gate) = oneshot::channel::<()>();
    let gate = Arc::new(Mutex::new(Some(gate)));
    let (noted, gates) = (log.clone(), gate.clone());
    let slow = service_fn(move |request: Request<Full<Bytes>>| {
        let (log, gate) = (noted.clone(), gates.lock().unwrap().take());
        async move {
            if let Some(gate) = gate {
                gate.await.unwrap();
            }
            let token = request.extensions().get::<Fenced<()>>().unwrap().token();
            log.lock().unwrap().push(token.counter);
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    let mut service = GuardLayer::new(Guard::new(), MissingToken::Refuse).layer(slow);
    let mut call = |counter| Box::pin(service.call(request(Some(counter), "a/b")));
    let mut first = call(33);
    assert!(is_pending(&mut first).await);
    let mut second = call(34);
    assert!(is_pending(&mut second).await);
    let mut third = call(35);
    assert!(is_pending(&mut third).await);
    let late = call(33).await.unwrap();
    assert_eq!(late.status(), StatusCode::PRECONDITION_FAILED);
    drop(second);
    assert!(is_pending(&mut third).await, "the first still runs, whatever the second did");
    go.send(()).unwrap();
    first.await.unwrap();
    third.await.unwrap();
    assert_eq!(*log.lock().unwrap(), [33, 35]);
}

/// Polls once; true if there is no result yet.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
    })
    .await
}

struct FullDisk;

impl Remember for FullDisk {
    type Error = &'static str;

    fn recall(&mut self) -> Result<FencingToken, Self::Error> {
        Ok(token(33))
    }

    fn remember(&mut self, _: FencingToken) -> Result<(), Self::Error> {
        Err("no space")
    }
}

/// GUARD-2: no request is let in under a token that could be forgotten.
#[tokio::test]
async fn what_cannot_be_remembered_is_not_admitted() {
    let layer = GuardLayer::new(DurableGuard::open(FullDisk).unwrap(), MissingToken::Refuse);
    let service = layer.layer(service_fn(under));
    let response = service.clone().oneshot(request(Some(34), "a/b")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let response = service.oneshot(request(Some(33), "a/b")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
