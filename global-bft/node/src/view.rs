//! The state of the consensus thread after each step, as the services see it.

use std::sync::Arc;

use satrap_certify::{BlockId, Checkpoint, Commit, Governance};

use crate::malachite::Engine;

/// The state of one validator after a step.
#[derive(Clone, Debug)]
pub struct View {
    /// Last decided height.
    pub height: u64,
    /// Its block.
    pub last: Option<(Checkpoint, BlockId)>,
    /// The signatures on it.
    pub commit: Option<Commit>,
    /// The governance state after it.
    pub governance: Arc<Governance>,
    /// Round of the height in progress.
    pub round: u32,
    /// Whether this process votes on the height in progress.
    pub in_set: bool,
    /// Changes that wait.
    pub mempool: usize,
}

impl View {
    /// The state of `engine`.
    #[must_use]
    pub fn of(engine: &Engine) -> Self {
        let ledger = engine.ledger();
        Self {
            height: ledger.height(),
            last: ledger.last().cloned(),
            commit: engine.last_commit().cloned(),
            governance: Arc::new(ledger.governance().clone()),
            round: engine.round(),
            in_set: engine.in_set(),
            mempool: engine.mempool().len(),
        }
    }

    /// This view after a step within its height; `None` if nothing that it shows has changed.
    #[must_use]
    pub fn refreshed(&self, engine: &Engine) -> Option<Self> {
        let (round, mempool) = (engine.round(), engine.mempool().len());
        if engine.ledger().height() != self.height {
            return Some(Self::of(engine));
        }
        let changed = round != self.round || mempool != self.mempool;
        changed.then(|| Self { round, mempool, ..self.clone() })
    }
}
