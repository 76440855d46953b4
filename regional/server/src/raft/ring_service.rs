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
//! - **N2** A snapshot reaches openraft only after its digest and all of its content verified, and
//!   only if it does not take the replica back. openraft would stop the process over a bad one, and
//!   a peer must not be able to stop us.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::Stream;
use openraft::{
    Raft,
    raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest},
};
use satrap_certify::Genesis;
use satrap_host::pki::{PeerIdentity, Role};
use satrap_proto::v1::{RingFrame, ring_server};
use satrap_regional_core::Region;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    frames::{self, FrameError, Kind, Welcome},
    peers::{Peers, Refusal},
    state_machine::{SnapshotContent, StateMachine, restore},
    types::{MemberName, Snapshot, Types, Vote},
};
use crate::{
    limits::{APPEND_BYTES_MAX, SNAPSHOT_BYTES_MAX},
    status,
};

/// Serves `satrap.v1.Ring`.
#[derive(Clone)]
pub struct RingService {
    raft: Raft<Types, StateMachine>,
    peers: Peers,
    region: String,
    genesis: Arc<Genesis>,
    views: watch::Receiver<Arc<Region>>,
}

fn frame_error(error: &FrameError) -> Status {
    if let FrameError::Instance = error {
        tracing::error!("{error}");
        return status::refused(Code::FailedPrecondition, error);
    }
    status::refused(Code::InvalidArgument, error)
}

fn meet_error(error: Refusal) -> Status {
    match error {
        Refusal::LostDisk(lost) => status::refused(Code::FailedPrecondition, &lost),
        Refusal::Stopping(error) => status::unavailable(&error),
    }
}

impl RingService {
    /// A service for members of `region` that feeds `raft`.
    #[must_use]
    pub fn new(
        raft: Raft<Types, StateMachine>,
        peers: Peers,
        region: String,
        genesis: Arc<Genesis>,
        views: watch::Receiver<Arc<Region>>,
    ) -> Self {
        Self { raft, peers, region, genesis, views }
    }

    /// The peer's name in this ring.
    fn caller<T>(&self, request: &Request<T>) -> Result<MemberName, Status> {
        let peer = request.extensions().get::<PeerIdentity>();
        let peer = peer.ok_or_else(|| status::denied("no authenticated peer"))?;
        let Role::Member { region, name } = peer.id.role() else {
            return Err(status::denied(&format!("{} is not a member of a ring", peer.id)));
        };
        let name = self.peers.names().find(|known| known.as_str() == name);
        match name {
            Some(name) if *region == self.region => Ok(name.clone()),
            _ => Err(status::denied(&format!("{} is not a member of this ring", peer.id))),
        }
    }

    async fn open<'a>(
        &self,
        caller: &MemberName,
        kind: Kind,
        payload: &'a [u8],
    ) -> Result<&'a [u8], Status> {
        let own = self.peers.own();
        let (instance, rest) = frames::open(own, kind, payload).map_err(|e| frame_error(&e))?;
        self.peers.meet(caller, instance).await.map_err(meet_error)?;
        Ok(rest)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        caller: &MemberName,
        kind: Kind,
        payload: &[u8],
    ) -> Result<T, Status> {
        frames::body(self.open(caller, kind, payload).await?).map_err(|e| frame_error(&e))
    }

    fn reply(&self, to: &MemberName, kind: Kind, body: &impl Serialize) -> RingFrame {
        let to = self.peers.instance_of(to);
        RingFrame { payload: frames::pack(self.peers.own(), &to, kind, body).into() }
    }

    async fn append_message(
        &self,
        caller: &MemberName,
        message: &[u8],
    ) -> Result<RingFrame, Status> {
        let request: AppendEntriesRequest<Types> = self.read(caller, Kind::Append, message).await?;
        speaks_for(caller, &request.vote)?;
        let reply = self.raft.append_entries(request).await.map_err(status::unavailable_from)?;
        Ok(self.reply(caller, Kind::Append, &reply))
    }

    /// N2
    async fn judge_snapshot(
        &self,
        digest: [u8; 32],
        content: Bytes,
    ) -> Result<SnapshotContent, Status> {
        if blake3::hash(&content) != digest {
            return Err(status::refused(Code::DataLoss, &"the snapshot does not have its digest"));
        }
        let restored = restore(self.genesis.clone(), content.clone()).await;
        let region = restored.map_err(|e| status::unavailable(&e))?;
        let region = region.map_err(|rejection| {
            tracing::error!(rule = rejection.rule(), "refused a snapshot: {rejection}");
            status::rejected(&rejection)
        })?;
        let (offered, held) = (region.replica().height(), self.views.borrow().replica().height());
        if offered < held {
            let why = format!("the snapshot is at height {offered}, this member holds {held}");
            return Err(status::refused(Code::FailedPrecondition, &why));
        }
        Ok(SnapshotContent { bytes: content, verified: Some(region) })
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
impl ring_server::Ring for RingService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<RingFrame, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<RingFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = self.caller(&request)?;
        let message = frames::join(request.into_inner(), APPEND_BYTES_MAX).await?;
        let reply = self.append_message(&caller, &message).await?;
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(reply)))))
    }

    async fn append_one(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        self.append_message(&caller, &request.into_inner().payload).await.map(Response::new)
    }

    async fn vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let payload = request.into_inner().payload;
        let vote: VoteRequest<Types> = self.read(&caller, Kind::Vote, &payload).await?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.raft.vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::Vote, &reply)))
    }

    async fn pre_vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let payload = request.into_inner().payload;
        if frames::is_hello(&payload) {
            let () = self.read(&caller, Kind::Hello, &payload).await?;
            let founded = self.raft.is_initialized().await.map_err(status::unavailable_from)?;
            return Ok(Response::new(self.reply(&caller, Kind::Hello, &Welcome { founded })));
        }
        let vote: VoteRequest<Types> = self.read(&caller, Kind::PreVote, &payload).await?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.raft.pre_vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::PreVote, &reply)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<RingFrame>>,
    ) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let message = frames::join(request.into_inner(), SNAPSHOT_BYTES_MAX).await?;
        let own = self.peers.own();
        let (instance, head, content) =
            frames::open_snapshot(own, &message).map_err(|e| frame_error(&e))?;
        self.peers.meet(&caller, instance).await.map_err(meet_error)?;
        speaks_for(&caller, &head.vote)?;
        let snapshot = self.judge_snapshot(head.digest, content).await?;
        let snapshot = Snapshot { meta: head.meta, snapshot };
        let reply = self.raft.install_full_snapshot(head.vote, snapshot).await;
        let reply = reply.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::Snapshot, &reply)))
    }

    async fn transfer_leader(
        &self,
        request: Request<RingFrame>,
    ) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let payload = request.into_inner().payload;
        let transfer: TransferLeaderRequest<Types> =
            self.read(&caller, Kind::Transfer, &payload).await?;
        speaks_for(&caller, transfer.from_leader())?;
        let reply = self.raft.handle_transfer_leader(transfer).await;
        let reply = reply.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::Transfer, &reply)))
    }
}
