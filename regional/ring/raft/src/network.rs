//! The client side of the ring's protocol: sends openraft's requests to peers, over mTLS gRPC.
//!
//! # Decisions
//!
//! - Heartbeats and votes have a connection of their own: behind a snapshot they would be late, and
//!   a late heartbeat causes an election.
//! - A read's heartbeat goes to a quorum at once, to the other followers a moment later (`heartbeats`).
//! - Appends to a follower share one stream (`append_stream`), in which a commit index waits a moment for
//!   entries (`commits`).
//! - Entries go one request at a time per follower. Proposals come from one upstream stream, so a
//!   pipeline would stay empty.
//! - A pre-vote that cannot be delivered is an error, never a grant: an isolated member must not
//!   elect itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use satrap_proto::v1::{RingFrame, ring_client::RingClient};
use satrap_ring_storage::{InstanceId, limits::FRAME_BYTES_MAX, snapshot::Reader};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tonic::{Code, Request, Status};

use super::{
    append_stream::AppendStream,
    changes::messages::{ChangeReply, MemberChange},
    checkpoint::IndexedDigest,
    commits,
    contact::QuorumContact,
    frames::{
        self, ANY_INSTANCE, Fate, Forwarded, Kind, ReadIndexReply, ReadProof, SnapshotHead,
        SnapshotReply, Welcome,
    },
    heartbeats::HeartbeatOrder,
    inbox::{Snapshot, SnapshotContent},
    meters::{Meters, PeerMeter},
    peers::{Link, Peers, Refusal, Wire},
    platform::Platform,
    types::{MemberName, MemberNode, Types, Vote},
};
use crate::limits::RING_FRAME_BYTES_MAX;

/// Time limit of an append of entries: an fsync of the follower and some margin.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of verification and fsync at the receiver, for a snapshot or a part of it.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Frames in one stream; the receiver has made most of them durable before it asks for more.
const SNAPSHOT_STREAM_FRAMES: usize = 64;
/// The slowest link between two zones that still counts as working.
const BYTES_PER_S_MIN: u64 = 2 * 1024 * 1024;

/// The answers to the requests of one replication stream.
type Appended<'s, P> = BoxStream<'s, Result<StreamAppendResult<Types<P>>, RPCError<Types<P>>>>;

/// Creates senders to members.
#[derive(Clone)]
pub struct Network {
    /// The other members.
    pub peers: Peers,
    /// The counters of this member.
    pub meters: Meters,
    /// The contact with a quorum, which every append carries.
    pub contact: QuorumContact,
    /// The run of this process, which the entries of its own clients carry.
    pub run: u64,
    /// The followers that receive heartbeats at once.
    pub heartbeats: HeartbeatOrder,
}

/// Sends requests to one member.
pub struct PeerSender {
    peers: Peers,
    meters: Meters,
    peer: Arc<PeerMeter>,
    contact: QuorumContact,
    run: u64,
    target: MemberName,
    /// The instance that requests are for (LINK-1 of `peers`), as far as it is known.
    instance: InstanceId,
    /// For a sender of heartbeats: the followers that receive them at once.
    heartbeats: Option<HeartbeatOrder>,
    /// The stream of appends, while one is open.
    appends: Option<AppendStream>,
}

fn transfer_time(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_S_MIN)
}

/// At most `frames_max` frames of a snapshot from `next` on; each is read from disk on another
/// thread when it is due.
fn read_frames<P: Platform>(
    reader: Arc<Mutex<Reader>>,
    next: u64,
    frames_max: usize,
) -> impl Stream<Item = RingFrame> + Send {
    let seeking = Some(next);
    futures::stream::unfold((reader, seeking), |(reader, seek)| async move {
        let work = reader.clone();
        let read = P::off_thread(move || {
            let mut reader = work.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(number) = seek {
                reader.seek(number)?;
            }
            reader.frame()
        });
        match read.await {
            Ok(Ok(Some(frame))) => {
                Some((RingFrame { payload: frame.bytes.into(), more: false }, (reader, None)))
            }
            Ok(Ok(None)) => None,
            // The stream ends early; the receiver reports the next frame that it needs, and
            // openraft tries again.
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot read the snapshot");
                None
            }
            Err(error) => {
                tracing::error!(%error, "the snapshot reader stopped");
                None
            }
        }
    })
    .take(frames_max)
}

