//! The gRPC service for peers: authenticates their messages and passes them to openraft.
//!
//! The listener accepts only members of this region. That is not enough: a member must not speak in
//! the name of another one, and a member whose disk was replaced must not take part. So the service
//! also checks the sender's name inside every message, and its instance.
//!
//! # Invariants
//!
//! - **RINGSERVICE-1** A vote, an append or a snapshot reaches openraft only if the leader or
//!   candidate in it is the peer that mTLS authenticated.
//! - **RINGSERVICE-2** A snapshot reaches openraft only after its digests and all of its content
//!   verified, and only if it does not set the replica back. openraft would stop the process over a
//!   bad snapshot, and a peer must not be able to stop this member.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest,
};
use satrap_identity::pki::{PeerIdentity, Role};
use satrap_proto::v1::{RingFrame, ring_server};
use satrap_ring_storage::{Owner, files::Files};
use satrap_runtime::Shutdown;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    changes::MemberChange,
    contact::QuorumAge,
    disk::{Position, Restored},
    founding::founders_digest,
    frames::{
        self, Forwarded, FrameError, Kind, ReadProof, Sender, SnapshotHead, SnapshotReply, Welcome,
    },
    inbox::{DiskAlarm, Inbox, InboxError, Snapshot, SnapshotContent, Transfer},
    meters::PeerMeter,
    peers::{Peers, Refusal},
    platform::Platform,
    ring::Ring,
    setup::RingSetup,
    types::{MemberName, SnapshotMeta, Types, Vote},
};
use crate::{limits::APPEND_BYTES_MAX, status};

/// Implements `satrap.v1.Ring`.
pub struct RingService<P: Platform> {
    ring: Ring<P>,
    peers: Peers,
    inbox: Inbox,
    region: String,
    /// Ends streams, which would keep the listener open.
    closed: Shutdown,
}

impl<P: Platform> Clone for RingService<P> {
    fn clone(&self) -> Self {
        let Self { ring, peers, inbox, region, closed } = self;
        let (ring, peers, inbox) = (ring.clone(), peers.clone(), inbox.clone());
        Self { ring, peers, inbox, region: region.clone(), closed: closed.clone() }
    }
}

fn frame_error(error: &FrameError) -> Status {
    if let FrameError::Instance = error {
        tracing::error!("{error}");
        return status::refused(Code::FailedPrecondition, error);
    }
    status::refused(Code::InvalidArgument, error)
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    frames::body(bytes).map_err(|error| frame_error(&error))
}

fn admission_error(error: Refusal) -> Status {
    match error {
        Refusal::LostDisk(lost) => status::refused(Code::FailedPrecondition, &lost),
        stranger @ Refusal::Stranger(_) => status::denied(&stranger.to_string()),
    }
}

impl<P: Platform> RingService<P> {
    /// A service for the peers of `ring`, until `closed`; snapshots arrive in `files`, and `alarm`
    /// reports a failure of those.
    #[must_use]
    pub fn new(
        ring: Ring<P>,
        peers: Peers,
        files: Arc<dyn Files>,
        setup: &RingSetup,
        alarm: DiskAlarm,
        closed: Shutdown,
    ) -> Self {
        let Sender { ring: id, instance, .. } = peers.own();
        let owner = Owner { ring: id, member: ring.node.name.to_string() };
        let inbox = Inbox::new(files, owner, instance, setup.state.clone(), alarm);
        Self { ring, peers, inbox, region: setup.region.clone(), closed }
    }

    /// The peer's name in this region, whether it is in the ring or not.
    fn named<T>(&self, request: &Request<T>) -> Result<MemberName, Status> {
        let peer = request.extensions().get::<PeerIdentity>();
        let peer = peer.ok_or_else(|| status::denied("no authenticated peer"))?;
        match peer.id.role() {
            Role::Member { region, name } if *region == self.region => {
                MemberName::new(name).map_err(|error| status::denied(&error.to_string()))
            }
            _ => Err(status::denied(&format!("{} is not a member of this region", peer.id))),
        }
    }

