//! Runs live rings under faults, records what clients see, and has it checked.
//!
//! ```text
//!  thread of the run: Cluster ◀── Nemesis ◀── plan(seed)          (namespaces, signals, disks)
//!                        ▲
//!  thread of the load:  12 clients, 2 lease keepers, a compactor, 8 watchers, a recorder for each
//!                        member ──▶ Recording ──▶ satrap_history::check
//! ```
//!
//! # Invariants
//!
//! - A run goes on until [`answers::OPERATIONS_MIN`] operations were completed and every fault had an
//!   effect. It is inconclusive without that, with too few answers of a kind, or with a watcher that
//!   was sent nothing.
//! - An operation of the recording is one call on the wire. Nothing is sent again by itself.
//! - An operation has an unknown outcome unless a code path proves that it was refused.
//! - Nothing outlives a run: not a process, not a namespace, not a mount; also not on a panic.
//!
//! # Deliberately absent
//!
//! No judgment: that is `satrap-history`'s. No store: whatever speaks the etcd API and can be
//! started by a [`cluster::Store`] is run alike.

pub mod admin;
pub mod answers;
pub mod clients;
pub mod cluster;
pub mod disk;
pub mod error;
pub mod failover;
pub mod fault;
pub mod fencing;
pub mod holder;
pub mod hostile;
pub mod nemesis;
pub mod net;
pub mod resource;
pub mod run;
pub mod satrap;
pub mod session;
pub mod shared;
pub mod summary;
pub mod watchers;
pub mod wire;

pub use error::RunError;
