//! A ring of one member without log or disk: a thread that applies what services ask.
//!
//! It keeps the promises of the seam (see `satrap_regional_api::backend`), so whatever holds for a
//! service on it and does not hold on the ring is the ring's fault.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use satrap_host::clock;
use satrap_regional_api::backend::{
    AdminReply, AdminRequest, Applied, AppliedMany, AppliedMark, Backend, Call, Failure, Member,
    MemberIdentity, Publisher, ReadMode, ReadPoint, RingEnd, RingView, Served, SnapshotStream,
};
use satrap_regional_api::limits::QUEUE_CALLS_MAX;
use satrap_regional_core::auth::AuthRequest;
use satrap_regional_core::{Batch, Keyspace, Proposal, Refusal, Reply, Request, RingTime};

/// The term of everything; there is never an election.
pub const TERM: u64 = 2;
/// How often time passes when nobody asks anything.
const TICK: std::time::Duration = std::time::Duration::from_millis(50);

/// What a test may do to the ring behind the services' back.
#[derive(Debug, Default)]
pub struct Levers {
    /// How far the leader's clock is ahead of ours.
    pub ahead_ms: AtomicU64,
    /// Before anything that somebody proposes, users change.
    pub users_change: AtomicBool,
}

/// Starts a member. It ends when the last clone of the backend is gone.
pub fn start() -> (Backend, JoinHandle<()>) {
    start_with(Arc::default())
}

/// [`start`], with a hand in it.
pub fn start_with(levers: Arc<Levers>) -> (Backend, JoinHandle<()>) {
    let identity = MemberIdentity { cluster_id: 0xc1, member_id: 0xa1, name: "solo".to_owned() };
    let state = Arc::new(RwLock::new(Keyspace::new()));
    let (backend, ring) = Backend::new(identity.clone(), state.clone(), QUEUE_CALLS_MAX);
    let solo = Solo::new(identity, state, levers, &ring.publisher);
    let thread = std::thread::spawn(move || solo.run(ring));
    (backend, thread)
}

struct Solo {
    identity: MemberIdentity,
    state: Arc<RwLock<Keyspace>>,
    members: Vec<Member>,
    levers: Arc<Levers>,
    index: u64,
}

impl Solo {
    fn new(
        identity: MemberIdentity,
        state: Arc<RwLock<Keyspace>>,
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
        let solo = Self { identity, state, members: vec![me], levers, index: 0 };
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
                Call::Admin { request, reply } => drop(reply.send(self.admin(request))),
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
        let due = state.next_expiry().is_some_and(|expiry| expiry <= self.now());
        drop(state);
        if due {
            let (caller, request) = (satrap_regional_core::Caller::default(), Request::Tick);
            self.apply(vec![Proposal { caller, request }], shown);
        }
    }

    fn apply(&mut self, proposals: Vec<Proposal>, shown: &Publisher) -> Vec<Reply> {
        self.index += 1;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if self.levers.users_change.load(Relaxed)
            && proposals.iter().any(|proposal| proposal.caller.user.is_some())
        {
            let caller = state.auth().caller_of_user("root");
            let name = format!("bystander-{}", self.index);
            let request = Request::Auth(AuthRequest::UserAdd { name, password: None });
            let change = Batch { time: self.now(), proposals: vec![Proposal { caller, request }] };
            state.apply(&change)[0].as_ref().expect("root may add users");
        }
        let replies = state.apply(&Batch { time: self.now(), proposals });
        let revision = state.store().revision();
        drop(state);
        shown.applied(AppliedMark { revision, index: self.index, term: TERM });
        replies
    }

    fn now(&self) -> RingTime {
        RingTime(clock::now() / 1_000_000 + self.levers.ahead_ms.load(Relaxed))
    }

    fn show(&self, shown: &Publisher) {
        let revision = self.state.read().unwrap_or_else(PoisonError::into_inner).store().revision();
        shown.applied(AppliedMark { revision, index: self.index, term: TERM });
        shown.ring(RingView {
            leader: self.identity.member_id,
            term: TERM,
            log_index: self.index,
            members: self.members.clone(),
            disk_bytes: 20 * 1024,
            disk_bytes_used: 16 * 1024,
            fresh_at: Some(clock::monotonic()),
            errors: Vec::new(),
        });
    }

    fn admin(&mut self, request: AdminRequest) -> Result<AdminReply, Failure> {
        match request {
            AdminRequest::AddMember { peer_urls, is_learner } => {
                let taken =
                    |member: &Member| member.peer_urls.iter().any(|url| peer_urls.contains(url));
                if self.members.iter().any(taken) {
                    return Err(Refusal::PeerUrlExists.into());
                }
                let id = 0xa1 + self.members.len() as u64;
                let member = Member { id, peer_urls, is_learner, ..Member::default() };
                self.members.push(member.clone());
                Ok(AdminReply::Added(member, self.members.clone()))
            }
            AdminRequest::PromoteMember(id) => {
                let member = self.member(id)?;
                if !member.is_learner {
                    return Err(Refusal::MemberNotLearner.into());
                }
                member.is_learner = false;
                Ok(AdminReply::Members(self.members.clone()))
            }
            AdminRequest::RemoveMember(id) => {
                if id == self.identity.member_id {
                    return Err(Refusal::MemberNotEnoughStarted.into());
                }
                self.member(id)?;
                self.members.retain(|member| member.id != id);
                Ok(AdminReply::Members(self.members.clone()))
            }
            AdminRequest::UpdateMember { id, peer_urls } => {
                self.member(id)?.peer_urls = peer_urls;
                Ok(AdminReply::Members(self.members.clone()))
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

    fn member(&mut self, id: u64) -> Result<&mut Member, Failure> {
        let found = self.members.iter_mut().find(|member| member.id == id);
        found.ok_or_else(|| Refusal::MemberNotFound.into())
    }
}

type Answer<T> = tokio::sync::oneshot::Sender<Result<T, satrap_regional_api::backend::Unavailable>>;

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
