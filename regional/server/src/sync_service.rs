//! Serves the sync protocol: to edges, operators, and members of other rings.
//!
//! Each follower says where it stands and gets what brings it here, at once and after every change.
//! Nothing on this side needs to be trusted by the follower, and a follower is trusted with nothing
//! but its own report.
//!
//! # Invariants
//!
//! - **Y1** A follower costs one update at most: the next one is made when the last was taken, from
//!   where that one led. A slow follower skips versions, it does not queue them.
//! - **Y2** Followers at the same position share one encoded update.
//! - **Y3** A report is kept only if the edge that made it is the peer that sent it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use satrap_certify::{Interest, Position, Rejection, limits::EDGE_UPDATE_BYTES_MAX};
use satrap_host::{
    Shutdown,
    pki::{PeerIdentity, Role},
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{FollowReply, FollowRequest, follow_request::Body, sync_server};
use satrap_regional_core::Region;
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    limits::{FIRST_POSITION_TIMEOUT, UPDATE_CACHE_BYTES_MAX, UPDATE_CACHE_ENTRIES_MAX},
    refusals::Refusals,
    reports::{self, Connected, Reports},
    status,
};

/// Serves `satrap.v1.Sync`.
#[derive(Clone)]
pub struct SyncService {
    views: watch::Receiver<Arc<Region>>,
    updates: UpdateCache,
    reports: Reports,
    refusals: Refusals,
    shutdown: Shutdown,
}

impl SyncService {
    /// Serves what `views` shows until `shutdown`.
    #[must_use]
    pub fn new(
        views: watch::Receiver<Arc<Region>>,
        reports: Reports,
        refusals: Refusals,
        shutdown: Shutdown,
    ) -> Self {
        Self { views, updates: UpdateCache::default(), reports, refusals, shutdown }
    }
}

#[tonic::async_trait]
impl sync_server::Sync for SyncService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowReply, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().cloned();
        let peer = peer.ok_or_else(|| status::denied("no authenticated peer"))?;
        if matches!(peer.id.role(), Role::Validator { .. }) {
            return Err(status::denied("validators follow each other, not regions"));
        }
        let connected = reports::edge_key(&peer).map(|edge| self.reports.connect(edge));
        let follower = Follower {
            service: self.clone(),
            peer,
            inbound: Some(request.into_inner()),
            position: None,
            _connected: connected,
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
struct Follower {
    service: SyncService,
    peer: PeerIdentity,
    /// `None` once the follower has said all it will say.
    inbound: Option<Streaming<FollowRequest>>,
    /// Where the follower stands after what it was sent (Y1).
    position: Option<Position>,
    _connected: Option<Connected>,
}

enum Woken {
    Message(Option<Result<FollowRequest, Status>>),
    Changed,
    Shutdown,
}

impl Follower {
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
                    return Err(status::unavailable(&"this member is stopping; ask another one"));
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
                        status::refused(Code::DeadlineExceeded, &why)
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
            Some(Body::Report(bytes)) => self.take_report(&bytes),
            None => Err(Rejection::Report("a message that is neither a position nor a report")),
        };
        taken.map_err(|rejection| {
            tracing::warn!(peer = %self.peer.id, rule = rejection.rule(), "refused: {rejection}");
            self.service.refusals.count(&rejection);
            status::rejected(&rejection)
        })
    }

    /// Y3
    fn take_report(&self, bytes: &[u8]) -> Result<(), Rejection> {
        let region = self.service.views.borrow().clone();
        let genesis_hash = region.replica().realm().genesis_hash();
        let (edge, report) = reports::judge(bytes, &self.peer, genesis_hash)?;
        if !self.service.reports.keep(edge, report) {
            tracing::warn!(peer = %self.peer.id, "no room for the reports of another edge");
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<Option<FollowReply>, Status> {
        let Some(position) = &self.position else { return Ok(None) };
        let region = self.service.views.borrow_and_update().clone();
        let update = self.service.updates.update_for(&region, position);
        let Some(update) = update.map_err(|rejection| status::rejected(&rejection))? else {
            return Ok(None);
        };
        if position.interest != Interest::Everything && update.len() > EDGE_UPDATE_BYTES_MAX {
            let why = format!(
                "the bundles asked for take {} bytes, at most {EDGE_UPDATE_BYTES_MAX} fit one \
                 update; ask for fewer",
                update.len()
            );
            return Err(status::refused(Code::ResourceExhausted, &why));
        }
        self.position = Some(region.replica().position_of(&position.interest));
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
    #[cfg(test)]
    encoded: u64,
}

impl UpdateCache {
    /// What brings a follower at `position` to `region`, encoded.
    ///
    /// # Errors
    ///
    /// [`Rejection::Realm`] if the follower belongs to another realm.
    pub fn update_for(
        &self,
        region: &Region,
        position: &Position,
    ) -> Result<Option<Bytes>, Rejection> {
        let replica = region.replica();
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
        #[cfg(test)]
        {
            cached.encoded += 1;
        }
        let bytes = cached.bytes + update.len();
        if cached.updates.len() < UPDATE_CACHE_ENTRIES_MAX && bytes <= UPDATE_CACHE_BYTES_MAX {
            cached.bytes = bytes;
            cached.updates.insert(key, update.clone());
        }
        Ok(Some(update))
    }

    /// How many updates were encoded for the newest height.
    #[cfg(test)]
    pub fn encoded(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).encoded
    }
}
