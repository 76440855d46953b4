//! Decides which changes wait for a block, and answers the callers that wait for them.
//!
//! Only changes that the ledger would accept now are kept, so the pool cannot be filled without an
//! operator's signature. After each block the pool drops changes that no longer apply and answers their
//! submitters with the rule; no change waits for a block that can never carry it.
//!
//! # Invariants
//!
//! - **MEMPOOL-1** Every ticket is answered once: decided, inapplicable, or refused at the door.
//! - **MEMPOOL-2** At most [`MEMPOOL_CHANGES_MAX`] changes and [`MEMPOOL_BYTES_MAX`] bytes are held.

use std::{collections::BTreeMap, time::Duration};

use satrap_certify::{Action, Block, BlockId, Digest, SignedChange};
use satrap_global_core::{Ledger, Rejection, room::Room};
use satrap_merkle::codec::Canonical as _;

use crate::limits::{
    MEMPOOL_BYTES_MAX, MEMPOOL_CHANGES_MAX, RESUBMIT_AFTER, RESUBMIT_MAX, TICKETS_PER_CHANGE_MAX,
};

/// Identifies a caller that waits for a change.
pub type Ticket = u64;

/// Where a change was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The height.
    pub height: u64,
    /// The block.
    pub block: BlockId,
    /// The version of the bundle it made; 0 if it made none.
    pub version: u64,
}

/// Why a change was not decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The change breaks a rule.
    #[error("{rule}: {why}", rule = .0.rule(), why = .0)]
    Rejected(#[from] Rejection),
    /// The change names a version that this validator has not reached, so it breaks a rule here; another
    /// validator may accept it.
    #[error("{rule}: {why}", rule = .0.rule(), why = .0)]
    Behind(Rejection),
    /// Too many changes wait; retry later.
    #[error("{waiting} changes wait for a block, at most {MEMPOOL_CHANGES_MAX} may; retry later")]
    Full {
        /// How many wait.
        waiting: usize,
    },
}

/// An answer to a caller.
pub type Answer = (Ticket, Result<Receipt, Refusal>);

struct Pending {
    change: SignedChange,
    digest: Digest,
    bytes: usize,
    /// The room that its bundle will take, so that the change need not be applied to check it
    /// again.
    room: Room,
    tickets: Vec<Ticket>,
    /// When it was last sent to the other validators, if it was submitted here.
    sent_at: Option<Duration>,
}

/// Changes that wait for a block, in order of arrival.
#[derive(Default)]
pub struct Mempool {
    pending: BTreeMap<u64, Pending>,
    by_digest: BTreeMap<Digest, u64>,
    bytes: usize,
    arrived: u64,
}

impl Mempool {
    /// How many changes wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The changes in order of arrival.
    pub fn changes(&self) -> impl Iterator<Item = &SignedChange> {
        self.pending.values().map(|p| &p.change)
    }

