//! The simulated network between members: requests arrive late, twice, out of order, in part, or
//! never.
//!
//! Only the bytes below gRPC are simulated. Requests pass the generated client, our frames, the
//! generated server and our service with all of its checks, as in production.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, ready},
    stream,
};
use http_body_util::{BodyExt as _, Full, StreamBody};
use satrap_history::random::Random;
use satrap_identity::pki::{PeerIdentity, Role, SpiffeId};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tonic::body::Body;
use tower::{Service, ServiceExt as _, util::BoxCloneSyncService};

use super::world::{REALM, REGION, World};
use crate::{
    peers::{Dial, Link, WireError},
    types::MemberName,
};

/// Interval and timeout together, as `satrap_identity::mtls` has them.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The request that opens a stream.
const STREAM: &str = "/Append";

/// The faults of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkFaults {
    /// The longest delay.
    pub delay_ms_max: u64,
    /// Per mille of messages that are lost.
    pub loss: u64,
    /// Per mille of connections that break during a message.
    pub reset: u64,
    /// Per mille of messages that arrive twice.
    pub twice: u64,
}

impl NetworkFaults {
    /// A network without faults.
    pub const NONE: Self = Self { delay_ms_max: 2, loss: 0, reset: 0, twice: 0 };
}

/// The state of the network.
#[derive(Debug)]
pub struct Net {
    random: Random,
    /// The faults of all links.
    pub faults: NetworkFaults,
    /// Directed pairs whose messages are lost.
    pub cut: BTreeSet<(MemberName, MemberName)>,
}

/// The fate of one message.
enum Hop {
    After(Duration),
    Never,
    Reset,
}

impl Net {
    /// A network without faults.
    pub fn new(seed: u64) -> Self {
        let (random, faults) = (Random::new(seed), NetworkFaults::NONE);
        Self { random, faults, cut: BTreeSet::new() }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// Draws whether a request arrives twice, and after how many bytes it is interrupted.
    fn draw_faults(&mut self, path: &str, bytes: u64) -> (bool, Option<u64>) {
        // Only long messages take long enough.
        let part = bytes > 64 * 1024 && self.random.chance(self.faults.reset);
        let part = part.then(|| self.random.below(bytes));
        // TCP delivers once; Raft's own messages must tolerate duplicates too.
        let raft = [STREAM, "Vote", "PreVote"].iter().any(|method| path.ends_with(method));
        (raft && self.random.chance(self.faults.twice), part)
    }

    fn hop(&mut self, from: &MemberName, to: &MemberName) -> Hop {
        let delay = self.random.between(0, self.faults.delay_ms_max);
        let (lost, reset) =
            (self.random.chance(self.faults.loss), self.random.chance(self.faults.reset));
        match self.cut.contains(&(from.clone(), to.clone())) || lost {
            true => Hop::Never,
            false if reset => Hop::Reset,
            false => Hop::After(Duration::from_millis(delay)),
        }
    }
}

/// Dials other members over the simulated network.
pub fn dial(world: &Arc<World>, from: &MemberName) -> Dial {
    let (world, from) = (world.clone(), from.clone());
    Arc::new(move |to, _url| {
        let wire = Wire { world: world.clone(), from: from.clone(), to: to.clone() };
        let wire = BoxCloneSyncService::new(wire);
        Ok(Link { urgent: wire.clone(), bulk: wire })
    })
}

#[derive(Clone)]
struct Wire {
    world: Arc<World>,
    from: MemberName,
    to: MemberName,
}

fn broken(why: &str) -> WireError {
    WireError(tonic::Status::unavailable(why).into())
}

/// Waits until the keepalive of HTTP/2 closes the connection.
async fn lost() -> Result<(), WireError> {
    sleep(KEEPALIVE).await;
    Err(broken("nothing was heard of the peer"))
}

/// Waits for the travel time of a message, if it arrives at all.
async fn travel(world: &World, from: &MemberName, to: &MemberName) -> Result<(), WireError> {
    let hop = world.net().hop(from, to);
    match hop {
        Hop::After(delay) => {
            sleep(delay).await;
            // The link may have been cut meanwhile.
            let cut = world.net().cut.contains(&(from.clone(), to.clone()));
            if cut { lost().await } else { Ok(()) }
        }
        Hop::Never => lost().await,
        Hop::Reset => {
            sleep(Duration::from_millis(1)).await;
            Err(broken("connection reset"))
        }
    }
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Body>;
    type Error = WireError;
    type Future = BoxFuture<'static, Result<Self::Response, WireError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let wire = self.clone();
        Box::pin(async move { wire.ask(request).await })
    }
}

impl Wire {
    async fn ask(self, request: http::Request<Body>) -> Result<http::Response<Body>, WireError> {
        let (parts, body) = request.into_parts();
        match parts.uri.path().ends_with(STREAM) {
            true => self.open(&parts, body).await,
            false => self.call(&parts, body).await,
        }
    }

