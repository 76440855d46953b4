//! Proposals: gathers those of many clients into one entry of the log, and resolves the outcome of
//! entries.
//!
//! While one entry is in progress, further proposals are gathered into the next entry: the higher
//! the load, the larger the entries, and thousands of writes share one fsync and one round trip. A
//! follower forwards its entry to the leader and answers its clients from its own apply (see
//! [`super::waiters`]).
//!
//! # Invariants
//!
//! - **PROPOSAL-1** An entry is for one term: a leader appends it only in the term that its
//!   proposer saw. So once an entry of a later term has been applied here without it, no log will
//!   ever hold it, and this member proposes it again in that term. A write during a change of
//!   leaders is then late, and applied once.
//! - **PROPOSAL-3** If the outcome cannot be determined, because a snapshot replaced the entries,
//!   the clients get an error that says so.
//! - **PROPOSAL-2** The proposals of one call are in one entry, in their order.
//! - **PROPOSAL-4** No proposal is accepted that a member could not decode: a committed entry must
//!   be applied, and cannot be revoked.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use openraft::{
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, RaftError},
    type_config::alias::WriteResponderOf,
    vote::leader_id_std::CommittedLeaderId,
};
use satrap_merkle::codec::{Canonical as _, Reader};
use satrap_ring_api::backend::Unavailable;
use satrap_ring_core::{
    Caller, Command, Keyspace, Proposal, Refusal, Reply, Request, RingTime,
    kv::{Decode as _, Ownership},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    clock::RingClock,
    frames::{Fate, Forwarded, Proposals},
    locks::lock,
    node::Node,
    platform::{Platform, Real},
    state_machine::Marks,
    types::{self, MemberName, Payload, Types},
    waiters::{Answer, Origin, Waiters},
};
use crate::limits::{BATCH_BYTES_MAX, BATCH_PROPOSALS_MAX, COMMAND_BYTES_MAX, PROPOSAL_TIMEOUT};

/// The reason why a command was not proposed, or its outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or none does.
    #[error("this member does not lead its ring (leader: {})", .0.as_ref().map_or("none", MemberName::as_str))]
    NotLeader(Option<MemberName>),
    /// The command is over the limit of the log.
    #[error("a command of {0} bytes exceeds {COMMAND_BYTES_MAX}")]
    TooLong(usize),
    /// openraft refused or stopped.
    #[error("raft: {0}")]
    Raft(String),
}

/// The waiting proposals, encoded, in order of arrival.
#[derive(Default)]
pub struct Queue {
    calls: VecDeque<(Vec<Bytes>, Answer)>,
    proposals: usize,
}

/// The proposals of one entry, encoded.
pub struct Group {
    origin: Origin,
    proposals: Proposals,
    answered: oneshot::Receiver<()>,
    deadline: Instant,
}

impl Queue {
    /// Adds one call, unless its proposals could not be decoded again (PROPOSAL-4).
    pub fn push(&mut self, proposals: &[Proposal], answer: Answer) {
        let encoded: Vec<Bytes> = proposals.iter().map(|p| p.to_canonical().into()).collect();
        if !encoded.iter().all(is_readable) {
            return answer.refuse(&Refusal::RequestTooLarge).complete();
        }
        self.proposals += encoded.len();
        self.calls.push_back((encoded, answer));
    }

    /// Whether no proposal waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether the waiting proposals fill an entry.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.proposals >= BATCH_PROPOSALS_MAX
    }

    /// Takes the proposals of one entry, at least one call; leaves out clients that went away.
    fn take(&mut self) -> (usize, Vec<u8>, Vec<Answer>) {
        let (mut bytes, mut answers, mut count) = (Vec::new(), Vec::new(), 0);
        while let Some((proposals, _)) = self.calls.front() {
            let full =
                bytes.len() >= BATCH_BYTES_MAX || count + proposals.len() > BATCH_PROPOSALS_MAX;
            if full && count > 0 {
                break;
            }
            let Some((proposals, answer)) = self.calls.pop_front() else { break };
            self.proposals -= proposals.len();
            if answer.is_closed() {
                continue;
            }
            proposals.iter().for_each(|proposal| bytes.extend_from_slice(proposal));
            count += proposals.len();
            answers.push(answer);
        }
        (count, bytes, answers)
    }
}

