//! The seam between the services and the ring: what a service may ask, and what it may look at.
//!
//! Services run on their own thread, so that a flood of clients cannot delay a heartbeat. They hand
//! proposals and reads to the ring's loop through bounded queues, and read the keyspace themselves
//! under a short lock. A queue that is full refuses at once: waiting would only move the queue into
//! the clients' timeouts.
//!
//! ```text
//!   service ── Call ──▶ Calls (by priority) ──▶ the ring's loop ── log, apply ──▶ Keyspace
//!      ▲                                              │                             ▲
//!      └──────────── Applied, ReadPoint ──────────────┘        read(f), applied() ──┘
//! ```
//!
//! # Invariants
//!
//! - **B1** An [`Applied`] is sent after this member has applied the proposal, so a client that reads
//!   here afterwards sees its own write.
//! - **B2** A [`ReadPoint`] is sent once this member's state is as fresh as it promises.
//! - **B3** [`Unavailable`] says whether a write may have happened: only [`Unavailable::Timeout`],
//!   [`Unavailable::LeaderChanged`] and [`Unavailable::Stopped`] leave it open.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use satrap_host::clock;
use satrap_proto::etcdserverpb::ResponseHeader;
use satrap_regional_core::{Caller, Keyspace, Proposal, Refusal, Reply, Request, alarm::AlarmKind};
use tokio::sync::{mpsc, oneshot, watch};

use crate::calls::{self, Queues};
pub use crate::calls::{Calls, Priority};
pub use crate::deliveries::{Deliveries, Delivery};

/// What the ring's loop receives.
#[derive(Debug)]
pub enum Call {
    /// Put this through the log.
    Propose {
        /// What, and for whom.
        proposal: Proposal,
        /// Answered after the local apply (B1).
        reply: oneshot::Sender<Result<Applied, Unavailable>>,
    },
    /// Put all of these through the log, in this order. They share a fate: a batch is not torn.
    ProposeMany {
        /// What, and for whom.
        proposals: Vec<Proposal>,
        /// Answered after the local apply of all of them, with one reply for each.
        reply: oneshot::Sender<Result<AppliedMany, Unavailable>>,
    },
    /// Say when the local state is fresh enough to answer a read.
    Read {
        /// How fresh.
        mode: ReadMode,
        /// See B2.
        reply: oneshot::Sender<Result<ReadPoint, Unavailable>>,
    },
    /// Do something about the ring itself.
    Admin {
        /// What.
        request: AdminRequest,
        /// When it is done.
        reply: oneshot::Sender<Result<AdminReply, Failure>>,
    },
}

/// What became of a proposal that the ring took.
#[derive(Clone, Debug)]
pub struct Applied {
    /// What the keyspace answered.
    pub reply: Reply,
    /// The term it was committed in.
    pub term: u64,
}

/// What became of many.
#[derive(Clone, Debug)]
pub struct AppliedMany {
    /// What the keyspace answered, in the order of the proposals.
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

/// The local state may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPoint {
    /// How that was established.
    pub served: Served,
    /// The state was the ring's newest at most this long ago; `None` if nobody knows.
    pub stale_ms_max: Option<u64>,
    /// The term of the leader that vouches for it.
    pub term: u64,
}

/// The ring could not do it. Not the caller's fault; another try may work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no leader. Nothing was written.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The leader changed while the request was under way. A write may or may not have happened.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// No answer in time. A write may or may not have happened.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// The ring is behind. Nothing was written.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// This member stops. A write may or may not have happened.
    #[error("etcdserver: server stopped")]
    Stopped,
}

/// Why a request has no answer: somebody's fault, or nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The caller's fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody's; try again.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Who this member is; never changes while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberIdentity {
    /// Hash of the ring's id.
    pub cluster_id: u64,
    /// Hash of the ring's id and this member's name.
    pub member_id: u64,
    /// What operators call it.
    pub name: String,
}

/// One member of the ring, as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// See [`MemberIdentity::member_id`].
    pub id: u64,
    /// Empty until it has joined.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Does not vote yet.
    pub is_learner: bool,
}