    /// Takes a change from another validator; returns whether it is new here.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn relay(&mut self, ledger: &Ledger, change: SignedChange) -> Result<bool, Refusal> {
        self.admit(ledger, change, None, None)
    }

    /// Takes a change from a caller who waits; returns whether it must be sent to the others.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; the caller has then been answered (MEMPOOL-1).
    pub fn submit(
        &mut self,
        ledger: &Ledger,
        change: SignedChange,
        ticket: Ticket,
        now: Duration,
    ) -> Result<bool, Refusal> {
        self.admit(ledger, change, Some(ticket), Some(now))
    }

    fn admit(
        &mut self,
        ledger: &Ledger,
        change: SignedChange,
        ticket: Option<Ticket>,
        sent_at: Option<Duration>,
    ) -> Result<bool, Refusal> {
        let full = Refusal::Full { waiting: self.len() };
        let digest = change.change.digest();
        if let Some(known) = self.by_digest.get(&digest).and_then(|n| self.pending.get_mut(n)) {
            if known.tickets.len() >= TICKETS_PER_CHANGE_MAX && ticket.is_some() {
                return Err(full);
            }
            known.tickets.extend(ticket);
            return Ok(false);
        }
        let bytes = change.to_canonical().len();
        if self.len() >= MEMPOOL_CHANGES_MAX || self.bytes + bytes > MEMPOOL_BYTES_MAX {
            return Err(full);
        }
        let room = ledger.check(&change).map_err(|why| match ledger.is_behind(&change) {
            true => Refusal::Behind(why),
            false => Refusal::Rejected(why),
        })?;
        let tickets = ticket.into_iter().collect();
        let pending = Pending { change, digest, bytes, room, tickets, sent_at };
        self.pending.insert(self.arrived, pending);
        self.by_digest.insert(digest, self.arrived);
        self.bytes += bytes;
        self.arrived += 1;
        Ok(true)
    }

    /// Answers for a decided block, which `ledger` has applied, and drops what no longer applies.
    pub fn settle(&mut self, ledger: &Ledger, block: &Block, id: BlockId) -> Vec<Answer> {
        let mut answers = Vec::new();
        for (change, version) in block.changes.iter().zip(versions(ledger, block)) {
            let decided = self.by_digest.get(&change.change.digest()).copied();
            let Some(pending) = decided.and_then(|n| self.remove(n)) else { continue };
            let receipt = Receipt { height: block.checkpoint.height, block: id, version };
            answers.extend(pending.tickets.into_iter().map(|ticket| (ticket, Ok(receipt))));
        }
        // Whether a change applies depends on its own bundle, on governance, on what the realm holds
        // and on its approvers' budgets: after a block, any of them may differ.
        answers.extend(self.recheck_all(ledger));
        answers
    }

    /// Drops everything that `ledger` refuses now. That costs a few look-ups per change.
    pub fn recheck_all(&mut self, ledger: &Ledger) -> Vec<Answer> {
        let mut answers = Vec::new();
        let refused: Vec<_> = self
            .pending
            .iter()
            .filter_map(|(n, pending)| {
                ledger.recheck(&pending.change, pending.room).err().map(|why| (*n, why))
            })
            .collect();
        for (n, why) in refused {
            let tickets = self.remove(n).map(|pending| pending.tickets).unwrap_or_default();
            answers.extend(tickets.into_iter().map(|t| (t, Err(Refusal::Rejected(why.clone())))));
        }
        answers
    }

    fn remove(&mut self, n: u64) -> Option<Pending> {
        let pending = self.pending.remove(&n)?;
        self.by_digest.remove(&pending.digest);
        self.bytes -= pending.bytes;
        Some(pending)
    }

    /// Changes submitted here that have waited since they were last sent; they count as sent now.
    pub fn resend(&mut self, now: Duration) -> Vec<SignedChange> {
        let overdue = |sent_at: Option<Duration>| {
            sent_at.is_some_and(|at| now.saturating_sub(at) >= RESUBMIT_AFTER)
        };
        let due = self.pending.values_mut().filter(|p| overdue(p.sent_at)).take(RESUBMIT_MAX);
        due.map(|pending| {
            pending.sent_at = Some(now);
            pending.change.clone()
        })
        .collect()
    }
}

/// The version that each change of `block` made, which `ledger` has applied; 0 if it made none.
fn versions(ledger: &Ledger, block: &Block) -> Vec<u64> {
    // The version a change made is the one that the next change of the bundle expects.
    let mut expected = BTreeMap::new();
    let version = |signed: &SignedChange| {
        let (bundle, expect_version) = match &signed.change.action {
            Action::Publish(publish) => (&publish.bundle, publish.expect_version),
            Action::Retire(retire) => (&retire.bundle, retire.expect_version),
            Action::Govern(..) => return 0,
        };
        let after = expected.insert(bundle.clone(), expect_version);
        let head = || ledger.heads().get(bundle).map_or(0, |head| head.version);
        let made = after.unwrap_or_else(head);
        if matches!(signed.change.action, Action::Retire(_)) { 0 } else { made }
    };
    let mut versions: Vec<u64> = block.changes.iter().rev().map(version).collect();
    versions.reverse();
    versions
}
