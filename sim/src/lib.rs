//! Deterministic simulation of all pure cores: one seed, one trace.
//!
//! [`realm`] is a whole global quorum in a struct: real keys, real ledger, real commits, no
//! network. [`chain`] shows its blocks to light clients, [`lies`] is what a compromised region may
//! answer an edge with. They are used by the tests here, by the tests of the shells, and by
//! `satrap dev --evil-region`.

pub mod chain;
pub mod lies;
pub mod realm;

pub use chain::CertifiedBlock;
pub use lies::Lie;
pub use realm::SimRealm;
