//! What the global quorum agrees on: the ledger of heads, history and governance.
//!
//! A proposer builds a block, and every validator re-derives all of it from the same changes
//! before it votes. So this crate must give the same answer on every machine: no IO, no clock
//! (block time comes in the header), no randomness, ordered maps only.
//!
//! Reading order: [`rejection`] names the rules, [`state`] judges one change, [`govern`] those of
//! the governance state, [`accounts`] knows who may still use what, [`x509`] what a trust root is,
//! [`ledger`] turns changes into blocks and back.

pub mod accounts;
pub mod govern;
pub mod ledger;
pub mod rejection;
pub mod state;
pub mod x509;

pub use ledger::Ledger;
pub use rejection::Rejection;
