//! The step in progress: its time, the peer that caused it, and the inputs for the core and effects for
//! the caller that it collects.

use std::collections::VecDeque;

use arc_malachitebft_core_consensus::Input;
use satrap_certify::Label;

use super::{context::Ctx, effects::EngineEffect, timing::Now};

/// The verdict on a message from a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// It goes on.
    Take(T),
    /// It is of no use now, which is no fault of the peer, or it waits here.
    Leave,
    /// No honest validator sends it; it counts as a strike against the peer.
    Junk,
}

/// One step of the engine.
pub(super) struct Step {
    pub now: Now,
    /// The peer whose message is being processed.
    pub source: Option<Label>,
    /// Whether that message turned out to be junk.
    pub junk: bool,
    /// Inputs that wait for the core, each with the peer that it came from.
    pub queue: VecDeque<(Option<Label>, Input<Ctx>)>,
    /// Effects for the caller.
    pub effects: Vec<EngineEffect>,
}

impl Step {
    pub fn new(now: Now) -> Self {
        Self { now, source: None, junk: false, queue: VecDeque::new(), effects: Vec::new() }
    }

    /// Queues an input for the core, from a peer or of this validator.
    pub fn queue(&mut self, from: Option<Label>, input: Input<Ctx>) {
        self.queue.push_back((from, input));
    }

    /// Adds an effect.
    pub fn effect(&mut self, effect: EngineEffect) {
        self.effects.push(effect);
    }
}
