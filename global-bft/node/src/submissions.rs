//! Decides which submission the consensus thread takes next.
//!
//! Checking a change costs signatures and an application, so a caller that submits without pause
//! must not be looked at more often than others. Each payer has a queue of its own, and they take
//! turns.
//!
//! # Invariants
//!
//! - **CHARGE-5** A payer that floods fills its own queue: of the others, each waits for at most one
//!   submission of every payer before its own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use satrap_certify::SignedChange;
use satrap_identity::charges::Payer;
use tokio::sync::oneshot;

use crate::limits::{
    SUBMISSION_BYTES_MAX, SUBMISSION_BYTES_PER_PAYER_MAX, SUBMISSIONS_MAX,
    SUBMISSIONS_PER_PAYER_MAX,
};
use crate::mempool::{Receipt, Refusal};

/// Answers a submission.
pub type Reply = oneshot::Sender<Result<Receipt, Refusal>>;

/// A change, its canonical size, and the caller that waits for it.
pub struct Submission {
    /// The change.
    pub change: SignedChange,
    /// Its canonical bytes.
    pub bytes: usize,
    /// Where the answer goes.
    pub reply: Reply,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Submission>,
    bytes: usize,
}

/// The queues of all payers.
#[derive(Default)]
pub struct Submissions {
    queues: BTreeMap<Payer, Queue>,
    /// The payer served last.
    last: Option<Payer>,
    count: usize,
    bytes: usize,
}

impl Submissions {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Queues a submission of `payer`; returns whether there was room.
    pub fn push(&mut self, payer: Payer, submission: Submission) -> bool {
        let (count, bytes) =
            self.queues.get(&payer).map_or((0, 0), |queue| (queue.waiting.len(), queue.bytes));
        let more = submission.bytes;
        let room = count < SUBMISSIONS_PER_PAYER_MAX
            && bytes + more <= SUBMISSION_BYTES_PER_PAYER_MAX
            && self.count < SUBMISSIONS_MAX
            && self.bytes + more <= SUBMISSION_BYTES_MAX;
        if room {
            let queue = self.queues.entry(payer).or_default();
            queue.bytes += more;
            queue.waiting.push_back(submission);
            self.bytes += more;
            self.count += 1;
        }
        room
    }

    /// The oldest submission of the payer whose turn it is (CHARGE-5).
    pub fn pop(&mut self) -> Option<Submission> {
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut later = self.queues.range::<Payer, _>((after, Bound::Unbounded));
        let payer = match later.next() {
            Some((payer, _)) => payer.clone(),
            None => self.queues.first_key_value()?.0.clone(),
        };
        let queue = self.queues.get_mut(&payer)?;
        let next = queue.waiting.pop_front()?;
        queue.bytes -= next.bytes;
        self.bytes -= next.bytes;
        self.count -= 1;
        if queue.waiting.is_empty() {
            self.queues.remove(&payer);
        }
        self.last = Some(payer);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use satrap_certify::{Action, Change, GovernanceAct, PublicKey, SignedChange};
    use tokio::sync::oneshot;

    use super::*;

    fn payer(region: &str) -> Payer {
        Payer::Region(region.to_owned())
    }

    /// Told apart by its size; the content does not matter here.
    fn submission(bytes: usize) -> Submission {
        let act = GovernanceAct::RevokeOperator(PublicKey([0; 32]));
        let change = Change { genesis_hash: [0; 32], action: Action::Govern(0, act) };
        let reply = oneshot::channel().0;
        Submission { change: SignedChange::unsigned(change), bytes, reply }
    }

    #[test]
    fn payers_take_turns_whatever_one_of_them_sends() {
        let mut submissions = Submissions::default();
        for n in 0..SUBMISSIONS_PER_PAYER_MAX {
            assert!(submissions.push(payer("b"), submission(100 + n)));
        }
        assert!(!submissions.push(payer("b"), submission(1)), "over its limit");
        assert!(submissions.push(payer("c"), submission(1)));
        assert!(submissions.push(payer("a"), submission(2)));
        let order: Vec<_> = (0..5).map(|_| submissions.pop().unwrap().bytes).collect();
        assert_eq!(order, [2, 100, 1, 101, 102]);
        while submissions.pop().is_some() {}
        assert!(submissions.is_empty() && submissions.bytes == 0 && submissions.queues.is_empty());
    }

    #[test]
    fn bytes_at_the_limits_and_over_them() {
        let mut submissions = Submissions::default();
        let payers = SUBMISSION_BYTES_MAX / SUBMISSION_BYTES_PER_PAYER_MAX;
        for n in 0..payers {
            let payer = payer(&n.to_string());
            assert!(submissions.push(payer.clone(), submission(SUBMISSION_BYTES_PER_PAYER_MAX)));
            assert!(!submissions.push(payer, submission(1)), "over its limit");
        }
        assert!(!submissions.push(payer("late"), submission(1)), "over the limit of all");
        submissions.pop().unwrap();
        assert!(submissions.push(payer("late"), submission(1)));
    }

    #[test]
    fn submissions_at_the_limit_of_all_and_over_it() {
        let mut submissions = Submissions::default();
        for n in 0..SUBMISSIONS_MAX {
            let payer = payer(&(n / SUBMISSIONS_PER_PAYER_MAX).to_string());
            assert!(submissions.push(payer, submission(1)));
        }
        assert!(!submissions.push(payer("late"), submission(1)));
    }
}
