//! The sync protocol, `satrap.v1.Sync`: how a follower gets certified state from a source.
//!
//! ```text
//!   follower                                   source
//!   position (height, heads, content held) ──▶
//!                                          ◀── update, in pieces: what leads on from the position
//!   report (edges only)                    ──▶
//!                                          ◀── the next update, after every change
//! ```
//!
//! [`server`] serves the protocol for validators and regions. [`client`] follows any source: a
//! region follows validators, an edge follows a region's members, an operator reads from either.
//! A follower trusts its source with nothing. It verifies each update with its own
//! [`satrap_certify::Replica`], which is neither the server's nor the client's part.

pub mod client;
pub mod pieces;
pub mod server;