fn client(wire: Wire) -> RingClient<Wire> {
    RingClient::new(wire).max_decoding_message_size(RING_FRAME_BYTES_MAX)
}

/// openraft backs off after `Unreachable` and retries `NetworkError` soon.
fn rpc_error<P: Platform>(status: &Status) -> RPCError<Types<P>> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::PermissionDenied => {
            Unreachable::from_string(status.message()).into()
        }
        _ => NetworkError::from_string(status.message()).into(),
    }
}

impl PeerSender {
    fn link(&self) -> Result<Link, Status> {
        let missing =
            || Status::failed_precondition(format!("`{}` is not configured", self.target));
        self.peers.link(&self.target).ok_or_else(missing)
    }

    fn pack(&self, kind: Kind, request: &impl Serialize) -> Vec<u8> {
        // Its disk may have been recorded since this sender was created.
        let to = match self.instance {
            ANY_INSTANCE => self.peers.instance_of(&self.target),
            instance => instance,
        };
        let message = frames::pack(&self.peers.own(), &to, kind, request);
        self.peer.sent.add(message.len() as u64);
        message
    }

    fn read<R: DeserializeOwned>(&self, kind: Kind, reply: &RingFrame) -> Result<R, Status> {
        self.peer.received.add(reply.payload.len() as u64);
        let broken = |error: frames::FrameError| Status::internal(error.to_string());
        let (sender, rest) =
            frames::open(&self.peers.own(), kind, &reply.payload).map_err(broken)?;
        if self.instance == ANY_INSTANCE {
            let refused = |refusal: Refusal| Status::failed_precondition(refusal.to_string());
            self.peers.admit(&self.target, &sender).map_err(refused)?;
        } else if sender.instance != self.instance {
            let why = format!("another instance of `{}` answered", self.target);
            return Err(Status::failed_precondition(why));
        }
        frames::body(rest).map_err(broken)
    }

    /// Sends a short request on the urgent connection.
    async fn ask<R: DeserializeOwned>(
        &self,
        kind: Kind,
        request: &impl Serialize,
        wait: Duration,
    ) -> Result<R, Status> {
        let frame = RingFrame { payload: self.pack(kind, request).into(), more: false };
        self.call(kind, frame, wait).await
    }

    async fn call<R: DeserializeOwned>(
        &self,
        kind: Kind,
        frame: RingFrame,
        wait: Duration,
    ) -> Result<R, Status> {
        let mut ring = client(self.link()?.urgent);
        let reply = async {
            match kind {
                Kind::Vote => ring.vote(frame).await,
                Kind::PreVote | Kind::Hello => ring.pre_vote(frame).await,
                Kind::Transfer => ring.transfer_leader(frame).await,
                Kind::ReadIndex => ring.read_index(frame).await,
                Kind::ChangeMembers => ring.order(frame).await,
                Kind::Digests => ring.digests(frame).await,
                Kind::Append | Kind::Propose | Kind::Snapshot => {
                    unreachable!("not a short request")
                }
            }
        };
        let reply = self.answered(kind, wait, reply).await;
        let reply = reply.and_then(|reply| self.read(kind, &reply.into_inner()));
        self.peers.note(&self.target, &reply);
        reply
    }

    /// The answer of the peer, if it comes within `wait`.
    async fn answered<T>(
        &self,
        kind: Kind,
        wait: Duration,
        reply: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let reply = timeout(wait, reply).await.unwrap_or_else(|_| Err(self.late(kind, wait)));
        reply.inspect_err(|_| self.peer.send_failures.add_one())
    }

