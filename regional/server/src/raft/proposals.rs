//! Many clients' proposals, one entry of the log.
//!
//! While one entry is on its way, what clients ask next gathers, and the next entry takes all of it:
//! the more load, the larger the entries, and an fsync or a round trip is paid once for thousands of
//! writes. A member that does not lead sends its entry to the one that does and answers from its own
//! apply (see [`super::waiters`]).
//!
//! # Invariants
//!
//! - **B1** An entry is for one term: a leader appends it only in the term that its proposer saw. So
//!   once an entry of a later term has been applied here without it, no log will ever hold it, and
//!   it is tried again in that term. A write that met a dying leader is then late, and applied once.
//! - **B3** Where that cannot be seen, because a snapshot took the place of entries, its clients are
//!   told that its fate is unknown.
//! - **B2** One call is never torn: its proposals stand in one entry, in its order.
//! - **B4** Nothing is proposed that a member could not decode: a committed entry must be applied, and
//!   nobody could take it back.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use openraft::{
    async_runtime::WatchReceiver as _, errors::ClientWriteError,
    type_config::alias::WriteResponderOf, vote::leader_id_std::CommittedLeaderId,
};
use satrap_merkle::codec::{Canonical as _, Reader};
use satrap_regional_api::backend::Unavailable;
use satrap_regional_core::{
    Caller, Command, Proposal, Refusal, Reply, Request, RingTime,
    kv::{Decode as _, Ownership},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Ring,
    frames::{Fate, Forwarded, Proposals},
    platform::Platform,
    state_machine::Marks,
    types::{MemberName, Payload, Types},
    waiters::{Answer, Origin},
};
use crate::limits::{BATCH_BYTES_MAX, BATCH_PROPOSALS_MAX, PROPOSAL_TIMEOUT};

/// What waits to be proposed, in the order in which it came, encoded.
#[derive(Default)]
pub struct Queue {
    calls: VecDeque<(Vec<Bytes>, Answer)>,
    proposals: usize,
}

/// One entry in the making: its proposals, encoded.
pub struct Group {
    origin: Origin,
    proposals: Proposals,
    answered: oneshot::Receiver<()>,
    deadline: Instant,
}

impl Queue {
    /// Takes one call in, unless the log could not be read back with it (B4).
    pub fn push(&mut self, proposals: &[Proposal], answer: Answer) {
        let encoded: Vec<Bytes> = proposals.iter().map(|p| p.to_canonical().into()).collect();
        if !encoded.iter().all(is_readable) {
            return answer.refuse(&Refusal::RequestTooLarge).hand_out();
        }
        self.proposals += encoded.len();
        self.calls.push_back((encoded, answer));
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether as much waits as one entry takes.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.proposals >= BATCH_PROPOSALS_MAX
    }

    /// As much as one entry takes, at least one call; clients that went away are left out.
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

/// Whether every member will be able to decode this.
fn is_readable(proposal: &Bytes) -> bool {
    let mut r = Reader::new(proposal);
    Proposal::decode_with(&mut r, Ownership::Shared(proposal)).is_ok() && r.remaining() == 0
}

impl<P: Platform> Ring<P> {
    /// Makes an entry of what waits, if anybody still does.
    pub fn group(&self, queue: &mut Queue) -> Option<Group> {
        let (count, encoded, answers) = queue.take();
        if answers.is_empty() {
            return None;
        }
        let proposals = Proposals { count, encoded: encoded.into() };
        let (origin, answered) = self.waiters.expect(answers);
        Some(Group { origin, proposals, answered, deadline: Instant::now() + PROPOSAL_TIMEOUT })
    }

