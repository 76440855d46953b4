//! One member's part in a Raft ring; the only crate that names openraft.
//!
//! Other crates see a [`Ring`]: they propose commands, watch the applied state, and learn which
//! member leads.
//!
//! ```text
//!   services ─▶ dispatch ─▶ proposals ─▶ log_store ─▶ writer ─▶ WAL
//!                  │            └─▶ network ─▶ the leader, the followers   (frames, peers)
//!                  └─▶ reads ─▶ a quorum         ring_service ◀── other members
//!   committed ─▶ state_machine ─▶ waiters, views, watches
//!                     └─▶ checkpoint ─▶ disk ─▶ snapshots, purge           (compaction)
//! ```
//!
//! # Timing
//!
//! A follower waits out the leader's lease (the longest election timeout) and then its own timeout,
//! so with 200 to 400 ms a dead leader costs 600 to 800 ms. Pre-vote keeps a member that was cut
//! off from deposing a healthy leader when it returns. A read relies on the lease only if its client
//! asked for that.

mod append_stream;
pub mod boot;
pub mod changes;
pub mod checkpoint;
pub mod clock;
mod commits;
pub mod compaction;
pub mod contact;
pub mod disk;
pub mod dispatch;
pub mod error;
pub mod founding;
pub mod frames;
pub mod health;
pub mod heartbeats;
pub mod inbox;
pub mod limits;
mod locks;
pub mod log_store;
pub mod maintenance;
pub mod members;
pub mod meters;
mod metrics;
pub mod network;
pub mod node;
pub mod offline;
pub mod peers;
pub mod platform;
pub mod proposals;
pub mod reads;
pub mod rebuild;
pub mod ring;
pub mod ring_service;
pub mod serve;
pub mod setup;
pub mod snapshots;
pub mod state_machine;
mod status;
pub mod types;
pub mod waiters;
pub mod writer;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use self::{
    compaction::Compaction,
    error::RingError,
    node::{Leading, RingStatus},
    proposals::ProposeError,
    ring::{Ring, RingParts},
    setup::{RingId, RingSetup, Timing, owner},
    types::{MemberName, Reply},
};
