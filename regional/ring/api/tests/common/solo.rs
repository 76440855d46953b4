//! A ring of one member without log or disk: a thread that applies what services ask.
//!
//! It keeps the promises of the seam (see `satrap_ring_api::backend`), so whatever holds for a
//! service on it and does not hold on the ring is the ring's fault.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use satrap_ring_api::backend::{
    AdminReply, AdminRequest, Applied, AppliedMany, AppliedMark, Backend, Call, Failure, Member,
    MemberIdentity, Publisher, ReadMode, ReadPoint, RingEnd, RingView, Served, SnapshotStream,
    Unavailable,
};
use satrap_ring_api::limits::QUEUE_CALLS_MAX;
use satrap_ring_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_ring_core::auth::AuthRequest;
use satrap_ring_core::members::{Invitation, MemberRequest};
use satrap_ring_core::{
    AppliedState, Batch, Caller, Command, Entry, Outcome, Proposal, Refusal, Reply, Request,
    RingTime,
};
use satrap_runtime::clock;

/// The term of everything; there is never an election.
pub const TERM: u64 = 2;
/// How often time passes while no request comes.
const TICK: std::time::Duration = std::time::Duration::from_millis(50);

/// Faults and changes that a test causes in the ring, unseen by the services.
#[derive(Debug, Default)]
pub struct Levers {
    /// How far the leader's clock is ahead of ours.
    pub ahead_ms: AtomicU64,
    /// Users change before any proposal.
    pub users_change: AtomicBool,
    /// The leader's answer about members is here before what it did.
    pub answers_early: AtomicBool,
    /// The ring raises CORRUPT for this member before it answers the next linearizable read.
    pub corrupt_at_read: AtomicBool,
}

/// Starts a member. It ends when the last clone of the backend is gone.
pub fn start() -> (Backend, JoinHandle<()>) {
    start_with(Arc::default())
}

/// [`start`], with a hand in it.
pub fn start_with(levers: Arc<Levers>) -> (Backend, JoinHandle<()>) {
    let identity = MemberIdentity { cluster_id: 0xc1, member_id: 0xa1, name: "solo".to_owned() };
    let state = Arc::<RwLock<AppliedState>>::default();
    let (backend, ring) = Backend::new(identity.clone(), state.clone(), QUEUE_CALLS_MAX);
    let solo = Solo::new(identity, state, levers, &ring.publisher);
    let thread = std::thread::spawn(move || solo.run(ring));
    (backend, thread)
}

fn apply(state: &mut AppliedState, batch: Batch) -> Vec<Reply> {
    match state.apply(Entry::Command(Ok(Command::Batch(batch)))) {
        Outcome::Batch(replies) => replies,
        other => panic!("a batch has replies: {other:?}"),
    }
}

struct Solo {
    identity: MemberIdentity,
    state: Arc<RwLock<AppliedState>>,
    me: Member,
    levers: Arc<Levers>,
    index: u64,
}

impl Solo {
    fn new(
        identity: MemberIdentity,
        state: Arc<RwLock<AppliedState>>,
        levers: Arc<Levers>,
        shown: &Publisher,
    ) -> Self {
        let me = Member {
            id: identity.member_id,
            name: identity.name.clone(),
            peer_urls: vec!["http://127.0.0.1:2380".to_owned()],
            client_urls: vec!["http://127.0.0.1:2379".to_owned()],
            is_learner: false,
        };
        let solo = Self { identity, state, me, levers, index: 0 };
        solo.show(shown);
        solo
    }

