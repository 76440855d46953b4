//! One member of a regional Raft ring: the shell around `satrap_regional_core::Region`.
//!
//! Reading path: [`upstream`] verifies what a validator sends and proposes it, [`raft`] agrees on
//! it, [`sync_service`] serves it on; [`control`] answers operators, [`run`] puts it together.
//!
//! # Invariants
//!
//! - Nothing enters the Raft log that did not verify on the leader, and nothing enters the region
//!   that did not verify on this member.
//! - Nothing is acknowledged before a majority has it on disk, and the first failed write stops the
//!   process.
//! - Without validators, or without a quorum, a member keeps serving what it has.
//!
//! # Deliberately absent
//!
//! Changing the members of a running ring, and everything the region will hold besides the replica.

pub mod config;
pub mod control;
pub mod etcd;
pub mod limits;
pub mod offline;
pub mod raft;
pub mod refusals;
pub mod reports;
pub mod run;
pub mod snapshots;
pub mod status;
pub mod sync_service;
pub mod upstream;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use run::{RunError, run};
