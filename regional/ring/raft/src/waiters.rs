//! The clients that wait for entries of the log to be applied on this member.
//!
//! A member answers its clients from its own apply, whether it leads or not. So a client that wrote
//! through a follower then finds its write there, and replies never travel between members. An
//! entry carries its [`Origin`], the run of a process that proposed it.
//!
//! # Invariants
//!
//! - **WAITER-1** A waiter is answered once: when its entry is applied, or when its proposal fails
//!   before.
//! - **WAITER-2** A run's number is drawn at random at its start, so an entry of an earlier run of
//!   this member, applied again after a restart, answers no waiter.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use satrap_ring_api::backend::{AnswerQueue, Applied, AppliedMany, PendingAnswer, Unavailable};
use satrap_ring_core::{Refusal, Reply};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// The channel of one client's answer.
#[derive(Debug)]
pub enum Answer {
    /// For one proposal.
    One(oneshot::Sender<Result<Applied, Unavailable>>),
    /// For this many consecutive proposals.
    Many(usize, oneshot::Sender<Result<AppliedMany, Unavailable>>),
}

impl Answer {
    /// Whether the client went away.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::One(reply) => reply.is_closed(),
            Self::Many(_, reply) => reply.is_closed(),
        }
    }

    /// Takes the replies of this client from `replies`.
    fn fulfill(
        self,
        term: u64,
        replies: &mut impl Iterator<Item = Reply>,
    ) -> Option<PendingAnswer> {
        Some(match self {
            Self::One(answer) => {
                PendingAnswer::One(answer, Ok(Applied { reply: replies.next()?, term }))
            }
            Self::Many(count, answer) => {
                let replies = replies.take(count).collect();
                PendingAnswer::Many(answer, Ok(AppliedMany { replies, term }))
            }
        })
    }

    /// Answers every proposal of this client with a refusal; none of them was proposed.
    #[must_use]
    pub fn refuse(self, why: &Refusal) -> PendingAnswer {
        match self {
            Self::One(answer) => {
                PendingAnswer::One(answer, Ok(Applied { reply: Err(why.clone()), term: 0 }))
            }
            Self::Many(count, answer) => {
                let replies = vec![Err(why.clone()); count];
                PendingAnswer::Many(answer, Ok(AppliedMany { replies, term: 0 }))
            }
        }
    }

    fn give_up(self, why: Unavailable) -> PendingAnswer {
        match self {
            Self::One(answer) => PendingAnswer::One(answer, Err(why)),
            Self::Many(_, answer) => PendingAnswer::Many(answer, Err(why)),
        }
    }
}

/// The run of a process that proposed an entry, and the number of the entry in that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The run's random number; zero if no client waits.
    pub run: u64,
    /// The number of the entry in that run.
    pub sequence: u64,
}

/// The waiting clients of one run. Clones share them.
#[derive(Clone)]
pub struct Waiters(Arc<Inner>);

struct Inner {
    run: u64,
    sequence: AtomicU64,
    groups: Mutex<BTreeMap<u64, Group>>,
    answers: OnceLock<AnswerQueue>,
}

struct Group {
    answers: Vec<Answer>,
    /// Dropped when the group is answered, which completes its receiver.
    _answered: oneshot::Sender<()>,
}

impl Waiters {
    /// No waiters yet; `run` is random (WAITER-2).
    #[must_use]
    pub fn new(run: u64) -> Self {
        let (sequence, groups) = (AtomicU64::new(1), Mutex::default());
        Self(Arc::new(Inner { run, sequence, groups, answers: OnceLock::new() }))
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<u64, Group>> {
        // Critical sections only move values, so the map is valid even after a panic.
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the clients of one entry, in the order of its proposals. The receiver completes
    /// when they have been answered.
    #[must_use]
    pub fn expect(&self, answers: Vec<Answer>) -> (Origin, oneshot::Receiver<()>) {
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let (_answered, done) = oneshot::channel();
        self.groups().insert(sequence, Group { answers, _answered });
        (Origin { run: self.0.run, sequence }, done)
    }

    /// Whether an entry is of this run, so that clients may wait for it.
    fn own(&self, origin: Origin) -> bool {
        origin.run == self.0.run
    }

    /// Answers the clients of an entry that was applied (WAITER-1).
    pub fn fulfill(&self, origin: Origin, term: u64, replies: Vec<Reply>) {
        if !self.own(origin) {
            return;
        }
        let mut replies = replies.into_iter();
        self.answer(origin, |answer| answer.fulfill(term, &mut replies));
    }

    /// Fails the clients of an entry with `why` (WAITER-1). Returns their number.
    pub fn give_up(&self, origin: Origin, why: Unavailable) -> usize {
        self.answer(origin, |answer| Some(answer.give_up(why)))
    }

    fn answer(
        &self,
        origin: Origin,
        answered: impl FnMut(Answer) -> Option<PendingAnswer>,
    ) -> usize {
        // A client that went away changes nothing about what was applied.
        let group = self.groups().remove(&origin.sequence);
        let Some(Group { answers, _answered }) = group else { return 0 };
        let clients = answers.len();
        self.answers().send(answers.into_iter().filter_map(answered).collect());
        clients
    }

    /// The number of waiting clients.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.groups().values().map(|group| group.answers.len()).sum()
    }

    /// The queue on which answers reach the clients.
    #[must_use]
    pub fn answers(&self) -> AnswerQueue {
        self.0.answers.get().cloned().unwrap_or_default()
    }

    /// Sets that queue. Only the first call counts: a member serves once.
    pub fn answer_through(&self, answers: AnswerQueue) {
        let _ = self.0.answers.set(answers);
    }
}
