//! Tests of the coordination state of a ring through its interface: batches in, replies out.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

mod applied;
mod auth;
mod encoding;
mod fencing;
mod leases;
mod limits;
mod ring;
mod satrap_ops;
mod state;
