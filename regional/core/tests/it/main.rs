//! The coordination state of a ring, asked through its front door: batches in, replies out.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

mod auth;
mod fencing;
mod leases;
mod limits;
mod ring;
mod satrap_ops;
mod state;
