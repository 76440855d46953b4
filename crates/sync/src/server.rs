//! The server of the sync protocol, for every tier: sends followers what leads on from their position.
//!
//! A follower sends its position, and gets an update at once and after every change of the replica
//! served here. The follower verifies everything itself, and the server believes a follower nothing
//! but its own report. Which peers are admitted, and the use of reports, are the tier's decisions:
//! [`Followers`].
//!
//! # Invariants
//!
//! - **FOLLOW-1** A follower costs one update at most: the next one is made when the last was taken, from
//!   where that one led. A slow follower skips versions, it does not queue them.
//! - **FOLLOW-2** Followers at the same position share one encoded update. It is encoded once, and no
//!   lock is held meanwhile.
//! - **FOLLOW-3** A report reaches [`Followers::report`] together with the peer that sent it, and a tier
//!   keeps it only if that peer made it.
//! - **FOLLOW-4** Updates that are encoded and not taken are charged to the identity that asked, within a
//!   budget per identity and one per scope, and are dropped when they are not taken in time.
//!   Positions and reports are charged to rates of both kinds. So made-up positions cost only their
//!   maker, whatever names it mints, and no follower waits for the room of another scope.

mod answers;
pub mod limits;
mod pace;

use std::{pin::Pin, sync::Arc};

use answers::{Answers, Sending};
use futures::{Stream, StreamExt as _, stream};
use satrap_certify::{Interest, Position, Rejection, Replica};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::fault;
use satrap_proto::v1::{
    FollowReply, FollowRequest, follow_request::Body, sync_server::Sync as Serve,
};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Response, Status, Streaming};

use self::limits::FIRST_POSITION_TIMEOUT;
use satrap_identity::pki::{PeerIdentity, Scope};
use satrap_runtime::{Shutdown, TaskGroup};

/// A tier's decisions about its followers.
pub trait Followers: Clone + Send + Sync + 'static {
    /// The state that the tier publishes after every change.
    type View: Send + Sync + 'static;
    /// Lives as long as the stream: a slot, an entry among the connected, or nothing.
    type Guard: Send + 'static;

    /// The replica of `view` that is served: a complete relay, since followers choose their
    /// interest.
    fn replica(view: &Self::View) -> &Replica;

    /// Whether `peer` may follow now.
    ///
    /// # Errors
    ///
    /// The status says whether it is never or not now.
    fn admit(&self, peer: &PeerIdentity) -> Result<Self::Guard, Status>;

    /// Whether `peer` may ask for this: all of a realm is for relays.
    ///
    /// # Errors
    ///
    /// The status says why it may not.
    fn may_ask(&self, peer: &PeerIdentity, interest: &Interest) -> Result<(), Status>;

    /// Whether the tier is there for the names of `scope`, as a region is for its edges. The names of
    /// any other scope have one rate together (FOLLOW-4).
    fn is_own(&self, _scope: &Scope) -> bool {
        false
    }

    /// Takes the report that `peer` sent (FOLLOW-3).
    ///
    /// # Errors
    ///
    /// The [`Rejection`] blames the peer, and ends the stream.
    fn report(&self, peer: &PeerIdentity, bytes: &[u8]) -> Result<(), Rejection>;

    /// Counts a message of a follower that was refused.
    fn refused(&self, _rejection: &Rejection) {}
}

/// `satrap.v1.Sync` over the views that a tier publishes.
pub struct FollowService<F: Followers> {
    views: watch::Receiver<Arc<F::View>>,
    answers: Answers,
    followers: F,
    shutdown: Shutdown,
}

impl<F: Followers> FollowService<F> {
    /// Serves the newest of `views` to the peers that `followers` admits, until `group` stops.
    #[must_use]
    pub fn new(views: watch::Receiver<Arc<F::View>>, followers: F, group: &TaskGroup) -> Self {
        let answers = Answers::default();
        group.spawn("answers not taken", answers.clone().sweep(group.shutdown()));
        Self { views, answers, followers, shutdown: group.shutdown() }
    }
}

// By hand, because a derived one would ask for views that can be cloned.
impl<F: Followers> Clone for FollowService<F> {
    fn clone(&self) -> Self {
        Self {
            views: self.views.clone(),
            answers: self.answers.clone(),
            followers: self.followers.clone(),
            shutdown: self.shutdown.clone(),
        }
    }
}

