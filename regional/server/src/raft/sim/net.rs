//! The network between simulated members: what one asks of another arrives late, twice, in another
//! order, in part, or never.
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
use satrap_host::pki::{PeerIdentity, Role, SpiffeId};
use tokio::{sync::oneshot, time::sleep};
use tonic::body::Body;
use tower::{Service, ServiceExt as _, util::BoxCloneSyncService};

use super::world::World;
use crate::{
    raft::{
        peers::{Dial, Link, WireError},
        types::MemberName,
    },
    tests::cluster::REGION,
    tests::realm::CHAIN,
};

/// Interval and timeout together, as `satrap_host::mtls` has them.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What the network does to messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// The longest delay.
    pub delay_ms_max: u64,
    /// Per mille that never arrive.
    pub loss: u64,
    /// Per mille of connections that break while a message is on its way.
    pub reset: u64,
    /// Per mille that arrive twice.
    pub twice: u64,
}

impl Weather {
    /// A network that works.
    pub const FAIR: Self = Self { delay_ms_max: 2, loss: 0, reset: 0, twice: 0 };
}

/// The network.
#[derive(Debug)]
pub struct Net {
    chance: Random,
    /// For all links.
    pub weather: Weather,
    /// Pairs between which nothing arrives, in this direction.
    pub cut: BTreeSet<(MemberName, MemberName)>,
}

/// What becomes of one message.
enum Hop {
    After(Duration),
    Never,
    Reset,
}

impl Net {
    /// A network that works.
    pub fn new(seed: u64) -> Self {
        let (chance, weather) = (Random::new(seed), Weather::FAIR);
        Self { chance, weather, cut: BTreeSet::new() }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.chance.below(bound)
    }

    /// Whether a request arrives twice, and after how many bytes it is interrupted.
    fn mishap(&mut self, path: &str, bytes: u64) -> (bool, Option<u64>) {
        // Only long ones take long enough.
        let part = bytes > 64 * 1024 && self.chance.chance(self.weather.reset);
        let part = part.then(|| self.chance.below(bytes));
        // TCP delivers once; Raft's own messages are asked to bear more than that.
        let raft = ["AppendOne", "Vote", "PreVote"].iter().any(|method| path.ends_with(method));
        (raft && self.chance.chance(self.weather.twice), part)
    }

    fn hop(&mut self, from: &MemberName, to: &MemberName) -> Hop {
        let delay = self.chance.between(0, self.weather.delay_ms_max);
        let (lost, reset) =
            (self.chance.chance(self.weather.loss), self.chance.chance(self.weather.reset));
        match self.cut.contains(&(from.clone(), to.clone())) || lost {
            true => Hop::Never,
            false if reset => Hop::Reset,
            false => Hop::After(Duration::from_millis(delay)),
        }
    }
}

/// A member's way to others.
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

/// Nothing is heard until the keepalive of HTTP/2 gives the connection up.
async fn lost() -> Result<(), WireError> {
    sleep(KEEPALIVE).await;
    Err(broken("nothing was heard of the peer"))
}

/// Waits for as long as a message takes, if it arrives at all.
async fn travel(world: &World, from: &MemberName, to: &MemberName) -> Result<(), WireError> {
    let hop = world.net().hop(from, to);
    match hop {
        Hop::After(delay) => {
            sleep(delay).await;
            // It may have been cut meanwhile.
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
        let Self { world, from, to } = &self;
        let (parts, body) = request.into_parts();
        let content = body.collect().await.map_err(|error| WireError(error.into()))?.to_bytes();
        travel(world, from, to).await?;
        let (twice, part) = world.net().mishap(parts.uri.path(), content.len() as u64);
        if twice {
            // Nobody reads the second answer.
            drop(self.deliver(&parts, whole(&content)));
        }
        let content = match part {
            Some(bytes) => cut_off(content.slice(..bytes as usize)),
            None => whole(&content),
        };
        world.note(&format!("{from} asks {to} {}", parts.uri.path()));
        let answer = self.deliver(&parts, content).ok_or_else(|| broken("connection refused"))?;
        let response = answer.await.map_err(|_| broken("connection reset by peer"))?;
        if let Some(status) = tonic::Status::from_header_map(response.headers()) {
            world.note(&format!("{to} refuses {from}: {}", status.message()));
        }
        travel(world, to, from).await?;
        Ok(response)
    }

    /// Hands a request to the receiving member; none if there is none.
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
            let (parts, body) = response.into_parts();
            if let Ok(body) = body.collect().await {
                // Whoever asked may have given up.
                let _ = sender.send(http::Response::from_parts(parts, Body::new(body)));
            }
        }));
        Some(answer)
    }
}

/// As mTLS would have proved it.
fn identity(name: &MemberName) -> PeerIdentity {
    let role = Role::Member { region: REGION.into(), name: name.to_string() };
    let id = Arc::new(SpiffeId::new(CHAIN, role).unwrap());
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