    fn late(&self, kind: Kind, wait: Duration) -> Status {
        Status::deadline_exceeded(format!("`{}` did not answer {kind:?} in {wait:?}", self.target))
    }

    /// Sends an append on the stream to the follower, and opens one if there is none.
    async fn append<P: Platform>(
        &mut self,
        request: &AppendEntriesRequest<Types<P>>,
        wait: Duration,
    ) -> Result<AppendEntriesResponse<Types<P>>, Status> {
        let message = self.pack(Kind::Append, &(self.contact.age(), request));
        let wait = wait + transfer_time(message.len());
        // A stream that was not answered is dropped with this call.
        let usable = self.appends.take().and_then(|mut open| open.is_usable().then_some(open));
        let asked = async {
            let mut stream = match usable {
                Some(stream) => stream,
                None => {
                    let link = self.link()?;
                    let wire = if self.heartbeats.is_some() { link.urgent } else { link.bulk };
                    AppendStream::open(client(wire)).await?
                }
            };
            let reply = stream.ask(message).await?;
            Ok((stream, reply))
        };
        let (stream, reply) = self.answered(Kind::Append, wait, asked).await?;
        self.appends = Some(stream);
        self.read(Kind::Append, &reply)
    }

    /// Sends frames until the receiver has all. After an interruption the receiver names the frame
    /// to continue with.
    async fn send_snapshot<P: Platform>(
        &self,
        head: &SnapshotHead,
        reader: &Arc<Mutex<Reader>>,
    ) -> Result<Vote, Status> {
        let mut next = 0;
        loop {
            // The header alone at first: the receiver may already have the following frames.
            let frames_max = if next == 0 { 1 } else { SNAPSHOT_STREAM_FRAMES };
            let head = RingFrame { payload: self.pack(Kind::Snapshot, head).into(), more: false };
            let rows = read_frames::<P>(reader.clone(), next, frames_max);
            let peer = self.peer.clone();
            let rows = rows.inspect(move |frame| peer.sent.add(frame.payload.len() as u64));
            let frames = futures::stream::once(async { head }).chain(rows);
            let mut ring = client(self.link()?.bulk);
            let bytes = frames_max * FRAME_BYTES_MAX;
            let wait = SNAPSHOT_TIMEOUT + transfer_time(bytes);
            let reply = ring.install_snapshot(Request::new(frames));
            let reply = self.answered(Kind::Snapshot, wait, reply).await?;
            match self.read(Kind::Snapshot, &reply.into_inner())? {
                SnapshotReply::Next(frame) => next = frame,
                SnapshotReply::Done(vote) => return Ok(vote),
            }
        }
    }

    /// Asks the leader to append an entry; returns when it has applied it.
    pub async fn propose(&self, forwarded: Forwarded) -> Fate {
        let frame = RingFrame { payload: self.pack(Kind::Propose, &forwarded).into(), more: false };
        let Ok(link) = self.link() else { return Fate::NotAppended };
        let reply = async {
            let reply = client(link.bulk).propose(frame).await?;
            self.read(Kind::Propose, &reply.into_inner())
        };
        match reply.await {
            Ok(fate) => fate,
            Err(status) => {
                tracing::debug!(leader = %self.target, %status, "no answer from the leader; the outcome of an entry is unknown");
                Fate::Unknown
            }
        }
    }

    /// Asks the leader for the index that this member must apply before it reads.
    ///
    /// # Errors
    ///
    /// A [`Status`] if `target` cannot be asked.
    pub async fn read_index(
        &self,
        proof: ReadProof,
        wait: Duration,
    ) -> Result<ReadIndexReply, Status> {
        self.ask(Kind::ReadIndex, &proof, wait).await
    }

    /// Asks the leader to change the ring.
    ///
    /// # Errors
    ///
    /// A [`Status`] if `target` cannot be asked or did not answer.
    pub async fn change_members(
        &self,
        change: &MemberChange,
        wait: Duration,
    ) -> Result<ChangeReply, Status> {
        self.ask(Kind::ChangeMembers, change, wait).await
    }