/// Whether every member can decode this proposal.
fn is_readable(proposal: &Bytes) -> bool {
    let mut r = Reader::new(proposal);
    Proposal::decode_with(&mut r, Ownership::Shared(proposal)).is_ok() && r.remaining() == 0
}

/// Proposes entries and resolves their outcome.
pub struct Proposer<P: Platform = Real> {
    node: Node<P>,
    /// The clients that wait for their entries to be applied.
    pub(crate) waiters: Waiters,
    clock: Arc<Mutex<RingClock>>,
}

impl<P: Platform> Clone for Proposer<P> {
    fn clone(&self) -> Self {
        let Self { node, waiters, clock } = self;
        Self { node: node.clone(), waiters: waiters.clone(), clock: clock.clone() }
    }
}

impl<P: Platform> Proposer<P> {
    /// A proposer through `node`; `clock` stamps the entries that this member appends as leader.
    #[must_use]
    pub fn new(node: Node<P>, waiters: Waiters, clock: Arc<Mutex<RingClock>>) -> Self {
        Self { node, waiters, clock }
    }

    /// The ring's clock.
    pub fn clock(&self) -> MutexGuard<'_, RingClock> {
        lock(&self.clock)
    }

    /// Takes the next entry's proposals; `None` if no client waits.
    pub fn group(&self, queue: &mut Queue) -> Option<Group> {
        let (count, encoded, answers) = queue.take();
        if answers.is_empty() {
            return None;
        }
        let proposals = Proposals { count, encoded: encoded.into() };
        let (origin, answered) = self.waiters.expect(answers);
        Some(Group { origin, proposals, answered, deadline: Instant::now() + PROPOSAL_TIMEOUT })
    }

    /// Submits an entry to the log. Returns once the next entry may be submitted, which may be
    /// before the clients of this one have their answers. Returns the entry if its clients still
    /// wait.
    pub async fn submit(self, mut group: Group) -> Option<Group> {
        let deadline = group.deadline;
        loop {
            let (leader, term, installs) =
                (self.node.leader(), self.node.term(), self.node.shared.installs());
            let send_to_leader = self.send_to_leader(leader.clone(), term, &group);
            let fate = timeout_at(deadline, send_to_leader).await.unwrap_or(Fate::Unknown);
            let fate = match fate {
                Fate::Applied => return Some(group),
                Fate::Unknown => self.resolve(&mut group, term, installs).await?,
                fate => fate,
            };
            match fate {
                Fate::NotAppended if Instant::now() < deadline => {
                    self.node.until_leader_is_not(leader, deadline).await;
                }
                Fate::NotAppended => {
                    self.give_up(group.origin, Unavailable::NoLeader);
                    return None;
                }
                Fate::Applied | Fate::Unknown => {
                    self.give_up(group.origin, Unavailable::Timeout);
                    return None;
                }
            }
        }
    }

    /// Waits until the outcome of an entry for `term` is certain (PROPOSAL-1, PROPOSAL-3). Returns
    /// the outcome, or `None` if its clients have been answered.
    async fn resolve(&self, group: &mut Group, term: u64, installs: u64) -> Option<Fate> {
        let mut applied: Marks<P> = self.node.applied.clone();
        tokio::select! {
            biased;
            _ = &mut group.answered => None,
            later = applied.wait_until(|mark| mark.term > term) => {
                let seen = later.is_ok() && self.node.shared.installs() == installs;
                // The entry may have been applied between the two checks.
                match group.answered.try_recv() {
                    Err(oneshot::error::TryRecvError::Empty) if seen => Some(Fate::NotAppended),
                    Err(oneshot::error::TryRecvError::Empty) => Some(Fate::Unknown),
                    _ => None,
                }
            }
            () = sleep_until(group.deadline) => Some(Fate::Unknown),
        }
    }

    /// Waits until the clients of `group` are answered, or its deadline.
    pub async fn answer(self, group: Group) {
        if timeout_at(group.deadline, group.answered).await.is_err() {
            self.give_up(group.origin, Unavailable::Timeout);
        }
    }

    fn give_up(&self, origin: Origin, why: Unavailable) {
        let clients = self.waiters.give_up(origin, why);
        self.node.shared.meters.proposals_failed.add(clients as u64);
    }

    async fn send_to_leader(&self, leader: Option<MemberName>, term: u64, group: &Group) -> Fate {
        let Group { origin, proposals, .. } = group;
        match leader {
            Some(name) if name == self.node.name => self.append(*origin, term, proposals).await,
            Some(name) => {
                let forwarded = Forwarded { origin: *origin, term, proposals: proposals.clone() };
                let sent = self.node.network.sender(name.clone());
                tokio::select! {
                    biased;
                    fate = sent.propose(forwarded) => fate,
                    // A paused leader answers once it continues, which may be much later.
                    () = self.node.until_leader_is_not(Some(name), group.deadline) => Fate::Unknown,
                }
            }
            None => Fate::NotAppended,
        }
    }

    /// Stamps an entry with the ring's time and appends it, if this member leads in `term`.
    pub async fn append(&self, origin: Origin, term: u64, proposals: &Proposals) -> Fate {
        let Proposals { count, encoded } = proposals;
        let command = Command::encode_batch(RingTime(self.now_ms()), *count, encoded);
        let (responder, done) = WriteResponderOf::<Types<P>>::complete_only();
        // PROPOSAL-1
        let leader = CommittedLeaderId::new(term);
        let entry = Payload::new(origin, &command);
        if let Err(error) =
            self.node.raft.write(entry).with_leader(leader).responder(responder).await
        {
            tracing::info!(%error, "cannot append an entry: Raft has stopped");
            return Fate::Unknown;
        }
        match done.await {
            Ok(Ok(_)) => Fate::Applied,
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Fate::NotAppended,
            failed => {
                tracing::info!(?failed, "the outcome of an entry is unknown");
                Fate::Unknown
            }
        }
    }

    /// Proposes one request of the ring itself.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn ask(&self, request: Request) -> Result<Reply, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let mut queue = Queue::default();
        queue.push(&[Proposal { caller: Caller::default(), request }], Answer::One(reply));
        if let Some(group) = self.group(&mut queue)
            && let Some(group) = self.clone().submit(group).await
        {
            self.clone().answer(group).await;
        }
        answer.await.unwrap_or(Err(Unavailable::Stopped)).map(|applied| applied.reply)
    }

    /// The stamp for an entry now.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock().now_ms(P::monotonic())
    }

    /// A proposal that advances time, if a lease is due and this member leads.
    #[must_use]
    pub fn tick_if_due(&self) -> Option<impl Future<Output = ()> + Send + use<P>> {
        if !self.node.leads() {
            return None;
        }
        let due = self.node.shared.read(Keyspace::next_expiry)?;
        let proposer = self.clone();
        (due.0 <= self.now_ms()).then_some(async move {
            if let Err(error) = proposer.ask(Request::Tick).await {
                tracing::debug!(%error, "could not propose a tick; trying again");
            }
        })
    }

    /// Proposes a command and waits until this member has applied it. Leader only.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]. After a change of leaders the command may still be applied.
    pub async fn propose(&self, command: &[u8]) -> Result<types::Reply, ProposeError> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLong(command.len()));
        }
        match self.node.raft.client_write(Payload::new(Origin::default(), command)).await {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
            )) => Err(ProposeError::NotLeader(to.leader_id)),
            Err(error) => Err(ProposeError::Raft(error.to_string())),
        }
    }
}