fn rejected(rejection: &Rejection) -> Status {
    fault::breaks(rejection.rule(), rejection.to_string())
}

#[tonic::async_trait]
impl<F: Followers> Serve for FollowService<F> {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowReply, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().cloned();
        let peer = peer.ok_or_else(|| fault::denied("no authenticated peer"))?;
        let guard = self.followers.admit(&peer)?;
        let follower = Follower {
            service: self.clone(),
            peer,
            inbound: Some(request.into_inner()),
            position: None,
            is_due: false,
            sending: None,
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
    /// `None` once the follower has closed its side.
    inbound: Option<Streaming<FollowRequest>>,
    /// The follower's position after the updates that it was sent (FOLLOW-1).
    position: Option<Position>,
    /// Whether the position or the view is new, so that there may be an update to send.
    is_due: bool,
    /// The update on its way.
    sending: Option<Sending>,
    _guard: F::Guard,
}

enum Woken {
    Message(Option<Result<FollowRequest, Status>>),
    Changed,
    Shutdown,
}

impl<F: Followers> Follower<F> {
    /// The next piece of an update, or `None` when the stream ends well.
    async fn next(&mut self) -> Result<Option<FollowReply>, Status> {
        loop {
            if let Some(sending) = &mut self.sending {
                if let Some(reply) = sending.next()? {
                    return Ok(Some(reply));
                }
                self.sending = None;
            }
            if core::mem::take(&mut self.is_due)
                && let Some(sending) = self.answer().await?
            {
                self.sending = Some(sending);
                // Another part of the answer, or a newer view.
                self.is_due = true;
                continue;
            }
            match self.woken().await? {
                Woken::Message(Some(message)) => self.take(message?)?,
                Woken::Message(None) if self.position.is_some() => self.inbound = None,
                Woken::Message(None) => return Ok(None),
                Woken::Changed => self.is_due = true,
                Woken::Shutdown => {
                    return Err(fault::unavailable("this server is stopping; ask another one"));
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
                        fault::refused(Code::DeadlineExceeded, why)
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
        let (followers, answers) = (&self.service.followers, &self.service.answers);
        let (id, is_own) = (&self.peer.id, followers.is_own(&self.peer.id.scope()));
        let is_report = matches!(request.body, Some(Body::Report(_)));
        // FOLLOW-4, before anything is decoded: noise costs its maker as much as a position.
        if !is_report {
            answers.charge_position(id, is_own)?;
        }
        let taken = match request.body {
            Some(Body::Position(bytes)) => match Position::from_canonical(&bytes) {
                Ok(position) => return self.go_on_from(position),
                Err(error) => Err(Rejection::from(error)),
            },
            // Reports beyond the rate are dropped unread; the next one replaces them.
            Some(Body::Report(_)) if !answers.may_report(id, is_own) => Ok(()),
            Some(Body::Report(bytes)) => followers.report(&self.peer, &bytes),
            None => Err(Rejection::Report("a message that is neither a position nor a report")),
        };
        taken.map_err(|rejection| {
            tracing::warn!(
                peer = %self.peer.id, rule = rejection.rule(),
                "refused a message of a follower and ended its stream: {rejection}"
            );
            self.service.followers.refused(&rejection);
            rejected(&rejection)
        })
    }

    fn go_on_from(&mut self, position: Position) -> Result<(), Status> {
        self.service.followers.may_ask(&self.peer, &position.interest)?;
        (self.position, self.is_due) = (Some(position), true);
        Ok(())
    }

    async fn answer(&mut self) -> Result<Option<Sending>, Status> {
        let Some(position) = &self.position else { return Ok(None) };
        let view = self.service.views.borrow_and_update().clone();
        let replica = F::replica(&view);
        let answer = replica.answer(position).map_err(|rejection| rejected(&rejection))?;
        let Some(answer) = answer else { return Ok(None) };
        let sending = self.service.answers.sending(&self.peer, replica, position, answer.update);
        let sending = tokio::select! {
            () = self.service.shutdown.requested() => return Ok(None),
            sending = sending => sending?,
        };
        self.position = Some(answer.leads_to);
        Ok(Some(sending))
    }
}
