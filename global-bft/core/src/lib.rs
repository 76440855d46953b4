//! The state machine of the global quorum: the ledger of heads, history and governance.
//!
//! A proposer builds a block, and every validator re-derives all of it from the same changes
//! before it votes. So this crate must give the same answer on every machine: no IO, no clock
//! (block time comes in the header), no randomness, ordered maps only.
//!
//! Reading order: [`rejection`] names the rules, [`state`] judges one change, [`govern`] a change of the
//! governance state, [`accounts`] keeps quotas, owners and rates in units of [`room`], [`x509`] checks
//! trust roots, [`ledger`] turns changes into blocks and back.

pub mod accounts;
pub mod govern;
pub mod ledger;
pub mod rejection;
pub mod room;
pub mod state;
pub mod x509;

pub use ledger::Ledger;
pub use rejection::Rejection;
