//! Tests of the validator: simulated engines, and a real mesh on loopback.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

mod byzantine;
mod crash;
mod disk;
mod mempool;
mod mesh;
mod quorum;
mod realm;
mod shapes;
mod signer;
mod wire;
mod world;
