//! Who waits for which entry of the log.
//!
//! A member answers its clients from its own apply, whether it leads or not. So a client that wrote
//! through a follower then finds its write there, and a reply never travels between members. An
//! entry carries its [`Origin`]: which run of which process proposed it.
//!
//! # Invariants
//!
//! - **A1** A waiter is answered once: by the apply of its entry, or by whoever gives up first.
//! - **A2** A run's number is drawn at random when it starts, so an entry of an earlier run of this
//!   member, applied again after a restart, answers nobody.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use satrap_regional_api::backend::{Applied, AppliedMany, Deliveries, Delivery, Unavailable};
use satrap_regional_core::{Refusal, Reply};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Where one client's answer goes.
#[derive(Debug)]
pub enum Answer {
    /// To one proposal.
    One(oneshot::Sender<Result<Applied, Unavailable>>),
    /// To this many, in a row.
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

    /// Takes what belongs to this client from `replies`.
    fn fulfill(self, term: u64, replies: &mut impl Iterator<Item = Reply>) -> Option<Delivery> {
        Some(match self {
            Self::One(answer) => {
                Delivery::One(answer, Ok(Applied { reply: replies.next()?, term }))
            }
            Self::Many(count, answer) => {
                let replies = replies.take(count).collect();
                Delivery::Many(answer, Ok(AppliedMany { replies, term }))
            }
        })
    }

    /// Answers every proposal of this client with a refusal; none was proposed.
    #[must_use]
    pub fn refuse(self, why: &Refusal) -> Delivery {
        match self {
            Self::One(answer) => {
                Delivery::One(answer, Ok(Applied { reply: Err(why.clone()), term: 0 }))
            }
            Self::Many(count, answer) => {
                let replies = vec![Err(why.clone()); count];
                Delivery::Many(answer, Ok(AppliedMany { replies, term: 0 }))
            }
        }
    }

    fn give_up(self, why: Unavailable) -> Delivery {
        match self {
            Self::One(answer) => Delivery::One(answer, Err(why)),
            Self::Many(_, answer) => Delivery::Many(answer, Err(why)),
        }
    }
}

/// Which run of a process proposed an entry, and which of its entries it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Zero: nobody waits.
    pub run: u64,
    /// Counts that run's entries.
    pub sequence: u64,
}

/// The waiting clients of one run. Clones share them.
#[derive(Clone)]
pub struct Waiters(Arc<Inner>);

struct Inner {
    run: u64,
    sequence: AtomicU64,
    groups: Mutex<BTreeMap<u64, Group>>,
    deliveries: OnceLock<Deliveries>,
}

struct Group {
    answers: Vec<Answer>,
    /// Fires when the group is answered.
    _answered: oneshot::Sender<()>,
}

impl Waiters {
    /// Nobody waits yet; `run` is random (A2).
    #[must_use]
    pub fn new(run: u64) -> Self {
        let (sequence, groups) = (AtomicU64::new(1), Mutex::default());
        Self(Arc::new(Inner { run, sequence, groups, deliveries: OnceLock::new() }))
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<u64, Group>> {
        // Critical sections only move values, so the map is whole even after a panic.
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the clients of one entry, in the order of its proposals. The receiver completes
    /// when they were answered.
    #[must_use]
    pub fn expect(&self, answers: Vec<Answer>) -> (Origin, oneshot::Receiver<()>) {
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let (_answered, done) = oneshot::channel();
        self.groups().insert(sequence, Group { answers, _answered });
        (Origin { run: self.0.run, sequence }, done)
    }

    /// Whether an entry is of this run, so that somebody may wait for it.
    fn own(&self, origin: Origin) -> bool {
        origin.run == self.0.run
    }

    /// The entry was applied and answered so (A1).
    pub fn fulfill(&self, origin: Origin, term: u64, replies: Vec<Reply>) {
        if !self.own(origin) {
            return;
        }
        let mut replies = replies.into_iter();
        self.deliver(origin, |answer| answer.fulfill(term, &mut replies));
    }

    /// Nobody will answer: `why` (A1). Says how many clients waited.
    pub fn give_up(&self, origin: Origin, why: Unavailable) -> usize {
        self.deliver(origin, |answer| Some(answer.give_up(why)))
    }

    fn deliver(&self, origin: Origin, answered: impl FnMut(Answer) -> Option<Delivery>) -> usize {
        // A client that went away changes nothing about what was applied.
        let group = self.groups().remove(&origin.sequence);
        let Some(Group { answers, _answered }) = group else { return 0 };
        let clients = answers.len();
        self.deliveries().deliver(answers.into_iter().filter_map(answered).collect());
        clients
    }

    /// How many clients wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.groups().values().map(|group| group.answers.len()).sum()
    }

    /// How answers reach whoever waits.
    #[must_use]
    pub fn deliveries(&self) -> Deliveries {
        self.0.deliveries.get().cloned().unwrap_or_default()
    }

    /// From now on answers go this way. Only the first way is taken: a member serves once.
    pub fn deliver_through(&self, deliveries: Deliveries) {
        let _ = self.0.deliveries.set(deliveries);
    }
}
