//! One validator as a function: input and time in, effects out.
//!
//! ```text
//!   input ─▶ admission ─▶ queue of core inputs ─▶ core ─▶ effects performed by the host
//!                              ▲                              │ log, sign, decide (durable)
//!                              └──────────────────────────────┘ broadcast, timers (returned)
//! ```
//!
//! # Invariants
//!
//! - **N1** Whatever a step returns may leave at once: the log, the guard and the decision it
//!   follows from are already on disk. A step that fails returns nothing, and the process stops.
//! - **N2** After a crash at any point, the restarted engine signs nothing that contradicts what it
//!   signed before: the log re-derives it, and the guard holds where the log does not.
//! - **N3** Nothing is built or proposed before the log has been replayed.
//!
//! # Deliberately absent
//!
//! No sockets, clocks, threads or randomness. The caller passes `now`, keeps the timers and sends
//! the frames: that is `run.rs` in production and the simulation in tests.

use std::{sync::Arc, time::Duration};

use arc_malachitebft_core_consensus::{
    Error as CoreError, Input, Params, Resume, State, ValuePayload,
    r#gen::{CoResult, Gen},
    handle,
};
use arc_malachitebft_core_types::{Round, Timeout, TimeoutKind};
use satrap_certify::{Commit, Genesis, Label, Replica, SignedChange, Timestamp};
use satrap_global_core::Ledger;
use satrap_merkle::codec::DecodeError;

use super::{
    codec,
    context::{Ctx, Height, Value},
    frame::Frame,
    host::Host,
    signing::Signer,
};
use crate::{
    guard::Guard,
    limits::{CORE_QUEUE_HEIGHTS, CORE_QUEUE_MESSAGES},
    mempool::{Answer, Mempool, Ticket},
    store::{DiskError, Storage},
};

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

/// What a timer is for.
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
    /// What for.
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

/// What happens to a validator.
#[derive(Debug)]
pub enum EngineInput {
    /// A frame from the validator that mTLS names.
    Frame(Label, Frame),
    /// A timer fired.
    Timer(TimerId),
    /// A caller submits a change and waits for the answer.
    Submit(SignedChange, Ticket),
    /// [`crate::limits::TICK`] has passed.
    Tick,
}

/// What a validator does, in order.
#[derive(Debug)]
pub enum EngineEffect {
    /// Send to every connected validator.
    Broadcast(Frame),
    /// Send to one.
    Send(Label, Frame),
    /// Cut the connections of a peer that sends junk.
    Disconnect(Label),
    /// Start or restart a timer.
    Schedule(TimerId, Duration),
    /// Stop a timer.
    Cancel(TimerId),
    /// Stop all timers.
    CancelAll,
    /// A height was decided; the engine's accessors show the new state.
    Decided(u64),
    /// Answer a caller.
    Answer(Answer),
}

/// Why the process must stop. A restart replays the log and is safe.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The database failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The last-sign file failed.
    #[error("last-sign file: {0}")]
    Guard(#[from] std::io::Error),
    /// The key cannot be used.
    #[error("signing key: {0}")]
    Signer(String),
    /// The log does not parse.
    #[error("the log of the height in progress is damaged: {0}")]
    Log(DecodeError),
    /// The log holds a message of ours that the guard did not see.
    #[error(
        "the log contradicts the last-sign file: {0}; one of them comes from an old disk image, and \
         voting on could equivocate. Give this validator a new key"
    )]
    Rollback(crate::guard::Refused),
    /// The quorum decided what this ledger refuses.
    #[error(
        "the quorum decided a block at height {height} that this validator finds invalid ({why}); \
         it runs other code or has a damaged state"
    )]
    Diverged {
        /// The height.
        height: u64,
        /// The rule.
        why: String,
    },
    /// The core asks to stop.
    #[error("consensus core: {0}")]
    Core(String),
}

/// What an engine is made of.
pub struct Setup {
    /// The realm.
    pub genesis: Genesis,
    /// The key that votes.
    pub signer: Box<dyn Signer>,
    /// What it signed last.
    pub guard: Guard,
    /// What it must not forget.
    pub store: Box<dyn Storage>,
    /// Timeouts.
    pub timing: Timing,
}

/// One validator, or a process that follows the validators.
pub struct Engine {
    state: State<Ctx>,
    host: Host,
}

