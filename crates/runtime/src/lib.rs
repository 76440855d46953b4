//! The impure parts of a process: clock, randomness, tasks, files, the database file, children,
//! metrics and telemetry.
//!
//! Everything that a replay could not repeat enters the program here, so that the list of sites is
//! short and the rest of the code takes time and chance as arguments.
//!
//! # Deliberately absent
//!
//! No policy and no protocol. No environment variables: configuration arrives from files and flags,
//! parsed once by the binary.

pub mod child;
pub mod clock;
pub mod coalesce;
pub mod fault;
pub mod files;
#[cfg(feature = "introspect")]
pub mod introspect;
pub mod lock;
pub mod meters;
pub mod ports;
pub mod rng;
pub mod runtime;
#[cfg(feature = "database")]
pub mod store;
pub mod tasks;
pub mod telemetry;

pub use fault::{Fault, Unusable};
pub use tasks::{Failure, Hangup, RunUntil, Shutdown, TaskGroup};
