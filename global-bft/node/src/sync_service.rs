//! Serves verified state to followers: one task per stream, nothing to trust.
//!
//! The follower says where it stands; it gets the update from there, and the next one whenever a
//! newer checkpoint is there. A follower that reads slowly holds one update, not a queue of them:
//! what it gets next is computed when it has taken the last.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use satrap_certify::{Position, Replica};
use satrap_host::{TaskGroup, mtls::PeerRule};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{FollowReply, FollowRequest, follow_request::Body, sync_server::Sync};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::status;

/// `satrap.v1.Sync` over a replica that somebody else advances.
pub struct FollowService {
    replica: watch::Receiver<Arc<Replica>>,
    admit: PeerRule,
    group: TaskGroup,
    slots: Arc<Semaphore>,
}

impl FollowService {
    /// Serves `replica` to whom `admit` admits, `followers_max` at a time.
    #[must_use]
    pub fn new(
        replica: watch::Receiver<Arc<Replica>>,
        admit: PeerRule,
        group: TaskGroup,
        followers_max: usize,
    ) -> Self {
        Self { replica, admit, group, slots: Arc::new(Semaphore::new(followers_max)) }
    }
}

type Reply = Result<FollowReply, Status>;

#[tonic::async_trait]
impl Sync for FollowService {
    type FollowStream = Pin<Box<dyn Stream<Item = Reply> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = status::peer(&request, &self.admit)?;
        let slot = self.slots.clone().try_acquire_owned();
        let slot = slot.map_err(|_| status::busy("too many followers; ask another server"))?;
        let (replies, stream) = mpsc::channel(1);
        let follower =
            Follower { replica: self.replica.clone(), position: None, replies, _slot: slot };
        let (incoming, shutdown) = (request.into_inner(), self.group.shutdown());
        self.group.spawn_transient(format!("follower {}", peer.id), async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = follower.serve(incoming) => {}
            }
            Ok::<(), Infallible>(())
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

struct Follower {
    replica: watch::Receiver<Arc<Replica>>,
    /// Where the follower stands, as far as this side knows.
    position: Option<Position>,
    replies: mpsc::Sender<Reply>,
    _slot: OwnedSemaphorePermit,
}

impl Follower {
    async fn serve(mut self, mut incoming: Streaming<FollowRequest>) {
        loop {
            if let Err(status) = self.update().await {
                // The follower may have gone; then nobody needs to know why.
                let _ = self.replies.send(Err(status)).await;
                return;
            }
            tokio::select! {
                () = self.replies.closed() => return,
                changed = self.replica.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                message = incoming.message() => {
                    // One question is enough: a follower may close its half and keep listening.
                    let Ok(Some(message)) = message else { return self.listen_on().await };
                    if let Err(status) = self.take(message) {
                        let _ = self.replies.send(Err(status)).await;
                        return;
                    }
                }
            }
        }
    }

    /// The follower asks no more; it gets updates until it hangs up.
    async fn listen_on(mut self) {
        while self.update().await.is_ok() {
            tokio::select! {
                () = self.replies.closed() => return,
                changed = self.replica.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn take(&mut self, message: FollowRequest) -> Result<(), Status> {
        match message.body {
            Some(Body::Position(bytes)) => {
                self.position = Some(Position::from_canonical(&bytes).map_err(status::malformed)?);
            }
            // Reports are for regions; this tier has no edges.
            Some(Body::Report(_)) | None => {}
        }
        Ok(())
    }

    /// Sends what the follower lacks, if anything.
    async fn update(&mut self) -> Result<(), Status> {
        let Some(position) = &self.position else { return Ok(()) };
        let replica = self.replica.borrow_and_update().clone();
        let update = replica.update_for(position);
        let update = update.map_err(|why| status::rejected(why.rule(), &why))?;
        let Some(update) = update else { return Ok(()) };
        let reply = FollowReply { update: update.to_canonical().into() };
        let gone = self.replies.send(Ok(reply)).await.is_err();
        if gone {
            return Err(status::unavailable("the follower hung up"));
        }
        self.position = Some(replica.position_of(&position.interest));
        Ok(())
    }
}
