//! One member of a region: follows a source of certified updates, serves edges and operators, and
//! runs a member of the region's ring (its Raft group, which also serves the etcd API).
//!
//! Path of an update: [`upstream`] receives it from a [`source`] (a validator, or a member of
//! another region), verifies and proposes it; `satrap-ring-raft` replicates it;
//! `satrap-region-core` verifies it again on every member; [`sync_service`] sends it to edges and
//! other regions. [`control`] answers operators; [`run`] starts and stops all parts.
//!
//! # Invariants
//!
//! - The leader proposes only updates that it verified. A compromised leader may log others, so
//!   every member verifies an update again before its certified replica changes.
//! - Without sources, or without a quorum, a member keeps serving its certified replica.
//!
//! # Deliberately absent
//!
//! Raft, storage and the etcd API are in `regional/ring`.

pub mod config;
pub mod control;
pub mod limits;
pub mod refusals;
pub mod reports;
pub mod run;
pub mod source;
pub mod status;
pub mod sync_service;
pub mod upstream;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use run::{RunError, run};
