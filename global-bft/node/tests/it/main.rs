//! Tests of the validator: simulated engines, and a real mesh on loopback.

mod byzantine;
mod crash;
mod mesh;
mod quorum;
mod realm;
mod world;