/// The ring as this member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingView {
    /// Zero if there is none.
    pub leader: u64,
    /// This member's.
    pub term: u64,
    /// Last entry of this member's log.
    pub log_index: u64,
    /// By id.
    pub members: Vec<Member>,
    /// Bytes of the state on disk.
    pub disk_bytes: u64,
    /// Of these, what a defragmentation would leave.
    pub disk_bytes_used: u64,
    /// When ([`clock::monotonic`]) everything committed in the ring had last been applied here, as
    /// far as this member knows. `None` if it never knew.
    pub fresh_at: Option<Duration>,
    /// What is wrong with this member, for operators.
    pub errors: Vec<String>,
}

/// How far this member has applied the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedMark {
    /// The keyspace's revision.
    pub revision: i64,
    /// The log's index.
    pub index: u64,
    /// Of that entry.
    pub term: u64,
}

/// What may be asked about the ring itself. Permissions have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Take in a member.
    AddMember {
        /// Where its peers will reach it.
        peer_urls: Vec<String>,
        /// Without a vote for now.
        is_learner: bool,
    },
    /// Give a learner its vote.
    PromoteMember(u64),
    /// Drop a member.
    RemoveMember(u64),
    /// Change where a member is reached.
    UpdateMember {
        /// Which.
        id: u64,
        /// From now on.
        peer_urls: Vec<String>,
    },
    /// Hand the leadership to this member.
    MoveLeader(u64),
    /// Give unused space of this member back to the file system.
    Defragment,
    /// A consistent copy of this member's state.
    Snapshot,
}

/// What came of it.
#[derive(Debug)]
pub enum AdminReply {
    /// It is done.
    Done,
    /// The members from now on.
    Members(Vec<Member>),
    /// The new member, and all of them.
    Added(Member, Vec<Member>),
    /// The copy.
    Snapshot(SnapshotStream),
}

/// A snapshot under way.
#[derive(Debug)]
pub struct SnapshotStream {
    /// Of all chunks together.
    pub total_bytes: u64,
    /// In order; an error ends it.
    pub chunks: mpsc::Receiver<Result<Bytes, Unavailable>>,
}

/// The ring's end of what services look at.
#[derive(Debug)]
pub struct Publisher {
    applied: watch::Sender<AppliedMark>,
    ring: watch::Sender<Arc<RingView>>,
}

impl Publisher {
    /// Wakes watches. Call it after the state has been unlocked.
    pub fn applied(&self, mark: AppliedMark) {
        self.applied.send_replace(mark);
    }

    /// Shows a new view of the ring.
    pub fn ring(&self, view: RingView) {
        self.ring.send_replace(Arc::new(view));
    }
}

/// How a service reaches the ring. Clones share everything.
#[derive(Clone, Debug)]
pub struct Backend(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    identity: MemberIdentity,
    state: Arc<RwLock<Keyspace>>,
    queues: Queues,
    deliveries: Deliveries,
    applied: watch::Receiver<AppliedMark>,
    ring: watch::Receiver<Arc<RingView>>,
}

/// What the ring's loop keeps.
#[derive(Debug)]
pub struct RingEnd {
    /// What services ask.
    pub calls: Calls,
    /// How answers reach them when there are many at once.
    pub deliveries: Deliveries,
    /// What services look at.
    pub publisher: Publisher,
}

/// When a proposal or a read without an answer is given up; etcd's figure is 5 s plus two elections.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

impl Backend {
    /// Both ends of the seam. Each queue holds at most `queue_calls_max` calls.
    #[must_use]
    pub fn new(
        identity: MemberIdentity,
        state: Arc<RwLock<Keyspace>>,
        queue_calls_max: usize,
    ) -> (Self, RingEnd) {
        let (queues, calls) = calls::queues(queue_calls_max);
        let (applied_sender, applied) = watch::channel(AppliedMark::default());
        let (ring_sender, ring) = watch::channel(Arc::default());
        let publisher = Publisher { applied: applied_sender, ring: ring_sender };
        let deliveries = Deliveries::default();
        let end = RingEnd { calls, deliveries: deliveries.clone(), publisher };
        let shared = Shared { identity, state, queues, deliveries, applied, ring };
        (Self(Arc::new(shared)), end)
    }

    /// Hands out answers on the thread that polls this; see [`Deliveries`].
    pub(crate) fn carry_answers(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.deliveries.carry()
    }

    /// Puts one request through the log.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]; a refusal is part of [`Applied`].
    pub fn propose(
        &self,
        caller: Caller,
        request: Request,
    ) -> impl Future<Output = Result<Applied, Unavailable>> + use<> {
        let priority = Priority::of(&request);
        let proposal = Proposal { caller, request };
        let (reply, answer) = oneshot::channel();
        self.call(priority, Call::Propose { proposal, reply }, answer)
    }

