//! The only impure shared crate: clock, randomness, tasks, mTLS, redb, telemetry, children, the sync
//! server.
//!
//! Everything that a replay could not repeat enters the program here, so that the list of sites is
//! short and the rest of the code takes time and chance as arguments. The three processes share
//! these shells; what they decide lives in their pure cores.
//!
//! # Deliberately absent
//!
//! No policy: only [`follow`] knows that there are replicas, and it asks its tier whom to serve;
//! [`charges`] knows who pays, and its tier says how much. No
//! environment variables: configuration arrives from files and flags, parsed once by the binary.

pub mod charges;
pub mod child;
pub mod clock;
pub mod config;
pub mod fault;
pub mod files;
pub mod follow;
pub mod gather;
pub mod introspect;
pub mod lock;
pub mod meters;
pub mod mtls;
pub mod pki;
pub mod ports;
pub mod rng;
pub mod runtime;
pub mod store;
pub mod tasks;
pub mod telemetry;

pub use fault::{Fault, Unusable};
pub use tasks::{Failure, Hangup, RunUntil, Shutdown, TaskGroup};
