//! Serves the sync protocol, on every tier that serves it: to edges, operators, and relays.
//!
//! Each follower says where it stands and gets what brings it here, at once and after every change.
//! Nothing on this side needs to be trusted by the follower, and a follower is trusted with nothing
//! but its own report. Whom to admit and what to do with reports is for the tier: [`Followers`].
//!
//! # Invariants
//!
//! - **Y1** A follower costs one update at most: the next one is made when the last was taken, from
//!   where that one led. A slow follower skips versions, it does not queue them.
//! - **Y2** Followers at the same position share one encoded update.
//! - **Y3** A report reaches [`Followers::report`] together with the peer that sent it, and a tier
//!   keeps it only if that peer made it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use satrap_certify::{
    Interest, Position, Rejection, Replica,
    limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX},
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{
    FollowReply, FollowRequest, follow_request::Body, sync_server::Sync as Serve,
};
use tokio::{sync::watch, time::timeout};
use tonic::{Request, Response, Status, Streaming};

use crate::{Shutdown, pki::PeerIdentity};

/// Encoded updates kept for followers that stand at the same position.
const UPDATE_CACHE_ENTRIES_MAX: usize = 64;
/// Bytes of those.
const UPDATE_CACHE_BYTES_MAX: usize = 2 * UPDATE_BYTES_MAX;
/// How long a follower may take to say where it stands.
const FIRST_POSITION_TIMEOUT: Duration = Duration::from_secs(5);

/// What a tier decides about those who follow it.
pub trait Followers: Clone + Send + Sync + 'static {
    /// What the tier publishes after every change.
    type View: Send + Sync + 'static;
    /// Lives as long as the stream: a slot, an entry among the connected, or nothing.
    type Guard: Send + 'static;

    /// What of `view` is served; a relay, since followers choose their interest.
    fn replica(view: &Self::View) -> &Replica;

    /// Whether `peer` may follow now.
    ///
    /// # Errors
    ///
    /// The status says whether it is never or not now.
    fn admit(&self, peer: &PeerIdentity) -> Result<Self::Guard, Status>;

    /// Takes the report that `peer` sent (Y3).
    ///
    /// # Errors
    ///
    /// The [`Rejection`] blames the peer, and ends the stream.
    fn report(&self, peer: &PeerIdentity, bytes: &[u8]) -> Result<(), Rejection>;

    /// Something that a follower sent was refused.
    fn refused(&self, _rejection: &Rejection) {}
}

/// `satrap.v1.Sync` over views that somebody else advances.
pub struct FollowService<F: Followers> {
    views: watch::Receiver<Arc<F::View>>,
    updates: UpdateCache,
    followers: F,
    shutdown: Shutdown,
}

impl<F: Followers> FollowService<F> {
    /// Serves what `views` shows to whom `followers` admits, until `shutdown`.
    #[must_use]
    pub fn new(views: watch::Receiver<Arc<F::View>>, followers: F, shutdown: Shutdown) -> Self {
        Self { views, updates: UpdateCache::default(), followers, shutdown }
    }
}

// By hand, because a derived one would ask for views that can be cloned.
impl<F: Followers> Clone for FollowService<F> {
    fn clone(&self) -> Self {
        Self {
            views: self.views.clone(),
            updates: self.updates.clone(),
            followers: self.followers.clone(),
            shutdown: self.shutdown.clone(),
        }
    }
}

fn rejected(rejection: &Rejection) -> Status {
    Status::invalid_argument(format!("[{}] {rejection}", rejection.rule()))
}

