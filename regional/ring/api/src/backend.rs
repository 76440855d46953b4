//! Connects the API services of a member to its ring, the thread that runs Raft and applies the log: services send
//! calls through bounded queues, and read the applied state under a lock.
//!
//! Services run on threads of their own, so that a flood of clients cannot delay a heartbeat. A full queue refuses a
//! call at once, because a call that waited for room would only time out at its client.
//!
//! ```text
//!   service ── Call ──▶ Calls (by priority) ──▶ the ring's thread ── log, apply ──▶ Keyspace
//!      ▲                                              │                               ▲
//!      └──────────── Applied, ReadPoint ──────────────┘          read(f), applied() ──┘
//! ```

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use satrap_proto::etcdserverpb::ResponseHeader;
use satrap_ring_core::{
    AppliedState, Caller, Keyspace, Proposal, Refusal, Request, alarm::AlarmKind,
};
use satrap_runtime::clock;
use tokio::sync::{oneshot, watch};

pub use crate::answers::{AnswerQueue, PendingAnswer};
pub use crate::calls::{
    AdminReply, AdminRequest, Applied, AppliedMany, Call, Failure, ReadMode, ReadPoint, Served,
    SnapshotStream, Unavailable,
};
pub use crate::members::{AppliedMark, Member, MemberIdentity, RingView};
pub use crate::queues::{Calls, Priority};
use crate::queues::{Queues, queues};

/// Publishes to the services how far this member has applied the log, and its view of the ring.
#[derive(Debug)]
pub struct Publisher {
    applied: watch::Sender<AppliedMark>,
    ring: watch::Sender<Arc<RingView>>,
}

impl Publisher {
    /// Publishes a new applied position, which wakes watches. The caller must have unlocked the state.
    pub fn applied(&self, mark: AppliedMark) {
        self.applied.send_replace(mark);
    }

    /// Publishes a new view of the ring.
    pub fn ring(&self, view: RingView) {
        self.ring.send_replace(Arc::new(view));
    }
}

/// The services' handle to the ring and its applied state. Clones share both.
#[derive(Clone, Debug)]
pub struct Backend(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    identity: MemberIdentity,
    state: Arc<RwLock<AppliedState>>,
    queues: Queues,
    answers: AnswerQueue,
    applied: watch::Receiver<AppliedMark>,
    ring: watch::Receiver<Arc<RingView>>,
}

/// The parts of a [`Backend`] that the ring's thread owns.
#[derive(Debug)]
pub struct RingEnd {
    /// The calls of services.
    pub calls: Calls,
    /// The queue of answers to those calls.
    pub answers: AnswerQueue,
    /// Publishes the state that services read.
    pub publisher: Publisher,
}

/// How long a proposal or a read waits for its answer. etcd waits 5 s plus two election timeouts.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

impl Backend {
    /// Makes the services' handle and the ring's end. Each queue holds at most `queue_calls_max` calls.
    #[must_use]
    pub fn new(
        identity: MemberIdentity,
        state: Arc<RwLock<AppliedState>>,
        queue_calls_max: usize,
    ) -> (Self, RingEnd) {
        let (queues, calls) = queues(queue_calls_max);
        let (applied_sender, applied) = watch::channel(AppliedMark::default());
        let (ring_sender, ring) = watch::channel(Arc::default());
        let publisher = Publisher { applied: applied_sender, ring: ring_sender };
        let answers = AnswerQueue::default();
        let end = RingEnd { calls, answers: answers.clone(), publisher };
        let shared = Shared { identity, state, queues, answers, applied, ring };
        (Self(Arc::new(shared)), end)
    }

    /// Completes the calls that the ring has answered, on the thread that polls this future; see [`AnswerQueue`].
    pub(crate) fn forward_answers(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.answers.forward()
    }

    /// Proposes a request, and waits until this member has applied it.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]. A refusal is no error: [`Applied`] holds it.
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

