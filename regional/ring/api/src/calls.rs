//! The calls from the services to the ring's thread, and their results.
//!
//! # Invariants
//!
//! - **CALLS-1** An [`Applied`] is sent after this member has applied the proposal, so a client that then reads
//!   from this member sees its own write.
//! - **CALLS-2** A [`ReadPoint`] is sent once this member's state is as fresh as it promises.
//! - **CALLS-3** [`Unavailable`] says whether a write may have happened: only [`Unavailable::Timeout`],
//!   [`Unavailable::LeaderChanged`] and [`Unavailable::Stopped`] leave it open.

use bytes::Bytes;
use satrap_ring_core::{Proposal, Refusal, Reply};
use tokio::sync::{mpsc, oneshot};

use crate::members::Member;
use crate::refusal;

/// A call to the ring's thread.
#[derive(Debug)]
pub enum Call {
    /// Propose this request.
    Propose {
        /// The request and its caller.
        proposal: Proposal,
        /// Answered after the local apply (CALLS-1).
        reply: oneshot::Sender<Result<Applied, Unavailable>>,
    },
    /// Propose all of these requests, in this order. They are committed together or not at all.
    ProposeMany {
        /// The request and its caller.
        proposals: Vec<Proposal>,
        /// Answered after the local apply of all of them, with one reply for each.
        reply: oneshot::Sender<Result<AppliedMany, Unavailable>>,
    },
    /// Answer when the local state is fresh enough for a read.
    Read {
        /// The required freshness.
        mode: ReadMode,
        /// See CALLS-2.
        reply: oneshot::Sender<Result<ReadPoint, Unavailable>>,
    },
    /// An operation on the ring itself.
    Admin {
        /// The operation.
        request: AdminRequest,
        /// Answered when the operation is done.
        reply: oneshot::Sender<Result<AdminReply, Failure>>,
    },
}

/// The result of a proposal that was committed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The answer of the keyspace.
    pub reply: Reply,
    /// The term it was committed in.
    pub term: u64,
}

/// The results of many proposals.
#[derive(Clone, Debug)]
pub struct AppliedMany {
    /// The answers of the keyspace, in the order of the proposals.
    pub replies: Vec<Reply>,
    /// The term of the last of them.
    pub term: u64,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// A quorum confirms the leader after the read arrived.
    Linearizable,
    /// The leader's lease vouches for it; falls back to a quorum when the lease is short.
    Lease,
}

/// How a read was made fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// By a round to a quorum.
    Quorum,
    /// By the leader's lease.
    Lease,
    /// Not at all.
    Local,
}

/// The proof that the local state is fresh enough to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPoint {
    /// How the freshness was established.
    pub served: Served,
    /// The state was the ring's newest at most this long ago; `None` if that is unknown.
    pub stale_ms_max: Option<u64>,
    /// The term of the leader that vouches for it.
    pub term: u64,
}

/// The ring did not serve the request, for no fault of the caller. A retry may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no leader. Nothing was written.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The leader changed while the request was under way. A write may or may not have happened.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// The ring did not answer in time. A write may or may not have happened.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// The queue of calls to the ring is full, or a bound on requests is reached. Nothing was written.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// This member is stopping. A write may or may not have happened.
    #[error("etcdserver: server stopped")]
    Stopped,
}

/// Why a request has no answer: it was refused, or the ring is unavailable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The ring refused the request, for a fault of the caller.
    #[error("{}", refusal::text(.0))]
    Refused(Refusal),
    /// The ring did not serve the request; a retry may succeed.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A request about the ring itself. Permissions have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Add a member.
    AddMember {
        /// The URLs for its peers.
        peer_urls: Vec<String>,
        /// Whether to add it as a learner.
        is_learner: bool,
    },
    /// Give a learner its vote.
    PromoteMember(u64),
    /// Remove a member.
    RemoveMember(u64),
    /// Change the peer URLs of a member.
    UpdateMember {
        /// The member.
        id: u64,
        /// Its new peer URLs.
        peer_urls: Vec<String>,
    },
    /// Transfer the leadership to this member.
    MoveLeader(u64),
    /// Defragment the state of this member on disk.
    Defragment,
    /// Take a snapshot of this member's state.
    Snapshot,
}

/// The result of an [`AdminRequest`].
#[derive(Debug)]
pub enum AdminReply {
    /// The operation is done.
    Done,
    /// The members after the change.
    Members(Vec<Member>),
    /// The new member, and all members.
    Added(Member, Vec<Member>),
    /// The snapshot.
    Snapshot(SnapshotStream),
}

/// A snapshot that is being streamed.
#[derive(Debug)]
pub struct SnapshotStream {
    /// The size of all chunks together.
    pub total_bytes: u64,
    /// The chunks in order; an error ends the stream.
    pub chunks: mpsc::Receiver<Result<Bytes, Unavailable>>,
}
