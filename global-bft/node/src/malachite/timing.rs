//! Time as the engine sees it: the time of one step, the timeouts of a network, and named timers.

use std::time::Duration;

use arc_malachitebft_core_types::{Round, Timeout, TimeoutKind};
use satrap_certify::Timestamp;

/// The time of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, for spans.
    pub monotonic: Duration,
    /// Wall clock, stamped into blocks and compared with their stamps.
    pub wall: Timestamp,
}

/// Durations of one realm's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Waiting for a proposal before voting nil: twice the slowest one-way delay and some jitter.
    pub propose: Duration,
    /// Waiting for prevotes that agree.
    pub prevote: Duration,
    /// Waiting for precommits that agree.
    pub precommit: Duration,
    /// Between repetitions of own votes.
    pub rebroadcast: Duration,
    /// How much each failed round adds to the above.
    pub growth_percent_per_round: u32,
    /// How far apart clocks of honest validators are (PBTS).
    pub clock_precision: Duration,
    /// How long a proposal travels at most (PBTS); it grows with the rounds, too.
    pub message_delay: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            propose: Duration::from_millis(500),
            prevote: Duration::from_millis(200),
            precommit: Duration::from_millis(200),
            rebroadcast: Duration::from_secs(1),
            growth_percent_per_round: 50,
            clock_precision: Duration::from_millis(500),
            message_delay: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// Growth ends here: a network that needs longer is down.
    const TIMEOUT_MAX: Duration = Duration::from_secs(15);

    /// `base` in `round`.
    #[must_use]
    pub fn grown(&self, base: Duration, round: u32) -> Duration {
        let percent = round.saturating_mul(self.growth_percent_per_round).saturating_add(100);
        (base.saturating_mul(percent) / 100).min(base.max(Self::TIMEOUT_MAX))
    }

    pub(super) fn of(&self, timer: TimerId) -> Duration {
        match timer.kind {
            TimerKind::Propose => self.grown(self.propose, timer.round),
            TimerKind::Prevote => self.grown(self.prevote, timer.round),
            TimerKind::Precommit => self.grown(self.precommit, timer.round),
            TimerKind::Rebroadcast => self.rebroadcast,
        }
    }
}

/// The condition that a timer bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerKind {
    /// No proposal came.
    Propose,
    /// Prevotes disagree.
    Prevote,
    /// Precommits disagree.
    Precommit,
    /// Own votes may have been lost.
    Rebroadcast,
}

/// Names a timer; one that fires for a past height or round does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId {
    /// Height.
    pub height: u64,
    /// Round.
    pub round: u32,
    /// Kind.
    pub kind: TimerKind,
}

impl TimerId {
    pub(super) fn of(height: u64, timeout: &Timeout) -> Option<Self> {
        let kind = match timeout.kind {
            TimeoutKind::Propose => TimerKind::Propose,
            TimeoutKind::Prevote => TimerKind::Prevote,
            TimeoutKind::Precommit => TimerKind::Precommit,
            TimeoutKind::Rebroadcast => TimerKind::Rebroadcast,
            // Only with a target time, which no height here has.
            TimeoutKind::FinalizeHeight(_) => return None,
        };
        Some(Self { height, round: timeout.round.as_u32()?, kind })
    }

    pub(super) fn timeout(self) -> Timeout {
        let kind = match self.kind {
            TimerKind::Propose => TimeoutKind::Propose,
            TimerKind::Prevote => TimeoutKind::Prevote,
            TimerKind::Precommit => TimeoutKind::Precommit,
            TimerKind::Rebroadcast => TimeoutKind::Rebroadcast,
        };
        Timeout::new(Round::new(self.round), kind)
    }
}