    /// Proposes many requests at once, and waits until this member has applied all of them.
    ///
    /// # Errors
    ///
    /// As [`Self::propose`], for all of them together.
    pub async fn propose_many(&self, proposals: Vec<Proposal>) -> Result<AppliedMany, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.call(Priority::Write, Call::ProposeMany { proposals, reply }, answer).await
    }

    /// Waits until [`Self::read`] sees every write that was acknowledged before this call: Raft's ReadIndex.
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

    /// Describes a read of this member's state as it is, which may be stale.
    #[must_use]
    pub fn local(&self) -> ReadPoint {
        let (ring, now) = (self.status(), clock::monotonic());
        let stale = ring.fresh_at.map(|at| now.saturating_sub(at).as_millis());
        let stale_ms_max = stale.and_then(|ms| u64::try_from(ms).ok());
        ReadPoint { served: Served::Local, stale_ms_max, term: ring.term }
    }

    /// Changes the ring's members or leader, or maintains this member's disk. There is no timeout: a snapshot may take
    /// minutes.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        let (reply, answer) = oneshot::channel();
        self.0.queues.send(Priority::Admin, Call::Admin { request, reply })?;
        answer.await.unwrap_or(Err(Unavailable::Stopped.into()))
    }

    /// Reads keys, leases and roles in this member's copy of the keyspace. `f` must be short: this member applies
    /// nothing while it runs.
    ///
    /// # Errors
    ///
    /// [`Refusal::Corrupt`] if the alarm `CORRUPT` names this member, or the refusal of `f`.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> Result<R, Refusal>) -> Result<R, Refusal> {
        self.inspect(|keyspace| {
            let mut corrupt = keyspace.alarms().list(Some(AlarmKind::Corrupt));
            if corrupt.any(|alarm| alarm.member == self.identity().member_id) {
                return Err(Refusal::Corrupt);
            }
            f(keyspace)
        })
    }

    /// Reads this member's copy even if the alarm `CORRUPT` names it: for permissions, alarms, members, sizes and
    /// hashes, which operators need to repair the member, and for watches, which go on. `f` must be short, as for
    /// [`Self::read`].
    pub fn inspect<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        // A poisoned lock is fine: a reader that panicked changed nothing, and a writer's panic ends the process.
        f(self.0.state.read().unwrap_or_else(PoisonError::into_inner).keyspace())
    }

    /// A receiver that changes when this member has applied more of the log.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedMark> {
        self.0.applied.clone()
    }

    /// How far this member has applied the log.
    #[must_use]
    pub fn mark(&self) -> AppliedMark {
        *self.0.applied.borrow()
    }

    /// This member's present view of the ring.
    #[must_use]
    pub fn status(&self) -> Arc<RingView> {
        self.0.ring.borrow().clone()
    }

    /// A receiver that changes when this member's view of the ring does.
    #[must_use]
    pub fn ring(&self) -> watch::Receiver<Arc<RingView>> {
        self.0.ring.clone()
    }

    /// The identity of this member.
    #[must_use]
    pub fn identity(&self) -> &MemberIdentity {
        &self.0.identity
    }

    /// The header of an answer at this revision and term.
    #[must_use]
    pub fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader {
        let MemberIdentity { cluster_id, member_id, .. } = *self.identity();
        ResponseHeader { cluster_id, member_id, revision, raft_term }
    }

    /// The header of an answer that this member read at this revision.
    #[must_use]
    pub fn header_at(&self, revision: i64) -> ResponseHeader {
        self.header(revision, self.0.ring.borrow().term)
    }

    /// The header of an answer at the present revision of this member.
    #[must_use]
    pub fn header_now(&self) -> ResponseHeader {
        // From the state, because `mark` is set a moment later, and a client that has seen a revision must not see a
        // smaller one.
        self.header_at(self.inspect(|keyspace| keyspace.store().revision()))
    }

    /// Enqueues `call` before the future is polled, so that the future does not hold the call.
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
