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

use std::{io, pin::Pin, sync::Arc};

use futures::Stream;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use satrap_certify::{Genesis, Label};
use satrap_host::pki::{PeerIdentity, Role};
use satrap_proto::v1::{RingFrame, ring_server};
use satrap_regional_storage::{
    InstanceId, Owner, State, StateConfig, files::Files, snapshot::Receiver,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Mutex, task};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    Ring, RingSetup,
    disk::load_received,
    frames::{self, Forwarded, FrameError, Kind, ReadProof, SnapshotHead, SnapshotReply, Welcome},
    members::Order,
    peers::{Peers, Refusal},
    state_machine::{Arrived, SnapshotContent},
    types::{MemberName, Snapshot, Types, Vote},
};
use crate::{limits::APPEND_BYTES_MAX, status};

/// Serves `satrap.v1.Ring`.
#[derive(Clone)]
pub struct RingService {
    ring: Ring,
    peers: Peers,
    inbox: Arc<Inbox>,
}

/// Where a snapshot arrives, one at a time.
struct Inbox {
    files: Arc<dyn Files>,
    owner: Owner,
    genesis: Arc<Genesis>,
    receiver: Mutex<Option<Receiver>>,
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
    /// A service that feeds `ring`; snapshots arrive in `files`.
    #[must_use]
    pub fn new(ring: Ring, peers: Peers, files: Arc<dyn Files>, setup: &RingSetup) -> Self {
        let genesis = setup.genesis.clone();
        let owner = Owner { ring: peers.own().ring, member: ring.name.to_string() };
        let inbox = Inbox { files, owner, genesis, receiver: Mutex::default() };
        Self { ring, peers, inbox: Arc::new(inbox) }
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

    /// The peer's name in this ring.
    fn caller<T>(&self, request: &Request<T>) -> Result<MemberName, Status> {
        let name = self.named(request)?;
        if self.ring.knows(&name) {
            return Ok(name);
        }
        Err(status::denied(&format!("`{name}` is not a member of this ring; invite it first")))
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
        let reply =
            self.ring.raft.append_entries(request).await.map_err(status::unavailable_from)?;
        Ok(self.reply(caller, Kind::Append, &reply))
    }

    /// Takes frames until the stream ends; N2 when all are there.
    async fn take_frames(
        &self,
        frames: &mut Streaming<RingFrame>,
    ) -> Result<Result<u64, Arrived>, Status> {
        let mut held = self.inbox.receiver.lock().await;
        let own = (self.inbox.clone(), self.peers.own().instance);
        let mut receiver = match held.take() {
            Some(receiver) => receiver,
            None => blocking(move || own.0.open(own.1)).await?,
        };
        while let Some(frame) = frames.message().await? {
            let (back, accepted) = blocking(move || {
                let accepted = receiver.accept(&frame.payload);
                Ok((receiver, accepted))
            })
            .await?;
            receiver = back;
            let accepted = accepted.map_err(|error| {
                tracing::warn!(%error, "a frame of a snapshot was refused");
                status::refused(Code::DataLoss, &error)
            })?;
            if accepted.complete {
                let (inbox, state) = (self.inbox.clone(), self.ring.checkpoints.state());
                let arrived = blocking(move || inbox.judge(receiver, &state)).await?;
                return Ok(Err(arrived));
            }
        }
        let next = receiver.next();
        *held = Some(receiver);
        Ok(Ok(next))
    }
}

impl Inbox {
    fn open(&self, instance: InstanceId) -> io::Result<Receiver> {
        let config = StateConfig::default();
        let receiver = Receiver::open(self.files.clone(), config, &self.owner, instance);
        receiver.map_err(io::Error::other)
    }

    /// N2
    fn judge(&self, receiver: Receiver, state: &State) -> io::Result<Arrived> {
        let received = receiver.finish().map_err(io::Error::other)?;
        let restored = load_received(state, &received, &self.genesis)?;
        Ok(Arrived { received, restored })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let done = task::spawn_blocking(work).await.map_err(status::unavailable_from)?;
    done.map_err(status::unavailable_from)
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
        let reply = self.ring.raft.vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::Vote, &reply)))
    }

    async fn pre_vote(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let payload = request.into_inner().payload;
        if frames::is_hello(&payload) {
            let () = self.read(&caller, Kind::Hello, &payload).await?;
            let founded =
                self.ring.raft.is_initialized().await.map_err(status::unavailable_from)?;
            return Ok(Response::new(self.reply(&caller, Kind::Hello, &Welcome { founded })));
        }
        let vote: VoteRequest<Types> = self.read(&caller, Kind::PreVote, &payload).await?;
        speaks_for(&caller, &vote.vote)?;
        let reply = self.ring.raft.pre_vote(vote).await.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::PreVote, &reply)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<RingFrame>>,
    ) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let mut frames = request.into_inner();
        let head = frames.message().await?;
        let head = head.ok_or_else(|| status::refused(Code::InvalidArgument, &"no snapshot"))?;
        let head: SnapshotHead = self.read(&caller, Kind::Snapshot, &head.payload).await?;
        speaks_for(&caller, &head.vote)?;
        let reply = match self.take_frames(&mut frames).await? {
            Ok(next) => SnapshotReply::Next(next),
            Err(arrived) => {
                let (offered, held) = (&arrived.restored, self.ring.region());
                let heights = (offered.region.replica().height(), held.replica().height());
                if heights.0 < heights.1 {
                    let why = format!("at height {}, this member holds {}", heights.0, heights.1);
                    return Err(status::refused(Code::FailedPrecondition, &why));
                }
                let snapshot = SnapshotContent::Arrived(Box::new(arrived));
                let snapshot = Snapshot { meta: head.meta, snapshot };
                let installed = self.ring.raft.install_full_snapshot(head.vote, snapshot).await;
                SnapshotReply::Done(installed.map_err(status::unavailable_from)?)
            }
        };
        Ok(Response::new(self.reply(&caller, Kind::Snapshot, &reply)))
    }

    async fn propose(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let payload = request.into_inner().payload;
        let Forwarded { origin, term, proposals } =
            self.read(&caller, Kind::Propose, &payload).await?;
        let fate = self.ring.append(origin, term, &proposals).await;
        Ok(Response::new(self.reply(&caller, Kind::Propose, &fate)))
    }

    async fn read_index(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let caller = self.caller(&request)?;
        let payload = request.into_inner().payload;
        let proof: ReadProof = self.read(&caller, Kind::ReadIndex, &payload).await?;
        let index = self.ring.read_index(proof).await;
        Ok(Response::new(self.reply(&caller, Kind::ReadIndex, &index)))
    }

    async fn order(&self, request: Request<RingFrame>) -> Result<Response<RingFrame>, Status> {
        let named = self.named(&request)?;
        let known = self.caller(&request);
        let payload = request.into_inner().payload;
        let order: Order = self.read(&named, Kind::Order, &payload).await?;
        match &order {
            // H1 of `members`: whoever wants to join speaks for itself only.
            Order::Join { name, .. } if *name == named => {}
            _ => drop(known?),
        }
        let reply = self.ring.execute(order).await;
        Ok(Response::new(self.reply(&named, Kind::Order, &reply)))
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
        let reply = self.ring.raft.handle_transfer_leader(transfer).await;
        let reply = reply.map_err(status::unavailable_from)?;
        Ok(Response::new(self.reply(&caller, Kind::Transfer, &reply)))
    }
}