    fn open<'a>(&self, kind: Kind, payload: &'a [u8]) -> Result<(Sender, &'a [u8]), Status> {
        frames::open(&self.peers.own(), kind, payload).map_err(|error| frame_error(&error))
    }

    /// Admits the sender of a message and decodes the message; returns both.
    fn read<T: DeserializeOwned>(
        &self,
        caller: &MemberName,
        kind: Kind,
        payload: &[u8],
    ) -> Result<(Sender, T), Status> {
        let (sender, rest) = self.open(kind, payload)?;
        self.peers.admit(caller, &sender).map_err(admission_error)?;
        self.meter(caller).received.add(payload.len() as u64);
        Ok((sender, body(rest)?))
    }

    fn reply(
        &self,
        caller: &MemberName,
        to: &Sender,
        kind: Kind,
        body: &impl Serialize,
    ) -> RingFrame {
        let payload = frames::pack(&self.peers.own(), &to.instance, kind, body);
        self.meter(caller).sent.add(payload.len() as u64);
        RingFrame { payload: payload.into(), more: false }
    }

    fn meter(&self, caller: &MemberName) -> Arc<PeerMeter> {
        self.ring.node.shared.meters.peer(caller)
    }

    /// The answer to the next append of a stream; `None` at its end.
    async fn next_append(
        &self,
        caller: &MemberName,
        frames: &mut Streaming<RingFrame>,
    ) -> Result<Option<RingFrame>, Status> {
        match frames::join(frames, APPEND_BYTES_MAX).await? {
            Some(message) => self.append_message(caller, &message).await.map(Some),
            None => Ok(None),
        }
    }

    async fn append_message(
        &self,
        caller: &MemberName,
        message: &[u8],
    ) -> Result<RingFrame, Status> {
        let (sender, (age, request)): (_, (QuorumAge, AppendEntriesRequest<Types<P>>)) =
            self.read(caller, Kind::Append, message)?;
        speaks_for(caller, &request.vote)?;
        let reply =
            self.ring.node.raft.append_entries(request).await.map_err(status::unavailable_from)?;
        if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
            self.ring.node.network.contact.heard(age);
        }
        Ok(self.reply(caller, &sender, Kind::Append, &reply))
    }

    /// RINGSERVICE-2
    fn check(&self, head: &SnapshotMeta, offered: &Restored) -> Result<(), Status> {
        let Position { applied, membership } = &offered.position;
        if (*applied, membership) != (head.last_log_id, &head.last_membership) {
            let why = "the head of a snapshot promises another state than its content";
            return Err(status::refused(Code::DataLoss, &why));
        }
        let (offered, held) = (offered.state.extensions(), self.ring.extensions());
        if let Some((page, offered, held)) = offered.behind(&held) {
            let why = format!("`{page}` is at version {offered}, this member holds {held}");
            return Err(status::refused(Code::FailedPrecondition, &why));
        }
        Ok(())
    }
}

impl From<InboxError> for Status {
    fn from(error: InboxError) -> Self {
        tracing::warn!(%error, "rejected a snapshot from another member");
        match error {
            InboxError::Stopping(error) => status::unavailable(&error),
            error => status::refused(Code::DataLoss, &error),
        }
    }
}

/// RINGSERVICE-1
fn speaks_for(caller: &MemberName, vote: &Vote) -> Result<(), Status> {
    let named = &vote.leader_id.voted_for;
    if named == caller {
        return Ok(());
    }
    Err(status::denied(&format!("`{caller}` spoke in the name of `{named}`")))
}

