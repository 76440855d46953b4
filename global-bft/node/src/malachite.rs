//! Tendermint consensus on Satrap's blocks: the only place that names the Malachite crates.
//!
//! Reading order: [`context`] says what is voted on, [`signing`] what is signed, [`codec`] and
//! [`frame`] how it travels and is logged, [`engine`] what happens when. The engine performs no IO
//! but the two durable writes it is given: it takes an input and the time, and returns effects.
//!
//! # Why the core is not trusted with everything
//!
//! The core checks signatures and bounds of the height in progress. It queues messages of later
//! heights without checking them, believes every proposed value it is handed, and bounds queues by
//! count, not by peer. So everything from the network passes the host's `admission` first.

mod admission;
mod candidates;
pub mod codec;
pub mod context;
mod decide;
pub mod engine;
pub mod frame;
mod host;
pub mod peers;
pub mod signing;
mod upkeep;

pub use engine::{
    Engine, EngineEffect, EngineInput, Fatal, Now, Setup, TimerId, TimerKind, Timing,
};
pub use frame::Frame;
pub use signing::{Signer, SoftSigner};