    /// Brings an entry to the log. Returns once the next entry may go, which may be before the
    /// clients of this one have their answers.
    pub async fn submit(self, mut group: Group) -> Option<Group> {
        let deadline = group.deadline;
        loop {
            let (leader, term, installs) = (self.leader(), self.term(), self.shared.installs());
            let hand_in = self.hand_in(leader.clone(), term, &group);
            let fate = timeout_at(deadline, hand_in).await.unwrap_or(Fate::Unknown);
            let fate = match fate {
                Fate::Applied => return Some(group),
                Fate::Unknown => self.resolve(&mut group, term, installs).await?,
                fate => fate,
            };
            match fate {
                Fate::NotAppended if Instant::now() < deadline => {
                    self.until_leader_is_not(leader, deadline).await;
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

    /// Waits until it is certain what became of an entry for `term` (B1, B3). None if its clients
    /// have been answered.
    async fn resolve(&self, group: &mut Group, term: u64, installs: u64) -> Option<Fate> {
        let mut applied: Marks<P> = self.applied.clone();
        tokio::select! {
            biased;
            _ = &mut group.answered => None,
            later = applied.wait_until(|mark| mark.term > term) => {
                let seen = later.is_ok() && self.shared.installs() == installs;
                // It may have been applied between the two.
                match group.answered.try_recv() {
                    Err(oneshot::error::TryRecvError::Empty) if seen => Some(Fate::NotAppended),
                    Err(oneshot::error::TryRecvError::Empty) => Some(Fate::Unknown),
                    _ => None,
                }
            }
            () = sleep_until(group.deadline) => Some(Fate::Unknown),
        }
    }

    /// Waits until the clients of `group` are answered, or time is up.
    pub async fn answer(self, group: Group) {
        if timeout_at(group.deadline, group.answered).await.is_err() {
            self.give_up(group.origin, Unavailable::Timeout);
        }
    }

    fn give_up(&self, origin: Origin, why: Unavailable) {
        let clients = self.waiters.give_up(origin, why);
        self.shared.meters.proposals_failed.add(clients as u64);
    }

    async fn hand_in(&self, leader: Option<MemberName>, term: u64, group: &Group) -> Fate {
        let Group { origin, proposals, .. } = group;
        match leader {
            Some(name) if name == self.name => self.append(*origin, term, proposals).await,
            Some(name) => {
                let forwarded = Forwarded { origin: *origin, term, proposals: proposals.clone() };
                let sent = self.network.sender(name.clone());
                tokio::select! {
                    biased;
                    fate = sent.propose(forwarded) => fate,
                    // A leader that was paused answers when it wakes up, which may be much later.
                    () = self.until_leader_is_not(Some(name), group.deadline) => Fate::Unknown,
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
        // B1
        let leader = CommittedLeaderId::new(term);
        let entry = Payload::new(origin, &command);
        if let Err(error) = self.raft.write(entry).with_leader(leader).responder(responder).await {
            tracing::info!(%error, "raft has stopped");
            return Fate::Unknown;
        }
        match done.await {
            Ok(Ok(_)) => Fate::Applied,
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Fate::NotAppended,
            failed => {
                tracing::info!(?failed, "the fate of an entry is unknown");
                Fate::Unknown
            }
        }
    }

    /// Puts one request of the ring itself through the log.
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

    /// The term this member is in.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    /// Who leads, as far as this member knows.
    #[must_use]
    pub fn leader(&self) -> Option<MemberName> {
        self.raft.server_metrics().borrow_watched().current_leader.clone()
    }

    /// Completes when somebody else than `leader` leads, or soon: openraft refuses writes for a
    /// moment without a change of leaders, while it transfers leadership or its lease is over.
    pub async fn until_leader_is_not(&self, leader: Option<MemberName>, deadline: Instant) {
        const SOON: Duration = Duration::from_millis(50);
        let mut metrics = self.raft.server_metrics();
        let changed = async {
            while metrics.borrow_and_update().current_leader == leader {
                if metrics.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let refusing = leader.is_none() || leader.as_ref() == Some(&self.name);
        let patience = if refusing { deadline.min(Instant::now() + SOON) } else { deadline };
        let _ = timeout_at(patience, changed).await;
    }
}