    fn run(mut self, mut ring: RingEnd) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime without IO asks nothing of the system");
        loop {
            let call =
                runtime.block_on(async { tokio::time::timeout(TICK, ring.calls.recv()).await });
            match call {
                Ok(Some(call)) => self.answer(call, &mut ring),
                Ok(None) => return,
                Err(_elapsed) => self.tick(&ring.publisher),
            }
        }
    }

    /// Answers `call` and whatever waits behind it; proposals share a batch, as in the ring.
    fn answer(&mut self, call: Call, ring: &mut RingEnd) {
        let (mut proposals, mut waiting) = (Vec::new(), Vec::new());
        let mut reads = Vec::new();
        let mut next = Some(call);
        while let Some(call) = next {
            match call {
                Call::Propose { proposal, reply } => {
                    proposals.push(proposal);
                    waiting.push(Waiting::One(reply));
                }
                Call::ProposeMany { proposals: many, reply } => {
                    waiting.push(Waiting::Many(many.len(), reply));
                    proposals.extend(many);
                }
                Call::Read { mode, reply } => reads.push((mode, reply)),
                Call::Admin { request, reply } => {
                    let _ = reply.send(self.admin(request, &ring.publisher));
                }
            }
            next = (proposals.len() < 1024).then(|| ring.calls.try_recv()).flatten();
        }
        if !proposals.is_empty() {
            let mut replies = self.apply(proposals, &ring.publisher).into_iter();
            for waiting in waiting {
                waiting.answer(&mut replies);
            }
        }
        self.show(&ring.publisher);
        if !reads.is_empty() && self.levers.corrupt_at_read.swap(false, Relaxed) {
            let alarm = AlarmMember { kind: AlarmKind::Corrupt, member: self.identity.member_id };
            let request = Request::Alarm(AlarmRequest::Activate(alarm));
            self.apply(vec![Proposal { caller: Caller::default(), request }], &ring.publisher);
        }
        for (mode, reply) in reads {
            let served = match mode {
                ReadMode::Linearizable => Served::Quorum,
                ReadMode::Lease => Served::Lease,
            };
            let _ = reply.send(Ok(ReadPoint { served, stale_ms_max: Some(0), term: TERM }));
        }
    }

    fn tick(&mut self, shown: &Publisher) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let due = state.keyspace().next_expiry().is_some_and(|expiry| expiry <= self.now());
        drop(state);
        if due {
            let (caller, request) = (Caller::default(), Request::Tick);
            self.apply(vec![Proposal { caller, request }], shown);
        }
    }

    fn apply(&mut self, proposals: Vec<Proposal>, shown: &Publisher) -> Vec<Reply> {
        self.index += 1;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if self.levers.users_change.load(Relaxed)
            && proposals.iter().any(|proposal| proposal.caller.user.is_some())
        {
            let caller = state.keyspace().auth().caller_of_user("root");
            let name = format!("bystander-{}", self.index);
            let request = Request::Auth(AuthRequest::UserAdd { name, password: None });
            let change = Batch { time: self.now(), proposals: vec![Proposal { caller, request }] };
            apply(&mut state, change)[0].as_ref().expect("root may add users");
        }
        let replies = apply(&mut state, Batch { time: self.now(), proposals });
        let revision = state.keyspace().store().revision();
        drop(state);
        shown.applied(AppliedMark { revision, index: self.index, term: TERM });
        replies
    }

    fn now(&self) -> RingTime {
        RingTime(clock::now() / 1_000_000 + self.levers.ahead_ms.load(Relaxed))
    }

    fn show(&self, shown: &Publisher) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let revision = state.keyspace().store().revision();
        drop(state);
        shown.applied(AppliedMark { revision, index: self.index, term: TERM });
        shown.ring(RingView {
            leader: self.identity.member_id,
            term: TERM,
            log_index: self.index,
            members: vec![self.me.clone()],
            disk_bytes: 20 * 1024,
            disk_bytes_used: 16 * 1024,
            fresh_at: Some(clock::monotonic()),
            errors: Vec::new(),
        });
    }

    fn admin(&mut self, request: AdminRequest, shown: &Publisher) -> Result<AdminReply, Failure> {
        match request {
            AdminRequest::AddMember { peer_urls, is_learner } => {
                let id = 0xb1 + self.index;
                let member = Member { id, peer_urls, is_learner, ..Member::default() };
                self.expect(&member, shown)?;
                if self.levers.answers_early.load(Relaxed) {
                    return Err(Unavailable::Timeout.into());
                }
                Ok(AdminReply::Added(member, self.members()))
            }
            AdminRequest::PromoteMember(id) => Err(match self.member(id)?.name.is_empty() {
                true => Refusal::LearnerNotReady.into(),
                false => Refusal::MemberNotLearner.into(),
            }),
            AdminRequest::RemoveMember(id) => {
                if id == self.identity.member_id {
                    return Err(Refusal::MemberNotEnoughStarted.into());
                }
                self.member(id)?;
                let before = self.members();
                self.record(MemberRequest::Forget { id }, shown)?;
                Ok(AdminReply::Members(self.members_after(before)))
            }
            AdminRequest::UpdateMember { id, peer_urls } => {
                let member = Member { peer_urls, ..self.member(id)? };
                let before = self.members();
                self.record(MemberRequest::Forget { id }, shown)?;
                self.expect(&member, shown)?;
                Ok(AdminReply::Members(self.members_after(before)))
            }
            AdminRequest::MoveLeader(id) if id == self.identity.member_id => Ok(AdminReply::Done),
            AdminRequest::MoveLeader(_) => Err(Refusal::BadLeaderTransferee.into()),
            AdminRequest::Defragment => Ok(AdminReply::Done),
            AdminRequest::Snapshot => {
                let (sender, chunks) = tokio::sync::mpsc::channel(4);
                let blob = bytes::Bytes::from_static(b"a solo member has no disk to copy");
                let total_bytes = blob.len() as u64;
                let _ = sender.try_send(Ok(blob));
                Ok(AdminReply::Snapshot(SnapshotStream { total_bytes, chunks }))
            }
        }
    }

    /// This member and those that are expected.
    fn members(&self) -> Vec<Member> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let expected = state.keyspace().members().invited().map(|(id, invitation)| Member {
            id,
            peer_urls: invitation.peer_urls.clone(),
            is_learner: invitation.learner,
            ..Member::default()
        });
        std::iter::once(self.me.clone()).chain(expected).collect()
    }

    fn members_after(&self, before: Vec<Member>) -> Vec<Member> {
        if self.levers.answers_early.load(Relaxed) { before } else { self.members() }
    }

    fn member(&self, id: u64) -> Result<Member, Failure> {
        let found = self.members().into_iter().find(|member| member.id == id);
        found.ok_or_else(|| Refusal::MemberNotFound.into())
    }

    fn expect(&mut self, member: &Member, shown: &Publisher) -> Result<(), Failure> {
        if self.me.peer_urls.iter().any(|url| member.peer_urls.contains(url)) {
            return Err(Refusal::PeerUrlExists.into());
        }
        let invitation =
            Invitation { peer_urls: member.peer_urls.clone(), learner: member.is_learner };
        self.record(MemberRequest::Invite { id: member.id, invitation }, shown)
    }

    fn record(&mut self, request: MemberRequest, shown: &Publisher) -> Result<(), Failure> {
        let proposal = Proposal { caller: Caller::default(), request: Request::Member(request) };
        let mut replies = self.apply(vec![proposal], shown);
        replies.pop().expect("one reply for each proposal")?;
        Ok(())
    }
}

type Answer<T> = tokio::sync::oneshot::Sender<Result<T, satrap_ring_api::backend::Unavailable>>;

enum Waiting {
    One(Answer<Applied>),
    Many(usize, Answer<AppliedMany>),
}

impl Waiting {
    fn answer(self, replies: &mut impl Iterator<Item = Reply>) {
        match self {
            Self::One(answer) => {
                let reply = replies.next().expect("one reply for each proposal");
                let _ = answer.send(Ok(Applied { reply, term: TERM }));
            }
            Self::Many(count, answer) => {
                let replies = replies.take(count).collect();
                let _ = answer.send(Ok(AppliedMany { replies, term: TERM }));
            }
        }
    }
}
