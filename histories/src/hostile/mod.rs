//! A realm of processes, honest clients whose time is taken, and principals that attack it.
//!
//! ```text
//!   this thread:    Honest: an operator publishes, edges follow      quiet ──▶ attacked
//!   attack thread:  every attack of one principal, over its own credentials     └── Attacked
//! ```
//!
//! The claim is that a client with any certificate, or none, costs itself something and others little:
//! places, memory, time and history are taken from the one who asks for too much. An attack is a
//! function of an [`Attacker`] that never returns ([`attacks`] has those there are); the harness does
//! the rest, so another one is a line.
//!
//! # Invariants
//!
//! - Quiet and attacked times are of the same run, on the same machine.
//! - An attack that never got through to a server proves nothing: every one must have been sent.
//! - Nothing outlives a run, also not on a panic.

pub mod attack;
pub mod attacks;
pub mod honest;
pub mod realm;
pub mod report;

pub use attack::{Attack, Attacker, Tally, Under};
pub use honest::{Honest, Times};
pub use realm::Realm;
pub use report::Report;