impl Engine {
    /// Restores the state on disk, replays the log and starts the height in progress.
    ///
    /// # Errors
    ///
    /// [`Fatal`].
    pub fn start(setup: Setup, now: Now) -> Result<(Self, Vec<EngineEffect>), Fatal> {
        let mut host = Host::restore(setup, now)?;
        let log = host.read_log()?;
        let params = Params {
            address: host.me,
            threshold_params: arc_malachitebft_core_consensus::ThresholdParams::default(),
            value_payload: ValuePayload::ProposalAndParts,
            enabled: true,
        };
        let state = State::new(
            Ctx,
            Height(host.height()),
            host.electorate.clone(),
            params,
            CORE_QUEUE_HEIGHTS,
            CORE_QUEUE_MESSAGES,
        );
        let mut engine = Self { state, host };
        engine.replay(log)?;
        // Not `run`: a block of our own waits for the first tick, when peers are connected.
        engine.drain()?;
        let effects = engine.host.settle()?;
        Ok((engine, effects))
    }

    /// Takes one input.
    ///
    /// # Errors
    ///
    /// [`Fatal`]: the engine must be dropped and the process must stop (N1).
    pub fn step(&mut self, now: Now, input: EngineInput) -> Result<Vec<EngineEffect>, Fatal> {
        self.host.now = now;
        self.host.admit(input)?;
        self.run()?;
        self.host.settle()
    }

    /// N2, N3
    fn replay(&mut self, log: Vec<Input<Ctx>>) -> Result<(), Fatal> {
        let height = self.host.height();
        self.host.replaying = log.clone();
        let start = self.host.start_height();
        self.process(start)?;
        self.state.index_wal_entries(log.iter());
        for input in log {
            // The last entry before the crash may have decided the height.
            if self.host.height() != height {
                break;
            }
            self.process(input)?;
        }
        self.state.reset_entries_index();
        self.host.end_replay();
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Fatal> {
        while let Some((source, input)) = self.host.queue.pop_front() {
            self.host.source = source;
            self.process(input)?;
            self.host.judge_source();
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Fatal> {
        loop {
            self.drain()?;
            match self.host.drive() {
                Some(input) => self.host.queue.push_back((None, input)),
                None => return Ok(()),
            }
        }
    }

    fn process(&mut self, input: Input<Ctx>) -> Result<(), Fatal> {
        let Self { state, host } = self;
        let mut coroutine = Gen::new(|co| handle(co, state, &(), input));
        let mut result = coroutine.resume_with(Resume::Start);
        loop {
            result = match result {
                // Not the `process!` macro: it resumes after a failed effect.
                CoResult::Yielded(effect) => coroutine.resume_with(host.perform(effect)?),
                CoResult::Complete(Ok(())) => return Ok(()),
                CoResult::Complete(Err(error)) => return judge(error),
            };
        }
    }

    /// The height in progress.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.host.height()
    }

    /// The round in progress.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.host.round
    }

    /// Whether this process votes on the height in progress.
    #[must_use]
    pub fn in_set(&self) -> bool {
        self.host.electorate.member(&self.host.me).is_some()
    }

    /// The decided state.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.host.ledger
    }

    /// The commit of the last decided block.
    #[must_use]
    pub fn last_commit(&self) -> Option<&Commit> {
        self.host.last_commit.as_ref()
    }

    /// The verified copy that is served to regions.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.host.replica
    }

    /// Changes that wait for a block.
    #[must_use]
    pub fn mempool(&self) -> &Mempool {
        &self.host.mempool
    }
}

/// Which errors of the core mean that this process must not go on.
fn judge(error: CoreError<Ctx>) -> Result<(), Fatal> {
    match error {
        // Signing on could contradict what was signed before the crash.
        CoreError::ReplayDivergence(..)
        // A bug here: an effect was answered with the wrong kind of value.
        | CoreError::UnexpectedResume(..)
        | CoreError::DecisionNotFound(..)
        | CoreError::WalCorrupted(_) => Err(Fatal::Core(error.to_string())),
        // The input was refused; the state is as before it.
        CoreError::DriverProcess(_)
        | CoreError::InvalidCommitCertificate(..)
        | CoreError::MissingPolkaCertificate(..)
        | CoreError::VoteExtensionRequired(..) => {
            tracing::error!(%error, "the consensus core refused an input");
            Ok(())
        }
    }
}

impl Host {
    /// The log of the height in progress, parsed; its blocks and own messages are taken over.
    fn read_log(&mut self) -> Result<Vec<Input<Ctx>>, Fatal> {
        let mut known: Vec<Value> = Vec::new();
        let mut log = Vec::new();
        for entry in self.store.logged()? {
            let input =
                codec::read_log_entry(&self.realm, &entry, &mut known).map_err(Fatal::Log)?;
            log.push(input);
        }
        for value in known {
            self.log.blocks.insert(value.value_id());
            self.values.insert(value.value_id(), value);
        }
        self.check_log(&log)?;
        Ok(log)
    }
}