    /// The digests that `target` recorded of its keyspace.
    ///
    /// # Errors
    ///
    /// A [`Status`] if it cannot be asked.
    pub async fn digests(&self, wait: Duration) -> Result<Vec<IndexedDigest>, Status> {
        self.ask(Kind::Digests, &(), wait).await
    }

    /// The identity of `target`, and whether it has seen this ring founded.
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
        let instance = self.peers.instance_of(&target);
        let Self { peers, meters, contact, run, .. } = self.clone();
        let (peer, heartbeats) = (meters.peer(&target), None);
        PeerSender {
            peers,
            meters,
            peer,
            contact,
            run,
            target,
            instance,
            heartbeats,
            appends: None,
        }
    }
}

impl<P: Platform> RaftNetworkFactory<Types<P>> for Network {
    type Network = PeerSender;

    async fn new_client(&mut self, target: MemberName, node: &MemberNode) -> PeerSender {
        if let Err(error) = self.peers.reach(&target, &node.url) {
            tracing::error!(member = %target, %error, "cannot connect to this member");
        }
        match (self.sender(target), node.instance) {
            (sender, ANY_INSTANCE) => sender,
            (sender, instance) => PeerSender { instance, ..sender },
        }
    }

    async fn new_heartbeat_client(&mut self, target: MemberName, node: &MemberNode) -> PeerSender {
        let heartbeats = Some(self.heartbeats.clone());
        let sender = RaftNetworkFactory::<Types<P>>::new_client(self, target, node).await;
        PeerSender { heartbeats, ..sender }
    }
}

impl<P: Platform> RaftNetworkV2<Types<P>> for PeerSender {
    type SnapshotData = SnapshotContent;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<P>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<P>>, RPCError<Types<P>>> {
        let Some(order) = self.heartbeats.clone() else {
            return self
                .append(&request, APPEND_TIMEOUT)
                .await
                .map_err(|status| rpc_error(&status));
        };
        let heartbeat = order.turn(&self.target).await;
        let began = P::monotonic();
        let reply = self.append(&request, option.soft_ttl()).await;
        self.peers.note(&self.target, &reply);
        if reply.is_ok() {
            heartbeat.answered();
            self.peer.round_trip.observe(P::monotonic().saturating_sub(began));
        }
        reply.map_err(|status| rpc_error(&status))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Appended<'s, P>, RPCError<Types<P>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types<P>>> + OptionalSend + Unpin + 'static,
    {
        let requests = commits::with_entries(requests, self.run);
        stream_append_sequential(self, requests, option)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<P>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<P>>, RPCError<Types<P>>> {
        let reply = self.ask(Kind::Vote, &request, option.soft_ttl()).await;
        reply.map_err(|status| rpc_error(&status))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<P>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<P>>, RPCError<Types<P>>> {
        let reply = self.ask(Kind::PreVote, &request, option.soft_ttl()).await;
        reply.map_err(|status| rpc_error(&status))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<P>>, StreamingError<Types<P>>> {
        let SnapshotContent::Stored(reader) = snapshot.snapshot else {
            let why = "a snapshot that arrived is sent on from the disk only";
            return Err(NetworkError::from_string(why).into());
        };
        let head = SnapshotHead { vote, meta: snapshot.meta };
        let began = P::monotonic();
        tokio::select! {
            biased;
            reply = self.send_snapshot::<P>(&head, &reader) => match reply {
                Ok(vote) => {
                    self.meters.snapshot_send.observe(P::monotonic().saturating_sub(began));
                    Ok(SnapshotResponse::new(vote))
                }
                Err(status) => {
                    self.meters.snapshot_send_failures.add_one();
                    Err(rpc_error(&status).into())
                }
            },
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<P>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<P>>, RPCError<Types<P>>> {
        let reply = self.ask(Kind::Transfer, &request, option.soft_ttl()).await;
        reply.map_err(|status| rpc_error(&status))
    }
}
