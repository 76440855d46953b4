//! The receiving side of the ring.
//!
//! The listener admits members of this region only. That is not enough: a member must not speak in
//! the name of another one, and a member whose disk was replaced must not take part. So every
//! message is checked once more, for the sender's name inside it and for its instance.
//!
//! # Invariants
//!
//! - **N1** A vote, an append or a snapshot reaches openraft only if the leader or candidate in it
//!   is the peer that mTLS authenticated.
//! - **N2** A snapshot reaches openraft only after its digests and all of its content verified, and
//!   only if it does not take the replica back. openraft would stop the process over a bad one, and
//!   a peer must not be able to stop us.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest,
};
use satrap_certify::Label;
use satrap_host::pki::{PeerIdentity, Role};
use satrap_proto::v1::{RingFrame, ring_server};
use satrap_regional_storage::{Owner, files::Files};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    Ring, RingSetup,
    disk::Restored,
    founding::founders_digest,
    frames::{
        self, Forwarded, FrameError, Kind, ReadProof, Sender, SnapshotHead, SnapshotReply, Welcome,
    },
    inbox::{DiskAlarm, Inbox, InboxError, Taken},
    meters::PeerMeter,
    orders::Order,
    peers::{Peers, Refusal},
    platform::Platform,
    state_machine::SnapshotContent,
    touch::QuorumAge,
    types::{MemberName, Snapshot, SnapshotMeta, Types, Vote},
};
use crate::{limits::APPEND_BYTES_MAX, status};

/// Serves `satrap.v1.Ring`.
pub struct RingService<P: Platform> {
    ring: Ring<P>,
    peers: Peers,
    inbox: Inbox,
}

impl<P: Platform> Clone for RingService<P> {
    fn clone(&self) -> Self {
        let Self { ring, peers, inbox } = self;
        Self { ring: ring.clone(), peers: peers.clone(), inbox: inbox.clone() }
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

fn meet_error(error: Refusal) -> Status {
    match error {
        Refusal::LostDisk(lost) => status::refused(Code::FailedPrecondition, &lost),
        stranger @ Refusal::Stranger(_) => status::denied(&stranger.to_string()),
    }
}

impl<P: Platform> RingService<P> {
    /// A service that feeds `ring`; snapshots arrive in `files`, and `alarm` hears when those fail.
    #[must_use]
    pub fn new(
        ring: Ring<P>,
        peers: Peers,
        files: Arc<dyn Files>,
        setup: &RingSetup,
        alarm: DiskAlarm,
    ) -> Self {
        let Sender { ring: id, instance, .. } = peers.own();
        let owner = Owner { ring: id, member: ring.name.to_string() };
        let inbox = Inbox::new(files, owner, instance, setup.genesis.clone(), alarm);
        Self { ring, peers, inbox }
    }

    /// The peer's name in this region, whether it is in the ring or not.
    fn named<T>(&self, request: &Request<T>) -> Result<MemberName, Status> {
        let peer = request.extensions().get::<PeerIdentity>();
        let peer = peer.ok_or_else(|| status::denied("no authenticated peer"))?;
        match peer.id.role() {
            Role::Member { region, name } if *region == self.ring.region_name => Label::new(name)
                .map(|name| MemberName::from(&name))
                .map_err(|e| status::denied(&e.to_string())),
            _ => Err(status::denied(&format!("{} is not a member of this region", peer.id))),
        }
    }

    fn open<'a>(&self, kind: Kind, payload: &'a [u8]) -> Result<(Sender, &'a [u8]), Status> {
        frames::open(&self.peers.own(), kind, payload).map_err(|error| frame_error(&error))
    }

    /// What a member of the ring sent, and which one it is.
    fn read<T: DeserializeOwned>(
        &self,
        caller: &MemberName,
        kind: Kind,
        payload: &[u8],
    ) -> Result<(Sender, T), Status> {
        let (sender, rest) = self.open(kind, payload)?;
        self.peers.meet(caller, &sender).map_err(meet_error)?;
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
        RingFrame { payload: payload.into() }
    }

    fn meter(&self, caller: &MemberName) -> Arc<PeerMeter> {
        self.ring.shared.meters.peer(caller)
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
            self.ring.raft.append_entries(request).await.map_err(status::unavailable_from)?;
        if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
            self.ring.network.touch.heard(age);
        }
        Ok(self.reply(caller, &sender, Kind::Append, &reply))
    }

