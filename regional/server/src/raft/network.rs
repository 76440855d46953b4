//! The sending side of the ring: openraft's requests over mTLS gRPC.
//!
//! # Decisions
//!
//! - Heartbeats and votes have a connection of their own: behind a snapshot they would be late, and
//!   a late heartbeat is an election.
//! - Entries go one request at a time per follower. Proposals come from one upstream stream, so a
//!   pipeline would stand empty.
//! - A pre-vote that cannot be delivered is an error, never a grant: an isolated member must not
//!   elect itself.

use std::time::Duration;

use bytes::Bytes;
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use satrap_proto::v1::{RingFrame, ring_client::RingClient};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tonic::{Code, Request, Status, transport::Channel};

use super::{
    frames::{self, Kind, SnapshotHead, Welcome},
    peers::{Link, Peers},
    state_machine::SnapshotContent,
    types::{MemberName, MemberNode, Snapshot, Types, Vote},
};
use crate::limits::{RING_CHUNK_BYTES, RING_FRAME_BYTES_MAX};

/// An append of entries may wait for one fsync of the follower, and then some.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Verification and fsync of a snapshot at the receiver.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest link between two zones that still counts as working.
const BYTES_PER_S_MIN: u64 = 2 * 1024 * 1024;

/// Makes senders to members.
#[derive(Clone)]
pub struct Network(pub Peers);

/// Sends to one member.
pub struct PeerSender {
    peers: Peers,
    target: MemberName,
}

fn transfer_time(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_S_MIN)
}

fn client(channel: Channel) -> RingClient<Channel> {
    RingClient::new(channel).max_decoding_message_size(RING_FRAME_BYTES_MAX)
}

/// openraft backs off after `Unreachable` and retries `NetworkError` soon.
fn rpc_error(status: &Status) -> RPCError<Types> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::PermissionDenied => {
            Unreachable::from_string(status.message()).into()
        }
        _ => NetworkError::from_string(status.message()).into(),
    }
}

impl PeerSender {
    fn link(&self) -> Result<&Link, Status> {
        let missing =
            || Status::failed_precondition(format!("`{}` is not configured", self.target));
        self.peers.link(&self.target).ok_or_else(missing)
    }

    fn pack(&self, kind: Kind, request: &impl Serialize) -> Vec<u8> {
        frames::pack(self.peers.own(), &self.peers.instance_of(&self.target), kind, request)
    }

    async fn read<R: DeserializeOwned>(&self, kind: Kind, reply: &RingFrame) -> Result<R, Status> {
        let broken = |error: frames::FrameError| Status::internal(error.to_string());
        let (instance, rest) =
            frames::open(self.peers.own(), kind, &reply.payload).map_err(broken)?;
        let refused = |error: super::peers::Refusal| Status::failed_precondition(error.to_string());
        self.peers.meet(&self.target, instance).await.map_err(refused)?;
        frames::body(rest).map_err(broken)
    }

    /// A short request on the urgent connection.
    async fn ask<R: DeserializeOwned>(
        &self,
        kind: Kind,
        request: &impl Serialize,
        wait: Duration,
    ) -> Result<R, Status> {
        let frame = RingFrame { payload: self.pack(kind, request).into() };
        self.call(kind, frame, wait).await
    }

    async fn call<R: DeserializeOwned>(
        &self,
        kind: Kind,
        frame: RingFrame,
        wait: Duration,
    ) -> Result<R, Status> {
        let mut ring = client(self.link()?.urgent.clone());
        let reply = async {
            match kind {
                Kind::Append => ring.append_one(frame).await,
                Kind::Vote => ring.vote(frame).await,
                Kind::PreVote | Kind::Hello => ring.pre_vote(frame).await,
                Kind::Transfer => ring.transfer_leader(frame).await,
                Kind::Snapshot => unreachable!("snapshots are streamed"),
            }
        };
        let reply = timeout(wait, reply).await.map_err(|_| self.late(kind, wait))??;
        self.read(kind, &reply.into_inner()).await
    }

    fn late(&self, kind: Kind, wait: Duration) -> Status {
        Status::deadline_exceeded(format!("`{}` did not answer {kind:?} in {wait:?}", self.target))
    }

    /// Entries, in one frame or many.
    async fn append_bulk(&self, message: Vec<u8>) -> Result<AppendEntriesResponse<Types>, Status> {
        let wait = APPEND_TIMEOUT + transfer_time(message.len());
        let mut ring = client(self.link()?.bulk.clone());
        let reply = async {
            if message.len() <= RING_CHUNK_BYTES {
                let frame = RingFrame { payload: message.into() };
                return ring.append_one(frame).await.map(tonic::Response::into_inner);
            }
            let frames = tokio_stream::iter(frames::split(message));
            let mut replies = ring.append(Request::new(frames)).await?.into_inner();
            let none = || Status::internal("the peer ended the stream without an answer");
            replies.message().await?.ok_or_else(none)
        };
        let reply = timeout(wait, reply).await.map_err(|_| self.late(Kind::Append, wait))??;
        self.read(Kind::Append, &reply).await
    }

    /// Whether `target` has seen this ring founded.
    ///
    /// # Errors
    ///
    /// A [`Status`] if it cannot be asked.
    pub async fn hello(&self, wait: Duration) -> Result<Welcome, Status> {
        self.ask(Kind::Hello, &(), wait).await
    }
}

impl Network {
    /// A sender to `target`.
    #[must_use]
    pub fn sender(&self, target: MemberName) -> PeerSender {
        PeerSender { peers: self.0.clone(), target }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerSender;

    async fn new_client(&mut self, target: MemberName, _node: &MemberNode) -> PeerSender {
        self.sender(target)
    }
}

impl RaftNetworkV2<Types> for PeerSender {
    type SnapshotData = SnapshotContent;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let reply = if request.entries.is_empty() {
            self.ask(Kind::Append, &request, option.soft_ttl()).await
        } else {
            let message = self.pack(Kind::Append, &request);
            self.append_bulk(message).await
        };
        reply.map_err(|status| rpc_error(&status))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let reply = self.ask(Kind::Vote, &request, option.soft_ttl()).await;
        reply.map_err(|status| rpc_error(&status))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let reply = self.ask(Kind::PreVote, &request, option.soft_ttl()).await;
        reply.map_err(|status| rpc_error(&status))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let content: Bytes = snapshot.snapshot.bytes;
        let digest = blake3::hash(&content).into();
        let head = SnapshotHead { vote, meta: snapshot.meta, digest };
        let to = self.peers.instance_of(&self.target);
        let message = frames::pack_snapshot(self.peers.own(), &to, &head, &content);
        let wait = SNAPSHOT_TIMEOUT + transfer_time(message.len());
        let send = async {
            let mut ring = client(self.link()?.bulk.clone());
            let frames = tokio_stream::iter(frames::split(message));
            let reply = timeout(wait, ring.install_snapshot(Request::new(frames))).await;
            let reply = reply.map_err(|_| self.late(Kind::Snapshot, wait))??;
            self.read(Kind::Snapshot, &reply.into_inner()).await
        };
        tokio::select! {
            reply = send => reply.map_err(|status| rpc_error(&status).into()),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let reply = self.ask(Kind::Transfer, &request, option.soft_ttl()).await;
        reply.map_err(|status| rpc_error(&status))
    }
}
