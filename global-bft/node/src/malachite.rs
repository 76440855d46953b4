//! Tendermint consensus on Satrap's blocks: the only place that names the Malachite crates.
//!
//! Reading order: [`context`] (votes and values), [`signing`] (the bytes that are signed), [`codec`] and
//! [`frame`] (log and wire), `journal`, `height`, `admission`, `candidates`, `catchup`, `decided` (the
//! parts of the host), `host`, `inputs`, `perform`, `propose` (what happens when), [`engine`] (the
//! loop). Imports go one way, from the engine down. The engine performs no IO but the two durable
//! writes it is given: it takes an input and the time, and returns effects.
//!
//! # Why the core is not trusted with everything
//!
//! The core checks signatures and bounds of the height in progress. It queues messages of later
//! heights without checking them, believes every proposed value it is handed, and bounds queues by
//! count, not by peer. So everything from the network passes `admission` and `peers` first.

mod admission;
mod candidates;
mod catchup;
pub mod codec;
pub mod context;
mod decided;
mod effects;
pub mod engine;
pub mod frame;
mod height;
mod holders;
mod host;
mod inputs;
mod journal;
mod peers;
mod perform;
mod propose;
pub mod signing;
mod step;
mod timing;

pub use effects::{EngineEffect, EngineInput, Fatal, SignRequest};
pub use engine::{Engine, Setup};
pub use frame::Frame;
pub use peers::Purpose;
pub use timing::{Now, TimerId, TimerKind, Timing};