#[tonic::async_trait]
impl<P: Platform> ring_server::Ring for RingService<P> {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<RingFrame, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<RingFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = self.named(&request)?;
        let open = Some((self.clone(), caller, request.into_inner()));
        let replies = stream::unfold(open, |open| async move {
            let (service, caller, mut frames) = open?;
            match service.next_append(&caller, &mut frames).await.transpose()? {
                Ok(reply) => Some((Ok(reply), Some((service, caller, frames)))),
                Err(status) => Some((Err(status), None)),
            }
        });
        let closed = self.closed.clone();
        Ok(Response::new(Box::pin(replies.take_until(async move { closed.requested().await }))))
    }

    async fn vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, vote): (_, VoteRequest<Types<P>>) =
            self.read(&caller, Kind::Vote, &payload)?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.ring.node.raft.vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, &sender, Kind::Vote, &reply)))
    }

    async fn pre_vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        if frames::is_hello(&payload) {
            // A member that was invited by its address asks under a name that is not known yet.
            let (sender, rest) = self.open(Kind::Hello, &payload)?;
            self.peers.admit_any(&caller, &sender).map_err(admission_error)?;
            let () = body(rest)?;
            let founded = self.ring.node.membership().log_id().is_some();
            let welcome =
                Welcome { founded, founders: founders_digest(&self.ring.members.configured) };
            return Ok(Response::new(self.reply(&caller, &sender, Kind::Hello, &welcome)));
        }
        let (sender, vote): (_, VoteRequest<Types<P>>) =
            self.read(&caller, Kind::PreVote, &payload)?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.ring.node.raft.pre_vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, &sender, Kind::PreVote, &reply)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<RingFrame>>,
    ) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let mut frames = request.into_inner();
        let head = frames.message().await?;
        let head = head.ok_or_else(|| status::refused(Code::InvalidArgument, &"no snapshot"))?;
        let (sender, head): (_, SnapshotHead) =
            self.read(&caller, Kind::Snapshot, &head.payload)?;
        speaks_for(&caller, &head.vote)?;
        let meter = self.meter(&caller);
        let frames = frames.map(move |frame| {
            let payload = frame?.payload;
            meter.received.add(payload.len() as u64);
            Ok(payload)
        });
        let state = self.ring.checkpoints.state();
        let taken = self.inbox.take::<P, Status>(state, frames).await;
        let failures = &self.ring.node.shared.meters.snapshot_receive_failures;
        let reply = match taken.inspect_err(|_| failures.add_one())? {
            Transfer::Next(next) => SnapshotReply::Next(next),
            Transfer::All(arrived) => {
                self.check(&head.meta, &arrived.restored)?;
                let snapshot = SnapshotContent::Arrived(arrived);
                let snapshot = Snapshot { meta: head.meta, snapshot };
                let installed =
                    self.ring.node.raft.install_full_snapshot(head.vote, snapshot).await;
                SnapshotReply::Done(installed.map_err(status::unavailable_from)?.vote)
            }
        };
        Ok(Response::new(self.reply(&caller, &sender, Kind::Snapshot, &reply)))
    }

    async fn propose(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, forwarded) = self.read(&caller, Kind::Propose, &payload)?;
        let Forwarded { origin, term, proposals } = forwarded;
        let fate = self.ring.proposer.append(origin, term, &proposals).await;
        Ok(Response::new(self.reply(&caller, &sender, Kind::Propose, &fate)))
    }

    async fn read_index(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, proof): (_, ReadProof) = self.read(&caller, Kind::ReadIndex, &payload)?;
        let index = self.ring.reads.read_index(proof).await;
        Ok(Response::new(self.reply(&caller, &sender, Kind::ReadIndex, &index)))
    }

    async fn order(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, rest) = self.open(Kind::ChangeMembers, &payload)?;
        let change: MemberChange = body(rest)?;
        // A new member asks for itself; a member of the ring forwards the request of a new one.
        let reply = match &change {
            MemberChange::Join { name, instance, .. }
                if *name == caller && *instance == sender.instance =>
            {
                self.peers.admit_any(&caller, &sender).map_err(admission_error)?;
                self.ring.members.forward_join(change).await
            }
            _ => {
                self.peers.admit(&caller, &sender).map_err(admission_error)?;
                self.ring.members.execute(change).await
            }
        };
        Ok(Response::new(self.reply(&caller, &sender, Kind::ChangeMembers, &reply)))
    }

    async fn digests(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, ()) = self.read(&caller, Kind::Digests, &payload)?;
        let taken = self.ring.node.shared.digests();
        Ok(Response::new(self.reply(&caller, &sender, Kind::Digests, &taken)))
    }

    async fn transfer_leader(
        &self,
        request: Request<RingFrame>,
    ) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, transfer): (_, TransferLeaderRequest<Types<P>>) =
            self.read(&caller, Kind::Transfer, &payload)?;
        speaks_for(&caller, transfer.from_leader())?;
        let reply = self.ring.node.raft.handle_transfer_leader(transfer).await;
        let reply = reply.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, &sender, Kind::Transfer, &reply)))
    }
}