    /// N2
    fn check(&self, head: &SnapshotMeta, offered: &Restored) -> Result<(), Status> {
        if (offered.applied, &offered.membership) != (head.last_log_id, &head.last_membership) {
            let why = "the head of a snapshot promises another state than its content";
            return Err(status::refused(Code::DataLoss, &why));
        }
        let held = self.ring.region();
        let heights = (offered.region.replica().height(), held.replica().height());
        if heights.0 < heights.1 {
            let why = format!("at height {}, this member holds {}", heights.0, heights.1);
            return Err(status::refused(Code::FailedPrecondition, &why));
        }
        Ok(())
    }
}

impl From<InboxError> for Status {
    fn from(error: InboxError) -> Self {
        tracing::warn!(%error, "a snapshot was not taken");
        match error {
            InboxError::Stopping(error) => status::unavailable(&error),
            error => status::refused(Code::DataLoss, &error),
        }
    }
}

/// N1
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
        let message = frames::join(request.into_inner(), APPEND_BYTES_MAX).await?;
        let reply = self.append_message(&caller, &message).await?;
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(reply)))))
    }

    async fn append_one(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        self.append_message(&caller, &request.into_inner().payload).await.map(Response::new)
    }

    async fn vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, vote): (_, VoteRequest<Types<P>>) =
            self.read(&caller, Kind::Vote, &payload)?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.ring.raft.vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, &sender, Kind::Vote, &reply)))
    }

    async fn pre_vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        if frames::is_hello(&payload) {
            // Whoever was invited by its address asks under a name that is not known yet.
            let (sender, rest) = self.open(Kind::Hello, &payload)?;
            self.peers.greet(&caller, &sender).map_err(meet_error)?;
            let () = body(rest)?;
            let founded = self.ring.membership().log_id().is_some();
            let welcome = Welcome { founded, founders: founders_digest(&self.ring.configured) };
            return Ok(Response::new(self.reply(&caller, &sender, Kind::Hello, &welcome)));
        }
        let (sender, vote): (_, VoteRequest<Types<P>>) =
            self.read(&caller, Kind::PreVote, &payload)?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.ring.raft.pre_vote(vote).await.map_err(status::unavailable_from)?;
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
        let failures = &self.ring.shared.meters.snapshot_receive_failures;
        let reply = match taken.inspect_err(|_| failures.add_one())? {
            Taken::Next(next) => SnapshotReply::Next(next),
            Taken::All(arrived) => {
                self.check(&head.meta, &arrived.restored)?;
                let snapshot = SnapshotContent::Arrived(arrived);
                let snapshot = Snapshot { meta: head.meta, snapshot };
                let installed = self.ring.raft.install_full_snapshot(head.vote, snapshot).await;
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
        let fate = self.ring.append(origin, term, &proposals).await;
        Ok(Response::new(self.reply(&caller, &sender, Kind::Propose, &fate)))
    }

    async fn read_index(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, proof): (_, ReadProof) = self.read(&caller, Kind::ReadIndex, &payload)?;
        let index = self.ring.read_index(proof).await;
        Ok(Response::new(self.reply(&caller, &sender, Kind::ReadIndex, &index)))
    }

    async fn order(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, rest) = self.open(Kind::Order, &payload)?;
        let order: Order = body(rest)?;
        // Whoever wants to join speaks for itself; a member passes on who came to it.
        let reply = match &order {
            Order::Join { name, instance, .. }
                if *name == caller && *instance == sender.instance =>
            {
                self.peers.greet(&caller, &sender).map_err(meet_error)?;
                self.ring.introduce(order).await
            }
            _ => {
                self.peers.meet(&caller, &sender).map_err(meet_error)?;
                self.ring.execute(order).await
            }
        };
        Ok(Response::new(self.reply(&caller, &sender, Kind::Order, &reply)))
    }

    async fn digests(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.named(&request)?;
        let payload = request.into_inner().payload;
        let (sender, ()) = self.read(&caller, Kind::Digests, &payload)?;
        let taken = self.ring.shared.digests();
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
        let reply = self.ring.raft.handle_transfer_leader(transfer).await;
        let reply = reply.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, &sender, Kind::Transfer, &reply)))
    }
}
