//! A realm without a network, for tests of the pure cores. The same calls give the same bytes: keys are
//! derived from names, and certified time is counted.
//!
//! [`realm`] is a whole global quorum in a struct: real keys, real ledger, real commits, no
//! network. [`chain`] shows its blocks to light clients. The tests here use them, and the tests of the
//! shells.

pub mod chain;
pub mod realm;

pub use chain::CertifiedBlock;
pub use realm::SimRealm;
