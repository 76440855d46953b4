//! The consensus engine of one validator as a function: input and time in, effects out.
//!
//! ```text
//!   input ─▶ admission ─▶ queue of core inputs ─▶ core ─▶ effects performed by the host
//!                              ▲                              │ log, decide (durable)
//!                              └──────────────────────────────┘ broadcast, timers, requests to
//!                                                               the signer (returned)
//! ```
//!
//! # Invariants
//!
//! - **ENGINE-1** The effects that a step returns may leave at once: the log, the guard and the decision that
//!   they follow from are already on disk. A step that fails returns nothing, and the process stops.
//! - **ENGINE-2** After a crash at any point, the restarted engine requests no signature that contradicts one
//!   that it requested before: the log re-derives it, and the guard holds where the log does not.
//! - **ENGINE-3** Nothing is built or proposed before the log has been replayed.
//!
//! # Deliberately absent
//!
//! No sockets, clocks, threads, randomness or keys. The caller passes `now`, keeps the timers, asks the
//! signer and sends the frames: that is `run.rs` in production and the simulation in tests.

use std::sync::Arc;

use arc_malachitebft_core_consensus::{
    Error as CoreError, Input, Params, Resume, State, ValuePayload,
    r#gen::{CoResult, Gen},
    handle,
};
use satrap_certify::{Commit, Genesis, PublicKey, Replica};
use satrap_global_core::Ledger;

use super::{
    admission::Admission,
    catchup::Catchup,
    context::{Ctx, Height, Voter},
    decided::Decided,
    effects::{EngineEffect, EngineInput, Fatal},
    height::HeightState,
    host::Host,
    journal::Journal,
    peers::Peers,
    step::Step,
    timing::{Now, Timing},
};
use crate::{
    guard::Guard,
    limits::{CORE_QUEUE_HEIGHTS, CORE_QUEUE_MESSAGES},
    mempool::Mempool,
    store::Storage,
};

/// The parts that an engine is made of.
pub struct Setup {
    /// The realm.
    pub genesis: Genesis,
    /// The key that votes; the caller holds its signer.
    pub public: PublicKey,
    /// The digests of the last messages that were requested of the signer.
    pub guard: Guard,
    /// Decided blocks, and the log of the height in progress.
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
        let mut host = assemble(setup, now)?;
        let log = host.journal.read(host.height.number)?;
        let held = log.values.into_iter().map(|value| (value.value_id(), value));
        host.height.values.extend(held);
        let params = Params {
            address: host.me,
            threshold_params: arc_malachitebft_core_consensus::ThresholdParams::default(),
            value_payload: ValuePayload::ProposalAndParts,
            enabled: true,
        };
        let state = State::new(
            Ctx,
            Height(host.height.number),
            host.height.electorate.clone(),
            params,
            CORE_QUEUE_HEIGHTS,
            CORE_QUEUE_MESSAGES,
        );
        let mut engine = Self { state, host };
        engine.replay(log.inputs)?;
        // Not `run`: a block of our own waits for the first tick, when peers are connected.
        engine.drain()?;
        engine.host.publish_own();
        let effects = engine.settle()?;
        Ok((engine, effects))
    }

    /// Takes one input.
    ///
    /// # Errors
    ///
    /// [`Fatal`]: the engine must be dropped and the process must stop (ENGINE-1).
    pub fn step(&mut self, now: Now, input: EngineInput) -> Result<Vec<EngineEffect>, Fatal> {
        self.host.step.now = now;
        self.host.admit(input)?;
        self.run()?;
        self.settle()
    }

    /// ENGINE-1: the effects of this step may leave after this returns.
    fn settle(&mut self) -> Result<Vec<EngineEffect>, Fatal> {
        let requests = self.host.journal.settle()?;
        let mut effects = std::mem::take(&mut self.host.step.effects);
        effects.extend(requests.into_iter().map(EngineEffect::Sign));
        Ok(effects)
    }

    /// ENGINE-2, ENGINE-3
    fn replay(&mut self, log: Vec<Input<Ctx>>) -> Result<(), Fatal> {
        let height = self.height();
        self.host.journal.begin_replay(log.clone());
        self.process(self.host.height.start())?;
        // The core is not given the messages of this validator in advance: it was not when it
        // derived them, since their signatures came later. They are inputs of the log.
        self.state.index_wal_entries([]);
        for input in log {
            // The last entry before the crash may have decided the height.
            if self.height() != height {
                break;
            }
            self.process(input)?;
        }
        self.state.reset_entries_index();
        self.host.end_replay();
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Fatal> {
        while let Some((source, input)) = self.host.step.queue.pop_front() {
            self.host.step.source = source;
            self.process(input)?;
            self.host.judge_source();
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Fatal> {
        loop {
            self.drain()?;
            match self.host.drive() {
                Some(input) => self.host.step.queue(None, input),
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
        self.host.height.number
    }

    /// The round in progress.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.host.height.round
    }

    /// Whether this process votes on the height in progress.
    #[must_use]
    pub fn in_set(&self) -> bool {
        self.host.height.electorate.member(&self.host.me).is_some()
    }

    /// The decided state.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.host.decided.ledger
    }

    /// The commit of the last decided block.
    #[must_use]
    pub fn last_commit(&self) -> Option<&Commit> {
        self.host.decided.last_commit.as_ref()
    }

    /// The replica that is served to regions.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.host.decided.replica
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
        // Cannot happen: the core is given no messages to compare with.
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
            tracing::error!(%error, "the consensus core refused an input and kept its state");
            Ok(())
        }
    }
}

/// Restores the decided state on disk and puts the parts of the host around it.
fn assemble(setup: Setup, now: Now) -> Result<Host, Fatal> {
    let Setup { genesis, public, guard, store, timing } = setup;
    let decided = Decided::restore(&genesis, &*store)?;
    let realm = genesis.realm().clone();
    Ok(Host {
        me: Voter(public.address()),
        timing,
        height: HeightState::after(&decided.ledger, &genesis),
        decided,
        journal: Journal::new(realm.clone(), public, store, guard),
        admission: Admission::new(realm.clone(), timing),
        peers: Peers::default(),
        catchup: Catchup::default(),
        mempool: Mempool::default(),
        step: Step::new(now),
        genesis,
        realm,
    })
}