    /// A call whose request and response travel whole.
    async fn call(
        self,
        parts: &http::request::Parts,
        body: Body,
    ) -> Result<http::Response<Body>, WireError> {
        let Self { world, from, to } = &self;
        let content = body.collect().await.map_err(|error| WireError(error.into()))?.to_bytes();
        travel(world, from, to).await?;
        let content = match self.disturb(parts, &content) {
            Some(bytes) => cut_off(content.slice(..bytes as usize)),
            None => whole(&content),
        };
        let response = self.answer(parts, content).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| WireError(error.into()))?;
        travel(world, to, from).await?;
        Ok(http::Response::from_parts(parts, Body::new(body)))
    }

    /// A stream, of which every frame travels by itself. The first one that is lost or reset ends it.
    async fn open(
        self,
        parts: &http::request::Parts,
        body: Body,
    ) -> Result<http::Response<Body>, WireError> {
        travel(&self.world, &self.from, &self.to).await?;
        let requests = {
            let (wire, parts) = (self.clone(), parts.clone());
            in_order(body, move |frame| wire.clone().there(parts.clone(), frame))
        };
        let response = self.answer(parts, requests).await?;
        travel(&self.world, &self.to, &self.from).await?;
        let (parts, body) = response.into_parts();
        let replies = in_order(body, move |frame| self.clone().back(frame));
        Ok(http::Response::from_parts(parts, replies))
    }

    async fn there(self, parts: http::request::Parts, frame: Frame) -> Result<Frame, WireError> {
        travel(&self.world, &self.from, &self.to).await?;
        let content = frame.data_ref().cloned().unwrap_or_default();
        match self.disturb(&parts, &content) {
            Some(_) => Err(broken("connection reset")),
            None => Ok(frame),
        }
    }

    async fn back(self, frame: Frame) -> Result<Frame, WireError> {
        travel(&self.world, &self.to, &self.from).await?;
        Ok(frame)
    }

    /// Delivers a second copy of `content`, if it is to arrive twice. Returns after how many bytes the
    /// connection breaks, if it does.
    fn disturb(&self, parts: &http::request::Parts, content: &Bytes) -> Option<u64> {
        let (twice, part) = self.world.net().draw_faults(parts.uri.path(), content.len() as u64);
        if twice {
            // Drop the answer to the duplicate.
            drop(self.deliver(parts, whole(content)));
        }
        part
    }

    /// The response of the receiving member, whose body still arrives.
    async fn answer(
        &self,
        parts: &http::request::Parts,
        body: Body,
    ) -> Result<http::Response<Body>, WireError> {
        let Self { world, from, to } = self;
        world.note(&format!("{from} asks {to} {}", parts.uri.path()));
        let answer = self.deliver(parts, body).ok_or_else(|| broken("connection refused"))?;
        let response = answer.await.map_err(|_| broken("connection reset by peer"))?;
        if let Some(status) = tonic::Status::from_header_map(response.headers()) {
            world.note(&format!("{to} refuses {from}: {}", status.message()));
        }
        Ok(response)
    }

    /// Passes a request to the receiving member; `None` if it does not run.
    fn deliver(
        &self,
        parts: &http::request::Parts,
        body: Body,
    ) -> Option<oneshot::Receiver<http::Response<Body>>> {
        let (node, service) = self.world.service(&self.to)?;
        let mut request = http::Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
        request.extensions_mut().insert(identity(&self.from));
        let (sender, answer) = oneshot::channel();
        let (world, to) = (self.world.clone(), self.to.clone());
        drop(node.spawn(async move {
            let serving = AssertUnwindSafe(service.oneshot(request)).catch_unwind();
            let Ok(Ok(response)) = serving.await else {
                return world.until_death(&to, ready(Err("a service panicked".into()))).await;
            };
            let (parts, mut body) = response.into_parts();
            let (frames, arriving) = mpsc::channel(1);
            // The caller may have gone away; a duplicate has none. The service runs to its end.
            let _ = sender.send(http::Response::from_parts(parts, received(arriving)));
            while let Some(frame) = body.frame().await {
                let _ = frames.send(Some(frame)).await;
            }
            let _ = frames.send(None).await;
        }));
        Some(answer)
    }
}

type Frame = http_body::Frame<Bytes>;

/// A body whose frames arrive on a channel, and end with `None` unless the sender dies.
fn received(frames: mpsc::Receiver<Option<Result<Frame, tonic::Status>>>) -> Body {
    let frames = stream::unfold(Some(frames), |frames| async move {
        let mut frames = frames?;
        match frames.recv().await {
            Some(Some(frame)) => Some((frame, Some(frames))),
            Some(None) => None,
            None => Some((Err(tonic::Status::unavailable("connection reset by peer")), None)),
        }
    });
    Body::new(StreamBody::new(Box::pin(frames)))
}

/// The frames of `body`, each after `carry`; the first failure ends them.
fn in_order<F>(body: Body, carry: impl Fn(Frame) -> F + Send + 'static) -> Body
where
    F: Future<Output = Result<Frame, WireError>> + Send + 'static,
{
    let frames = stream::unfold(Some((body, carry)), |open| async move {
        let (mut body, carry) = open?;
        let carried = match body.frame().await? {
            Ok(frame) => carry(frame).await.map_err(|error| error.0),
            Err(status) => Err(status.into()),
        };
        match carried {
            Ok(frame) => Some((Ok(frame), Some((body, carry)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Body::new(StreamBody::new(Box::pin(frames)))
}

/// The identity that mTLS would have authenticated.
fn identity(name: &MemberName) -> PeerIdentity {
    let role = Role::Member { region: REGION.into(), name: name.to_string() };
    let id = Arc::new(SpiffeId::new(REALM, role).unwrap());
    PeerIdentity { id, leaf_der: Arc::new([]), public_key: [0; 32] }
}

fn whole(content: &Bytes) -> Body {
    Body::new(Full::new(content.clone()))
}

/// A body whose connection breaks after `content`.
fn cut_off(content: Bytes) -> Body {
    let broken = Err(tonic::Status::unavailable("connection reset"));
    Body::new(StreamBody::new(stream::iter([Ok(http_body::Frame::data(content)), broken])))
}