#[tonic::async_trait]
impl<F: Followers> Serve for FollowService<F> {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowReply, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().cloned();
        let peer = peer.ok_or_else(|| Status::permission_denied("no authenticated peer"))?;
        let guard = self.followers.admit(&peer)?;
        let follower = Follower {
            service: self.clone(),
            peer,
            inbound: Some(request.into_inner()),
            position: None,
            _guard: guard,
        };
        // The views are polled from the first position on, so nothing is missed in between.
        let replies = stream::unfold(Some(follower), |follower| async {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(reply)) => Some((Ok(reply), Some(follower))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// One stream.
struct Follower<F: Followers> {
    service: FollowService<F>,
    peer: PeerIdentity,
    /// `None` once the follower has said all it will say.
    inbound: Option<Streaming<FollowRequest>>,
    /// Where the follower stands after what it was sent (Y1).
    position: Option<Position>,
    _guard: F::Guard,
}

enum Woken {
    Message(Option<Result<FollowRequest, Status>>),
    Changed,
    Shutdown,
}

impl<F: Followers> Follower<F> {
    /// The next update, or `None` when the stream ends well.
    async fn next(&mut self) -> Result<Option<FollowReply>, Status> {
        loop {
            if let Some(reply) = self.answer()? {
                return Ok(Some(reply));
            }
            match self.woken().await? {
                Woken::Message(Some(message)) => self.take(message?)?,
                Woken::Message(None) if self.position.is_some() => self.inbound = None,
                Woken::Message(None) => return Ok(None),
                Woken::Changed => {}
                Woken::Shutdown => {
                    return Err(Status::unavailable("this server is stopping; ask another one"));
                }
            }
        }
    }

    async fn woken(&mut self) -> Result<Woken, Status> {
        let first = self.position.is_none();
        let message = async {
            match &mut self.inbound {
                Some(inbound) if first => {
                    let waited = timeout(FIRST_POSITION_TIMEOUT, inbound.next()).await;
                    waited.map_err(|_| {
                        let why = format!("no position within {FIRST_POSITION_TIMEOUT:?}");
                        Status::deadline_exceeded(why)
                    })
                }
                Some(inbound) => Ok(inbound.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.service.shutdown.requested() => Ok(Woken::Shutdown),
            message = message => Ok(Woken::Message(message?)),
            changed = self.service.views.changed(), if !first => match changed {
                Ok(()) => Ok(Woken::Changed),
                Err(_) => Ok(Woken::Shutdown),
            },
        }
    }

    fn take(&mut self, request: FollowRequest) -> Result<(), Status> {
        let taken = match request.body {
            Some(Body::Position(bytes)) => Position::from_canonical(&bytes)
                .map(|position| self.position = Some(position))
                .map_err(Rejection::from),
            Some(Body::Report(bytes)) => self.service.followers.report(&self.peer, &bytes),
            None => Err(Rejection::Report("a message that is neither a position nor a report")),
        };
        taken.map_err(|rejection| {
            tracing::warn!(peer = %self.peer.id, rule = rejection.rule(), "refused: {rejection}");
            self.service.followers.refused(&rejection);
            rejected(&rejection)
        })
    }

    fn answer(&mut self) -> Result<Option<FollowReply>, Status> {
        let Some(position) = &self.position else { return Ok(None) };
        let view = self.service.views.borrow_and_update().clone();
        let replica = F::replica(&view);
        let update = self.service.updates.update_for(replica, position);
        let Some(update) = update.map_err(|rejection| rejected(&rejection))? else {
            return Ok(None);
        };
        if position.interest != Interest::Everything && update.len() > EDGE_UPDATE_BYTES_MAX {
            let why = format!(
                "the bundles asked for take {} bytes, at most {EDGE_UPDATE_BYTES_MAX} fit one \
                 update; ask for fewer",
                update.len()
            );
            return Err(Status::resource_exhausted(why));
        }
        self.position = Some(replica.position_of(&position.interest));
        Ok(Some(FollowReply { update }))
    }
}

/// Y2: encoded updates by the position they start from, for the newest height. Clones share them.
#[derive(Clone, Default)]
pub struct UpdateCache(Arc<Mutex<Cached>>);

#[derive(Default)]
struct Cached {
    height: u64,
    bytes: usize,
    updates: HashMap<Vec<u8>, Bytes>,
}

impl UpdateCache {
    /// What brings a follower at `position` to `replica`, encoded.
    ///
    /// # Errors
    ///
    /// [`Rejection::Realm`] if the follower belongs to another realm.
    pub fn update_for(
        &self,
        replica: &Replica,
        position: &Position,
    ) -> Result<Option<Bytes>, Rejection> {
        let key = position.to_canonical();
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.height != replica.height() {
            *cached = Cached { height: replica.height(), ..Cached::default() };
        }
        if let Some(update) = cached.updates.get(&key) {
            return Ok(Some(update.clone()));
        }
        let Some(update) = replica.update_for(position)? else { return Ok(None) };
        let update = Bytes::from(update.to_canonical());
        let bytes = cached.bytes + update.len();
        if cached.updates.len() < UPDATE_CACHE_ENTRIES_MAX && bytes <= UPDATE_CACHE_BYTES_MAX {
            cached.bytes = bytes;
            cached.updates.insert(key, update.clone());
        }
        Ok(Some(update))
    }
}