    /// Puts many through the log with one wait.
    ///
    /// # Errors
    ///
    /// As [`Self::propose`], for all of them together.
    pub async fn propose_many(&self, proposals: Vec<Proposal>) -> Result<AppliedMany, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.call(Priority::Write, Call::ProposeMany { proposals, reply }, answer).await
    }

    /// Waits until [`Self::read`] sees every write that was acknowledged before this call.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn linearizable(&self) -> Result<ReadPoint, Unavailable> {
        self.fresh(ReadMode::Linearizable).await
    }

    /// Waits until [`Self::read`] is as fresh as `mode` says.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn fresh(&self, mode: ReadMode) -> Result<ReadPoint, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.call(Priority::Read, Call::Read { mode, reply }, answer).await
    }

    /// A read of whatever this member has, without waiting.
    #[must_use]
    pub fn local(&self) -> ReadPoint {
        let (ring, now) = (self.status(), clock::monotonic());
        let stale = ring.fresh_at.map(|at| now.saturating_sub(at).as_millis());
        let stale_ms_max = stale.and_then(|ms| u64::try_from(ms).ok());
        ReadPoint { served: Served::Local, stale_ms_max, term: ring.term }
    }

    /// Does something about the ring itself. Takes as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        let (reply, answer) = oneshot::channel();
        self.0.queues.send(Priority::Admin, Call::Admin { request, reply })?;
        answer.await.unwrap_or(Err(Unavailable::Stopped.into()))
    }

    /// Looks at the local state. Keep it short: the ring applies nothing meanwhile.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        // A panic in another reader changes nothing; one in the writer stops the process.
        f(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads keys for a client, unless this member's copy of them is known not to be the ring's.
    ///
    /// # Errors
    ///
    /// [`Refusal::Corrupt`], or what `f` says.
    pub fn read_keys<R>(
        &self,
        f: impl FnOnce(&Keyspace) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        self.read(|keyspace| {
            let mut corrupt = keyspace.alarms().list(Some(AlarmKind::Corrupt));
            if corrupt.any(|alarm| alarm.member == self.identity().member_id) {
                return Err(Refusal::Corrupt);
            }
            f(keyspace)
        })
    }

    /// Changes whenever something was applied.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedMark> {
        self.0.applied.clone()
    }

    /// How far this member is now.
    #[must_use]
    pub fn mark(&self) -> AppliedMark {
        *self.0.applied.borrow()
    }

    /// The ring as this member sees it now.
    #[must_use]
    pub fn status(&self) -> Arc<RingView> {
        self.0.ring.borrow().clone()
    }

    /// Changes whenever leader, term or members do.
    #[must_use]
    pub fn ring(&self) -> watch::Receiver<Arc<RingView>> {
        self.0.ring.clone()
    }

    /// Who this member is.
    #[must_use]
    pub fn identity(&self) -> &MemberIdentity {
        &self.0.identity
    }

    /// What every answer starts with.
    #[must_use]
    pub fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader {
        let MemberIdentity { cluster_id, member_id, .. } = *self.identity();
        ResponseHeader { cluster_id, member_id, revision, raft_term }
    }

    /// [`Self::header`] of an answer that was read here.
    #[must_use]
    pub fn header_at(&self, revision: i64) -> ResponseHeader {
        self.header(revision, self.0.ring.borrow().term)
    }

    /// [`Self::header`] of an answer that belongs to no particular revision.
    #[must_use]
    pub fn header_now(&self) -> ResponseHeader {
        // Of the state itself: what wakes watches may be a moment behind it, and a client that has
        // just been told a revision must not see a smaller one.
        self.header_at(self.read(|keyspace| keyspace.store().revision()))
    }

    /// Sends at once, so that what waits for the answer holds nothing of the call.
    fn call<T>(
        &self,
        priority: Priority,
        call: Call,
        answer: oneshot::Receiver<Result<T, Unavailable>>,
    ) -> impl Future<Output = Result<T, Unavailable>> + use<T> {
        let sent = self.0.queues.send(priority, call);
        async move {
            sent?;
            match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_ring_is_gone)) => Err(Unavailable::Stopped),
                Err(_elapsed) => Err(Unavailable::Timeout),
            }
        }
    }
}
