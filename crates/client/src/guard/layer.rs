//! A guard in front of a gRPC or HTTP service.
//!
//! To compare a token when a request arrives is not enough: the request may still be running when
//! the next holder's first one arrives, and write after it. So the first request with a greater token
//! waits until all older ones have been answered; from its arrival on, older ones are refused (GUARD-3).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Admit, Refused};
use crate::token::{FencingToken, NotAToken, TOKEN_HEADER};

/// How a [`GuardLayer`] treats a request that carries no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingToken {
    /// It is refused: a caller that forgot its token is not known to hold the role.
    #[default]
    Refuse,
    /// It passes unchecked; for services whose reads need no role. The service itself must then
    /// refuse to write when the request has no [`super::Fenced`] among its extensions.
    Pass,
}

/// Puts one guard in front of a service; all clones of the service share it.
pub struct GuardLayer<G> {
    door: Arc<Mutex<Door<G>>>,
    missing: MissingToken,
}

impl<G> Clone for GuardLayer<G> {
    fn clone(&self) -> Self {
        Self { door: self.door.clone(), missing: self.missing }
    }
}

impl<G: Admit> GuardLayer<G> {
    /// A layer that asks `guard`.
    #[must_use]
    pub fn new(guard: G, missing: MissingToken) -> Self {
        let door = Door { guard, now: Arc::new(Shift::default()), token: FencingToken::default() };
        Self { door: Arc::new(Mutex::new(door)), missing }
    }
}

impl<G, S> Layer<S> for GuardLayer<G> {
    type Service = Guarded<G, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded { layer: self.clone(), inner }
    }
}

/// A service behind a [`GuardLayer`]. A request that is let in has the [`super::Fenced`] of its
/// token among its extensions.
pub struct Guarded<G, S> {
    layer: GuardLayer<G>,
    inner: S,
}

impl<G, S: Clone> Clone for Guarded<G, S> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone() }
    }
}

impl<G, S: tonic::server::NamedService> tonic::server::NamedService for Guarded<G, S> {
    const NAME: &'static str = S::NAME;
}

impl<G, S, B, R> Service<Request<B>> for Guarded<G, S>
where
    G: Admit,
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let entered = match (FencingToken::of(request.headers()), self.layer.missing) {
            (Ok(Some(token)), _) => {
                let mut door = self.layer.door.lock().unwrap_or_else(PoisonError::into_inner);
                door.enter(token).map(Some).map_err(Refusal::Guard)
            }
            (Ok(None), MissingToken::Pass) => Ok(None),
            (Ok(None), MissingToken::Refuse) => Err(Refusal::Missing),
            (Err(NotAToken), _) => Err(Refusal::Malformed),
        };
        let entered = match entered {
            Ok(entered) => entered,
            Err(refusal) => {
                let answer = refusal.answer(request.headers());
                return Box::pin(async { Ok(answer) });
            }
        };
        // The service that was polled ready is the one to call; its clone takes the next request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let _inside = match entered {
                Some(Entered { fenced, shift, inside }) => {
                    shift.predecessors_ended().await;
                    request.extensions_mut().insert(fenced);
                    Some(inside)
                }
                None => None,
            };
            Ok(inner.call(request).await?.map(Body::new))
        })
    }
}

struct Door<G> {
    guard: G,
    token: FencingToken,
    now: Arc<Shift>,
}

/// All requests with one token. Each holds a receiver while it runs.
#[derive(Default)]
struct Shift {
    running: watch::Sender<()>,
    before: Option<Arc<Shift>>,
}

struct Entered {
    fenced: super::Fenced<()>,
    shift: Arc<Shift>,
    inside: watch::Receiver<()>,
}

impl<G: Admit> Door<G> {
    fn enter(&mut self, token: FencingToken) -> Result<Entered, Refused<String>> {
        let fenced = self.guard.admit(token)?;
        if token != self.token {
            // Shifts that have ended are forgotten, so the chain has only those that still run.
            let mut before = Some(self.now.clone());
            while let Some(ended) = before.take_if(|shift| shift.running.is_closed()) {
                before = ended.before.clone();
            }
            self.now = Arc::new(Shift { running: watch::Sender::default(), before });
            self.token = token;
        }
        let (shift, inside) = (self.now.clone(), self.now.running.subscribe());
        Ok(Entered { fenced, shift, inside })
    }
}

impl Shift {
    async fn predecessors_ended(&self) {
        let mut before = self.before.clone();
        while let Some(shift) = before {
            shift.running.closed().await;
            before = shift.before.clone();
        }
    }
}

enum Refusal {
    Missing,
    Malformed,
    Guard(Refused<String>),
}

impl Refusal {
    /// gRPC: `FAILED_PRECONDITION`, or what says that another try may help. HTTP: 412, 400 or 503.
    fn answer(&self, asked: &HeaderMap) -> Response<Body> {
        let text = match self {
            Self::Missing => format!("this service needs a fencing token in `{TOKEN_HEADER}`"),
            Self::Malformed => NotAToken.to_string(),
            Self::Guard(refused) => refused.to_string(),
        };
        let content = asked.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if content.starts_with(b"application/grpc") {
            return match self {
                Self::Missing | Self::Guard(Refused::Stale(_)) => {
                    Status::failed_precondition(text).into_http()
                }
                Self::Malformed => Status::invalid_argument(text).into_http(),
                Self::Guard(Refused::Forgetful(_)) => Status::unavailable(text).into_http(),
            };
        }
        let status = match self {
            Self::Missing | Self::Guard(Refused::Stale(_)) => StatusCode::PRECONDITION_FAILED,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Guard(Refused::Forgetful(_)) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut response = Response::new(Body::new(text + "\n"));
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }
}
